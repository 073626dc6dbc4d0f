#!/usr/bin/env python3
"""The coordination service: what keeps it from starting, what the network throws at it, and how it ends."""
import hashlib
import json
import os
import resource
import select
import signal
import socket
import sqlite3
import ssl
import sys
import time

from lab import *


def remote_run(lab, name, *flags, **popen):
    argv = ["remote", "run", "--statedir", lab.path(name), *flags]
    for option, value in (("--listen", "127.0.0.1:0"), ("--stun-port", "0")):
        if option not in flags:
            argv += [option, value]
    return run(*argv, **popen)


def connect(remote, tls=False):
    host, port = remote.listen.rsplit(":", 1)
    s = socket.create_connection((host, int(port)), timeout=20 * SLOW)
    if not tls:
        return s
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context.wrap_socket(s)


def read_all(s):
    data = b""
    try:
        while block := s.recv(65536):
            data += block
    except OSError:
        pass
    return data


def healthy(remote, tls=False):
    for target in (b"/health", b"https://x/health"):  # the whole URL is as good
        with connect(remote, tls) as s:
            s.sendall(b"GET " + target + b" HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
            answer = read_all(s)
        check(b" 200 " in answer.split(b"\r\n")[0] and b'"ok"' in answer, f"{target}: {answer[:200]!r}")


def test_it_cannot_start():
    with Lab() as lab:
        refused(run("remote"), 2, "subcommand")
        refused(run("remote", "run"), 2, "--statedir")
        refused(remote_run(lab, "r", "--listen", "nonsense"), 2, "--listen", "nonsense")
        refused(remote_run(lab, "r", "--stun-port", "70000"), 2, "70000")
        refused(remote_run(lab, "r", "--base-domain", "-x-."), 2, "--base-domain")
        refused(remote_run(lab, "r", "--public-url", "nonsense"), 2, "--public-url")
        tcp = socket.create_server(("127.0.0.1", 0))
        refused(remote_run(lab, "r", "--listen", f"127.0.0.1:{tcp.getsockname()[1]}"), 1, "in use", "--listen")
        udp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        udp.bind(("127.0.0.1", 0))
        refused(remote_run(lab, "r", "--stun-port", str(udp.getsockname()[1])), 1, "in use", "--stun-port")
        cert, key = make_certificate(lab.dir)
        junk = lab.write("junk", "junk")
        _, other_key = make_certificate(lab.dir, "other")
        refused(remote_run(lab, "r", "--tls-cert", cert), 2, "--tls-cert", "--tls-key")
        refused(remote_run(lab, "r", "--tls-cert", lab.path("none"), "--tls-key", key), 1, lab.path("none"))
        refused(remote_run(lab, "r", "--tls-cert", junk, "--tls-key", key), 1, "junk")
        refused(remote_run(lab, "r", "--tls-cert", cert, "--tls-key", junk), 1, "junk")
        refused(remote_run(lab, "r", "--tls-cert", cert, "--tls-key", other_key), 1, "key")
        refused(remote_run(lab, os.path.basename(junk)), 1, "not a directory")


def test_commands():
    with Lab() as lab:
        remote = lab.remote()
        state = ["--statedir", remote.state]
        refused(run("remote", "run", *state, "--listen", "127.0.0.1:0", "--stun-port", "0"), 1, "in use", remote.state)
        lab.account(remote)
        refused(run("remote", "account", "create", "home", *state), 1, "already exists")
        for bad in ("UPPER", "a b", "a-", "x" * 200, "ümlaut", "a/b", "a\nb"):
            refused(run("remote", "account", "create", bad, *state), 2, "account")
        refused(run("remote", "key", "create", "--account", "nobody", *state), 1, "nobody", "does not exist")
        for bad in ("0", "-5s", "soon", "1y", "99999999999999999999d"):
            refused(run("remote", "key", "create", "--account", "home", f"--expires={bad}", *state), 2, "--expires")
        refused(run("remote", "key", "create", "--account", "home", "--device", "a b", *state), 2, "device")
        refused(run("remote", "devices", "revoke", "no-such-device", *state), 1, "no-such-device", "does not exist")
        refused(run("remote", "register", "approve", "nothing", "--account", "home", *state), 1, "nothing")
        for command in (["account", "list"], ["devices", "list"], ["key", "create", "--account", "home"], ["devices", "revoke", "1"]):
            refused(run("remote", *command, "--statedir", lab.path("mistyped")), 1, lab.path("mistyped"), "no coordination service")
        check(not os.path.exists(lab.path("mistyped")), "a mistyped directory was made")
        # The same without a running service.
        remote.stop()
        refused(run("remote", "account", "create", "home", *state), 1, "already exists")
        refused(run("remote", "devices", "revoke", "no-such-device", *state), 1, "does not exist")


def test_store_that_is_not_ours():
    with Lab() as lab:
        remote = lab.remote()
        lab.account(remote)
        remote.stop()
        store = next(os.path.join(remote.state, n) for n in os.listdir(remote.state) if n.endswith((".db", ".sqlite", ".sqlite3")))
        keys = {n: open(os.path.join(remote.state, n), "rb").read() for n in ("noise.key", "relay.key", "server.secret")}
        good = open(store, "rb").read()

        def digest():
            return hashlib.sha256(open(store, "rb").read()).hexdigest()

        for text in (b"this is no database " * 100, good[:len(good) // 3], good[:100] + os.urandom(len(good) - 100)):
            with open(store, "wb") as f:
                f.write(text)
            before = digest()
            refused(remote_run(lab, "remote"), 1, os.path.basename(store))
            check(digest() == before, "the damaged store was overwritten")
        with open(store, "wb") as f:
            f.write(good)
        db = sqlite3.connect(store)
        version = db.execute("pragma user_version").fetchone()[0]
        db.execute(f"pragma user_version = {version + 50}")
        db.commit()
        db.close()
        refused(remote_run(lab, "remote"), 1, "newer")
        with open(store, "wb") as f:
            f.write(good)
        # An empty file, or none, is no new service when its keys are there; nor is a key made anew that devices depend on.
        for lost in (lambda: open(store, "wb").close(), lambda: os.unlink(store)):
            lost()
            for command in (["account", "list"], ["account", "create", "other"]):
                refused(run("remote", *command, "--statedir", remote.state), 1, os.path.basename(store))
            refused(remote_run(lab, "remote"), 1, os.path.basename(store), "missing or empty", "backup")
        with open(store, "wb") as f:
            f.write(good)
        os.unlink(os.path.join(remote.state, "server.secret"))
        refused(remote_run(lab, "remote"), 1, "server.secret", "missing", "backup")
        with open(os.path.join(remote.state, "server.secret"), "wb") as f:
            f.write(keys["server.secret"])
        for name, content in keys.items():
            with open(os.path.join(remote.state, name), "wb") as f:
                f.write(b"junk\n")
            refused(remote_run(lab, "remote"), 1, name, "backup")
            check(open(os.path.join(remote.state, name), "rb").read() == b"junk\n", f"{name} was overwritten")
            with open(os.path.join(remote.state, name), "wb") as f:
                f.write(content)
        lab.remote("remote")  # and with everything back it starts


def test_full_disk():
    with Lab() as lab:
        def no_room():
            signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
            resource.setrlimit(resource.RLIMIT_FSIZE, (10, resource.RLIM_INFINITY))

        refused(remote_run(lab, "fresh", preexec_fn=no_room, restore_signals=False), 1, "cannot write")
        remote = lab.remote()
        lab.account(remote)
        pid = remote.p.pid
        # From now on no file of the service may grow.
        before = run("remote", "account", "list", "--statedir", remote.state, "--json").stdout
        resource.prlimit(pid, resource.RLIMIT_FSIZE, (10, resource.RLIM_INFINITY))
        for i in range(3):
            result = run("remote", "account", "create", f"more{i}", "--statedir", remote.state)
            if result.returncode == 0:
                continue  # it fitted into what was there
            refused(result, 1)
        check(remote.p.poll() is None, f"the service ended ({remote.p.poll()}) because the disk is full: {remote.stderr()[-300:]}")
        healthy_or_degraded(remote)
        resource.prlimit(pid, resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
        made = run("remote", "account", "create", "after", "--statedir", remote.state)
        check(made.returncode == 0, f"after there is room again: {made.stderr}")
        remote.stop()
        again = lab.remote("remote")
        names = run("remote", "account", "list", "--statedir", again.state, "--json").stdout
        check_words(names, "home", "after")
        check("home" in before, "the account of before")


def healthy_or_degraded(remote):
    with connect(remote) as s:
        s.sendall(b"GET /health HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        answer = read_all(s)
    check(answer.startswith(b"HTTP/1.1 "), f"/health: {answer[:100]!r}")


def hostile_requests(remote, tls):
    long_head = b"GET / HTTP/1.1\r\nHost: x\r\nX: " + b"a" * 200_000 + b"\r\n\r\n"
    cases = [
        ("long target", b"GET /" + b"a" * 200_000 + b" HTTP/1.1\r\nHost: x\r\n\r\n", (b"431", b"414", b"400")),
        ("long header", long_head, (b"431", b"400")),
        ("many headers", b"GET / HTTP/1.1\r\n" + b"A: b\r\n" * 20_000 + b"\r\n", (b"431", b"400")),
        ("huge length", b"POST /api/v1/keys HTTP/1.1\r\nHost: x\r\nContent-Length: 99999999999\r\n\r\n", (b"413", b"400")),
        ("overflowing length", b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 99999999999999999999999999\r\n\r\n", (b"413", b"400")),
        ("negative length", b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: -1\r\n\r\n", (b"400",)),
        ("two lengths", b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nab", (b"400",)),
        ("length and chunks", b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", (b"400",)),
        ("huge chunk", b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nffffffffffffffff\r\n", (b"413", b"400")),
        ("body beyond the limit", b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 1000000\r\n\r\n" + b"x" * 1_000_000, (b"413", b"400")),
        ("spaces", b"    \r\n\r\n", (b"400",)),
        ("no version", b"GET /\r\n\r\n", (b"400",)),
        ("HTTP/2 preface", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", (b"400", b"404", b"505")),
        ("zeros", b"\x00" * 1000, (b"400",)),
        ("TLS inside", b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(500), (b"400",)),
        ("empty handshake", b"POST /ts2021 HTTP/1.1\r\nHost: x\r\nUpgrade: tailscale-control-protocol\r\nConnection: upgrade\r\n\r\n", (b"400",)),
        ("junk handshake", b"POST /ts2021 HTTP/1.1\r\nHost: x\r\nUpgrade: tailscale-control-protocol\r\nConnection: upgrade\r\n"
                           b"X-Tailscale-Handshake: !!!!\r\n\r\n", (b"400",)),
        ("upgrade stripped", b"POST /ts2021 HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n", (b"400",)),
    ]
    for name, request, wanted in cases:
        with connect(remote, tls) as s:
            try:
                s.sendall(request)
                s.shutdown(socket.SHUT_WR) if not tls else None
            except OSError:
                pass
            start = time.monotonic()
            answer = b""
            try:
                while b"\r\n" not in answer:
                    block = s.recv(65536)
                    if not block:
                        break
                    answer += block
            except ConnectionError:
                pass
            except TimeoutError:
                raise Failed(f"{name}: no answer")
            # A reset may overtake an answer to somebody who still sends.
            check(not answer or answer.split(b" ")[1] in wanted, f"{name}: {answer[:120]!r}")
            check(answer or len(request) > 50_000, f"{name}: closed without a word")
            check(time.monotonic() - start < 10 * SLOW, f"{name}: took {time.monotonic() - start:.1f} s")
    healthy(remote, tls)


def test_hostile_requests():
    with Lab() as lab:
        hostile_requests(lab.remote(), False)


def test_hostile_requests_over_tls():
    with Lab() as lab:
        hostile_requests(lab.remote(tls=make_certificate(lab.dir)), True)


def test_garbage_and_half_open_connections():
    with Lab() as lab:
        remote = lab.remote(tls=make_certificate(lab.dir))
        remote.token = lab.account(remote)
        for i in range(50):
            with connect(remote) as s:
                try:
                    s.sendall(os.urandom(1 + i * 97))
                except OSError:
                    pass
        # Handshakes on the control connection's and the relay's door, cut at any byte.
        for size in range(0, 120, 7):
            with connect(remote, True) as s:
                s.sendall(b"POST /ts2021 HTTP/1.1\r\nHost: x\r\nUpgrade: tailscale-control-protocol\r\nConnection: upgrade\r\n"
                          b"X-Tailscale-Handshake: AEkBAGAAAAA=\r\n\r\n" + os.urandom(size))
        for size in range(0, 200, 13):
            with connect(remote, True) as s:
                s.sendall(b"GET /derp HTTP/1.1\r\nHost: x\r\nUpgrade: DERP\r\nConnection: upgrade\r\n\r\n" + os.urandom(size))
                s.settimeout(0.05)
                try:
                    s.recv(1024)
                except OSError:
                    pass
        udp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        for size in range(0, 1400, 31):
            udp.sendto(os.urandom(size), ("127.0.0.1", remote.stun_port))
        held = [connect(remote) for _ in range(500)]
        healthy(remote, True)
        node = lab.node("n", remote.url, lab.key(remote), "--ca-file", lab.path("tls.pem"))
        node.wait_event("running")
        for s in held:
            s.close()
        text = remote.stderr()
        check(len(text) < 100_000, f"{len(text)} bytes of log from garbage")


def test_a_client_that_is_always_behind():
    """Requests without a pause, megabytes of their answers outstanding: costs what the kernel holds, and loses nothing."""
    request = b"GET /register/x HTTP/1.1\r\nHost: x\r\n\r\n"
    with Lab() as lab:
        remote = lab.remote()
        with connect(remote) as s:
            s.sendall(request)
            s.settimeout(20 * SLOW)
            answer = s.recv(65536)
            while b"</html>" not in answer:
                answer += s.recv(65536)
        most = lambda: next(int(l.split()[1]) for l in open(f"/proc/{remote.p.pid}/status") if l.startswith("VmHWM"))
        before = most()
        batch, batches = 100, 600  # some 40 MB of answers
        with connect(remote) as s:
            s.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65536)
            s.setblocking(False)
            unsent, asked, got, tail = b"", 0, 0, b""
            while got < batch * batches * len(answer):
                if not unsent and asked < batches:
                    unsent, asked = batch * request, asked + 1
                behind = asked * batch * len(answer) - got
                readable, writable, _ = select.select([s], [s] if unsent and behind < 7 << 20 else [], [], 20 * SLOW)
                check(readable or writable, f"nothing moves after {got} bytes")
                if writable:
                    unsent = unsent[s.send(unsent):]
                else:
                    block = s.recv(65536)
                    check(block, f"closed after {got} bytes")
                    got, tail = got + len(block), (tail + block)[-len(answer):]
            check(tail.endswith(b"</html>\n"), f"the end: {tail[-100:]!r}")
        if SLOW == 1:  # a sanitizer keeps what was freed
            check(most() - before < 4 << 10, f"{most() - before} KiB more than before")


def test_goodbyes_that_are_not_taken():
    """Whoever does not read what ends a connection must not keep it (and its descriptor) for ever."""
    with Lab() as lab:
        remote = lab.remote(tls=make_certificate(lab.dir))
        descriptors = lambda: len(os.listdir(f"/proc/{remote.p.pid}/fd"))
        before = descriptors()
        held = []
        for _ in range(20):
            s = connect(remote, True)
            s.sendall(b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
            held.append(s)  # reads nothing, closes nothing
        wait_for(lambda: descriptors() >= before + 20, 10, "20 connections")
        most = descriptors()  # the service opened a file of its own meanwhile, perhaps
        wait_for(lambda: descriptors() <= most - 20, 30, "the end of 20 connections whose goodbye nobody reads")
        for s in held:
            s.close()


def test_sigterm():
    with Lab() as lab:
        remote = lab.remote()
        lab.account(remote)
        nodes = [lab.node(f"n{i}", remote.url, lab.key(remote)) for i in range(3)]
        for n in nodes:
            n.wait_event("running")
        idle = [connect(remote) for _ in range(50)]
        start = time.monotonic()
        remote.stop(3)
        check(time.monotonic() - start < 3 * SLOW, "too slow")
        check(remote.log[-1]["event"] == "stopped", f"last event {remote.log[-1]}")
        check(not os.path.exists(os.path.join(remote.state, "control.sock")), "the control socket was left")
        for s in idle:
            s.close()
        # What it knew is still known.
        again = lab.remote("remote", listen=remote.listen, stun_port=str(remote.stun_port))
        devices = json.loads(run("remote", "devices", "list", "--statedir", again.state, "--json").stdout)["devices"]
        check(len([d for d in devices if d.get("node")]) == 3, f"devices after the restart: {devices}")
        # Interrupted while it starts.
        for i in range(5):
            p = lab.start("remote", "run", "--statedir", lab.path(f"r{i}"), "--listen", "127.0.0.1:0", "--stun-port", "0")
            wait_for(lambda: os.path.exists(lab.path(f"r{i}", "noise.key")) or p.p.poll() is not None, 10, "its first file")
            p.stop(3)


if __name__ == "__main__":
    main(sys.modules[__name__])
