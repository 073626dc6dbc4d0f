#!/usr/bin/env python3
"""Remote access with real nodes on loopback: coordination service, media server and client as processes; what keeps a client away
from its tailnet; kills in mid-stream. All of it below a path that is longer than a socket's name may be (107 characters)."""
import atexit
import hashlib
import resource
import shutil
import subprocess
import sys
import tempfile
import threading
import urllib.request

from home import *

tempfile.tempdir = os.path.join(tempfile.mkdtemp(prefix="porthole-process-"), "d" * 200)
os.mkdir(tempfile.tempdir)
atexit.register(shutil.rmtree, os.path.dirname(tempfile.tempdir), ignore_errors=True)


class Door:
    """A TCP port in front of another one, which can go mute: connections are taken, and nothing is answered."""

    def __init__(self):
        self.to = None
        self.mute = False
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self.listener.getsockname()[1]}"
        serve_each(self.listener, self._one)

    def _one(self, s):
        if self.mute:
            while s.recv(65536):
                pass
            return
        with socket.create_connection(self.to) as up:
            def back():
                with contextlib.suppress(OSError):
                    while block := up.recv(65536):
                        s.sendall(block)
                    s.shutdown(socket.SHUT_RDWR)
            threading.Thread(target=back, daemon=True).start()
            with contextlib.suppress(OSError):
                while block := s.recv(65536):
                    up.sendall(block)
                up.shutdown(socket.SHUT_RDWR)


def household(lab, extra=0):
    """Coordination service behind a door, media server with remote access; `extra` bytes behind the film are part of the file."""
    door = Door()
    made = lab.start("remote", "run", "--statedir", lab.path("remote"), "--listen", "127.0.0.1:0", "--stun-port", "0", "--json",
                     "--public-url", door.url, name="remote")
    ready = made.wait_event("ready")
    made.listen, made.state = ready["listen"], lab.path("remote")
    host, port = made.listen.rsplit(":", 1)
    door.to = (host, int(port))
    make_library(lab)
    with open(lab.path("library", "film.mp4"), "ab") as f:
        f.write(os.urandom(extra))
    set_password(lab)
    flags = ["--remote", "http://" + made.listen, "--account-token", "file:" + lab.write("token", lab.account(made) + "\n")]
    serve = start_serve(lab, *flags)
    serve.flags = flags
    serve.wait_event("remote", 30, state="running")
    return door, serve


def joined(lab, serve):
    """A client that has logged in at home and has joined."""
    result = client(lab, "login", serve.url, "--password-file", lab.path("password"), seconds=60)
    check(result.returncode == 0, f"login: {result.stderr} {result.stdout}")
    event(result, "joined")
    return event(result, "login")["id"]


def digest(path):
    with open(path, "rb") as f:
        return hashlib.sha256(f.read()).hexdigest()


def test_film_over_the_tailnet():
    with Lab() as lab:
        _, serve = household(lab)
        server = joined(lab, serve)
        film = lab.path("library", "film.mp4")
        result = client(lab, "connect", server, "--remote", seconds=60)
        check(result.returncode == 0 and event(result, "connected")["path"] != "local", f"connect: {result.stdout} {result.stderr}")
        items = [e for e in events(client(lab, "ls", server, "--remote", seconds=60)) if e["event"] == "item"]
        check("film.mp4" in [i["file_name"] for i in items], f"ls: {items}")
        result = client(lab, "get", server, "film.mp4", "--remote", "--output", lab.path("out"), seconds=60)
        check(result.returncode == 0 and digest(lab.path("out")) == digest(film), f"get: {result.stdout} {result.stderr}")
        # The sockets that the command line talks to have long paths, too.
        status = run("node", "status", "--statedir", lab.path("serve", "tailnet", "node"))
        check(status.returncode == 0 and "running" in status.stdout, f"node status: {status}")
        status = run("serve", "status", "--statedir", lab.path("serve"))
        check(status.returncode == 0, f"serve status: {status}")


