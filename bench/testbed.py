"""What the benchmarks measure with: two hosts joined by veth (or loopback without root), coordination services between
them, nodes of Porthole and of tsnet on them, and what the kernel says about processes.

    with Lab() as lab:
        home = lab.porthole()                    # a tailnet: `porthole remote run`, its relay and STUN
        server = home.node("server", lab.b, *lab.exposed())
        puller = home.node("puller", lab.a, "--socks5", "127.0.0.1:0")
        lab.pull(puller, server, 1000)           # through SOCKS5 -> puller -> server -> the source of bytes
        other = lab.headscale()                  # another one, of Headscale; tailnet.tsnet() is a node of tsnet in either
"""
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import threading
import time

HERE = os.path.dirname(os.path.abspath(__file__))
sys.dont_write_bytecode = True
sys.path.append(os.path.join(HERE, "..", "tests", "interop"))
import build_peers
import headscale
from interop import Net, inside

BUILD = os.path.abspath(sys.argv[1]) if len(sys.argv) > 1 else os.path.abspath("build/release")
PORTHOLE = os.path.join(BUILD, "porthole")
PUMP = os.path.join(BUILD, "bench", "pump")
COORDINATOR_BENCH = os.path.join(BUILD, "bench", "coordinator_bench")
TICK = os.sysconf("SC_CLK_TCK")
HEADSCALE = "0.29"
QUICK = "--quick" in sys.argv  # sizes and counts for trying the benchmarks themselves
PORT = 8080  # of the tailnet, where servers offer the source of bytes


def run(argv, **kw):
    kw.setdefault("stdin", subprocess.DEVNULL)
    return subprocess.run([str(a) for a in argv], check=True, stdout=subprocess.PIPE, **kw).stdout.decode()


def few(full, quick):
    return quick if QUICK else full


# ---- what the kernel says

