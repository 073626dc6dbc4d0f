#!/usr/bin/env python3
"""Media server and client under pressure: slow readers, floods of connections, kills in mid-stream."""
import hashlib
import os
import resource
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request

from home import *


def raise_descriptor_limit():
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    return hard


def test_slow_reader():
    """A player that stops reading costs the server neither memory nor other people's time."""
    with Lab() as lab:
        make_library(lab, 4)
        with open(lab.path("library", "film.mp4"), "ab") as f:  # bytes behind the film are part of the file
            f.write(os.urandom(1 << 20) * 300)
        set_password(lab)
        serve = start_serve(lab)
        serve.wait_event("library", 30)
        server = logged_in(lab, serve.url)["id"]
        play = lab.start("client", "play", server, "film.mp4", "--listen", "127.0.0.1:0", "--statedir", lab.path("client"), "--json", name="play")
        url = play.wait_event("playing", 20)["url"]
        memory = lambda p: next(int(line.split()[1]) for line in open(f"/proc/{p.p.pid}/status") if line.startswith("VmRSS"))
        before = memory(serve), memory(play)
        slow = []
        for _ in range(4):
            answer = urllib.request.urlopen(url, timeout=60)
            answer.read(1000)
            slow.append(answer)
        # Meanwhile somebody else gets everything, from the same server.
        result = client(lab, "get", server, "film.mp4", "--output", lab.path("out"), seconds=60)
        check(result.returncode == 0, f"get: {result.stderr}")
        check(hashlib.sha256(open(lab.path("out"), "rb").read()).digest() ==
              hashlib.sha256(open(lab.path("library", "film.mp4"), "rb").read()).digest(), "wrong bytes")
        grown = [(memory(p) - b) // 1024 for p, b in zip((serve, play), before)]
        if SLOW == 1:
            check(grown[0] < 60 and grown[1] < 100, f"memory of server and client grew by {grown} MB")
        for answer in slow:
            answer.close()
        for path, status in (("/x", 404), ("/../../etc/passwd", 404)):
            try:
                urllib.request.urlopen(url.split("/", 3)[0] + "//" + url.split("/")[2] + path, timeout=20)
                raise Failed(f"{path} was answered")
            except urllib.error.HTTPError as e:
                check(e.code in (400, 403, status), f"{path}: {e.code}")
        play.stop()


def test_half_open_connections():
    """As many connections as can be had that never say a word, to the LAN listener and to the bridge's: real clients still log in."""
    limit = raise_descriptor_limit()
    count = min(10_000, max(100, limit - 500))
    with Lab() as lab:
        serve = home(lab)
        info = logged_in(lab, serve.url)
        host, port = serve.listen.rsplit(":", 1)
        ports = {int(port)}
        for path in (f"/proc/{serve.p.pid}/net/tcp",):
            inodes = set()
            for fd in os.listdir(f"/proc/{serve.p.pid}/fd"):
                try:
                    target = os.readlink(f"/proc/{serve.p.pid}/fd/{fd}")
                except OSError:
                    continue
                if target.startswith("socket:["):
                    inodes.add(target[8:-1])
            for line in open(path).readlines()[1:]:
                parts = line.split()
                if parts[3] == "0A" and parts[9] in inodes:  # LISTEN
                    ports.add(int(parts[1].split(":")[1], 16))
        held = []
        try:
            for p in sorted(ports):
                for i in range(count // len(ports)):
                    s = socket.socket()
                    s.setblocking(False)
                    s.connect_ex(("127.0.0.1", p))
                    held.append(s)
            start = time.monotonic()
            # The dropped ones leave room; a real client gets in while all the others are still held.
            wait_for(lambda: client(lab, "connect", info["id"], "--local").returncode == 0, 30, "a login beside the flood")
            print(f"        {len(held)} held connections to {len(ports)} ports; a login went through after {time.monotonic() - start:.1f} s")
            wait_for(lambda: login(lab, serve.url, "second").returncode == 0, 30, "a second device's login")
        finally:
            for s in held:
                s.close()
        check(serve.p.poll() is None, "the server ended")
        check(client(lab, "connect", info["id"], "--local").returncode == 0, "and after the flood")
        descriptors = lambda: len(os.listdir(f"/proc/{serve.p.pid}/fd"))
        wait_for(lambda: descriptors() < 200, 30, "the descriptors of the flood")


def test_killed_in_mid_stream():
    with Lab() as lab:
        make_library(lab)
        with open(lab.path("library", "film.mp4"), "ab") as f:
            f.write(os.urandom(1 << 20) * 200)
        size = os.path.getsize(lab.path("library", "film.mp4"))
        set_password(lab)
        serve = start_serve(lab)
        serve.wait_event("library", 30)
        info = logged_in(lab, serve.url)
        # A copy under way ends with a plain sentence.
        reader, writer = os.pipe()
        get = subprocess.Popen([PORTHOLE, "client", "get", info["id"], "film.mp4", "--statedir", lab.path("client")], stdout=writer,
                               stderr=subprocess.PIPE, text=True)
        os.close(writer)
        first = os.read(reader, 65536)
        check(first, "the copy did not begin")
        play = lab.start("client", "play", info["id"], "film.mp4", "--listen", "127.0.0.1:0", "--statedir", lab.path("client"), "--json", name="play")
        url = play.wait_event("playing", 20)["url"]
        answer = urllib.request.urlopen(url, timeout=60)
        check(len(answer.read(100_000)) == 100_000, "the film did not begin")
        serve.kill()
        total = 0
        while block := os.read(reader, 1 << 20):
            total += len(block)
        os.close(reader)
        status = get.wait(30 * SLOW)
        words = get.stderr.read()
        get.stderr.close()
        check(status == 1 and "porthole: " in words and total < size, f"get: status {status}, {total} of {size} bytes, {words!r}")
        try:
            rest = answer.read()
            check(len(rest) < size - 100_000, "the player was told that the film is complete")
        except Exception:  # a reset or an incomplete read says the same
            pass
        # The same server comes back on the same port with the same identity; the player's next request finds it.
        serve = start_serve(lab, listen=serve.listen)
        serve.wait_event("library", 30)
        check(serve.log[0]["fingerprint"] == info["fingerprint"], "another certificate after the restart")
        check(client(lab, "connect", info["id"], "--local").returncode == 0, "connect after the restart")

        def fetch():
            try:
                request = urllib.request.Request(url, headers={"Range": "bytes=1000-1999"})
                with urllib.request.urlopen(request, timeout=20) as r:
                    return r.read()
            except OSError:
                return None

        part = wait_for(fetch, 20, "the player's next request")
        with open(lab.path("library", "film.mp4"), "rb") as f:
            f.seek(1000)
            check(part == f.read(1000), "wrong bytes after the restart")
        play.stop()


if __name__ == "__main__":
    main(sys.modules[__name__])
