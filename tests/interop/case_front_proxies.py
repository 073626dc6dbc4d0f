#!/usr/bin/env python3
"""Reverse proxies in front of our coordinator and of Headscale: nginx as docs/nginx.md has it, nginx as people forget it,
strict ones; and what `porthole node doctor` says about each, and about the other things that keep a node away."""
import ssl

from tailnet import *

ROW = "nginx and strict proxies in front of our coordinator and of Headscale; node doctor"
KINDS = ("porthole", "headscale-0.29", "headscale-0.28")
URL = "https://hub.test"
DOCUMENT = os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "..", "docs", "nginx.md")
SILENCE = "198.51.100.99"   # an address that answers nothing
STRIPPED = ("proxy", "does not pass the upgrade", "proxy_http_version 1.1", "proxy_set_header Upgrade $http_upgrade", 'Connection "upgrade"')


def documented(headscale=False):
    """nginx's configuration as the page has it, word for word but for names and paths."""
    with open(DOCUMENT) as f:
        blocks = re.findall(r"```nginx\n(.*?)```", f.read(), re.S)
    whole, private_api = blocks
    if headscale:
        whole = whole.replace("    location / {", private_api + "\n    location / {", 1)
    return whole


def without(configuration, *words):
    return "\n".join(line for line in configuration.splitlines() if not any(w in line for w in words))


FORGOTTEN = """server {
    listen 443 ssl;
    listen [::]:443 ssl;
    server_name remote.example.com;
    ssl_certificate     /etc/letsencrypt/live/remote.example.com/fullchain.pem;
    ssl_certificate_key /etc/letsencrypt/live/remote.example.com/privkey.pem;
    location / { proxy_pass http://127.0.0.1:8080; }
    RELAY
}
"""


