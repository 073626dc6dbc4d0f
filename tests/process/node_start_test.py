#!/usr/bin/env python3
"""A node that cannot start, or is stopped while it does: usage, state directory and store, ports, signals, a full disk."""
import hashlib
import json
import os
import random
import resource
import shutil
import signal
import socket
import sys
import time

from lab import *


def node_run(lab, name, *flags, **popen):
    return run("node", "run", "--statedir", lab.path(name), "--login-server", "http://127.0.0.1:1", *flags, **popen)


def digest(path):
    with open(path, "rb") as f:
        return hashlib.sha256(f.read()).hexdigest()


def test_usage():
    with Lab() as lab:
        refused(run(), 2, "subcommand")
        refused(run("fly"), 2, "fly")
        refused(run("node"), 2, "subcommand")
        refused(run("node", "fly"), 2, "fly")
        refused(run("node", "run"), 2, "--statedir")
        refused(node_run(lab, "n", "--no-such-flag"), 2, "--no-such-flag")
        refused(node_run(lab, "n", "--port", "70000"), 2, "70000")
        refused(node_run(lab, "n", "--port", "x"), 2, "--port")
        for bad in ("80", "=127.0.0.1:80", "x=127.0.0.1:80", "80x=127.0.0.1:80", "0=127.0.0.1:80", "65536=127.0.0.1:80", "80=", "80=127.0.0.1",
                    "80=127.0.0.1:0", "80=127.0.0.1:99999", "80=example.org:80"):
            refused(node_run(lab, "n", "--expose", bad), 2, "--expose", bad)
        for bad in ("127.0.0.1", "1080", "nonsense:1080", "127.0.0.1:99999"):
            refused(node_run(lab, "n", "--socks5", bad), 2, "--socks5", bad)
        refused(node_run(lab, "n", "--socks5", "0.0.0.0:0"), 2, "loopback")
        refused(run("node", "status", "--statedir", lab.path("nobody-runs-here")), 1, "no node is running")
        refused(run("node", "ping", "--statedir", lab.path("nobody-runs-here"), "x", "--count", "-1"), 2, "count")
        help_text = run("node", "run", "--help")
        check(help_text.returncode == 0 and "--expose" in help_text.stdout, "node run --help")


def test_ports_in_use():
    with Lab() as lab:
        udp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        udp.bind(("0.0.0.0", 0))
        port = udp.getsockname()[1]
        refused(node_run(lab, "udp", "--port", str(port)), 1, str(port), "in use", "--port")
        tcp = socket.create_server(("127.0.0.1", 0))
        address = f"127.0.0.1:{tcp.getsockname()[1]}"
        refused(node_run(lab, "socks", "--socks5", address), 1, address, "in use")


def test_state_directory():
    with Lab() as lab:
        refused(node_run(lab, os.path.basename(lab.write("plain", "text"))), 1, "not a directory", "plain")
        check(open(lab.path("plain")).read() == "text", "the file in the place of the state directory was changed")
        refused(run("node", "run", "--statedir", "/proc/no/such", "--login-server", "http://127.0.0.1:1"), 1, "/proc/no/such")
        refused(node_run(lab, "x" * 300), 1, "too long")  # for a name; a path may have any length (remote_access_test.py)
        # One process a directory.
        first = lab.node("shared", "http://127.0.0.1:1", "k")
        first.wait_event("state")
        refused(node_run(lab, "shared"), 1, "in use by another process", "shared")
        status = run("node", "status", "--statedir", lab.path("shared"), "--json")
        check(status.returncode == 0 and json.loads(status.stdout)["state"] == "starting", f"status of the first: {status}")
        first.stop()


def test_state_directory_without_permission():
    with Lab() as lab:
        os.chmod(lab.dir, 0o755)
        program = lab.path("porthole")
        shutil.copy(PORTHOLE, program)
        os.chmod(program, 0o755)
        os.mkdir(lab.path("locked"), 0o755)
        if os.getuid() != 0:
            os.chmod(lab.path("locked"), 0o555)
        argv = ["node", "run", "--login-server", "http://127.0.0.1:1", "--statedir"]
        refused(run(*argv, lab.path("locked"), program=program, **nobody()), 1, "not writable", "Permission denied")
        refused(run(*argv, lab.path("locked", "new"), program=program, **nobody()), 1, "cannot create", "Permission denied")
        for verb in (["remote", "run", "--listen", "127.0.0.1:0", "--stun-port", "0"], ["serve", "--library", lab.dir, "--listen", "127.0.0.1:0"],
                     ["client", "servers"]):
            refused(run(*verb, "--statedir", lab.path("locked"), program=program, **nobody()), 1, "not writable")
            refused(run(*verb, "--statedir", lab.path("locked", "new"), program=program, **nobody()), 1, "cannot create")
        os.chmod(lab.path("locked"), 0o700)
        check(os.listdir(lab.path("locked")) == [], "something was left in the directory")


