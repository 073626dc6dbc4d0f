#!/usr/bin/env python3
"""The media server: what keeps it from starting, broken libraries, passwords, garbage, signals."""
import json
import os
import shutil
import socket
import ssl
import sys

from home import *


def test_serve_cannot_start():
    with Lab() as lab:
        bare = ["serve", "--statedir", lab.path("serve")]
        base = [*bare, "--listen", "127.0.0.1:0"]
        os.mkdir(lab.path("library"))
        library = ["--library", lab.path("library")]
        refused(run("serve"), 2, "--statedir")
        refused(run(*base), 2, "--library")
        refused(run(*base, *library, "--remote", "http://127.0.0.1:1"), 2, "--account-token")
        refused(run(*base, *library), 1, "no password", "set-password")
        refused(run("serve", "set-password", "--statedir", lab.path("serve"), "--password-file", lab.path("none")), 1, "none")
        refused(run("serve", "set-password", "--statedir", lab.path("serve"), "--password-file", lab.write("short", "abc\n")), 1, "8 characters")
        refused(run("serve", "set-password", "--statedir", lab.path("serve"), "--password-file", lab.write("empty", "\n")), 1, "empty")
        refused(run("serve", "set-password", "--statedir", lab.path("serve"), start_new_session=True), 1, "--password-file")
        set_password(lab)
        refused(run(*base, "--library", lab.path("nowhere")), 1, "nowhere")
        refused(run(*base, "--library", lab.write("plain", "x")), 1, "plain")
        refused(run(*bare, *library, "--listen", "nonsense"), 1, "nonsense")
        refused(run(*base, *library, "--remote", "http://127.0.0.1:1", "--account-token", "file:" + lab.path("none")), 1, "none")
        refused(run(*base, *library, "--remote", "nonsense", "--account-token", "x"), 1, "nonsense")
        tcp = socket.create_server(("127.0.0.1", 0))
        refused(run(*bare, *library, "--listen", f"127.0.0.1:{tcp.getsockname()[1]}"), 1, "in use")
        refused(run("serve", "status", "--statedir", lab.path("serve")), 1, "no porthole serve is running")
        serve = start_serve(lab)
        refused(run(*base, *library), 1, "another porthole serve", lab.path("serve"))
        serve.stop()
        # Files that are not what they should be are named and left alone.
        for name, text, words in (("password.json", "junk", ("damaged", "set-password")), ("password.json", '{"version": 9}', ("newer",)),
                                  ("server.json", "junk", ("damaged",)), ("server.json", '{"version": 9}', ("newer",)),
                                  ("tls.pem", "junk", ("tls.pem",))):
            path = lab.path("serve", name)
            good = open(path).read()
            with open(path, "w") as f:
                f.write(text)
            refused(run(*base, *library), 1, path, *words)
            check(open(path).read() == text, f"{name} was overwritten")
            with open(path, "w") as f:
                f.write(good)


def test_library_with_everything_wrong():
    with Lab() as lab:
        serve = home(lab)
        server = logged_in(lab, serve.url)["id"]
        items = [e for e in events(client(lab, "ls", server)) if e["event"] == "item"]
        good = [i for i in items if not i["unplayable"]]
        check([i["file_name"] for i in good] == ["film.mp4"], f"playable: {items}")
        check(not any(i["size_bytes"] and "passwd" in i["file_name"] and not i["unplayable"] for i in items), "a link out of the library is offered")
        # A file that vanishes, and one that shrinks while it is read, end in words and not in wrong bytes.
        os.remove(lab.path("library", "film.mp4"))
        result = client(lab, "get", server, "film.mp4", "--output", lab.path("out"))
        refused(result, 1, "film.mp4") if "film" in result.stderr else refused(result, 1)
        # The library folder itself goes and comes back.
        shutil.rmtree(lab.path("library"))
        check(run("serve", "rescan", "--statedir", lab.path("serve")).returncode == 0, "rescan")
        check(client(lab, "connect", server, "--local").returncode == 0, "the server answers without its library")
        check(serve.p.poll() is None, "the server ended because its library went away")


