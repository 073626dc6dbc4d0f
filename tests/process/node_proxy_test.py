#!/usr/bin/env python3
"""The loopback proxy and what goes through it when the other side, or the way, is not there; processes killed in mid-transfer."""
import base64
import contextlib
import json
import select
import socket
import sys
import threading
import time

from lab import *


def pair(lab, remote, echo_port, *flags, b_flags=()):
    """Two nodes of one account, the first with a proxy, the second exposing port 7."""
    lab.account(remote)
    a = lab.node("a", remote.url, lab.key(remote), "--socks5", "127.0.0.1:0", *flags)
    a.proxy = a.wait_event("socks5")
    a.wait_event("running")
    b = lab.node("b", remote.url, lab.key(remote), "--expose", f"7=127.0.0.1:{echo_port}", "--expose", "9=127.0.0.1:1", *flags, *b_flags)
    b.wait_event("running")
    a.wait_event("peers", match=lambda e: "b" in e["added"])
    return a, b


def http(proxy, request, seconds=20):
    host, port = proxy["address"].rsplit(":", 1)
    with socket.create_connection((host, int(port)), timeout=seconds * SLOW) as s:
        s.sendall(request)
        answer = b""
        while b"\r\n\r\n" not in answer:
            block = s.recv(4096)
            if not block:
                break
            answer += block
    return answer.decode(errors="replace")


def basic(proxy, password=None):
    word = f"{proxy['username']}:{password if password is not None else proxy['password']}"
    return "Proxy-Authorization: Basic " + base64.b64encode(word.encode()).decode()


def echo_works(proxy, host="b", seconds=20):
    reply, s = socks_connect(proxy, host, 7, seconds)
    check(reply == 0, f"SOCKS reply {reply} for {host}")
    with s:
        s.sendall(b"hello")
        check(exactly(s, 5) == b"hello", "the echo came back changed")


def test_refusals_of_the_proxy():
    echo = EchoServer()
    with Lab() as lab:
        remote = lab.remote()
        a, b = pair(lab, remote, echo.port)
        proxy = a.proxy
        echo_works(proxy)

        start = time.monotonic()
        check(socks_connect(proxy, "no-such-device", 7)[0] == 4, "an unknown name must be 'host unreachable' (4)")
        check(socks_connect(proxy, "100.99.99.99", 7)[0] in (3, 4), "an address nobody has must be 'unreachable'")
        check(socks_connect(proxy, "example.org", 80)[0] in (2, 4), "a name of the Internet must not be dialled")
        check(time.monotonic() - start < 3 * SLOW, f"unknown names took {time.monotonic() - start:.1f} s")
        check(socks_connect(proxy, "b", 8)[0] == 5, "a port nobody listens on must be 'refused' (5)")
        # The service behind the exposed port is not there: an end, not a hang.
        reply, s = socks_connect(proxy, "b", 9)
        if reply == 0:
            try:
                check(s.recv(1) == b"", "data from a service that is not there")
            except ConnectionResetError:
                pass

        try:
            socks_login(proxy, password="wrong")
            raise Failed("a wrong password was taken")
        except ConnectionRefusedError:
            pass
        host, port = proxy["address"].rsplit(":", 1)
        with socket.create_connection((host, int(port)), timeout=20) as s:
            s.sendall(b"\x05\x01\x00")  # only "no authentication"
            check(exactly(s, 2) == b"\x05\xff", "a program without credential must be refused (RFC 1928: FF)")
            check(s.recv(1) == b"", "the proxy keeps a refused connection")

        check_words(http(proxy, b"CONNECT b:7 HTTP/1.1\r\nHost: b:7\r\n\r\n").splitlines()[0], " 407 ")
        check_words(http(proxy, f"CONNECT b:7 HTTP/1.1\r\nHost: b:7\r\n{basic(proxy, 'wrong')}\r\n\r\n".encode()).splitlines()[0], " 407 ")
        check_words(http(proxy, f"CONNECT b:7 HTTP/1.1\r\nHost: b:7\r\n{basic(proxy)}\r\n\r\n".encode()).splitlines()[0], " 200 ")
        status = http(proxy, f"CONNECT no-such-device:7 HTTP/1.1\r\n{basic(proxy)}\r\n\r\n".encode()).split()[1]
        check(status in ("502", "503", "504", "404"), f"HTTP CONNECT to an unknown name: {status}")
        for junk in (b"\x00" * 50, b"\x04\x01\x00\x50\x00\x00\x00\x01x\x00", b"GET / HTTP/1.1\r\n\r\n", b"CONNECT\r\n\r\n", b"CONNECT :: HTTP/1.1\r\n\r\n",
                     b"A" * 100_000, b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + b"\x00" * 600):
            try:
                answer = http(proxy, junk)
                check(not answer or " 4" in answer.splitlines()[0] or " 5" in answer.splitlines()[0], f"{junk[:20]}: {answer!r}")
            except ConnectionError:
                pass
        echo_works(proxy)


