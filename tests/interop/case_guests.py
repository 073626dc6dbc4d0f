#!/usr/bin/env python3
"""What people do with tailscaled and tsnet, under our own coordinator: serve, send files, lose their login, join a full house."""
import sqlite3

from tailnet import *
import libporthole  # of the process tests, whose folder the line above adds

ROW = "tailscaled, tsnet and the tailscale crate under our coordinator: services, files, logins that end, 500 devices"


def state(member):
    return member.status()["BackendState"]


def peer_names(member):
    return sorted(p["DNSName"].split(".")[0] for p in (member.status().get("Peer") or {}).values())


def devices(t):
    return {d["name"]: d for d in t.server.devices()[0]["devices"] if d.get("node")}


def log_in(t, member):
    member.up("--auth-key", "file:" + t.secret(t.server.new_key()))


# ---- the crate

class Crate(Member):
    """A program with Tailscale's Rust library (peers/crate). It has no proxy: it offers the ports of others that it is told of."""

    def __init__(self, net, name, space, key, *others):
        super().__init__(net, name, space)
        self.dir = net.path(f"crate-{name}")
        os.mkdir(self.dir)
        self.key, self.others = net.secret(key), others
        self.start()

    def start(self):
        to = [f"[{ip}]:{BLOBS}" if ":" in ip else f"{ip}:{BLOBS}" for other in self.others for ip in other.ips]
        self.p = Process(Net.inside(self.space, peer("cratepeer"), self.dir, self.net.url, self.name, self.key, BLOBS, *to),
                         self.net.dir, "crate-" + self.name, env=self.net.env)
        running = self.p.wait_event("running", 30)
        self.ips, self.fqdn = running["ips"], running["dns_name"]
        self.forwards = {e["to"]: e["address"] for e in self.p.log if e["event"] == "forward"}

    def connect(self, host, port=BLOBS, seconds=20):
        address, local = self.forwards[f"[{host}]:{port}" if ":" in host else f"{host}:{port}"].rsplit(":", 1)
        with inside(self.space):
            return socket.create_connection((address, int(local)), timeout=seconds)

    def close(self):
        super().close()
        self.p.kill()


def test_crate():
    """The tailscale crate (Rust) joins, is known by name, and exchanges bytes with our node and with tailscaled, IPv4 and IPv6; restarted, it is back"""
    peer("cratepeer")
    with Tailnet("porthole") as t:
        film, laptop = t.ours("film"), t.tailscaled("laptop")
        rust = t.join(Crate, "rust", film, laptop)
        check(rust.fqdn == "rust.home.porthole.internal", f"it is called {rust.fqdn}")
        rates = []
        for other in (film, laptop):
            other.reaches(rust)
            rust.reaches(other)
            for a, b in ((other, rust), (rust, other)):
                for ip in (b.v4, b.v6):
                    rates.append(transfer(a, b, 4 << 20, ip))
        check(film.ask(rust.fqdn) == "rust" and film.ask(rust.name) == "rust", "by name")
        path = film.path_to(rust)
        before = rust.ips
        rust.p.kill()
        rust.start()
        check(rust.ips == before, f"{before} became {rust.ips}")
        back = max(film.reaches(rust), rust.reaches(film))
        slowest = min(min(rate) for rate in rates)
        return f"path {path}, at least {slowest * 1000:.0f} Mbit/s, back {back:.1f} s after it ran again"


# ---- services and files

def web_server(space, name):
    """HTTP on a member's loopback: says who answers, and to which request line."""
    with inside(space):
        listener = socket.create_server(("127.0.0.1", 0), backlog=16)

    def serve(s):
        body = f"{name} answers {read_head(s).splitlines()[0].decode()}".encode()
        s.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\nConnection: close\r\n\r\n" % len(body) + body)
    serve_each(listener, serve)
    return listener


def test_serve():
    """`tailscale serve --tcp` and `--http`: our node reaches both by address and by name"""
    with Tailnet("porthole") as t:
        film, laptop = t.ours("film"), t.tailscaled("laptop")
        with web_server(laptop.space, "laptop") as web:
            laptop.cli("serve", "--bg", "--tcp=9001", f"tcp://127.0.0.1:{BLOBS}")
            laptop.cli("serve", "--bg", "--http=9002", f"http://127.0.0.1:{web.getsockname()[1]}")
            film.reaches(laptop)
            for host in (laptop.v4, laptop.v6, laptop.name, laptop.fqdn):
                check(film.ask(host, port=9001) == "laptop", f"the forward at {host}")
                answer = film.ask(host, f"GET /menu HTTP/1.1\r\nHost: {laptop.name}\r\nConnection: close\r\n\r\n", port=9002)
                check("200 OK" in answer and answer.endswith("laptop answers GET /menu HTTP/1.1"), f"the web server at {host}: {answer!r}")
            laptop.cli("serve", "--tcp=9001", "off")

            def gone():
                try:
                    return film.ask(laptop.v4, port=9001, seconds=3) != "laptop"
                except (OSError, Failed):
                    return True
            wait_for(gone, 5, "what is no longer served is not reached")