def test_killed_in_mid_stream():
    with Lab() as lab:
        _, serve = household(lab, extra=128 << 20)
        server = joined(lab, serve)
        film = lab.path("library", "film.mp4")
        # The client dies half-way: there is no file that looks whole, and the next copy is.
        get = lab.start("client", "get", server, "film.mp4", "--remote", "--output", lab.path("out"), "--statedir", lab.path("client"), "--json", name="get")
        wait_for(lambda: any(f.startswith("out.part.") and os.path.getsize(lab.path(f)) for f in os.listdir(lab.dir)), 30, "the first bytes")
        get.kill()
        check(not os.path.exists(lab.path("out")), "a part has the name of the whole")
        # The server dies under a player, and comes back: the same answer goes on, without a byte lost.
        play = lab.start("client", "play", server, "film.mp4", "--remote", "--listen", "127.0.0.1:0", "--statedir", lab.path("client"), "--json", name="play")
        url = play.wait_event("playing", 60)["url"]
        with urllib.request.urlopen(url, timeout=60 * SLOW) as answer:
            first = answer.read(1 << 20)
            got, size = hashlib.sha256(first), len(first)
            serve.kill()
            serve = start_serve(lab, *serve.flags, listen=serve.listen)
            while block := answer.read(1 << 20):
                got.update(block)
                size += len(block)
        check(size == os.path.getsize(film), f"the player got {size} bytes: {play.log[-5:]}")
        check(got.hexdigest() == digest(film), "the player got other bytes than the film's")
        check(any(e["event"] == "reconnecting" for e in play.log), f"nothing was lost in between: {play.log}")
        play.stop()
        result = client(lab, "get", server, "film.mp4", "--remote", "--output", lab.path("out"), seconds=60)
        check(result.returncode == 0 and digest(lab.path("out")) == digest(film), f"get: {result.stdout} {result.stderr}")


def test_half_open_connections_to_the_bridge():
    """10,000 connections from devices of the household that never say a word, to the server's port on the tailnet: others get in."""
    if SLOW > 1:
        return
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))  # also for the nodes that are started here
    count, devices = min(10_000, max(100, hard - 500)), 4
    with Lab() as lab:
        _, serve = household(lab)
        server = joined(lab, serve)
        key = run("remote", "key", "create", "--account", "home", "--reusable", "--statedir", lab.path("remote"), "--json")
        floods = [lab.node(f"flood{i}", serve.flags[1], json.loads(key.stdout)["key"], "--socks5", "127.0.0.1:0") for i in range(devices)]
        proxies = [node.wait_event("socks5") for node in floods]
        for node in floods:
            node.wait_event("running")
        ip = next(e for e in serve.log if e.get("event") == "remote" and e.get("ip"))["ip"]
        memory = lambda: next(int(line.split()[1]) for line in open(f"/proc/{serve.p.pid}/status") if line.startswith("VmRSS"))
        descriptors = lambda: len(os.listdir(f"/proc/{serve.p.pid}/fd"))
        before = memory(), descriptors()
        held, reached, most = [], 0, 0
        try:
            for i in range(count):
                with contextlib.suppress(OSError, Failed):  # beyond the limits of the proxy
                    held.append(socks_login(proxies[i % devices]))
                    held[-1].sendall(b"\x05\x01\x00" + socks_address(ip, 8443))
                if i % 100 == 0:
                    most = max(most, descriptors())
            for s in held:
                with contextlib.suppress(OSError, Failed):  # beyond those of the server
                    reached += exactly(s, 10)[1] == 0
            result = client(lab, "connect", server, "--remote", seconds=60)
            check(result.returncode == 0, f"beside the flood: {result.stdout} {result.stderr}")
            check(client(lab, "connect", server, "--local").returncode == 0, "at home beside the flood")
            most, grown = max(most, descriptors()), memory() - before[0]
        finally:
            for s in held:
                s.close()
        print(f"        {count} connections, {len(held)} to the tailnet, {reached} let in; {most} descriptors at most, {grown // 1024} MB more")
        check(reached > 100 and most < before[1] + 2500 and grown < 100_000, "bounds of the bridge")
        wait_for(lambda: descriptors() <= before[1] + 20, 60, "the descriptors of the flood")


