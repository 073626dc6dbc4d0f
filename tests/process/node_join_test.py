#!/usr/bin/env python3
"""A node that cannot join: bad keys, servers that are not there, not what they seem, or not to be trusted."""
import json
import os
import socket
import subprocess
import sys
import threading
import time

from lab import *


def no_login(lab, node, *words):
    """The node gives up with one sentence, and its state directory is fit for the next, better attempt."""
    ended_with(node, 1, *words)
    stored = json.load(open(lab.path(node.name, "node.json")))
    check(stored["machine_key"] and not stored["registered"], f"after a refused login the state says {stored.keys()}")


def notice(node, *words, seconds=20):
    """The node says what is wrong and goes on trying; asked to end, it ends cleanly."""
    event = node.wait_event("notice", seconds)
    check_words(event["message"], *words)
    check(node.p.poll() is None, "the node ended instead of trying again")
    node.stop(5)


def test_bad_keys():
    with Lab() as lab:
        remote = lab.remote()
        lab.account(remote)
        key = lab.key(remote)
        wrong = key[:-8] + ("00000000" if key[-8:] != "00000000" else "11111111")
        no_login(lab, lab.node("wrong", remote.url, wrong), "refused", "key")
        no_login(lab, lab.node("nonsense", remote.url, "nonsense"), "refused", "key")
        lab.node("first", remote.url, key).wait_event("running")
        no_login(lab, lab.node("second", remote.url, key), "already used")
        short = lab.key(remote, "home", "--expires", "1s")
        made = time.time()
        wait_for(lambda: time.time() > made + 1.2, 3, "the key's second")
        late = lab.node("late", remote.url, short)
        no_login(lab, late, "expired")
        # The same directory with a good key.
        again = lab.node("late", remote.url, lab.key(remote))
        again.wait_event("running")


def test_key_files():
    with Lab() as lab:
        remote = lab.remote()
        common = ["node", "run", "--statedir", lab.path("n"), "--login-server", remote.url, "--json"]
        refused(run(*common, "--auth-key", "file:" + lab.path("missing")), 1, "missing", "does not exist")
        refused(run(*common, "--auth-key", "file:" + lab.dir), 1, "cannot read", lab.dir)
        refused(run(*common, "--auth-key", "file:" + lab.write("huge", "x" * 100_000)), 1, "larger")


def test_servers_that_are_not_there():
    with Lab() as lab:
        reserved, port = closed_port()
        notice(lab.node("closed", f"http://127.0.0.1:{port}", "k"), f"127.0.0.1:{port}", "refused")
        notice(lab.node("nowhere", "http://no-such-host.invalid", "k"), "no-such-host.invalid")
        reserved.close()
        refused(run("node", "run", "--statedir", lab.path("n1")), 1, "no coordination server")
        refused(run("node", "run", "--statedir", lab.path("n2"), "--login-server", "tailnet.example"), 1, "not a URL", "https://")


def test_tls_and_plain_mixed_up():
    with Lab() as lab:
        plain = lab.remote("plain")
        notice(lab.node("tls-to-plain", plain.url.replace("http:", "https:"), "k"), "not with TLS", "http://", seconds=8)
        secure = lab.remote("secure", tls=make_certificate(lab.dir))
        notice(lab.node("plain-to-tls", secure.url.replace("https:", "http:"), "k"), "TLS", "https://", seconds=8)


def test_certificates():
    with Lab() as lab:
        good = make_certificate(lab.dir, "good")
        expired = make_certificate(lab.dir, "expired", dates=("20250101000000Z", "20250201000000Z"))
        future = make_certificate(lab.dir, "future", dates=("20500101000000Z", "20510101000000Z"))
        remote = lab.remote("trusted", tls=good)
        lab.account(remote)
        notice(lab.node("untrusted", remote.url, "k"), "certificate", "trusts", "--ca-file")
        # The right key, used only after the certificate is trusted.
        lab.node("trusting", remote.url, lab.key(remote), "--ca-file", good[0]).wait_event("running")
        refused(run("node", "run", "--statedir", lab.path("n"), "--login-server", remote.url, "--ca-file", lab.path("none.pem")), 1,
                "CA file", "none.pem")
        refused(run("node", "run", "--statedir", lab.path("n"), "--login-server", remote.url, "--ca-file", lab.write("junk.pem", "junk")), 1,
                "CA file", "junk.pem")
        old = lab.remote("old", tls=expired)
        notice(lab.node("expired-cert", old.url, "k", "--ca-file", expired[0]), "expired", "clock")
        early = lab.remote("early", tls=future)
        notice(lab.node("future-cert", early.url, "k", "--ca-file", future[0]), "not valid yet", "clock")


