#!/usr/bin/env python3
"""Datagrams between real nodes: a program with libporthole.so in it, and `porthole node run --expose udp:`."""
import select
import sys

import libporthole
from lab import *


def asks(s, data, seconds=10):
    """The answer to a datagram; UDP may lose one, so it asks again."""
    end = time.monotonic() + seconds * SLOW
    while time.monotonic() < end:
        s.send(data)
        if select.select([s], [], [], 0.5 * SLOW)[0]:
            return s.recv(65536)
    raise Failed(f"no answer to {data[:40]!r}")


def test_exposed_udp_ports_and_datagrams_of_an_embedded_node():
    library = libporthole.load(BUILD)
    echo = EchoUdp()
    with Lab() as lab:
        for bad in ("udp:=127.0.0.1:80", "udp:0=127.0.0.1:80", "udp:80=example.org:80", "sctp:80=127.0.0.1:80", "udp:80", "udp:80="):
            refused(run("node", "run", "--statedir", lab.path("n"), "--login-server", "http://127.0.0.1:1", "--expose", bad), 2, "--expose", bad)
        remote = lab.remote()
        lab.account(remote)
        b = lab.node("b", remote.url, lab.key(remote), "--expose", f"udp:53=127.0.0.1:{echo.port}", "--expose", "tcp:53=127.0.0.1:1")
        ips = b.wait_event("running")["ips"]
        a = libporthole.Node(library, lab.path("a"), remote.url, lab.key(remote), "a")
        try:
            a.wait_running()
            a.wait_peer("b")
            sockets = []
            for network, to in (("udp", "b:53"), ("udp6", "b:53"), *(("udp", f"[{ip}]:53" if ":" in ip else f"{ip}:53") for ip in ips)):
                s = a.dial(network, to)
                most = 1232 if network == "udp6" or to.startswith("[") else 1252
                check(asks(s, b"hello") == b"seen hello", f"{network} {to}")
                check(asks(s, b"x" * (most - 5)) == b"seen " + b"x" * (most - 5), f"{network} {to}: the longest datagrams")
                sockets.append(s)
            check(len(echo.sources) == len(sockets), f"each source has a socket of its own: {echo.sources}")
            for i, s in enumerate(sockets):
                check(asks(s, b"again %d" % i) == b"seen again %d" % i, "answers go to whoever asked")
                s.close()

            # Between two embedded nodes, with any peer.
            c = libporthole.Node(library, lab.path("c"), remote.url, lab.key(remote), "c")
            try:
                c.wait_running()
                a.wait_peer("c")
                at_a, at_c = a.listen_packet(7000), c.listen_packet(7000)
                for ip in c.status()["self"]["ips"]:
                    to = f"[{ip}]:7000" if ":" in ip else f"{ip}:7000"
                    at_a.send(to, b"one of a")
                    data, source = at_c.receive()
                    check(data == b"one of a" and source.endswith(":7000"), f"{data!r} from {source}")
                    at_c.send(source, b"")
                    check(at_a.receive() == (b"", to), "an empty datagram back")
                at_a.close()
                # The port is free again, soon.
                wait_for(lambda: not_taken(a), 5, "port 7000 is free again")
            finally:
                c.close()
            counters = a.status()["counters"]["datagrams"]
            check(counters["too_long"] == 0 and counters["to_app"] >= 14, str(counters))
        finally:
            a.close()


def not_taken(node):
    try:
        node.listen_packet(7000).close()
        return True
    except libporthole.PortholeError:
        return False


if __name__ == "__main__":
    try:
        libporthole.load(BUILD)
    except OSError as e:
        print(f"libporthole.so cannot be loaded into Python here: {e}")
        sys.exit(77)
    main(sys.modules[__name__])