def test_files():
    """`tailscale file cp` and `file get` between two devices of an account; to our node, which takes none, it says so at once"""
    with Tailnet("porthole") as t:
        film, laptop, box = t.ours("film"), t.tailscaled("laptop"), t.tailscaled("box")
        t.tailscaled("stranger", user="jones")
        size = 20_000_000
        for a, b in ((laptop, box), (box, laptop)):
            targets = a.cli("file", "cp", "--targets")
            check([line.split()[1] for line in targets.splitlines()] == [b.name], f"{a.name} may send to: {targets}")
            sent, inbox = t.path(f"from {a.name}.bin"), t.path(f"inbox-{b.name}")
            with open(sent, "wb") as f:
                for block in pattern(size):
                    f.write(block)
            a.cli("file", "cp", sent, b.name + ":")
            os.mkdir(inbox)
            b.cli("file", "get", "--wait", inbox)
            with open(sent, "rb") as f, open(os.path.join(inbox, os.path.basename(sent)), "rb") as g:
                check(f.read() == g.read(), f"{a.name} > {b.name}: the file is not the same")
        start = time.monotonic()
        r = subprocess.run(Net.inside(laptop.space, peer("tailscale"), f"--socket={laptop.dir}/sock", "file", "cp", sent, "film:"),
                           stdin=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, env=t.env, timeout=60)
        took = time.monotonic() - start
        check(r.returncode != 0 and "not advertising a file sharing API" in r.stderr and took < 5, f"{r} after {took:.1f} s")
        check(film.peer(laptop)["online"], "and nothing else happens to it")


# ---- logins that end

def expire(t, at, *names):
    """The coordinator's record of these nodes says from now on that their keys end then (Unix time). It restarts for it."""
    t.server.p.stop()
    with contextlib.closing(sqlite3.connect(os.path.join(t.server.dir, "coordinator.db"))) as db, db:
        for name in names:
            check(db.execute("UPDATE nodes SET key_expiry=? WHERE label=?", (int(at * 1e9), name)).rowcount == 1, f"no node {name}")
    t.server.start()


def test_expiry():
    """A node key ends: peers know within 2 s, tailscaled asks for a login, and a new key brings it and tsnet back at their addresses"""
    with Tailnet("porthole") as t:
        film, laptop, go = t.ours("film"), t.tailscaled("laptop"), t.tsnet("go")
        for m in (laptop, go):
            film.reaches(m)
        end = time.time() + 20
        expire(t, end, "laptop", "go")
        wait_for(lambda: all(devices(t)[m.name]["online"] for m in t.members), 18, "everybody is back at the coordinator")
        check(all(film.reachable(m) for m in (laptop, go)), "they are reached until the end")
        check(time.time() < end, "this host is too slow for this test")
        time.sleep(max(0, end - time.time()))
        wait_for(lambda: state(laptop) == "NeedsLogin", 2, "tailscaled asks for a login")
        for m in (laptop, go):
            wait_for(lambda: film.peer(m).get("expired") and film.peer(m)["online"] is False, 2, f"our node knows that {m.name} has expired")
        took = time.time() - end
        for m in (laptop, go):
            known = devices(t)[m.name]
            check(known["state"] == "expired" and not known["online"], f"the coordinator says {known}")
            check(not film.reachable(m, 1), f"{m.name} is still reached")
        before = {m: m.ips for m in (laptop, go)}
        log_in(t, laptop)
        go.stop()
        go.start(t.server.new_key())
        for m in (laptop, go):
            film.reaches(m)
            check(m.ips == before[m], f"{m.name}: {before[m]} became {m.ips}")
            wait_for(lambda: film.peer(m)["online"] and not film.peer(m).get("expired"), 2, f"our node knows that {m.name} is back")
        check(len(devices(t)) == 3, f"{devices(t)}")
        return f"all known {took:.1f} s after the end"