class Nginx:
    """Debian's nginx in a namespace, never the distribution's service. A request is in seen() when it has ended."""

    def __init__(self, t, servers):
        self.t = t
        self.folder = t.path("nginx")
        os.mkdir(self.folder)
        self.write(servers)
        self.argv = Net.inside(t.hub, program("nginx", "nginx-light"), "-p", self.folder, "-c", os.path.join(self.folder, "nginx.conf"),
                               "-e", os.path.join(self.folder, "error.log"))
        self.p = Background(self.argv, t.dir, "nginx")
        wait_for(lambda: os.path.exists(os.path.join(self.folder, "pid")) or not self.p.alive(), 10, "nginx starts")
        self.answers()

    def answers(self):
        def open_port():
            check(self.p.alive(), f"nginx ended: {self.p.log()}")
            try:
                with inside(self.t.hub):
                    socket.create_connection((self.t.HUB, 443), timeout=1).close()
                return True
            except OSError:
                return False
        wait_for(open_port, 10, "nginx listens")

    def write(self, servers):
        own = servers.replace("/etc/letsencrypt/live/remote.example.com/fullchain.pem", self.t.cert)
        own = own.replace("/etc/letsencrypt/live/remote.example.com/privkey.pem", self.t.key)
        own = own.replace("remote.example.com", "hub.test").replace("127.0.0.1:8080", f"127.0.0.1:{self.t.server.port}")
        paths = "".join(f"{word}_temp_path {self.folder}/{word};\n" for word in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi"))
        with open(os.path.join(self.folder, "nginx.conf"), "w") as f:
            f.write(f"daemon off; user root; worker_processes 1; pid {self.folder}/pid;\nevents {{ worker_connections 512; }}\nhttp {{\n"
                    f"log_format ends '$msec\t$remote_addr\t$request_method $uri\t$status\t$request_time';\n"
                    f"access_log {self.folder}/access.log ends;\n{paths}{own}\n}}\n")

    def change(self, servers):
        """Its new configuration is in force for what comes from now on; connections that are open stay."""
        def workers():
            out = set()
            with open(f"/proc/{self.p.p.pid}/task/{self.p.p.pid}/children") as f:
                for pid in f.read().split():
                    with contextlib.suppress(OSError), open(f"/proc/{pid}/cmdline") as line:
                        if "shutting down" not in line.read():
                            out.add(pid)
            return out
        before = workers()
        self.write(servers)
        sh(*self.argv, "-s", "reload")
        wait_for(lambda: (lambda now: now and not now & before)(workers()), 10, "nginx has read it")

    def seen(self, what=None):
        """[(when, from, "METHOD /path", status, seconds)] of what has ended."""
        with open(os.path.join(self.folder, "access.log")) as f:
            rows = [line.rstrip("\n").split("\t") for line in f]
        return [(float(r[0]), r[1], r[2], int(r[3]), float(r[4])) for r in rows if what in (None, r[2])]

    def stop(self):
        self.p.stop()


class Fronted(Tailnet):
    """A tailnet whose coordinator speaks plain HTTP on loopback behind https://hub.test, which nginx answers."""

    def __init__(self, kind, servers=None, url=URL):
        super().__init__(kind, public_url=url)
        self.servers = servers or documented(kind != "porthole")
        self.nginx = None

    def certificate(self):
        self.authority = Authority(self.path("ca"))
        self.cert, self.key = self.authority.issue("hub", f"DNS:hub.test,IP:{self.HUB}")
        self.env = {**os.environ, "SSL_CERT_FILE": self.authority.cert, "TS_NO_LOGS_NO_SUPPORT": "true"}

    def __enter__(self):
        super().__enter__()
        try:
            self.nginx = Nginx(self, self.servers)
        except BaseException:
            self.__exit__(True)
            raise
        return self

    def __exit__(self, kind=None, *rest):
        try:
            super().__exit__(kind, *rest)
        finally:
            if self.nginx:
                self.nginx.stop()

    def doctor(self, space, url=None, *flags, **env):
        """(exit status, {check: its JSON}, the last line of the same for people)."""
        argv = Net.inside(space, os.path.join(BUILD, "porthole"), "node", "doctor", url or self.url, *flags)
        env = {**self.env, **env}
        machine = subprocess.run([*argv, "--json"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=env, timeout=30)
        check(machine.returncode in (0, 1), f"{machine}")
        checks = {c["check"]: c for c in map(json.loads, machine.stdout.splitlines())}
        person = subprocess.run(argv, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=env, timeout=30)
        check(person.returncode == machine.returncode, f"with --json {machine.returncode}, without {person.returncode}: {person.stdout}")
        for c in checks.values():
            bad = c["result"] != "ok"
            check(("advice" in c) == bad and (not bad or c["advice"] in person.stdout), f"what to do: {c}")
        return machine.returncode, checks, person.stdout.strip().splitlines()[-1]

    def well(self, space, *flags):
        status, checks, last = self.doctor(space, None, *flags)
        check(status == 0 and last == f"all well: a node on this machine can use {self.url}", f"{checks} {last}")
        check(all(c["result"] == "ok" for c in checks.values()), f"{checks}")
        check({"DNS", "TCP", "TLS", "clock", "server", "upgrade", "relay", "UDP"} - set(checks) <= {"clock"}, f"{list(checks)}")
        return checks

    def finds(self, space, what, *words, url=None, flags=(), **env):
        """The check of this name fails, the words are in its sentence and its advice, and the status is 1."""
        status, checks, last = self.doctor(space, url, *flags, **env)
        check(status == 1 and "cannot use" in last, f"status {status}, {last}")
        check(checks.get(what, {}).get("result") == "failed", f"{what} did not fail: {checks}")
        check_words(checks[what]["text"] + " | " + checks[what]["advice"], *words)
        return checks

    def says(self, node, *words, seconds=15):
        """The node's own notice has the words; the event."""
        def has(event):
            return all(w.lower() in event["message"].lower() for w in words)
        return node.p.wait_event("notice", seconds, match=has)

    def node(self, name, url=None, key=None):
        """A node that is not expected to come up."""
        was, self.url = self.url, url or self.url
        try:
            self.members.append(Ours(self, name, self.place(name), key or self.server.new_key(), wait=False))
        finally:
            self.url = was
        return self.members[-1]


def on(*kinds):
    def on_each(case):
        def run():
            notes = [(kind, case(kind)) for kind in kinds]
            return "; ".join(f"{kind}: {note}" for kind, note in notes if note)
        run.__doc__ = case.__doc__
        return run
    return on_each


def at_once(case, kinds):
    """The case on all kinds at the same time; their notes."""
    notes, errors = {}, []

    def one(kind):
        try:
            notes[kind] = case(kind)
        except BaseException as e:
            errors.append((kind, e))
    threads = [threading.Thread(target=one, args=(kind,)) for kind in kinds]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for kind, e in errors:
        if not isinstance(e, (Failed, Skipped)):
            traceback.print_exception(e)
        raise type(e)(f"{kind}: {e}") if isinstance(e, (Failed, Skipped)) else Failed(f"{kind}: {e!r}")
    return "; ".join(f"{kind}: {notes[kind]}" for kind in kinds)


# ---- nginx as it should be

@on(*KINDS)
def test_documented_nginx(kind):
    """nginx with the configuration of docs/nginx.md, a certificate of an own CA: our node and tailscaled join through it, and with UDP blocked its /derp carries their bytes both ways; doctor: all well"""
    with Fronted(kind) as t:
        if kind != "porthole":
            context = ssl.create_default_context(cafile=t.authority.cert)
            with inside(t.hub):
                s = context.wrap_socket(socket.create_connection((t.HUB, 443), timeout=10), server_hostname="hub.test")
            with s:
                s.sendall(b"GET /api/v1/node HTTP/1.1\r\nHost: hub.test\r\nConnection: close\r\n\r\n")
                check(s.recv(100).startswith(b"HTTP/1.1 404 "), "the admin API is reachable from outside")
        film = t.ours("film")
        checks = t.well(film.space)
        check("Own CA" in checks["TLS"]["certificate"] and "nginx" in checks["server"]["server"], f"{checks}")
        laptop = t.tailscaled("laptop")
        for m in (film, laptop):
            t.cut_udp(m)
        rates = []
        for a, b in ((film, laptop), (laptop, film)):
            a.reaches(b, 30)
            rates += transfer(a, b, 8 << 20)
        check(film.path_to(laptop) == laptop.path_to(film) == "relay", f"{film.path_to(laptop)}, {laptop.path_to(film)}")
        status, checks, last = t.doctor(film.space)
        check(status == 0 and last.endswith("with 1 warning"), f"{last}: {checks}")
        check(checks["UDP"]["result"] == "warning" and checks["relay"]["result"] == "ok", f"{checks}")
        return f"{min(rates) * 1000:.0f} to {max(rates) * 1000:.0f} Mbit/s"


# ---- time-outs

def idle(kind):
    defaults = without(documented(kind != "porthole"), "proxy_read_timeout", "proxy_send_timeout")
    check("timeout" not in defaults, "the time-outs are nginx's own")
    with Fronted(kind, defaults) as t:
        film, laptop = t.ours("film"), t.tailscaled("laptop")
        film.reaches(laptop)
        start, told = time.time(), len(film.p.log)
        time.sleep(78)
        cut = [r for r in t.nginx.seen("POST /ts2021") if r[0] > start]
        check(not cut, f"map streams ended: {cut}")
        check(not [e for e in film.p.log[told:] if e["event"] in ("state", "notice") and "relay" not in e.get("message", "")], f"{film.p.log[told:]}")
        relays = len([r for r in t.nginx.seen("GET /derp") if r[0] > start])
        if kind == "porthole":
            check(relays == 0, f"{relays} relay connections ended")
        late = t.ours("late")
        begun = time.monotonic()
        wait_for(lambda: film.peer(late) and laptop.peer(late), 3, "news arrive at once")
        took = time.monotonic() - begun
        late.reaches(film)
        return f"{relays} idle relay connections cut, news after {took:.1f} s"


def test_idle_past_the_defaults():
    """Idle for 78 s behind nginx's default time-outs of 60 s: no map stream is cut, nor an idle relay connection of ours, and news arrive at once"""
    return at_once(idle, KINDS)


def cut_again_and_again(kind):
    limit = 5
    short = documented(kind != "porthole").replace("proxy_read_timeout 1h", f"proxy_read_timeout {limit}s")
    check(f"timeout {limit}s" in short, "the time-out is short")
    with Fronted(kind, short) as t:
        # Each cut of its relay makes tailscaled tell Headscale, and Headscale its peers: their streams are never quiet then.
        film, laptop, far = t.ours("film"), (t.tailscaled if kind == "porthole" else t.ours)("laptop"), t.ours("far")
        t.cut_udp(far)
        pairs = (laptop, film), (film, far)
        for a, b in pairs:
            a.reaches(b, 30)
        told = len(film.p.log)
        start = time.time()
        streams = [Ticks(a, b, 22) for a, b in pairs]
        states = set()
        while time.time() - start < 14:
            states.add(film.status()["state"])
            time.sleep(0.5)
        late = t.ours("late")
        begun = time.monotonic()
        wait_for(lambda: film.peer(late) and laptop.peer(late), 8, "news arrive")
        news = time.monotonic() - begun
        for s in streams:
            s.join()
        took = time.time() - start
        check(states == {"running"} and not [e for e in film.p.log[told:] if e["event"] == "state"], f"states {states}, {film.p.log[told:]}")
        for s in streams:
            check(s.count > 150 and s.longest < 1, f"{s.who}: {s.count} ticks, longest gap {s.longest:.2f} s")
        counts = {}
        for what in ("POST /ts2021", "GET /derp"):
            of_film = [r for r in t.nginx.seen(what) if r[0] > start and r[1] in ("10.77.1.2", "2001:db8:1::2")]
            counts[what] = len(of_film)
            check(len(of_film) <= took / limit + 2, f"{len(of_film)} times {what} in {took:.0f} s: {of_film}")
        check(counts["POST /ts2021"] >= 2, f"the map stream was cut {counts['POST /ts2021']} times only")
        notices = [e["message"] for e in film.p.log[told:] if e["event"] == "notice" and "control server" in e["message"]]
        check(len(notices) == 1, f"it tells {len(notices)} times and not once what keeps happening: {notices}")
        return (f"map stream cut {counts['POST /ts2021']} times in {took:.0f} s, longest gap {max(s.longest for s in streams) * 1000:.0f} ms, "
                f"news after {news:.1f} s")


def test_shorter_than_the_keep_alive():
    """A time-out of 5 s, below the keep-alive, cuts map stream and relay again and again: the node stays running, traffic on direct and relay path does not notice, news arrive within seconds, and it comes back once a cut, no more"""
    return at_once(cut_again_and_again, KINDS[:2])


# ---- nginx as people forget it

@on(*KINDS)
def test_forgotten_headers(kind):
    """nginx with a plain `proxy_pass`, the headers forgotten: the node's error and doctor name nginx, the upgrade and the lines to add; with them added it runs without a restart"""
    with Fronted(kind, FORGOTTEN.replace("RELAY", "")) as t:
        film = t.node("film")
        said = t.says(film, "nginx/", *STRIPPED)
        status = film.command("status")
        check_words(status, "# state: starting", "does not pass the upgrade")
        checks = t.finds(film.space, "upgrade", "POST /ts2021", "nginx/", "strips the upgrade", "proxy_http_version 1.1",
                         "proxy_set_header Upgrade $http_upgrade")
        check(all(checks[c]["result"] == "ok" for c in ("DNS", "TCP", "TLS", "server")), f"{checks}")
        check(checks["relay"]["result"] == "failed", f"{checks['relay']}")
        t.nginx.change(documented(kind != "porthole"))
        begun = time.monotonic()
        film.running(40)
        took = time.monotonic() - begun
        t.well(film.space)
        return f"answer {re.search(r'upgrade with ([0-9]+)', said['message'])[1]}, running {took:.1f} s after nginx was mended"


@on(*KINDS[:2])
def test_forgotten_for_the_relay(kind):
    """nginx passes the upgrade of /ts2021 only: the node runs, and it and doctor name nginx, /derp and the lines to add"""
    relay = """location /ts2021 {
        proxy_pass http://127.0.0.1:8080; proxy_http_version 1.1; proxy_set_header Upgrade $http_upgrade;
        proxy_set_header Connection "upgrade"; proxy_read_timeout 1h;
    }"""
    with Fronted(kind, FORGOTTEN.replace("RELAY", relay)) as t:
        film = t.ours("film")
        said = t.says(film, "relay", "nginx/", *STRIPPED)
        checks = t.finds(film.space, "relay", "GET /derp", "426", "nginx/", "strips the upgrade", "proxy_http_version 1.1")
        check(all(c["result"] == "ok" for name, c in checks.items() if name != "relay"), f"{checks}")
        return said["message"].split("(nginx:")[0]


# ---- strict proxies

class StrictProxy:
    """Plain HTTP in the hub. `strict(head, client)` answers what it does not want to pass on and returns True; the rest goes to
    the server as HTTP/1.1 with the hop-by-hop headers left behind (RFC 9110 section 7.6.1)."""

    def __init__(self, t, strict):
        self.strict, self.to = strict, ("127.0.0.1", t.server.port)
        self.hub = t.hub
        self.upgrades = 0
        with inside(t.hub):
            self.listener = socket.create_server(("::", 0), family=socket.AF_INET6, dualstack_ipv6=True)
        self.url = f"http://hub.test:{self.listener.getsockname()[1]}"
        serve_each(self.listener, self._one)

    def _one(self, s):
        s.settimeout(20)
        lines = read_head(s).split(b"\r\n\r\n")[0].split(b"\r\n")
        if any(line.lower().startswith(b"upgrade:") for line in lines):
            self.upgrades += 1
            if self.strict(lines, s):
                return
        kept = [line for line in lines if not line.lower().startswith((b"upgrade:", b"connection:"))]
        with inside(self.hub):
            up = socket.create_connection(self.to, timeout=20)
        with up:
            up.sendall(b"\r\n".join(kept) + b"\r\nConnection: close\r\n\r\n")
            while block := up.recv(65536):
                s.sendall(block)

    def close(self):
        self.listener.close()


def answer(head, body=b""):
    def strict(_, s):
        s.sendall(b"HTTP/1.1 " + head + b"\r\nServer: StrictGate/3\r\nContent-Length: %d\r\nConnection: close\r\n\r\n" % len(body) + body)
        return True
    return strict


def hang_up(_, s):
    s.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    return True


def swallow(_, s):
    s.sendall(b"HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\n\r\n")
    s.recv(1)
    return True


STRICT = (  # what it does, the proxy, the node's words, doctor's words
    ("drops the header and passes the rest on", lambda *_: False, STRIPPED, ("strips the upgrade", "header Upgrade")),
    ("allows no POST with an upgrade", answer(b"405 Method Not Allowed"), ("StrictGate/3", "405", *STRIPPED), ("405", "StrictGate/3", "strips", "header Upgrade")),
    ("knows WebSocket only", answer(b"426 Upgrade Required", b"websocket"), ("426", *STRIPPED), ("426", "strips", "header Upgrade")),
    ("answers 101 without the Upgrade header", swallow, STRIPPED, ("101", "does not pass the upgrade", "in between")),
    ("resets the connection", hang_up, ("upgrade", "proxy or firewall"), ("proxy or firewall", "another network")),
)


@on(*KINDS)
def test_strict_proxies(kind):
    """Five strict proxies (drop the header, 405, 426, 101 without Upgrade, reset): the node's error says in words that a proxy keeps the upgrade away, and doctor the same with what to do; the node does not hammer, and no key is spent"""
    with Fronted(kind) as t:
        place = t.place("doctor")
        key = t.server.new_key()
        for n, (what, strict, node_words, doctor_words) in enumerate(STRICT):
            proxy = StrictProxy(t, strict)
            film = t.node(f"film{n}", proxy.url, key)
            begun = time.monotonic()
            try:
                t.says(film, *node_words)
                before = proxy.upgrades
                checks = t.finds(place, "upgrade", *doctor_words, url=proxy.url)
                check(checks["server"]["result"] == "ok", f"{what}: {checks['server']}")
                tries = before / max(1, time.monotonic() - begun)
            finally:
                film.kill()
                proxy.close()
            check(tries < 20, f"{what}: {before} tries in {time.monotonic() - begun:.1f} s")
        t.ours("direct", key=key)   # a key that works once


# ---- doctor on everything else

def test_doctor_on_certificates():
    """Certificate expired, of another name, of an unknown CA, and right only by a wrong clock: the node's error and doctor tell them apart and say what to do"""
    with Fronted("porthole") as t:
        other_ca = Authority(t.path("other"), "Stranger CA")
        extra = ""
        cases = {8441: t.authority.issue("expired", since=-40, until=-10), 8442: t.authority.issue("other.test", "DNS:other.test"),
                 8443: other_ca.issue("hub-of-another"), 8444: t.authority.issue("short", until=3)}
        for port, (cert, key) in cases.items():
            extra += (f"server {{ listen {port} ssl; listen [::]:{port} ssl; ssl_certificate {cert}; ssl_certificate_key {key};\n"
                      "location / { proxy_pass http://127.0.0.1:8080; proxy_http_version 1.1; proxy_set_header Upgrade $http_upgrade; "
                      "proxy_set_header Connection $porthole_connection; proxy_set_header Host $host; } }\n")
        t.nginx.change(t.servers + extra)
        place = t.place("doctor")
        for port, node_words, doctor_words in ((8441, ("expired",), ("expired 10 days ago", "renew")),
                                               (8442, ("not for hub.test",), ("certificate is for other.test", "not for hub.test")),
                                               (8443, ("signed by nobody this host trusts", "--ca-file"), ("Stranger CA", "--ca-file"))):
            film = t.node(f"film{port}", f"{URL}:{port}")
            said = t.says(film, *node_words)
            film.kill()
            checks = t.finds(place, "TLS", *doctor_words, url=f"{URL}:{port}")
            check(checks["upgrade"]["result"] == "ok", f"what lies behind is looked at all the same: {checks}")
        status, checks, last = t.doctor(place, f"{URL}:8444")
        check(status == 0 and checks["TLS"]["result"] == "warning" and "renew" in checks["TLS"]["advice"], f"{checks}")
        return f"the node: {said['message']}"


def test_doctor_on_the_clock():
    """This machine's clock a day behind, a day ahead and a year ahead: doctor warns with the size, and where the certificate fails by it, it blames the clock"""
    fake = next((p for p in (f"/usr/lib/{a}-linux-gnu/faketime/libfaketime.so.1" for a in ("x86_64", "aarch64")) if os.path.exists(p)), None)
    if not fake:
        raise Skipped("libfaketime is not installed")
    with Fronted("porthole") as t:
        place = t.place("doctor")

        def shifted(by):
            return {"LD_PRELOAD": fake, "FAKETIME": by, "FAKETIME_DONT_FAKE_MONOTONIC": "1", "DONT_FAKE_MONOTONIC": "1"}
        for by, words in (("-1d", "24 h behind"), ("+1d", "24 h ahead of")):
            status, checks, last = t.doctor(place, **shifted(by))
            check(status == 0 and last.endswith("with 1 warning"), f"{last}: {checks}")
            check(checks["clock"]["result"] == "warning", f"{checks['clock']}")
            check_words(checks["clock"]["text"] + checks["clock"]["advice"], words, "NTP")
        checks = t.finds(place, "TLS", "expired", "set this machine's clock", "days ahead", **shifted("+365d"))
        return checks["TLS"]["advice"]


class Names:
    """A name server in the hub that knows of nothing (NXDOMAIN, RFC 1035 section 4.1.1)."""

    def __init__(self, t):
        with inside(t.hub):
            self.s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
            self.s.bind((t.HUB, 53))
        threading.Thread(target=self._run, daemon=True).start()

    def _run(self):
        while True:
            try:
                q, source = self.s.recvfrom(2000)
                end = q.index(b"\0", 12) + 5
                self.s.sendto(q[:2] + b"\x81\x83\x00\x01" + bytes(6) + q[12:end], source)
            except OSError:
                return

    def close(self):
        self.s.close()


def test_doctor_on_names_and_ways():
    """No such name, no name server, a port where nothing listens, an address that is silent: doctor tells them apart and says what to do"""
    with Fronted("porthole") as t:
        place = t.place("doctor")
        names = Names(t)
        sh("ip", "-n", t.hub, "route", "add", "blackhole", SILENCE)
        with open(f"/etc/netns/{place}/resolv.conf", "w") as f:
            f.write(f"nameserver {t.HUB}\noptions timeout:1 attempts:1\n")
        t.finds(place, "DNS", "no host no-such.test", "spelling", url="https://no-such.test")
        names.close()
        with open(f"/etc/netns/{place}/resolv.conf", "w") as f:
            f.write(f"nameserver {t.HUB}\noptions timeout:1 attempts:1\n")
        t.finds(place, "DNS", "cannot look up no-such.test", "online", "resolv.conf", url="https://no-such.test")
        t.finds(place, "TCP", "refused", "is the server running", url=f"https://{t.HUB}:4")
        sh(*Net.inside(place, "nft", "add table inet mute; add chain inet mute out { type filter hook output priority 0; }; "
                       "add rule inet mute out tcp dport 443 drop"))
        t.finds(place, "TCP", "firewall", "another network", flags=("--timeout", "2s"))


def test_doctor_on_captive_portals():
    """A captive portal (a page in place of the answer; a redirect to its login; one that intercepts TLS): doctor and the node say so, with the portal's address, and what to do"""
    with Fronted("porthole") as t:
        stranger = Authority(t.path("hotel"), "Hotel Gateway").issue("gateway", "DNS:portal.hotel")
        page = 'default_type text/html; return 200 "<html><title>Welcome to the hotel</title></html>";'
        login = "return 302 http://portal.hotel.test/login;"
        extra = "".join(f"server {{ listen {port}; listen [::]:{port}; location / {{ {what} }} }}\n" for port, what in ((8001, page), (8002, login)))
        extra += f"server {{ listen 8003 ssl; listen [::]:8003 ssl; ssl_certificate {stranger[0]}; ssl_certificate_key {stranger[1]}; location / {{ {login} }} }}\n"
        t.nginx.change(t.servers + extra)
        place = t.place("doctor")
        t.finds(place, "server", "web page", "captive portal", "browser", "log in", url="http://hub.test:8001")
        t.finds(place, "server", "302", "http://portal.hotel.test/login", "captive portal", "browser", url="http://hub.test:8002")
        checks = t.finds(place, "TLS", "Hotel Gateway", url=f"{URL}:8003")
        check_words(checks["server"]["text"], "captive portal")
        for port in (8001, 8002):
            film = t.node(f"film{port}", f"http://hub.test:{port}")
            t.says(film, "captive portal")
            film.kill()


@on(*KINDS[:2])
def test_doctor_on_relay_and_udp(kind):
    """The relay down while the coordinator is up: doctor fails with it; UDP blocked by this machine's firewall: a warning, status 0, since the relay carries on"""
    down = documented(kind != "porthole").replace("    location / {", "    location /derp { proxy_pass http://127.0.0.1:9; }\n    location / {", 1)
    with Fronted(kind, down) as t:
        place = t.place("doctor")
        checks = t.finds(place, "relay", "502", "nginx/", "relay is down", "start the relay")
        check(all(c["result"] == "ok" for name, c in checks.items() if name != "relay"), f"{checks}")
        t.nginx.change(documented(kind != "porthole"))
        t.well(place)
        sh(*Net.inside(place, "nft", "add table inet cut; add chain inet cut out { type filter hook output priority 0; }; "
                       'add rule inet cut out oifname != "lo" meta l4proto udp drop'))
        status, checks, last = t.doctor(place)
        check(status == 0 and last == f"a node on this machine can use {URL}, with 1 warning", last)
        check_words(checks["UDP"]["text"] + checks["UDP"]["advice"], "UDP is blocked", "open UDP", "relay")


if __name__ == "__main__":
    main(sys.modules[__name__])