def test_commands_to_a_running_node():
    with Lab() as lab:
        remote = lab.remote()
        a, b = pair(lab, remote, 1)
        folder = lab.path("a")
        refused(run("node", "ping", "no-such-device", "--count", "1", "--statedir", folder), 1, "no-such-device")
        # The default count: the first may be sent before any way to the peer is known.
        pong = run("node", "ping", "b", "--statedir", folder, "--json")
        check(pong.returncode == 0 and json.loads(pong.stdout.splitlines()[-1])["peer"] == "b", f"ping: {pong}")
        # Programs that misbehave on the control socket.
        for junk in (b"\n", b"{}\n", b"[]\n", b'{"command":7}\n', b'{"command":"no"}\n', b"\xff" * 100 + b"\n", b"x" * 100_000):
            with socket.socket(socket.AF_UNIX) as s:
                s.settimeout(20)
                s.connect(folder + "/node.sock")
                try:
                    s.sendall(junk)
                    answer = s.recv(65536)
                    check(not answer or json.loads(answer)["ok"] is False, f"{junk[:20]} was answered {answer!r}")
                except ConnectionError:
                    pass
        many = []
        for _ in range(100):
            s = socket.socket(socket.AF_UNIX)
            s.connect(folder + "/node.sock")
            many.append(s)
        for s in many:
            s.close()
        wait_for(lambda: run("node", "status", "--statedir", folder).returncode == 0, 10, "the status after 100 idle connections")
        check(run("node", "logout", "--statedir", folder).returncode == 0, "logout")
        check(a.wait_exit() == 0, "a node that was logged out ends cleanly")
        refused(run("node", "run", "--statedir", folder, "--json", "--auth-key", "nonsense"), 1, "refused")


def test_datagrams_through_the_proxy():
    echo = EchoUdp()
    with Lab() as lab:
        remote = lab.remote()
        ports = range(53, 93)  # more than the targets that one association keeps
        a, b = pair(lab, remote, 1, b_flags=[word for port in ports for word in ("--expose", f"udp:{port}=127.0.0.1:{echo.port}")])
        ips, own = (json.load(open(lab.path(n, "node.json")))["addresses"] for n in "ba")
        hosts = ("b", "B", *ips)

        def counted(name, n):
            def now():
                return json.loads(run("node", "status", "--statedir", lab.path("a"), "--json").stdout)["counters"]["proxied_datagrams"]
            wait_for(lambda: now()[name] >= n, 10, f"{name} is {n}")
            check(now()[name] == n, f"{name} is {n}: {now()}")

        with SocksUdp(a.proxy) as u:
            check(u.reply == 0 and u.relay[0] == "127.0.0.1" and u.relay[1] != 0, f"reply {u.reply}, datagrams to {u.relay}")
            for host in hosts:
                most = 1232 if ":" in host else 1252
                u.echoes(host, 53, b"hello")
                u.echoes(host, 53, b"")
                u.echoes(host, 53, b"x" * (most - len("seen ")))
                u.send(host, 53, b"x" * (most + 1))
            counted("too_long", len(hosts))
            check(len(echo.sources) == len(hosts), f"each target, as it is written, is a source of its own: {echo.sources}")

            # What must not pass.
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as other, socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as elsewhere:
                other.bind(("127.0.0.1", 0))
                elsewhere.bind(("127.0.0.2", 0))
                for s in (other, elsewhere):
                    u.send("b", 53, b"BAD", s=s)
                counted("other_client", 2)
                check(not select.select([other, elsewhere], [], [], 0)[0], "somebody else got a datagram")
            for fragment in (1, 0x81):
                u.send("b", 53, b"BAD", fragment=fragment)
            counted("fragment", 2)
            nowhere = ("no-such-device", "example.org", "100.99.99.99", "127.0.0.1", own[0])
            for host in nowhere:
                u.send(host, 53, b"BAD")
            counted("unknown_target", len(nowhere))
            u.s.sendto(b"\0\0\0\x01\x64", u.relay)
            u.send("b", 0, b"BAD")
            counted("bad_head", 2)
            # A port where nobody listens: silence. Bytes on the connection: nothing.
            u.send("b", 9, b"BAD")
            u.control.sendall(b"x" * 10_000)
            u.echoes("b", 53, b"on")
            check(b"BAD" not in echo.seen, "what must be dropped came through")

            for port in (*ports, ports[0]):
                u.echoes(ips[0], port, b"to %d" % port)

        def is_free():
            with contextlib.suppress(OSError), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as s:
                s.bind(u.relay)
                return True
        wait_for(is_free, 10, "the port is free when the connection has ended")

        # As many as there may be; one more when one has ended.
        many = [SocksUdp(a.proxy) for _ in range(64)]
        check(all(u.reply == 0 for u in many), f"replies {[u.reply for u in many]}")
        with SocksUdp(a.proxy) as u:
            check(u.reply == 1 and u.control.recv(1) == b"", f"one too many: reply {u.reply}")
        many[-1].echoes("b", 53, b"the last one works")
        many.pop(0).__exit__()

        def one_more():
            many.append(SocksUdp(a.proxy))
            return many[-1].reply == 0
        wait_for(one_more, 10, "an association after another has ended")
        check(socks_connect(a.proxy, "b", 8)[0] == 5, "connections work beside them")
        # The node ends with associations open.
        a.stop()
        for u in many:
            check(u.reply != 0 or u.control.recv(1) == b"", "the connection ends with the node")
            u.__exit__()