def test_logout_and_login():
    """`tailscale logout`, then `tailscale up` with a new key: the same device, name and addresses, and it reaches and is reached"""
    with Tailnet("porthole") as t:
        film, laptop = t.ours("film"), t.tailscaled("laptop")
        film.reaches(laptop)
        before = laptop.ips, laptop.fqdn
        for _ in range(2):
            laptop.cli("logout")
            check(state(laptop) == "NeedsLogin", f"logged out, but {state(laptop)}")
            wait_for(lambda: devices(t)["laptop"]["state"] == "expired" and not devices(t)["laptop"]["online"], 2, "the coordinator knows")
            log_in(t, laptop)
            check((laptop.ips, laptop.fqdn) == before, f"{before} became {laptop.ips} {laptop.fqdn}")
            film.reaches(laptop)
            laptop.reaches(film)
        check(sorted(devices(t)) == ["film", "laptop"], f"{devices(t)}")


def test_revoked():
    """Revoked: tailscaled asks for a login at once, or as soon as it is back if it was away; only a new key lets it in"""
    with Tailnet("porthole") as t:
        film, laptop, box, tv = t.ours("film"), t.tailscaled("laptop"), t.tailscaled("box"), t.ours("tv")
        for m in (laptop, box, tv):
            film.reaches(m)
        took = []
        for m, is_out in ((laptop, lambda: state(laptop) == "NeedsLogin"), (tv, lambda: tv.p.p.poll() is not None)):
            t.server.command("devices", "revoke", devices(t)[m.name]["node"])
            start = time.monotonic()
            wait_for(is_out, 5, f"{m.name} is told")
            took.append(time.monotonic() - start)
        check("this node's login has ended there" in tv.p.stderr(), f"our node ends with: {tv.p.stderr()[-500:]}")
        # Nobody can tell box while it happens.
        node = devices(t)["box"]["node"]
        t.server.p.stop()
        t.server.command("devices", "revoke", node)
        t.server.start()
        start = time.monotonic()
        wait_for(lambda: state(box) == "NeedsLogin", 60, "the one that was away asks for a login")
        later = time.monotonic() - start
        check(sorted(devices(t)) == ["film"], f"{devices(t)}")
        for m in (laptop, box):
            check(film.peer(m) is None and not film.reachable(m, 1), f"{m.name} is still there")
            log_in(t, m)
            film.reaches(m)
            m.reaches(film)
        return f"tailscaled asks after {took[0]:.1f} s, our node after {took[1]:.1f} s; {later:.0f} s after a restart of the coordinator if it was away"


# ---- a full house

def crowd(t, count):
    """`count` devices join the account, on eight threads, and go away again."""
    space, library = t.place("crowd"), libporthole.load(BUILD)
    key = "file:" + t.secret(t.server.new_key("home", "--reusable"))
    numbers = iter(range(count))

    def join():
        for n in numbers:
            with inside(space):
                node = libporthole.Node(library, t.path(f"crowd{n}"), t.server.base(), key, f"crowd-{n}", t.cert)
            wait_for(lambda: node.status()["self"].get("ips"), 20, "it has joined")
            node.close()
    trouble = together(8, join)
    check(not trouble, f"{trouble[:3]}")


def megabytes(pid):
    with open(f"/proc/{pid}/status") as f:
        return next(int(line.split()[1]) // 1024 for line in f if line.startswith("VmRSS:"))


def test_500_devices():
    """In an account of 500 devices tailscaled and our node are up within 5 s, list them all, know a new one within 1 s, and reach it"""
    with Tailnet("porthole") as t:
        crowd(t, 500)
        check(len(devices(t)) == 500, f"{len(devices(t))} devices")
        up = []
        for join, name in ((t.ours, "film"), (t.tailscaled, "laptop")):
            start = time.monotonic()
            join(name)
            up.append(time.monotonic() - start)
        film, laptop = t.members
        check(max(up) < 5, f"up after {up}")
        wanted = sorted([f"crowd-{n}" for n in range(500)] + ["film"])
        check(peer_names(laptop) == wanted, "tailscaled does not know all")
        listed = laptop.cli("status").split("\n")
        check(all(any(f" {name} " in line for line in listed) for name in wanted), "tailscale status does not list all")
        check(len(film.status()["peers"]) == 501, f"our node knows {len(film.status()['peers'])}")
        film.reaches(laptop)
        laptop.reaches(film)
        late = t.ours("late")
        start = time.monotonic()
        wait_for(lambda: "late" in peer_names(laptop) and film.peer(late), 1, "everybody knows the new device")
        for m in (film, laptop):
            m.reaches(late)
        met = time.monotonic() - start
        memory = ", ".join(f"{name} {megabytes(p.pid)} MB" for name, p in (("the service", t.server.p.p), ("our node", film.p.p), ("tailscaled", laptop.p.p)))
        return f"our node up after {up[0]:.1f} s, tailscaled after {up[1]:.1f} s; a new device known and reached after {met:.1f} s; {memory}"


if __name__ == "__main__":
    main(sys.modules[__name__])
