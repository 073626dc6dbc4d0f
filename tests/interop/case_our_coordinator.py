#!/usr/bin/env python3
"""tailscaled and tsnet under our own coordinator, relay and STUN."""
from tailnet import *

ROW = "tailscaled and tsnet under our coordinator and relay"


def peers_of(member):
    return sorted(p["DNSName"].split(".")[0] for p in (member.status().get("Peer") or {}).values())


def test_join_and_names():
    """They come up, get names and addresses, reach each other and us by name; netcheck finds our region, STUN over IPv4 and IPv6; whois"""
    with Tailnet("porthole") as t:
        film, laptop, go = t.ours("film"), t.tailscaled("laptop"), t.tsnet("go")
        for a in (film, laptop, go):
            check(a.v4.startswith("100.") and a.v6.startswith("fd7a:115c:a1e0:"), f"{a.name} has {a.ips}")
            check(a.fqdn == f"{a.name}.home.porthole.internal", f"{a.name} is called {a.fqdn}")
            for b in (film, laptop, go):
                if a is not b:
                    a.reaches(b)
                    check(a.ask(b.fqdn) == b.name and a.ask(b.v6) == b.name, f"{a.name} > {b.name}")
        report = laptop.cli("netcheck")
        for line in ("UDP: true", "IPv4: yes", "IPv6: yes", "Nearest DERP: Porthole"):
            check(line in report, f"'{line}' is not in: {report}")
        who = laptop.cli("whois", film.v4)
        check(film.fqdn in who and "home@" in who, f"whois: {who}")
        check("via " in laptop.cli("ping", "go") and "via " in laptop.cli("ping", "film"), "tailscale ping")
        nc = subprocess.Popen(Net.inside(laptop.space, peer("tailscale"), f"--socket={laptop.dir}/sock", "nc", "film", str(BLOBS)),
                              stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=t.env)
        nc.stdin.write(b"WHO\n")
        nc.stdin.flush()
        out = nc.stdout.readline()   # it ends with its input, so that stays open
        nc.kill()
        nc.wait()
        check(out == b"film\n", f"tailscale nc: {out!r}")


def first_answer(watcher, join):
    """Seconds until a new member, dialled the moment that the watcher's map has it, answers."""
    known, took = set(watcher.status()["Peer"]), []

    def fresh():
        return next((p for key, p in watcher.status()["Peer"].items() if key not in known), None)

    def dial():
        address = next(a for a in wait_for(fresh, 20, "it appears")["TailscaleIPs"] if ":" not in a)
        began = time.monotonic()
        watcher.ask(address)
        took.append(time.monotonic() - began)
    dialler = threading.Thread(target=dial)
    dialler.start()
    join()
    dialler.join()
    check(took, "nobody answered")
    return took[0]


def test_appear_and_vanish():
    """Peers appear at once and are reached as soon as they do, are known as logged out within 2 s, an ephemeral one when it ends"""
    with Tailnet("porthole") as t:
        laptop = t.tailscaled("laptop")
        start = time.monotonic()
        film = t.ours("film")
        wait_for(lambda: "film" in peers_of(laptop), 2, "our node appears")
        appeared = time.monotonic() - start
        took = [first_answer(laptop, lambda: t.ours("new")), first_answer(laptop, lambda: t.tsnet("newer"))]
        check(max(took) < 2, f"dialled as they appeared, they answered after {took} s")
        box = t.tailscaled("box")
        film.reaches(box)
        check(film.peer(box)["online"], f"{film.peer(box)}")
        start = time.monotonic()
        box.cli("logout")
        wait_for(lambda: film.peer(box).get("expired") and laptop.peer(box).get("Expired"), 2, "peers see the logout")
        left = time.monotonic() - start
        ghost = t.tsnet("ghost", "-ephemeral", key_flags=("--ephemeral",))
        film.reaches(ghost)
        ghost.stop()
        wait_for(lambda: film.peer(ghost) is None and "ghost" not in peers_of(laptop), 5, "the ephemeral one is gone")
        box.up("--auth-key", "file:" + t.secret(t.server.new_key()))
        film.reaches(box)
        return f"appeared {appeared:.1f} s after its process began, dialled then: {took[0]:.2f}, {took[1]:.2f} s, logout seen after {left:.1f} s"


def test_accounts():
    """Two accounts never see each other, and cannot connect, by IPv4, IPv6 or name"""
    with Tailnet("porthole") as t:
        a, b, c = t.tailscaled("laptop", user="smith"), t.tsnet("go", user="jones"), t.ours("film", user="jones")
        c.reaches(b)
        check(peers_of(a) == [], f"smith's laptop sees {peers_of(a)}")
        check([p["name"] for p in c.status()["peers"]] == ["go"], f"{c.status()['peers']}")
        for other in (b, c):
            for one, another in ((a, other), (other, a)):
                for host in (another.v4, another.v6, another.fqdn):
                    check(not one.reachable(another, 1, host), f"{one.name} reaches {another.name} at {host}")


def test_killed_and_back():
    """Killed without a word, and back: reached again within 3 s, with the same address"""
    with Tailnet("porthole") as t:
        film, laptop, go = t.ours("film"), t.tailscaled("laptop"), t.tsnet("go")
        took = []
        for other in (laptop, go):
            film.reaches(other)
            before = other.ips
            other.kill()
            other.start()
            other.running() if other is laptop else None
            check(other.ips == before, f"{before} became {other.ips}")
            took.append(film.reaches(other, 10))
            check(took[-1] < 3, f"{other.name}: {took[-1]:.2f} s after it ran again")
        return "after " + ", ".join(f"{s:.2f}" for s in took) + " s"


def test_coordinator_restarts():
    """The coordinator restarts in mid-stream: the traffic does not notice, and news arrive again afterwards"""
    with Tailnet("porthole") as t:
        film, laptop, go = t.ours("film"), t.tailscaled("laptop"), t.tsnet("go")
        pairs = (laptop, film), (film, go), (go, laptop)
        for a, b in pairs:
            a.reaches(b)
        streams = [Ticks(a, b, 8) for a, b in pairs]
        wait_for(lambda: all(s.count > 15 for s in streams), 10, "all are in the middle")
        t.server.restart()
        for s in streams:
            s.join()
            check(s.count >= 60 and s.longest < 1, f"{s.who}: {s.count} ticks, longest gap {s.longest:.1f} s")
        late = t.ours("late")
        wait_for(lambda: "late" in peers_of(laptop), 40, "news reach tailscaled again")
        late.reaches(go, 40)
        return f"longest gap {max(s.longest for s in streams) * 1000:.0f} ms"


def test_revoked():
    """Revoked: its peers drop it within 5 s, and it cannot come back with what it has"""
    with Tailnet("porthole") as t:
        film, laptop = t.ours("film"), t.tailscaled("laptop")
        film.reaches(laptop)
        node = next(d for d in t.server.devices()[0]["devices"] if d["name"] == "laptop")
        start = time.monotonic()
        t.server.command("devices", "revoke", node["node"])
        wait_for(lambda: film.peer(laptop) is None and not film.reachable(laptop, 1), 5, "dropped")
        took = time.monotonic() - start
        laptop.stop()
        laptop.start()
        time.sleep(3)
        check(film.peer(laptop) is None and not film.reachable(laptop, 1), "it is back")
        return f"dropped after {took:.1f} s"


if __name__ == "__main__":
    main(sys.modules[__name__])
