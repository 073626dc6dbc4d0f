"""A tailnet of namespaces for the interop tests: a hub with the coordination server, and members of every kind around it.

    with Tailnet("headscale-0.29") as t:          # or "headscale-0.28", or "porthole"
        ours, theirs = t.ours("film"), t.tailscaled("laptop")
        ours.reaches(theirs)
        transfer(ours, theirs, 1 << 30)

Every member sits in a namespace of its own, joined to the hub by a veth with an IPv4 and an IPv6 address; members see
each other through the hub, so that direct paths work. `t.members` all have: name, ips, fqdn, space, connect(host, port)
(a socket of this process that reaches the tailnet through the member), and a Blobs server reachable on its tailnet
addresses at port BLOBS, and a UDP echo at ECHO_UDP.
"""
import hashlib
import shutil
import struct
import tempfile

import headscale
from interop import *
from interop import PEERS, Background, Net, in_folder, inside, peer

BLOBS = 8642
ECHO_UDP = 8643


PATTERN = hashlib.shake_256(b"porthole interop").digest(1 << 20)


def pattern(size):
    """Blocks of `size` bytes in all that differ from one to the next."""
    for n in range((size + len(PATTERN) - 1) // len(PATTERN)):
        yield (struct.pack(">Q", n) + PATTERN[8:])[:size - n * len(PATTERN)]


def send_pattern(s, size):
    """Their SHA-256."""
    digest = hashlib.sha256()
    for block in pattern(size):
        digest.update(block)
        s.sendall(block)
    return digest.hexdigest()


def receive_hashed(s, size=None):
    digest, got = hashlib.sha256(), 0
    while size is None or got < size:
        block = s.recv(1 << 18 if size is None else min(1 << 18, size - got))
        if not block:
            break
        digest.update(block)
        got += len(block)
    return digest.hexdigest(), got


class Blobs:
    """A local service. First line of a connection: 'UP n' (n bytes, then we answer with their SHA-256), 'SUM' (the
    same, but the bytes end where the sender's side of the connection ends), 'DOWN n'
    (n bytes, then the end), 'ECHO' (everything comes back, and the end too), 'WHO' (our name), 'TICK seconds' (a line every 100 ms)."""

    def __init__(self, name, space, port=BLOBS):
        self.name = name
        with inside(space):
            self.listener = socket.create_server(("127.0.0.1", port), backlog=512)
            self.udp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
            self.udp.bind(("127.0.0.1", ECHO_UDP))
        self.port = port
        serve_each(self.listener, self._serve)
        threading.Thread(target=self._echo_udp, daemon=True).start()

    def _echo_udp(self):
        while True:
            try:
                data, source = self.udp.recvfrom(65536)
                self.udp.sendto(data, source)
            except OSError:
                return

    def _serve(self, s):
        line = b""
        while not line.endswith(b"\n"):
            c = s.recv(1)
            if not c:
                return
            line += c
        word, *rest = line.decode().split()
        if word in ("UP", "SUM"):
            digest, got = receive_hashed(s, int(rest[0]) if rest else None)
            s.sendall(f"{digest} {got}\n".encode())
        elif word == "DOWN":
            send_pattern(s, int(rest[0]))
        elif word == "ECHO":
            while True:
                block = s.recv(65536)
                if not block:
                    break
                s.sendall(block)
        elif word == "WHO":
            s.sendall((self.name + "\n").encode())
        elif word == "TICK":
            end = time.monotonic() + float(rest[0])
            while time.monotonic() < end:
                s.sendall(b"tick\n")
                time.sleep(0.1)
        s.shutdown(socket.SHUT_WR)
        while s.recv(65536):
            pass

    def close(self):
        self.listener.close()
        self.udp.close()


class Member:
    def __init__(self, net, name, space):
        self.net, self.name, self.space = net, name, space
        self.socks = None          # (host, port, user, password) inside the namespace
        self.ips = []
        self.fqdn = ""
        self.blobs = Blobs(name, space)

    @property
    def v4(self):
        return next(a for a in self.ips if ":" not in a)

    @property
    def v6(self):
        return next(a for a in self.ips if ":" in a)

    def _socks(self, command, host, port, seconds):
        """A request to this member's SOCKS5 proxy: its connection, and the (address, port) of the answer; ConnectionError when it says no."""
        address, proxy_port, user, password = self.socks
        with inside(self.space):
            s = socket.create_connection((address, proxy_port), timeout=seconds)
        socks_log_in(s, user, password)
        reply, *bound = socks_ask(s, command, host, port)
        if reply != 0:
            s.close()
            raise ConnectionError(f"{self.name}: the proxy answers {reply} for {host}:{port}")
        return s, tuple(bound)

    def connect(self, host, port=BLOBS, seconds=20):
        """A connection over the tailnet, through this member's SOCKS5 proxy; ConnectionError when it says no."""
        return self._socks(1, host, port, seconds)[0]

    def datagrams(self, host, port=ECHO_UDP):
        """Something with send, recv, fileno and close that exchanges datagrams with host:port through this member's proxy."""
        control, relay = self._socks(3, "0.0.0.0", 0, 20)
        with inside(self.space):
            s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        s.connect(relay)
        return ProxiedDatagrams(control, s, host, port)

    def ask(self, host, line="WHO", port=BLOBS, seconds=20):
        s = self.connect(host, port, seconds)
        with s:
            s.sendall((line + "\n").encode())
            out = b""
            while True:
                block = s.recv(65536)
                if not block:
                    return out.decode().strip()
                out += block

    def reaches(self, other, seconds=20):
        """Asks until it works, within the time; how long it took."""
        start = time.monotonic()

        def once():
            try:
                return self.ask(other.v4, seconds=max(1, seconds)) == other.name
            except (OSError, Failed):
                return False
        wait_for(once, seconds, f"{self.name} reaches {other.name}")
        return time.monotonic() - start

    def reachable(self, other, seconds=3, host=None):
        try:
            return self.ask(host or other.v4, seconds=seconds) == other.name
        except (OSError, Failed):
            return False

    def close(self):
        self.blobs.close()


class ProxiedDatagrams:
    """RFC 1928, UDP ASSOCIATE."""

    def __init__(self, control, s, host, port):
        self.control, self.s = control, s
        self.head = b"\0\0\0" + socks_address(host, port)

    def fileno(self):
        return self.s.fileno()

    def send(self, data):
        self.s.send(self.head + data)

    def recv(self, size):
        packet = self.s.recv(size + len(self.head))
        check(packet[:len(self.head)] == self.head, f"a datagram from elsewhere: {packet[:len(self.head)].hex()}")
        return packet[len(self.head):]

    def close(self):
        self.s.close()
        self.control.close()


class Ticks:
    """A connection from a to b on which a line comes every 100 ms, listened to by a thread of its own."""

    def __init__(self, a, b, seconds):
        self.who = f"{b.name} > {a.name}"
        self.count, self.longest, self.last = 0, 0.0, time.monotonic()
        self.stream = a.connect(b.v4)
        self.stream.settimeout(60)
        self.stream.sendall(f"TICK {seconds}\n".encode())
        self.ended = False         # in order
        self.thread = threading.Thread(target=self._listen, daemon=True)
        self.thread.start()

    def _listen(self):
        with contextlib.suppress(OSError):
            while block := self.stream.recv(4096):
                now = time.monotonic()
                self.count, self.longest, self.last = self.count + block.count(b"tick"), max(self.longest, now - self.last), now
            self.ended = True

    def join(self):
        """To the end, which must come in order."""
        self.thread.join()
        self.close()
        check(self.ended, f"{self.who}: the connection broke after {self.count} ticks")

    def close(self):
        self.stream.close()


class Ours(Member):
    """`porthole node run`."""

    def __init__(self, net, name, space, key=None, *flags, wait=True):
        super().__init__(net, name, space)
        self.dir = net.path(f"ours-{name}")
        self.start(key, *flags, wait=wait)

    def start(self, key=None, *flags, wait=True):
        argv = ["node", "run", "--statedir", self.dir, "--login-server", self.net.url, "--hostname", self.name, "--json",
                "--socks5", "127.0.0.1:0", "--expose", f"{BLOBS}=127.0.0.1:{BLOBS}", *self.extra(), *flags]
        if key:
            argv += ["--auth-key", "file:" + self.net.secret(key)]
        self.started = time.monotonic()
        self.p = Process(Net.inside(self.space, os.path.join(BUILD, "porthole"), *argv), self.net.dir, "ours-" + self.name, env=self.net.env)
        proxy = self.p.wait_event("socks5")
        host, port = proxy["address"].rsplit(":", 1)
        self.socks = (host, int(port), proxy["username"], proxy["password"])
        if wait:
            self.running()
        return self

    def extra(self):
        return []

    def running(self, seconds=20):
        self.ips = self.p.wait_event("running", seconds)["ips"]
        self.fqdn = self.status()["self"].get("fqdn", "")

    def status(self):
        return json.loads(self.command("status", "--json"))

    def command(self, *argv, seconds=30, status=0):
        return sh(*Net.inside(self.space, os.path.join(BUILD, "porthole"), "node", *argv, "--statedir", self.dir), seconds=seconds, status=status)

    def peer(self, other):
        return next((p for p in self.status()["peers"] if p["name"] == other.name), None)

    def path_to(self, other):
        p = self.peer(other)
        return p and p.get("path")

    def stop(self):
        self.p.stop()

    def kill(self):
        self.p.kill()

    def close(self):
        super().close()
        if self.p.p.poll() is None:
            self.p.stop(10)


class Tailscaled(Member):
    """tailscaled with userspace networking, driven by the tailscale command."""

    def __init__(self, net, name, space, key=None, *flags):
        super().__init__(net, name, space)
        self.dir = net.path(f"tailscaled-{name}")
        os.mkdir(self.dir)
        self.start()
        if key:
            self.up("--auth-key", "file:" + net.secret(key), *flags)

    def start(self):
        with inside(self.space):
            port = free_port()
        self.p = Background(Net.inside(self.space, peer("tailscaled"), "--tun=userspace-networking", f"--statedir={self.dir}",
                                       f"--socket={self.dir}/sock", f"--socks5-server=127.0.0.1:{port}", "--port=0", "--no-logs-no-support"),
                            self.net.dir, "tailscaled-" + self.name, env=self.net.env)
        self.socks = ("127.0.0.1", port, None, None)
        wait_for(lambda: os.path.exists(f"{self.dir}/sock"), 20, "tailscaled's socket")

    def cli(self, *argv, seconds=60, status=0):
        return sh(*Net.inside(self.space, peer("tailscale"), f"--socket={self.dir}/sock", *argv), seconds=seconds, status=status, env=self.net.env)

    def up(self, *flags):
        self.cli("up", f"--login-server={self.net.url}", f"--hostname={self.name}", "--accept-dns=false", "--timeout=40s", *flags)
        self.running()

    def running(self, seconds=30):
        status = wait_for(lambda: (lambda s: s["BackendState"] == "Running" and s)(self.status()), seconds, "tailscaled runs")
        self.ips = status["Self"]["TailscaleIPs"]
        self.fqdn = status["Self"]["DNSName"].rstrip(".")

    def status(self):
        return json.loads(self.cli("status", "--json"))

    def peer(self, other):
        return next((p for p in (self.status().get("Peer") or {}).values() if p["HostName"] == other.name or p["DNSName"].split(".")[0] == other.name), None)

    def path_to(self, other):
        p = self.peer(other)
        return p and ("direct" if p.get("CurAddr") else "relay" if p.get("Relay") else None)

    def stop(self):
        self.p.stop()

    def kill(self):
        self.p.kill()

    def close(self):
        super().close()
        self.p.stop()


class Tsnet(Member):
    """Tailscale's Go library in a program of ours (peers/tailscale/tsnetpeer)."""

    def __init__(self, net, name, space, key=None, *flags):
        super().__init__(net, name, space)
        self.dir = net.path(f"tsnet-{name}")
        os.mkdir(self.dir)
        self.start(key, *flags)

    def start(self, key=None, *flags, wait=True):
        argv = [peer("tsnetpeer"), "-dir", self.dir, "-control", self.net.url, "-hostname", self.name, "-expose", f"{BLOBS}=127.0.0.1:{BLOBS}",
                "-udp-echo", str(ECHO_UDP), *flags]
        if key:
            argv += ["-authkey-file", self.net.secret(key)]
        self.p = Process(Net.inside(self.space, *argv), self.net.dir, "tsnet-" + self.name, env=self.net.env)
        if wait:
            self.running()

    def running(self, seconds=40):
        self.ips = self.p.wait_event("running", seconds)["ips"]
        self.fqdn = self.p.log[0]["dns_name"].rstrip(".")
        proxy = self.p.wait_event("socks5")
        self.forwards = [e for e in self.p.log if e["event"] == "forward"]
        host, port = proxy["address"].rsplit(":", 1)
        self.socks = (host, int(port), proxy["username"], proxy["password"])

    def path_to(self, other):
        return None

    def stop(self):
        self.p.p.terminate()
        self.p.wait_exit(15)

    def kill(self):
        self.p.kill()

    def close(self):
        super().close()
        if self.p.p.poll() is None:
            self.stop()


class Tailnet:
    """The hub, hub.test: 198.51.100.1 and 2001:db8:ff::1 ; member n at 10.77.n.2 and 2001:db8:n::2."""

    HUB, HUB6 = "198.51.100.1", "2001:db8:ff::1"
    HOSTS = f"{HUB} hub.test\n{HUB6} hub.test\n"

    def __init__(self, kind, **options):
        self.kind, self.options = kind, options
        self.members, self.count = [], 0

    def __enter__(self):
        self.lab = Net().__enter__()
        try:
            self.dir = in_folder("tailnet")
            self.hub = self.lab.space("hub", self.HOSTS)
            sh("ip", "-n", self.hub, "addr", "add", self.HUB + "/32", "dev", "lo")
            sh("ip", "-n", self.hub, "addr", "add", self.HUB6 + "/128", "dev", "lo", "nodad")
            sh(*Net.inside(self.hub, "sysctl", "-qw", "net.ipv4.ip_forward=1", "net.ipv6.conf.all.forwarding=1"))
            self.certificate()
            self.prepare()
            self.server = coordination(self.kind, self, **self.options)
            self.url = self.server.url()
        except BaseException:
            self.__exit__()
            raise
        return self

    def certificate(self):
        self.key, self.cert = self.path("hub.key"), self.path("hub.pem")
        sh("openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-keyout", self.key, "-out", self.cert,
           "-days", "30", "-subj", "/CN=hub.test", "-addext", f"subjectAltName=DNS:hub.test,IP:{self.HUB},IP:{self.HUB6}")
        self.env = {**os.environ, "SSL_CERT_FILE": self.cert, "TS_NO_LOGS_NO_SUPPORT": "true"}

    def prepare(self):
        """What must be there before the coordination server; may set its options."""

    def __exit__(self, kind=None, *_):
        trouble = []
        for m in reversed(self.members):
            try:
                m.close()
            except Exception as e:
                trouble.append(f"{m.name}: {e}")
                m.kill()
        if hasattr(self, "server"):
            self.server.close()
        self.lab.__exit__()
        if hasattr(self, "dir") and not os.environ.get("PORTHOLE_KEEP"):
            shutil.rmtree(self.dir, ignore_errors=True)
        if trouble and not kind:
            raise Failed("; ".join(trouble))

    def path(self, *parts):
        return os.path.join(self.dir, *parts)

    def secret(self, text):
        self.count += 1
        path = self.path(f"secret{self.count}")
        with open(os.open(path, os.O_WRONLY | os.O_CREAT, 0o600), "w") as f:
            f.write(text + "\n")
        return path

    def place(self, name):
        """A namespace with a way to the hub and everybody else."""
        self.count += 1
        n = self.count
        space = self.lab.space(name, self.HOSTS)
        hub_side, _ = self.lab.link(self.hub, f"10.77.{n}.1/24,2001:db8:{n:x}::1/64", space, f"10.77.{n}.2/24,2001:db8:{n:x}::2/64")
        sh("ip", "-n", space, "route", "add", "default", "via", f"10.77.{n}.1")
        sh("ip", "-n", space, "-6", "route", "add", "default", "via", f"2001:db8:{n:x}::1")
        return space

    def join(self, kind, name, *flags, user="home", key=None, key_flags=(), udp=True):
        space = self.place(name)
        if not udp:
            self.cut_udp(space)
        m = kind(self, name, space, key or self.server.new_key(user, *key_flags), *flags)
        self.members.append(m)
        return m

    def ours(self, name, *flags, **how):
        return self.join(Ours, name, *flags, **how)

    def tailscaled(self, name, *flags, **how):
        return self.join(Tailscaled, name, *flags, **how)

    def tsnet(self, name, *flags, **how):
        return self.join(Tsnet, name, *flags, **how)

    def cut_udp(self, member):
        """No datagram leaves or enters this member's host (or namespace) any more (DNS is not used); both ways, at its own edge."""
        sh(*Net.inside(getattr(member, "space", member), "nft", "add table inet cut; add chain inet cut in { type filter hook input priority 0; }; "
                       "add chain inet cut out { type filter hook output priority 0; }; "
                       'add rule inet cut in iifname != "lo" meta l4proto udp drop; add rule inet cut out oifname != "lo" meta l4proto udp drop'))

    def mend_udp(self, member):
        sh(*Net.inside(member.space, "nft", "delete table inet cut"))


def transfer(a, b, size, host=None, seconds=300):
    """`size` bytes a -> b and as many back on connections that a opens, verified; (up, down) in Gbit/s."""
    host = host or b.v4
    rates = []
    s = a.connect(host)
    s.settimeout(seconds)
    with s:
        start = time.monotonic()
        s.sendall(f"UP {size}\n".encode())
        digest = send_pattern(s, size)
        answer = b""
        while not answer.endswith(b"\n"):
            block = s.recv(200)
            check(block, f"{a.name} > {b.name}: no answer to {size} bytes")
            answer += block
        check(answer.decode().split() == [digest, str(size)], f"{a.name} > {b.name}: {size} bytes arrived as {answer.decode()!r}")
        rates.append(size * 8e-9 / (time.monotonic() - start))
    s = a.connect(host)
    s.settimeout(seconds)
    with s:
        start = time.monotonic()
        s.sendall(f"DOWN {size}\n".encode())
        digest, got = receive_hashed(s)
        rates.append(size * 8e-9 / (time.monotonic() - start))
    expected = hashlib.sha256()
    for block in pattern(size):
        expected.update(block)
    check(got == size and digest == expected.hexdigest(), f"{b.name} > {a.name}: {got} of {size} bytes arrived, or not the right ones")
    return rates


# ---- coordination servers in the hub

class Porthole:
    """Our own coordinator, relay and STUN."""

    def __init__(self, net, tls=True, public_url=None):
        self.net = net
        self.tls = tls and not public_url
        self.public_url = public_url   # of a proxy in front of it, to which it speaks plain HTTP
        self.dir = net.path("remote")
        self.port = None
        self.start()
        self.accounts = set()

    def start(self):
        argv = [os.path.join(BUILD, "porthole"), "remote", "run", "--statedir", self.dir, "--listen", f"[::]:{self.port or 0}", "--stun-port", "3478",
                "--json"]
        if self.tls:
            argv += ["--tls-cert", self.net.cert, "--tls-key", self.net.key]
        if self.port:
            argv += ["--public-url", self.url()]
        else:
            with inside(self.net.hub):
                self.port = free_port(address="::")
            return self.start()
        self.p = Process(Net.inside(self.net.hub, *argv), self.net.dir, "remote")
        self.p.wait_event("ready")

    def url(self):
        return self.public_url or f"{'https' if self.tls else 'http'}://hub.test:{self.port}"

    def base(self):
        """The same by address, for programs that do not see the namespace's /etc/hosts."""
        return f"{'https' if self.tls else 'http'}://{self.net.HUB}:{self.port}"

    def command(self, *argv):
        out = sh(*Net.inside(self.net.hub, os.path.join(BUILD, "porthole"), "remote", *argv, "--statedir", self.dir, "--json"))
        return [json.loads(line) for line in out.splitlines()]

    def new_key(self, user="home", *flags):
        if user not in self.accounts:
            self.command("account", "create", user)
            self.accounts.add(user)
        return self.command("key", "create", "--account", user, *flags)[0]["key"]

    def devices(self, user=None):
        return self.command("devices", "list", *(["--account", user] if user else []))

    def restart(self):
        self.p.stop()
        self.start()

    def close(self):
        if self.p.p.poll() is None:
            self.p.stop()


class InHub(headscale.Headscale):
    """Headscale with its own relay and STUN, unless derp is False; derp_map: further relays."""

    def __init__(self, net, kind, derp=True, derp_map=None, public_url=None):
        self.net = net
        self.users_by_name = {}
        super().__init__(net.path(kind), derp=derp, derp_map=derp_map, tls=None if public_url else (net.cert, net.key), name="hub.test",
                         host=net.HUB, host6=net.HUB6, prefix=Net.inside(net.hub), public_url=public_url)
        peer(kind)
        os.environ["PORTHOLE_PEERS"] = PEERS
        self.start(kind.removeprefix("headscale-"))
        # Under 0.28's isolating policy a node that has just joined now and then reaches no earlier one (docs/headscale.md);
        # isolation on it is case_headscale_api's business.
        self.set_policy(headscale.OPEN_POLICY if kind == "headscale-0.28" else headscale.ISOLATING_POLICY)

    def choose_ports(self):
        with inside(self.net.hub):
            super().choose_ports()
        if self.public_url:
            self.stun_port = 3478   # where doctor looks for it

    def _request(self, *args, **kw):
        with inside(self.net.hub):
            return super()._request(*args, **kw)

    def base(self):
        return super().base() if self.public_url else f"https://{self.net.HUB}:{self.port}"

    def user(self, name):
        if name not in self.users_by_name:
            self.users_by_name[name] = self.create_user(name)
        return self.users_by_name[name]

    def new_key(self, user="home", *flags):
        return self.preauth_key(self.user(user), reusable="--reusable" in flags, ephemeral="--ephemeral" in flags)

    def node(self, name):
        return next((n for n in self.nodes() if name in (n["givenName"], n["name"])), None)

    def restart(self):
        self.kill()
        self.start()

    def close(self):
        self.kill()


def coordination(kind, net, **options):
    return Porthole(net, **options) if kind == "porthole" else InHub(net, kind, **options)