def cpu_seconds(pid):
    with open(f"/proc/{pid}/stat") as f:
        fields = f.read().rsplit(") ", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / TICK


def private_kb(pid):
    """Private dirty memory: what the process costs that it shares with nobody and cannot drop."""
    with open(f"/proc/{pid}/smaps_rollup") as f:
        return sum(int(line.split()[1]) for line in f if line.startswith("Private_Dirty:"))


def resident_kb(pid):
    with open(f"/proc/{pid}/status") as f:
        return next(int(line.split()[1]) for line in f if line.startswith("VmRSS:"))


def steal():
    with open("/proc/stat") as f:
        return int(f.readline().split()[8]) / TICK


# ---- peers

_peers = None


def missing_peer(*programs):
    """Why these programs of others cannot be had; None: they are there. Builds them once (PORTHOLE_PEERS: a folder that has them)."""
    global _peers
    if _peers is None:
        folder, missing = os.environ.get("PORTHOLE_PEERS"), {}
        if not folder:
            folder, missing = build_peers.build(print, ["tailscale", f"headscale-{HEADSCALE}"])
            os.environ["PORTHOLE_PEERS"] = folder
        _peers = folder, missing
    folder, missing = _peers
    for p in programs:
        if not os.access(os.path.join(folder, p), os.X_OK):
            return f"no {p}: {missing.get(p, 'not in ' + folder)}"
    return None


def peer(program):
    return os.path.join(_peers[0], program)


# ---- processes

class Node:
    """A process that tells its events as JSON lines; a node of a tailnet in most cases."""

    def __init__(self, argv, space=None, **popen):
        self.p = subprocess.Popen((Net.inside(space) if space else []) + [str(a) for a in argv], stdout=subprocess.PIPE,
                                  stdin=subprocess.DEVNULL, **popen)
        self.pid = self.p.pid
        self.proxy = None
        self.ip = None

    def event(self, kind, seconds=60):
        late = threading.Timer(seconds, self.p.kill)
        late.start()
        try:
            for line in self.p.stdout:
                e = json.loads(line)
                if e.get("event") == "socks5":
                    self.proxy = [e["address"], e["username"], e["password"]]
                if e.get("event") == "running":
                    self.ip = next(ip for ip in e["ips"] if ":" not in ip)
                if e.get("event") == kind:
                    return e
                if e.get("event") == "state" and e.get("state") in ("failed", "logged-out"):
                    raise SystemExit(f"node: {e}")
        finally:
            late.cancel()
        raise SystemExit(f"'{' '.join(self.p.args)[:160]}' ended, or told no '{kind}' within {seconds} s")

    def stop(self):
        if self.p.poll() is None:
            self.p.terminate()
            try:
                self.p.wait(15)
            except subprocess.TimeoutExpired:
                self.p.kill()
        self.p.wait()


class Tailnet:
    """Shared by the two kinds: `url`, `key` (reusable), `pid` of the service, which is the relay, too."""

    def __init__(self, lab):
        self.lab = lab

    def node(self, name, space, *flags, keep=True):
        """`porthole node run`; keep: the lab ends it."""
        n = Node([PORTHOLE, "node", "run", "--statedir", self.lab.path(f"{self.kind}-{name}"), "--login-server", self.url,
                  "--auth-key", "file:" + self.key_file, "--hostname", name, "--json", *flags], space)
        return self.lab.keep(n) if keep else n

    def embedded(self, name, space):
        """examples/socks_proxy: the library in a program that has nothing else."""
        n = self.lab.keep(Node([os.path.join(BUILD, "examples", "socks_proxy"), self.lab.path(f"{self.kind}-{name}"), self.url, self.key], space))
        user, password, address = re.search(r"socks5h://([^:]+):([^@]+)@(\S+)", n.p.stdout.readline().decode()).groups()
        n.proxy = [address, user, password]
        n.event("running")
        return n

    def tsnet(self, name, space, *flags, relayed=False, keep=True):
        where = self.lab.path(f"{self.kind}-tsnet-{name}")
        os.makedirs(where, exist_ok=True)
        env = {**os.environ, "TS_NO_LOGS_NO_SUPPORT": "true"}
        if relayed:
            env["TS_DEBUG_ALWAYS_USE_DERP"] = "1"
        n = Node([peer("tsnetpeer"), "-dir", where, "-control", self.url, "-hostname", name, "-authkey-file", self.key_file, *flags], space,
                 env=env, stderr=subprocess.DEVNULL)
        return self.lab.keep(n) if keep else n

    def save_key(self, key):
        self.key = key
        self.key_file = self.lab.path(f"{self.kind}.key")
        with open(os.open(self.key_file, os.O_WRONLY | os.O_CREAT, 0o600), "w") as f:
            f.write(key + "\n")


class OfPorthole(Tailnet):
    kind = "porthole"

    def __init__(self, lab, tls=True):
        super().__init__(lab)
        self.dir = lab.path("remote")
        certificate = ["--tls-cert", lab.cert, "--tls-key", lab.cert_key] if tls else []
        remote = lab.keep(Node([PORTHOLE, "remote", "run", "--statedir", self.dir, "--listen", lab.address + ":0", "--stun-port", "0",
                                *certificate, "--json"], lab.middle))
        ready = remote.event("ready")
        self.url, self.admin_token_file, self.pid = ready["url"], ready["admin_token_file"], remote.pid
        run([PORTHOLE, "remote", "account", "create", "bench", "--statedir", self.dir, "--json"])
        out = run([PORTHOLE, "remote", "key", "create", "--account", "bench", "--reusable", "--statedir", self.dir, "--json"])
        self.save_key(json.loads(out.strip().splitlines()[-1])["key"])


class OfHeadscale(Tailnet, headscale.Headscale):
    """With its embedded relay and STUN where there is TLS, which it wants for them."""
    kind = "headscale"

    def __init__(self, lab, tls=True):
        Tailnet.__init__(self, lab)
        headscale.Headscale.__init__(self, lab.path("headscale"), derp=tls, tls=(lab.cert, lab.cert_key) if tls else None, host=lab.address,
                                     prefix=Net.inside(lab.middle) if lab.middle else ())
        lab.end.append(self.kill)
        self.start(HEADSCALE)
        self.set_policy(headscale.ISOLATING_POLICY)
        self.url, self.pid = headscale.Headscale.url(self), self.process.pid
        self.save_key(self.preauth_key(self.create_user("bench"), reusable=True))

    def _request(self, *args, **kw):
        if not self.lab.middle:
            return super()._request(*args, **kw)
        with inside(self.lab.middle):
            return super()._request(*args, **kw)

    def base(self):
        return headscale.Headscale.url(self)


class Lab:
    """Hosts a and b, joined directly, and each with the middle one, where the coordination services are. A source of
    bytes listens on b's loopback."""

    def __init__(self):
        self.dir = tempfile.mkdtemp(prefix="porthole-bench-")
        self.end = []
        self.a = self.b = self.middle = None
        self.address = "127.0.0.1"

    def __enter__(self):
        try:
            if os.getuid() == 0 and shutil.which("ip"):
                net = Net()
                self.end.append(net.__exit__)
                self.a, self.b, self.middle = net.space("a"), net.space("b"), net.space("m")
                net.link(self.a, "198.51.100.1/24", self.middle, "198.51.100.2/24")
                net.link(self.b, "203.0.113.1/24", self.middle, "203.0.113.2/24")
                net.link(self.a, "192.0.2.1/24", self.b, "192.0.2.2/24")
                run(Net.inside(self.middle, "sysctl", "-qw", "net.ipv4.ip_forward=1"))
                net.route(self.a, "203.0.113.0/24", "198.51.100.2")
                net.route(self.b, "198.51.100.0/24", "203.0.113.2")
                self.address = "198.51.100.2"
            self.cert_key, self.cert = self.path("remote.key"), self.path("remote.pem")
            run(["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-keyout", self.cert_key, "-out",
                 self.cert, "-days", "30", "-subj", "/CN=localhost", "-addext", "subjectAltName=IP:" + self.address], stderr=subprocess.DEVNULL)
            os.environ["SSL_CERT_FILE"] = self.cert  # for every node of this lab
            source = self.keep(Node([PUMP, "serve", "127.0.0.1:0"], self.b))
            self.source = f"127.0.0.1:{json.loads(source.p.stdout.readline())['port']}"
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_):
        for end in reversed(self.end):
            end()
        shutil.rmtree(self.dir, ignore_errors=True)

    def path(self, name):
        return os.path.join(self.dir, name)

    def keep(self, node):
        self.end.append(node.stop)
        return node

    def porthole(self, **how):
        return OfPorthole(self, **how)

    def headscale(self, **how):
        return OfHeadscale(self, **how)

    def exposed(self, flag="--expose"):
        return [flag, f"{PORT}={self.source}"]

    def pull(self, puller, server, size, seconds=600, **popen):
        """`size` bytes from the source through both nodes: {"seconds", "connect_ms", ...}."""
        prefix = Net.inside(self.a) if self.a else []
        return json.loads(run(prefix + [PUMP, "pull", size, f"{server.ip}:{PORT}", "socks5", *puller.proxy], timeout=seconds, **popen))

    def reach(self, puller, server, seconds=60):
        """The first bytes of a pair; tsnet refuses to connect to peers that it has not heard of yet."""
        end = time.monotonic() + seconds
        while True:
            try:
                return self.pull(puller, server, 1000, stderr=subprocess.DEVNULL)
            except subprocess.CalledProcessError:
                if time.monotonic() > end:
                    raise
                time.sleep(0.2)

    def conditions(self):
        where = "veth between namespaces" if self.a else "loopback (not root)"
        return f"{where}; {os.cpu_count()} cores for everything: nodes, applications, coordinators with their relays (TLS)"

    @staticmethod
    def others():
        v = build_peers.versions()
        return f"{v['tailscale'].replace('.com', '')} (tsnet) under {v['headscale-' + HEADSCALE]}"


def start_pair(tailnet, kind, relayed=False, suffix=""):
    """(puller on a, server on b), both running; kind "porthole" or "tsnet"."""
    lab = tailnet.lab
    if kind == "porthole":
        extra = ["--relay-only"] if relayed else []
        server = tailnet.node("server" + suffix, lab.b, *lab.exposed(), *extra)
        puller = tailnet.node("puller" + suffix, lab.a, "--socks5", "127.0.0.1:0", *extra)
        server.event("running")
        puller.event("running")
    else:
        server = tailnet.tsnet("tserver" + suffix, lab.b, *lab.exposed("-expose"), relayed=relayed)
        puller = tailnet.tsnet("tpuller" + suffix, lab.a, relayed=relayed)
        server.event("socks5")
        puller.event("socks5")
    return puller, server