def test_captive_portal():
    def portal(s):
        read_head(s)
        page = b"<!doctype html><html><title>Hotel Seaview</title>Please log in</html>"
        s.sendall(b"HTTP/1.1 200 OK\r\nContent-Type: text/html\r\nContent-Length: %d\r\nConnection: close\r\n\r\n" % len(page) + page)

    def redirect(s):
        read_head(s)
        s.sendall(b"HTTP/1.1 302 Found\r\nLocation: http://login.hotel.example/\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")

    def other_protocol(s):
        s.sendall(b"SSH-2.0-OpenSSH_9.2p1\r\n")
        s.recv(4096)

    def mute(s):
        s.recv(65536)  # and closes

    def garbage(s):
        read_head(s)
        s.sendall(os.urandom(100_000))

    with Lab() as lab:
        notice(lab.node("portal", WebServer(portal).url, "k"), "web page", "captive portal")
        notice(lab.node("redirect", WebServer(redirect).url, "k"), "redirects", "login.hotel.example")
        notice(lab.node("ssh", WebServer(other_protocol).url, "k"), "SSH")
        notice(lab.node("mute", WebServer(mute).url, "k"), "closed the connection")
        notice(lab.node("garbage", WebServer(garbage).url, "k"), "127.0.0.1")


def test_proxy_that_strips_the_upgrade():
    """/key comes through, the upgrade does not: what most misconfigured reverse proxies do."""
    with Lab() as lab:
        remote = lab.remote()
        lab.account(remote)
        key = lab.key(remote)
        host, port = remote.listen.rsplit(":", 1)

        def proxy(answer):
            def serve(s):
                head = read_head(s)
                if head.startswith(b"GET /key"):
                    with socket.create_connection((host, int(port)), timeout=10) as up:
                        up.sendall(b"\r\n".join(line for line in head.split(b"\r\n") if not line.lower().startswith(b"connection:"))[:-2]
                                   + b"Connection: close\r\n\r\n")
                        while block := up.recv(65536):
                            s.sendall(block)
                elif answer is None:  # as a proxy that drops the header and passes the rest on
                    kept = [line for line in head.split(b"\r\n\r\n")[0].split(b"\r\n") if not line.lower().startswith((b"upgrade:", b"connection:"))]
                    with socket.create_connection((host, int(port)), timeout=10) as up:
                        up.sendall(b"\r\n".join(kept) + b"\r\nConnection: close\r\n\r\n")
                        while block := up.recv(65536):
                            s.sendall(block)
                else:
                    s.sendall(answer)
            return WebServer(serve).url

        page = b"<html>welcome</html>"
        for name, answer in (
                ("dropped", None),
                ("p400", b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"),
                ("p426", b"HTTP/1.1 426 Upgrade Required\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"),
                ("p200", b"HTTP/1.1 200 OK\r\nContent-Type: text/html\r\nContent-Length: %d\r\nConnection: close\r\n\r\n" % len(page) + page)):
            notice(lab.node(name, proxy(answer), key), "proxy", "upgrade")
        # The key was not used up by any of that.
        lab.node("direct", remote.url, key).wait_event("running")


def test_clock_wrong_by_a_day():
    fake = next((p for p in (f"/usr/lib/{a}-linux-gnu/faketime/libfaketime.so.1" for a in ("x86_64", "aarch64")) if os.path.exists(p)), None)
    if not fake or SLOW > 1:
        print("        (left out: no libfaketime, or a sanitizer that it does not go with)")
        return
    with Lab() as lab:
        remote = lab.remote()
        lab.account(remote)
        right = lab.node("right", remote.url, lab.key(remote), "--socks5", "127.0.0.1:0")
        proxy = right.wait_event("socks5")
        right.wait_event("running")
        echo = EchoServer()
        env = dict(os.environ, LD_PRELOAD=fake, FAKETIME="-1d", FAKETIME_DONT_FAKE_MONOTONIC="1", DONT_FAKE_MONOTONIC="1")
        wrong = lab.node("wrong-clock", remote.url, lab.key(remote), "--expose", f"7=127.0.0.1:{echo.port}", env=env)
        check_words(wrong.wait_event("notice")["message"], "clock", " minutes")
        wrong.wait_event("running")
        right.wait_event("peers", match=lambda e: "wrong-clock" in e["added"])
        reply, s = socks_connect(proxy, "wrong-clock", 7)
        check(reply == 0, f"SOCKS reply {reply}: a wrong clock must not keep two nodes apart")
        s.sendall(b"hello")
        check(exactly(s, 5) == b"hello", "the echo came back changed")


if __name__ == "__main__":
    main(sys.modules[__name__])