def test_login_while_the_coordinator_is_mute():
    with Lab() as lab:
        door, serve = household(lab)
        door.mute = True
        argv = ["client", "login", serve.url, "--password-file", lab.path("password"), "--statedir", lab.path("client")]
        login = lab.start(*argv, "--json", name="login")
        server = login.wait_event("login")["id"]
        login.wait_event("tailnet", 30, match=lambda e: "does not answer" in e.get("problem", ""))
        login.p.send_signal(signal.SIGTERM)
        ended_with(login, 1, "interrupted", "login is stored")
        door.mute = False
        result = client(lab, "connect", server, "--remote", seconds=60)
        check(result.returncode == 0, f"what was stored does not do: {result.stdout} {result.stderr}")


def remote_details(lab, url):
    """As if the server had handed out a place on the tailnet of `url` at the login."""
    path = lab.path("client", "servers.json")
    with open(path) as f:
        stored = json.load(f)
    stored["servers"][0].update(remote_hostname="home", remote_ip="100.64.0.9", coordination_url=url, tailnet_preauth_key="k", tailnet_profile="")
    with open(path, "w") as f:
        json.dump(stored, f)


def test_what_waiting_does_not_mend_is_said_soon():
    with Lab() as lab:
        server = logged_in(lab, home(lab).url)["id"]
        plain = lab.remote("plain")
        secure = lab.remote("secure", tls=make_certificate(lab.dir))
        host, port = plain.listen.rsplit(":", 1)

        def stripping(s):
            head = read_head(s)
            if not head.startswith(b"GET /key"):
                s.sendall(b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
                return
            with socket.create_connection((host, int(port))) as up:
                up.sendall(head[:-2] + b"Connection: close\r\n\r\n")
                while block := up.recv(65536):
                    s.sendall(block)

        for url, words in ((WebServer(portal).url, ("web page", "captive portal")), (WebServer(stripping).url, ("proxy", "upgrade")),
                           (plain.url.replace("http:", "https:"), ("not with TLS", "http://")),
                           (secure.url.replace("https:", "http:"), ("TLS", "https://")), (secure.url, ("certificate", "--ca-file"))):
            remote_details(lab, url)
            result = client(lab, "connect", server, "--remote", seconds=25)
            refused(result, 1, *words)
            check(len([e for e in events(result) if e["event"] == "remote_attempt"]) == 1, f"it was tried again: {result.stdout}")
            check(any(e["event"] == "tailnet" and e["state"] == "joining" and e.get("problem") for e in events(result)), f"no word before the end: {result.stdout}")
        # People see it, too.
        result = run("client", "connect", server, "--remote", "--statedir", lab.path("client"))
        check_words(result.stderr, "not on the tailnet yet:", "certificate")


def test_what_may_pass_is_waited_for_with_the_reason():
    with Lab() as lab:
        server = logged_in(lab, home(lab).url)["id"]
        reserved, port = closed_port()
        mute = Door()
        mute.mute = True
        for url, words in ((f"http://127.0.0.1:{port}", "refused"), (mute.url, "does not answer")):
            remote_details(lab, url)
            connect = lab.start("client", "connect", server, "--remote", "--statedir", lab.path("client"), "--json", name="connect")
            connect.wait_event("tailnet", 30, match=lambda e: words in e.get("problem", ""))
            check(connect.p.poll() is None, "it gave up")
            connect.p.send_signal(signal.SIGINT)
            status = connect.wait_exit(5)
            check(status == 1, f"status {status} after Ctrl-C: {connect.log} {connect.stderr()}")
        reserved.close()


if __name__ == "__main__":
    main(sys.modules[__name__])
