#!/usr/bin/env python3
"""Whoever reads what a process prints may stop reading: the process serves on, and ends when it is asked to."""
import fcntl
import json
import os
import socket
import subprocess
import sys
import time

from home import *

F_SETPIPE_SZ = 1031


class Unread:
    """A process that prints into a pipe of one page; after the first event of the wanted kind nobody reads, and it is full."""

    def __init__(self, argv, wanted=None):
        self.reader, self.writer = os.pipe()
        fcntl.fcntl(self.writer, F_SETPIPE_SZ, 4096)
        if not wanted:
            self.fill()
        self.p = subprocess.Popen([PORTHOLE, *argv, "--json"], stdin=subprocess.DEVNULL, stdout=self.writer, stderr=self.writer)
        text = b""
        while wanted:
            text += os.read(self.reader, 4096)
            seen = [json.loads(line) for line in text.split(b"\n")[:-1] if line.startswith(b"{")]
            self.event = next((e for e in seen if e["event"] == wanted), None)
            if self.event:
                self.fill()
                break

    def fill(self):
        os.set_blocking(self.writer, False)
        try:
            for size in (4096, 1):
                while True:
                    os.write(self.writer, b"." * size)
        except BlockingIOError:
            pass
        os.set_blocking(self.writer, True)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        if self.p.poll() is None:
            self.p.kill()
        self.p.wait()
        os.close(self.reader)
        os.close(self.writer)

    def ends_in_time(self, status=0):
        start = time.monotonic()
        terminate(self.p)
        try:
            got = self.p.wait(2 * SLOW + (2 if THREAD_SANITIZER else 0))
        except subprocess.TimeoutExpired:
            raise Failed(f"it still runs {time.monotonic() - start:.1f} s after SIGTERM")
        check(status is None or got == status, f"status {got} after SIGTERM")


def status_of(lab, verb="serve"):
    result = run(verb, "status", "--statedir", lab.path(verb), "--json")
    return json.loads(result.stdout) if result.returncode == 0 else None


def test_serve():
    with Lab() as lab:
        make_library(lab)
        set_password(lab)
        argv = ["serve", "--statedir", lab.path("serve"), "--library", lab.path("library"), "--listen", "127.0.0.1:0"]
        with Unread(argv) as serve:
            wait_for(lambda: (status_of(lab) or {}).get("items"), 30, "the library")
            url = "wss://" + status_of(lab)["listen"]
            info = logged_in(lab, url)
            for _ in range(3):
                refused(login(lab, url, password="guess-guess"), 1)  # each of these is a line in the log
            for _ in range(5):
                check(client(lab, "connect", info["id"], "--local").returncode == 0, "a login although nobody reads the server's output")
            check(len(events(client(lab, "ls", info["id"]))) >= 4, "the list although nobody reads the server's output")
            check(status_of(lab)["lan"] == "on", "the status")
            serve.ends_in_time()


def test_remote():
    with Lab() as lab:
        argv = ["remote", "run", "--statedir", lab.path("remote"), "--listen", "127.0.0.1:0", "--stun-port", "0"]
        with Unread(argv, "ready") as remote:
            made = run("remote", "account", "create", "home", "--statedir", lab.path("remote"), "--json")
            check(made.returncode == 0, made.stderr)
            host, port = remote.event["listen"].rsplit(":", 1)
            with socket.create_connection((host, int(port)), timeout=20 * SLOW) as s:
                s.sendall(b"GET /health HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
                check(b" 200 " in s.recv(4096), "/health")
            remote.ends_in_time()


def test_node():
    with Lab() as lab:
        remote = lab.remote()
        lab.account(remote)
        argv = ["node", "run", "--statedir", lab.path("unread"), "--hostname", "unread", "--login-server", remote.url, "--auth-key", lab.key(remote)]
        with Unread(argv, "running") as node:
            # Peers that come and go are events for it.
            for i in range(3):
                other = lab.node(f"n{i}", remote.url, lab.key(remote))
                other.wait_event("running")
                result = run("node", "ping", "unread", "--statedir", lab.path(f"n{i}"), "--count", "1", "--json")
                check(result.returncode == 0, f"ping of a node whose output nobody reads: {result.stderr}")
            result = run("node", "status", "--statedir", lab.path("unread"), "--json")
            check(json.loads(result.stdout)["state"] == "running", result)
            node.ends_in_time()


def test_client():
    with Lab() as lab:
        serve = home(lab)
        info = logged_in(lab, serve.url)
        common = ["--statedir", lab.path("client")]
        with Unread(["client", "play", info["id"], "film.mp4", "--listen", "127.0.0.1:0", *common], "playing") as play:
            serve.kill()  # it has much to say about that
            serve = start_serve(lab, listen=serve.listen)
            serve.wait_event("session", 30, state="login")
            play.ends_in_time()
        # A command waits for whoever reads its answer, and nothing of it is left out; but it ends when it is asked to.
        with Unread(["client", "ls", info["id"], *common]) as ls:
            serve.wait_event("session", 30, state="login")
            ls.ends_in_time(None)


def test_one_pipe_for_both_outputs():
    """Where standard output and standard error are one thing, as at a terminal, their lines come in the order they were said."""
    with socket.create_server(("127.0.0.1", 0)) as s:
        url = f"http://127.0.0.1:{s.getsockname()[1]}"
    for _ in range(10 if SLOW == 1 else 3):
        p = subprocess.run([PORTHOLE, "node", "doctor", url], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=30 * SLOW)
        lines = p.stdout.splitlines()
        check(p.returncode == 1 and len(lines) > 2 and "cannot use" in lines[-1], f"{p.returncode} {p.stdout!r}")


def test_full_disk_behind_standard_output():
    """What a command was asked for and could not be written is its failure; a token would be lost with it."""
    with Lab() as lab:
        state = lab.path("r")
        check(run("remote", "account", "create", "first", "--statedir", state).returncode == 0, "an account")
        for flags in ([], ["--json"]):
            with open("/dev/full", "w") as full:
                p = subprocess.run([PORTHOLE, "remote", "account", "list", "--statedir", state, *flags], stdout=full, stderr=subprocess.PIPE,
                                   text=True, timeout=30 * SLOW)
            check(p.returncode == 1 and "cannot write to standard output" in p.stderr, f"{flags}: {p.returncode} {p.stderr}")


if __name__ == "__main__":
    main(sys.modules[__name__])