def test_passwords():
    with Lab() as lab:
        serve = home(lab)
        refused(login(lab, serve.url, password="open sesamE"), 1, "password is wrong")
        check(events(client(lab, "servers")) == [], "a server was saved although the login failed")
        for _ in range(6):
            result = login(lab, serve.url, password="guess-guess")
            refused(result, 1)
            if "too many" in result.stderr:
                break
        refused(login(lab, serve.url, password="guess-guess"), 1, "too many wrong passwords", "try again in")
        # Who guessed waits, even with the right word; then it works.
        wait_for(lambda: login(lab, serve.url).returncode == 0, 30, "the login after the wait")
        refused(client(lab, "login", serve.url, "--password-file", lab.path("none")), 1, "none")
        # The password was changed while the client was away.
        serve.stop()
        set_password(lab, password="another word")
        serve = start_serve(lab, listen=serve.listen)
        server = events(client(lab, "servers"))[0]["id"]
        refused(client(lab, "connect", server, "--auto"), 1, "password is wrong")
        secrets = serve.stderr() + json.dumps(serve.log) + open(lab.path("serve", "password.json")).read()
        check(PASSWORD not in secrets and "another word" not in secrets, "a password is in the clear somewhere")


def test_garbage():
    with Lab() as lab:
        serve = home(lab)
        info = logged_in(lab, serve.url)
        host, port = serve.listen.rsplit(":", 1)
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
        upgrade = (b"GET /porthole/v1/session HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
                   b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n")
        plain = [b"", b"GET / HTTP/1.1\r\n\r\n", os.urandom(5000), b"\x16\x03\x01\xff\xff" + os.urandom(3000)]
        inside = [b"GET / HTTP/1.1\r\nHost: x\r\n\r\n", b"GET /" + b"a" * 100_000 + b" HTTP/1.1\r\n\r\n", b"POST /porthole/v1/session HTTP/1.1\r\n\r\n",
                  os.urandom(5000), upgrade, upgrade + os.urandom(5000), upgrade + b"\x82\xff" + b"\xff" * 20,
                  upgrade + b"\x82\x7f\x7f\xff\xff\xff\xff\xff\xff\xff", upgrade + b"\x81\x85\x00\x00\x00\x00hello",
                  upgrade + b"\x82\x85\x00\x00\x00\x00" + os.urandom(5), upgrade + (b"\x89\x80\x00\x00\x00\x00" * 1000)]
        for data in plain:
            with socket.create_connection((host, int(port)), timeout=20) as s:
                try:
                    s.sendall(data)
                except OSError:
                    pass
        for data in inside:
            with context.wrap_socket(socket.create_connection((host, int(port)), timeout=20)) as s:
                try:
                    s.sendall(data)
                    s.settimeout(0.2)
                    s.recv(65536)
                except OSError:
                    pass
        check(client(lab, "connect", info["id"], "--local").returncode == 0, "a login after the garbage")
        for junk in (b"\n", b"[]\n", b"{}\n", b'{"do":7}\n', b"\xff\xfe\n", b"x" * 200_000):
            with socket.socket(socket.AF_UNIX) as s:
                s.settimeout(20)
                s.connect(lab.path("serve", "control.sock"))
                try:
                    s.sendall(junk)
                    s.shutdown(socket.SHUT_WR)
                    answer = s.recv(65536)
                    check(not answer or "error" in json.loads(answer), f"{junk[:20]}: {answer!r}")
                except ConnectionError:
                    pass
        check(run("serve", "status", "--statedir", lab.path("serve")).returncode == 0, "status after the garbage")


def test_signals():
    with Lab() as lab:
        serve = home(lab)
        info = logged_in(lab, serve.url)
        play = lab.start("client", "play", info["id"], "film.mp4", "--listen", "127.0.0.1:0", "--statedir", lab.path("client"), "--json", name="play")
        play.wait_event("playing", 20)
        serve.stop(4)
        check(serve.log[-1]["event"] == "stopped", f"last event {serve.log[-1]}")
        check(not os.path.exists(lab.path("serve", "control.sock")), "the control socket was left")
        play.stop(4)


if __name__ == "__main__":
    main(sys.modules[__name__])