def test_store_that_is_not_ours():
    with Lab() as lab:
        remote = lab.remote()
        lab.account(remote)
        node = lab.node("n", remote.url, lab.key(remote))
        node.wait_event("running")
        node.stop()
        path = lab.path("n", "node.json")
        good = open(path).read()
        stored = json.loads(good)
        for name, text, words in (
                ("cut", good[:len(good) // 2], ("damaged", "restore")),
                ("empty", "", ("damaged",)),
                ("binary", "\x00\x01\x02" * 100, ("damaged",)),
                ("keyless", json.dumps({**stored, "machine_key": "privkey:00"}), ("damaged", "machine key")),
                ("foreign", json.dumps({"_machinekey": "x", "_profiles": "y"}), ("not a Porthole node state",)),
                ("newer", json.dumps({**stored, "version": 99, "wonder": [1]}), ("newer", "99", "update")),
                ("huge", "[" + " " * 3_000_000 + "]", ("larger",))):
            with open(path, "w") as f:
                f.write(text)
            before = digest(path)
            refused(run("node", "run", "--statedir", lab.path("n")), 1, path, *words)
            check(digest(path) == before, f"{name}: the store was overwritten")
        # Put back, it works again: no new login.
        with open(path, "w") as f:
            f.write(good)
        again = lab.node("n")
        ips = again.wait_event("running")["ips"]
        check(ips == stored["addresses"], f"came back as {ips}, was {stored['addresses']}")
        again.stop()
        # The same server, written another way.
        again = lab.node("n", remote.url.replace("http", "HTTP") + "/")
        again.wait_event("running")
        again.stop()
        # A directory that belongs to another tailnet.
        other = lab.remote("other")
        refused(run("node", "run", "--statedir", lab.path("n"), "--login-server", other.url), 1, "belongs to", remote.url, other.url)


def test_full_disk():
    def no_room():
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (64, resource.RLIM_INFINITY))

    full = {"preexec_fn": no_room, "restore_signals": False}
    with Lab() as lab:
        refused(node_run(lab, "fresh", **full), 1, "cannot write", "File too large")
        check(sorted(os.listdir(lab.path("fresh"))) == ["lock"], f"left behind: {os.listdir(lab.path('fresh'))}")
        remote = lab.remote()
        lab.account(remote)
        key = lab.key(remote)
        node = lab.node("n", remote.url, key)
        node.wait_event("running")
        node.stop()
        path = lab.path("n", "node.json")
        before = digest(path)
        # With a login in store it comes up all the same, and says what is wrong.
        late = lab.node("n", **full)
        late.wait_event("running")
        late.stop()
        check(digest(path) == before, "the store changed although there was no room")
        check(any("old content is kept" in e.get("message", "") for e in late.log if e["event"] == "notice"), f"no word about the disk: {late.log}")
        check(sorted(os.listdir(lab.path("n"))) == ["lock", "netmap.json", "node.json"], f"left behind: {os.listdir(lab.path('n'))}")
        again = lab.node("n")
        again.wait_event("running")


def test_stopped_at_any_moment():
    """SIGTERM at 30 moments between the handler's first instruction and long after the start: status 0 within 2 s."""
    seed = int.from_bytes(os.urandom(4), "big")
    chance = random.Random(seed)
    with Lab() as lab:
        remote = lab.remote()
        lab.account(remote)
        key = lab.key(remote, "home", "--reusable")
        for i in range(30):
            where = remote.url if i % 3 else "http://127.0.0.1:1"
            node = lab.node(f"n{i % 5}" if i % 3 else f"lost{i}", where, key, "--socks5", "127.0.0.1:0", "--expose", "80=127.0.0.1:80")
            wait_for(lambda: handles_term(node.p.pid) or node.p.poll() is not None, 10, "the signal handler")
            time.sleep(chance.expovariate(1 / 0.08))  # the moment is what is tested
            sent = time.monotonic()
            node.p.send_signal(signal.SIGTERM)
            status = node.wait_exit(2)
            took = time.monotonic() - sent
            check(status == 0 and took < 2 * SLOW,
                  f"seed {seed}, try {i}: status {status} after {took:.2f} s; {node.log[-2:]} {node.stderr()[-300:]}")
            check(not os.path.exists(lab.path(node.name, "node.sock")), f"try {i}: the control socket was left")
            stored = lab.path(node.name, "node.json")
            check(not os.path.exists(stored) or json.load(open(stored))["machine_key"], f"try {i}: the store is damaged")


if __name__ == "__main__":
    main(sys.modules[__name__])
