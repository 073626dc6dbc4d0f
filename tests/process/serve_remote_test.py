#!/usr/bin/env python3
"""The media server's way to its tailnet: what stands in between is said in words, the LAN never waits, SIGTERM always ends it."""
import contextlib
import json
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import time

from home import *

TOKEN = "phtoken-home-0123456789abcdef"
PORTAL_PAGE = b"<!doctype html><html><title>Hotel Seaview</title>Please log in</html>"


def answer(head, body=b"", kind=b"text/html"):
    return head + b"\r\nContent-Type: %s\r\nContent-Length: %d\r\nConnection: close\r\n\r\n" % (kind, len(body)) + body


def answers(text):
    """A server that answers everything so."""
    def serve(s):
        read_head(s)
        s.sendall(text)
    return WebServer(serve)


def mute(s):
    while s.recv(65536):
        pass


def dripping(s):
    read_head(s)
    s.sendall(b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 1000\r\n\r\n{")
    s.settimeout(0.3)
    while True:
        try:
            if not s.recv(4096):
                return
        except TimeoutError:
            s.sendall(b" ")


def with_remote(lab, url, token=TOKEN, *flags):
    return start_serve(lab, "--remote", url, "--account-token", token, *flags)


def status(lab):
    result = run("serve", "status", "--statedir", lab.path("serve"), "--json")
    check(result.returncode == 0, result.stderr)
    return json.loads(result.stdout)


def ends_in_time(serve, what):
    sent = time.monotonic()
    serve.stop(2 + (2 / SLOW if THREAD_SANITIZER else 0))
    print(f"        {what}: ended {time.monotonic() - sent:.2f} s after SIGTERM")


def says_why(lab, serve, *words):
    """In its event, its status and its answer to a login; and the LAN is served all the same."""
    event = serve.wait_event("remote", 20, match=lambda e: e.get("problem"))
    check_words(event["problem"], *words)
    check_words(status(lab)["remote"]["problem"], *words)
    info = logged_in(lab, serve.url)
    check(info["remote"] is False, f"the login says {info}")
    check_words(info["remote_problem"], *words)
    serve.stop()


def empty_home(lab):
    os.mkdir(lab.path("library"))
    set_password(lab)


def test_enrolment_is_not_what_it_should_be():
    with Lab() as lab:
        empty_home(lab)
        plain = lab.remote("plain")
        secure = lab.remote("secure", tls=make_certificate(lab.dir))
        for url, words in ((answers(answer(b"HTTP/1.1 200 OK", PORTAL_PAGE)).url, ("web page", "captive portal")),
                           (answers(answer(b"HTTP/1.1 302 Found\r\nLocation: http://login.hotel.example/")).url, ("redirects to http://login.hotel.example/", "captive portal")),
                           (answers(answer(b"HTTP/1.1 502 Bad Gateway", PORTAL_PAGE)).url, ("502", "proxy")),
                           (plain.url.replace("http:", "https:"), ("not with TLS", "http://")),
                           (secure.url.replace("https:", "http:"), ("TLS", "https://")),
                           (secure.url, ("certificate", "--ca-file"))):
            says_why(lab, with_remote(lab, url), *words)


def test_certificates():
    with Lab() as lab:
        empty_home(lab)
        for name, dates, words in (("expired", ("20250101000000Z", "20250201000000Z"), ("has expired", "clock")),
                                   ("future", ("20500101000000Z", "20510101000000Z"), ("not valid yet", "clock"))):
            cert = make_certificate(lab.dir, name, dates=dates)
            remote = lab.remote(name, tls=cert)
            says_why(lab, with_remote(lab, remote.url, TOKEN, "--ca-file", cert[0]), *words)


def test_tailnet_behind_something_else():
    """The enrolment service answers; what it names as the coordination server does not, or something stands in between."""
    with Lab() as lab:
        empty_home(lab)
        remote = lab.remote()
        host, port = remote.listen.rsplit(":", 1)
        target = [None]  # what stands there now

        def strips_the_upgrade(s, head):
            kept = [line for line in head.split(b"\r\n\r\n")[0].split(b"\r\n") if not line.lower().startswith((b"upgrade:", b"connection:"))]
            with socket.create_connection((host, int(port)), timeout=10) as up:
                up.sendall(b"\r\n".join(kept) + b"\r\nConnection: close\r\n\r\n")
                while block := up.recv(65536):
                    s.sendall(block)

        def portal(s, head):
            s.sendall(answer(b"HTTP/1.1 200 OK", PORTAL_PAGE))

        def serve_one(s):
            head = read_head(s)
            if b"/api/v1/" in head:
                key = json.dumps({"key": "phkey-1", "coordination_url": target[0][0]}).encode()
                s.sendall(answer(b"HTTP/1.1 200 OK", key, b"application/json"))
            else:
                target[0][1](s, head)

        service = WebServer(serve_one)
        for target[0], words in (((service.url, strips_the_upgrade), ("proxy", "upgrade")), ((service.url, portal), ("captive portal",)),
                                 ((remote.url.replace("http:", "https:"), None), ("not with TLS", "http://"))):
            says_why(lab, with_remote(lab, service.url), *words)
            shutil.rmtree(lab.path("serve", "tailnet"))  # its node knows the server's key by now


def test_damaged_remote_state_is_no_matter_of_the_lan():
    with Lab() as lab:
        empty_home(lab)
        remote = lab.remote()
        token = lab.account(remote)
        os.makedirs(lab.path("serve", "tailnet"), 0o700)
        for text, words in (("junk", ("damaged", "remove the folder")), ('{"version": 9}', ("newer",))):
            path = lab.path("serve", "tailnet", "bridge.json")
            with open(path, "w") as f:
                f.write(text)
            serve = with_remote(lab, remote.url, token)
            event = serve.wait_event("remote", 20, state="failed")
            check_words(event["problem"], path, *words)
            says = logged_in(lab, serve.url)
            check_words(says["remote_problem"], path)
            check_words(status(lab)["remote"]["problem"], path)
            check_words(serve.stderr(), path)
            check(open(path).read() == text, "the damaged file was overwritten")
            serve.stop()


def test_stopped_while_enrolling():
    with Lab() as lab:
        empty_home(lab)
        for name, kind in (("mute", mute), ("dripping", dripping)):
            serve = with_remote(lab, WebServer(kind).url)
            serve.wait_event("remote", 20, state="enrolling")
            ends_in_time(serve, f"while enrolling at a {name} service")


def test_stopped_while_a_name_is_looked_up():
    """The system's look-up cannot be interrupted, and takes ten seconds when no name server answers."""
    if os.getuid() != 0 or not shutil.which("ip") or subprocess.run(["unshare", "-mn", "true"], stderr=subprocess.DEVNULL).returncode != 0:
        print("        (left out: only root may have a network of its own)")
        return
    with Lab() as lab:
        empty_home(lab)
        lab.write("resolv.conf", "nameserver 127.0.0.1\n", 0o644)
        script = 'ip link set lo up && mount --bind "$1" /etc/resolv.conf && shift && exec "$@"'
        # The name server has the network that the server is in, and never says a word.
        asked, bound = os.pipe()
        name_server = "import os, socket, sys; s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); s.bind(('127.0.0.1', 53)); " \
                      "os.write(int(sys.argv[1]), b'b'); s.recv(512); os.write(int(sys.argv[1]), b'q'); sys.stdin.read()"
        serve = lab.start("-mn", "sh", "-c", script, "sh", lab.path("resolv.conf"), "sh", "-c", 'read go && exec "$@"', "sh", PORTHOLE, "serve",
                          "--statedir", lab.path("serve"), "--library", lab.path("library"), "--listen", "127.0.0.1:0", "--json", "--remote",
                          "http://coordination.example", "--account-token", TOKEN, program="unshare", name="serve", stdin=subprocess.PIPE)
        ready = "sh\0-c\0read go"  # the last of the shells: the network is up
        wait_for(lambda: open(f"/proc/{serve.p.pid}/cmdline").read().startswith(ready), 10, "the network of its own")
        mute_server = subprocess.Popen(["nsenter", "-t", str(serve.p.pid), "-n", sys.executable, "-c", name_server, str(bound)],
                                       stdin=subprocess.PIPE, pass_fds=[bound])
        try:
            check(os.read(asked, 1) == b"b", "the name server")
            serve.p.stdin.write(b"\n")
            serve.p.stdin.close()
            check(os.read(asked, 1) == b"q", "the question to the name server")
            ends_in_time(serve, "while a name is looked up")
        finally:
            mute_server.kill()
            mute_server.communicate()
            os.close(asked)
            os.close(bound)


def links_to(process, remote):
    """The process's TCP connections to the service, by the number of their sockets."""
    port = f":{int(remote.listen.rsplit(':', 1)[1]):04X}"
    with open(f"/proc/{process.p.pid}/net/tcp") as f:
        there = {line.split()[9] for line in f if line.split()[2].endswith(port) and line.split()[3] == "01"}
    own = set()
    for fd in os.listdir(f"/proc/{process.p.pid}/fd"):
        with contextlib.suppress(OSError):
            own.add(os.readlink(f"/proc/{process.p.pid}/fd/{fd}")[8:-1])
    return there & own


def test_stopped_while_a_login_waits():
    with Lab() as lab:
        empty_home(lab)
        remote = lab.remote()
        serve = with_remote(lab, remote.url, lab.account(remote))
        serve.wait_event("remote", 30, state="running")
        os.kill(remote.p.pid, signal.SIGSTOP)
        before = links_to(serve, remote)
        try:
            asking = lab.start("client", "login", serve.url, "--password-file", lab.path("password"), "--no-wait", "--json", "--statedir",
                               lab.path("client"), name="asking")
            wait_for(lambda: links_to(serve, remote) - before, 5, "the question to the service")
            ends_in_time(serve, "while a login waits for a frozen service")
            asking.kill()
        finally:
            os.kill(remote.p.pid, signal.SIGCONT)


def test_stopped_at_any_moment():
    """SIGTERM at 20 moments of start, scan, enrolment and join: status 0 within 2 s, and what is on disk is whole."""
    seed = int.from_bytes(os.urandom(4), "big")
    chance = random.Random(seed)
    with Lab() as lab:
        make_library(lab)
        set_password(lab)
        remote = lab.remote()
        token = lab.account(remote)
        silent = WebServer(mute)
        for i in range(20):
            url = remote.url if i % 3 else silent.url
            serve = lab.start("serve", "--statedir", lab.path("serve"), "--library", lab.path("library"), "--listen", "127.0.0.1:0", "--json",
                              "--remote", url, "--account-token", token, name=f"serve-{i}")
            wait_for(lambda: handles_term(serve.p.pid) or serve.p.poll() is not None, 10, "the signal handler")
            time.sleep(chance.expovariate(1 / 0.2))  # the moment is what is tested
            sent = time.monotonic()
            try:
                serve.stop(2 + (2 / SLOW if THREAD_SANITIZER else 0))
            except Failed as e:
                raise Failed(f"seed {seed}, try {i}, {time.monotonic() - sent:.2f} s: {e}")
            check(not os.path.exists(lab.path("serve", "control.sock")), f"seed {seed}, try {i}: the control socket was left")
            for name in ("server.json", "tailnet/bridge.json"):
                path = lab.path("serve", name)
                check(not os.path.exists(path) or json.load(open(path))["version"] == 1, f"seed {seed}, try {i}: {name} is damaged")


if __name__ == "__main__":
    main(sys.modules[__name__])
