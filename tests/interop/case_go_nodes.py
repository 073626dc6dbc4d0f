#!/usr/bin/env python3
"""Our node beside tailscaled (userspace networking) and tsnet under Headscale."""
import itertools
import select

from case_embedding import Embedded, to
from tailnet import *

ROW = "our node <-> tailscaled and tsnet, under Headscale"
GIB = 1 << 30


def rates(pairs):
    return ", ".join(f"{what} {up:.2f}/{down:.2f}" for what, (up, down) in pairs) + " Gbit/s up/down"


def test_transfer():
    """TCP, IPv4 and IPv6, 1 GiB each way with each of them, opened from either side: every byte is right, the path is direct"""
    with Tailnet("headscale-0.29") as t:
        film, laptop, go = t.ours("film"), t.tailscaled("laptop"), t.tsnet("go")
        done = []
        for other in (laptop, go):
            film.reaches(other)
            other.reaches(film)
            wait_for(lambda: film.path_to(other) == "direct", 15, "a direct path")
            done.append((f"film>{other.name}", transfer(film, other, GIB)))
            done.append((f"{other.name}>film", transfer(other, film, GIB // 4)))
            transfer(film, other, GIB // 8, other.v6)
            transfer(other, film, GIB // 8, film.v6)
        return rates(done)


def echoed(s, data, seconds=10):
    """UDP may lose one: asks again, and late answers to what was asked before do not count."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        s.send(data)
        while select.select([s], [], [], 0.7)[0]:
            if s.recv(65536) == data:
                return True
    return False


def test_udp():
    """UDP both ways with each of them, IPv4 and IPv6: datagrams of 1 to 1200 bytes, opened from either side, every byte is right"""
    with Tailnet("headscale-0.29") as t:
        film = t.ours("film", "--expose", f"udp:{ECHO_UDP}=127.0.0.1:{ECHO_UDP}")
        app, laptop, go = t.join(Embedded, "app"), t.tailscaled("laptop"), t.tsnet("go")
        ways = [(film, other, other.datagrams(ip), ip) for other in (laptop, go) for ip in film.ips]
        for other in (laptop, go):
            film.reaches(other)
            other.reaches(film)
            app.node.wait_peer(other.name)
            ways += [(other, app, app.node.dial("udp", to(ip, ECHO_UDP)), ip) for ip in other.ips]
            ways += [(other, film, film.datagrams(ip), ip) for ip in other.ips]
        count = 0
        for where, opener, s, ip in ways:
            for size in (1, 2, 3, *range(10, 1200, 70), 1199, 1200):
                data = PATTERN[count:count + size]
                check(echoed(s, data), f"{opener.name} > {where.name} {ip}: {size} bytes do not come back, or not the same")
                count += 1
            s.close()
        return f"{count} datagrams there and back"


def test_names():
    """MagicDNS: short names and FQDNs resolve both ways"""
    with Tailnet("headscale-0.29") as t:
        film, laptop, go = t.ours("film"), t.tailscaled("laptop"), t.tsnet("go")
        for a, b in itertools.permutations((film, laptop, go), 2):
            a.reaches(b)
            for name in (b.name, b.fqdn, b.fqdn + "."):
                check(a.ask(name) == b.name, f"{a.name} asks for {name}")


def pings(laptop, film, *ways):
    for way in ways:
        out = laptop.cli("ping", *way, "--until-direct=false", "--c=2", film.name)
        check("pong from " + film.name in out, f"tailscale ping {way}: {out}")


def test_ping_and_status():
    """`tailscale ping` of us (disco, TSMP, ICMP) and `tailscale status`, direct and, with UDP blocked, relayed"""
    with Tailnet("headscale-0.29") as t:
        film, laptop = t.ours("film"), t.tailscaled("laptop")
        film.reaches(laptop)
        check("via 10.77" in laptop.cli("ping", "film") or "via [2001" in laptop.cli("ping", "film"), "tailscale ping finds no direct path")
        pings(laptop, film, (), ("--tsmp",), ("--icmp",))
        laptop.reaches(film)
        row = next(line for line in laptop.cli("status").splitlines() if " film " in line)
        check("active; direct " in row, f"tailscale status says {row!r}")
        who = laptop.cli("whois", film.v4)
        check(film.fqdn in who and "home" in who, f"tailscale whois says {who!r}")
        t.cut_udp(film)
        laptop.reaches(film)

        def relayed():
            laptop.ask(film.v4)
            return any(" film " in line and 'relay "test"' in line for line in laptop.cli("status").splitlines())
        wait_for(relayed, 30, "tailscale status says that we are relayed")
        wait_for(lambda: film.ask(laptop.v4) and film.path_to(laptop) == "relay", 15, "we say that we are relayed")
        pings(laptop, film, (), ("--tsmp",), ("--icmp",))
        check("DERP(test)" in laptop.cli("ping", "--until-direct=false", "--c=1", "film"), "the ping is not relayed")
        relayed_rates = transfer(film, laptop, 64 << 20)
        start = time.monotonic()
        t.mend_udp(film)

        def direct():
            film.ask(laptop.v4)
            return film.path_to(laptop) == "direct" and laptop.path_to(film) == "direct"
        wait_for(direct, 60, "direct again")
        return f"relayed {relayed_rates[0]:.2f}/{relayed_rates[1]:.2f} Gbit/s, direct again after {time.monotonic() - start:.1f} s"


def half_closed(s):
    """Sends everything, closes our half, and still gets the answer."""
    with s:
        s.sendall(b"SUM\n")
        digest = send_pattern(s, 5_000_000)
        s.shutdown(socket.SHUT_WR)
        answer = b""
        while True:
            block = s.recv(4096)
            if not block:
                break
            answer += block
    check(answer.decode().split() == [digest, "5000000"], f"the answer is {answer!r}")


def test_half_close():
    """Half-closed connections still carry the answer, opened from either side"""
    with Tailnet("headscale-0.29") as t:
        film, laptop = t.ours("film"), t.tailscaled("laptop")
        go = t.tsnet("go", "-forward", f"film:{BLOBS}")
        for other in (laptop, go):
            film.reaches(other)
            half_closed(film.connect(other.v4))
        # Their own SOCKS5 servers end both halves at once, so the Go program opens it by itself.
        host, port = go.forwards[0]["address"].rsplit(":", 1)
        go.reaches(film)
        with inside(go.space):
            s = socket.create_connection((host, int(port)), timeout=20)
        half_closed(s)


def test_many():
    """200 parallel connections, from either side"""
    with Tailnet("headscale-0.29") as t:
        film, laptop, go = t.ours("film"), t.tailscaled("laptop"), t.tsnet("go")
        for a, b in ((film, laptop), (laptop, film), (film, go), (go, film)):
            a.reaches(b)
            sockets = []
            for _ in range(200):
                s = a.connect(b.v4)
                s.sendall(b"ECHO\n")
                sockets.append(s)
            for i, s in enumerate(sockets):
                s.sendall(PATTERN[i:i + 20000])
            for i, s in enumerate(sockets):
                check(exactly(s, 20000) == PATTERN[i:i + 20000], f"{a.name} > {b.name}: connection {i} brings something else")
                s.close()


def test_peer_restarts():
    """A peer restarts, with a new disco key: reached again within 3 s of its own start, both ways"""
    with Tailnet("headscale-0.29") as t:
        film, laptop, go = t.ours("film"), t.tailscaled("laptop"), t.tsnet("go")
        took = []
        for other in (laptop, go):
            film.reaches(other)
            for end in (other.stop, other.kill):
                end()
                other.start()
                if other is laptop:
                    other.running()
                took.append(max(film.reaches(other, 10), other.reaches(film, 10)))
                check(took[-1] < 3, f"{other.name}: {took[-1]:.2f} s after it ran again")
        return "after " + ", ".join(f"{s:.2f}" for s in took) + " s"


def first_bytes(kind, times):
    with Tailnet(kind) as t:
        film = t.ours("film")
        others = (t.tailscaled("laptop"), t.tsnet("go"), t.ours("box"))
        took = {o.name: [] for o in others}
        for o in others:
            film.reaches(o)
        for i in range(times):
            for o in others:
                film.stop()
                film.start(wait=False)
                check(film.ask(o.v4) == o.name, f"{o.name} answers something else")
                took[o.name].append(time.monotonic() - film.started)
        return took


def test_we_restart():
    """We restart: the first byte from every kind of peer within 0.3 s of our process's start, 100 of 100 times, both Headscales"""
    notes = []
    for kind in ("headscale-0.29", "headscale-0.28"):
        took = first_bytes(kind, 100)
        for name, list_ in took.items():
            list_.sort()
            notes.append(f"{kind[10:]} {name} p50 {list_[50] * 1000:.0f} max {list_[-1] * 1000:.0f} ms")
    late = [n for n in notes if int(n.split()[-2]) > 300]
    check(not late, "; ".join(late))
    return "; ".join(notes)


if __name__ == "__main__":
    main(sys.modules[__name__])