class Download(threading.Thread):
    """Reads `size` bytes of b's service through the proxy, slowly enough to be under way for a while."""

    def __init__(self, proxy, size):
        super().__init__(daemon=True)
        reply, self.s = socks_connect(proxy, "b", 7)
        check(reply == 0, f"SOCKS reply {reply}")
        self.size, self.got, self.error = size, 0, None
        self.s.sendall(b"GIVE %d" % size)
        self.start()

    def run(self):
        try:
            while block := self.s.recv(65536):
                self.got += len(block)
        except OSError as e:
            self.error = e


def test_node_killed_in_mid_transfer():
    echo = EchoServer()
    with Lab() as lab:
        remote = lab.remote()
        a, b = pair(lab, remote, echo.port)
        ips = json.load(open(lab.path("b", "node.json")))["addresses"]
        for victim in ("b", "a"):
            download = Download(a.proxy, 4_000_000_000)
            wait_for(lambda: download.got > 5_000_000, 20, "the transfer")
            (a if victim == "a" else b).kill()
            if victim == "a":
                download.join(20)
                check(not download.is_alive(), "the local end of a killed node's connection still hangs")
                a = lab.node("a", None, None, "--socks5", "127.0.0.1:0")
                a.proxy = a.wait_event("socks5")
                a.wait_event("running")
            else:
                b = lab.node("b", None, None, "--expose", f"7=127.0.0.1:{echo.port}")
                check(b.wait_event("running")["ips"] == ips, "it came back with other addresses")
            # Through at the first attempt, and soon.
            start = time.monotonic()
            echo_works(a.proxy)
            print(f"        after the kill of {victim}: through again in {time.monotonic() - start:.1f} s")
            check(time.monotonic() - start < 10 * SLOW, "too slow")
            if victim == "b":
                # The connection of before the kill has ended, too: reset by the new b, which knows nothing of it.
                download.join(5 * SLOW)
                check(not download.is_alive(), f"a connection to the killed node still hangs after {download.got} bytes")
            download.s.close()


def test_remote_killed_in_mid_stream():
    echo = EchoServer()
    with Lab() as lab:
        remote = lab.remote()
        a, b = pair(lab, remote, echo.port)
        echo_works(a.proxy)
        wait_for(lambda: json.loads(run("node", "ping", "b", "--count", "1", "--statedir", lab.path("a"), "--json").stdout or "{}").get("path") == "direct",
                 20, "a direct path")
        download = Download(a.proxy, 4_000_000_000)
        wait_for(lambda: download.got > 1_000_000, 20, "the transfer")
        remote.kill()
        at_kill = download.got
        wait_for(lambda: download.got > at_kill + 50_000_000, 30, "50 MB after the coordination service was killed")
        echo_works(a.proxy)  # and new connections, too
        again = lab.remote("remote", listen=remote.listen, stun_port=str(remote.stun_port))
        check(again.url == remote.url, "the same address")
        # New changes flow: a third node joins, and both see it.
        c = lab.node("c", remote.url, lab.key(again), "--expose", f"7=127.0.0.1:{echo.port}")
        c.wait_event("running")
        a.wait_event("peers", 60, match=lambda e: "c" in e["added"])
        echo_works(a.proxy, "c")
        before = download.got
        wait_for(lambda: download.got > before + 1_000_000, 20, "the old transfer after the restart")
        download.s.close()


if __name__ == "__main__":
    main(sys.modules[__name__])
