#!/usr/bin/env python3
"""The media server: what keeps it from starting, broken libraries, passwords, garbage, signals."""
import fcntl
import json
import os
import shutil
import socket
import ssl
import subprocess
import sys
import termios
import time

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
        refused(run(*bare, *library, "--listen", "nonsense"), 2, "--listen", "nonsense")
        for bad in ("127.0.0.1", "127.0.0.1:99999", "localhost:0"):
            refused(run(*bare, *library, "--listen", bad), 2, "--listen", bad)
        refused(run(*base, *library, "--remote", "http://127.0.0.1:1", "--account-token", "file:" + lab.path("none")), 1, "none")
        for bad in ("nonsense", "https://", "ftp://x"):
            refused(run(*base, *library, "--remote", bad, "--account-token", "x"), 2, bad)
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
        # A file that shrinks while it is read, and one that vanishes, end in words and not in wrong bytes.
        grown = lab.path("library", "grown.mp4")
        shutil.copy(lab.path("library", "film.mp4"), grown)
        with open(grown, "ab") as f:
            f.truncate(200 << 20)
        check(run("serve", "rescan", "--statedir", lab.path("serve")).returncode == 0, "rescan")
        serve.wait_event("library", 30)
        reader, writer = os.pipe()
        get = subprocess.Popen([PORTHOLE, "client", "get", server, "grown.mp4", "--statedir", lab.path("client")], stdout=writer,
                               stderr=subprocess.PIPE, text=True)
        os.close(writer)
        total = len(os.read(reader, 65536))
        os.truncate(grown, 1 << 20)  # while the copy waits for its reader
        while block := os.read(reader, 1 << 20):
            total += len(block)
        os.close(reader)
        _, words = get.communicate(timeout=30 * SLOW)
        check(get.returncode == 1 and "became shorter" in words and total < 200 << 20, f"get: {get.returncode}, {total} bytes, {words!r}")
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
        # The wait grows from two seconds on: also a slow guesser meets it.
        for _ in range(12):
            result = login(lab, serve.url, password="guess-guess")
            refused(result, 1)
            if "too many" in result.stderr:
                break
        refused(result, 1, "too many wrong passwords", "try again in")
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
        upgrade = UPGRADE
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
            with tls_to(serve) as s:
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
        # Text that is no UTF-8 is one of the few things that libprotobuf would like to write about.
        with raw_session(serve) as s:
            s.sendall(login_message(b"\xff\xfe\xfd"))
            read_message(s)
        serve.stop()
        check("protobuf" not in serve.stderr(), f"a stranger can write into the log: {serve.stderr()[-300:]}")


def test_old_tls_is_refused():
    with Lab() as lab:
        serve = home(lab)
        try:
            tls_to(serve, ssl.TLSVersion.TLSv1_2).close()
            raise Failed("a session in TLS 1.2 was accepted")
        except ssl.SSLError as e:
            check("version" in str(e).lower(), f"TLS 1.2: {e}")
        with tls_to(serve) as s:
            check(s.version() == "TLSv1.3", s.version())


def test_guesses_at_once():
    """The free attempts of an address are as few when all are made at the same moment."""
    with Lab() as lab:
        serve = home(lab)
        sessions = [raw_session(serve) for _ in range(16)]
        for s in sessions:
            s.sendall(login_message(b"guess-guess"))
        answers = [read_message(s) for s in sessions]
        looked_at = sum(b"password is wrong" in a for a in answers)
        check(looked_at + sum(b"too many wrong passwords" in a for a in answers) == 16, f"answers: {answers}")
        check(looked_at == 5, f"{looked_at} guesses were looked at")


def test_control_socket_with_silent_askers():
    with Lab() as lab:
        serve = home(lab)
        held = []
        for i in range(40):  # more than have a place
            s = socket.socket(socket.AF_UNIX)
            s.connect(lab.path("serve", "control.sock"))
            if i % 2:
                s.sendall(b"{")
            held.append(s)
        start = time.monotonic()
        check(run("serve", "status", "--statedir", lab.path("serve")).returncode == 0, "status beside them")
        check(time.monotonic() - start < 3 * SLOW, f"status took {time.monotonic() - start:.1f} s")
        for s in held[-3:]:
            s.sendall(b" ")  # these are still being read from
        serve.stop(2)


def test_password_that_nobody_can_type():
    with Lab() as lab:
        argv = ["serve", "set-password", "--statedir", lab.path("serve"), "--password-file"]
        for text, words in ((b"caf\xe9 au lait\n", ("UTF-8",)), ("\ufeffopen sesame\n".encode(), ("byte order mark",)),
                            (b"open sesame\nshut sesame\n", ("one line",)), (b"open\x07sesame\n", ("control characters",)),
                            ("open sesame".encode("utf-16"), ("UTF-8",))):
            with open(lab.path("odd"), "wb") as f:
                f.write(text)
            refused(run(*argv, lab.path("odd")), 1, *words)
            check(not os.path.exists(lab.path("serve", "password.json")), "it was stored")
        refused(run(*argv, lab.dir), 1, lab.dir, "is a folder")
        make_library(lab)
        set_password(lab, password="K\u00e4sekuchen \u2603")
        serve = start_serve(lab)
        check(login(lab, serve.url, password="K\u00e4sekuchen \u2603").returncode == 0, "a password beyond ASCII")


def test_prompt_gives_the_echo_back():
    """Whatever ends the question for a password: the terminal shows again what is typed."""
    with Lab() as lab:
        for name, end, status in (("Ctrl-C", b"half a pass\x03", 1), ("Ctrl-D", b"\x04", 1), ("SIGTERM", None, 1),
                                  ("an answer", b"open sesame\n", 0)):
            ours, theirs = os.openpty()

            def own_terminal():
                os.setsid()
                fcntl.ioctl(0, termios.TIOCSCTTY, 0)

            p = subprocess.Popen([PORTHOLE, "serve", "set-password", "--statedir", lab.path("serve")], stdin=theirs, stdout=subprocess.PIPE,
                                 stderr=subprocess.PIPE, preexec_fn=own_terminal, text=True)
            echoes = lambda: bool(termios.tcgetattr(theirs)[3] & termios.ECHO)
            try:
                seen = b""
                for _ in range(2 if status == 0 else 1):
                    while b": " not in seen:
                        seen += os.read(ours, 4096)
                    seen = b""
                    check(not echoes(), f"{name}: the password would be shown")
                    os.write(ours, end) if end else terminate(p)
                if THREAD_SANITIZER and name == "Ctrl-C":  # see terminate()
                    try:
                        p.wait(2)
                    except subprocess.TimeoutExpired:
                        os.write(ours, b"\x03")
                out, words = p.communicate(timeout=20 * SLOW)
                check(p.returncode == status and (status == 0 or "nothing was changed" in words), f"{name}: status {p.returncode}, {words!r}")
                check(echoes(), f"{name}: the terminal no longer shows what is typed")
            finally:
                p.kill()
                p.wait()
                os.close(ours)
                os.close(theirs)


def test_slow_file():
    """A file that takes as long as one likes to be probed: the others are listed meanwhile, and SIGTERM does not wait for it."""
    with Lab() as lab:
        make_library(lab)
        set_password(lab)
        with open(lab.path("library", "huge.mp3"), "wb") as f:
            f.truncate(200 << 30)
        serve = start_serve(lab)
        serve.wait_event("library_scan", 10)
        server = logged_in(lab, serve.url)["id"]
        names = [e["file_name"] for e in events(client(lab, "ls", server)) if e["event"] == "item"]
        check("film.mp4" in names and "huge.mp3" not in names, f"listed meanwhile: {names}")
        check(not any(e["event"] == "library" for e in serve.log), "the scan was over before it could be looked at")
        serve.stop(2)


def test_library_that_goes_away():
    with Lab() as lab:
        serve = home(lab)
        server = logged_in(lab, serve.url)["id"]
        count = len([e for e in events(client(lab, "ls", server)) if e["event"] == "item"])
        os.rename(lab.path("library"), lab.path("away"))
        check(run("serve", "rescan", "--statedir", lab.path("serve")).returncode == 0, "rescan")
        problems = serve.wait_event("library_problems", 10)["problems"]
        check(len(problems) == 1, problems)
        check_words(problems[0], lab.path("library"), "No such file")
        status = run("serve", "status", "--statedir", lab.path("serve"))
        check_words(status.stdout, problems[0], f"{count} items")
        check_words(serve.stderr(), problems[0])
        refused(client(lab, "get", server, "film.mp4", "--output", lab.path("out")), 1, "cannot be opened")
        os.rename(lab.path("away"), lab.path("library"))
        check(run("serve", "rescan", "--statedir", lab.path("serve")).returncode == 0, "rescan")
        serve.wait_event("library_problems", 10, problems=[])
        check(client(lab, "get", server, "film.mp4", "--output", lab.path("out")).returncode == 0, "the film after the folder came back")


def test_disk_that_goes_away():
    """What is left of a disk that was taken away is an empty folder; the films are not forgotten."""
    if os.getuid() != 0 or subprocess.run(["unshare", "-m", "true"], stderr=subprocess.DEVNULL).returncode != 0:
        print("        (left out: only root may mount)")
        return
    with Lab() as lab:
        make_library(lab)
        set_password(lab)
        os.mkdir(lab.path("disk"))
        script = 'mount -t tmpfs disk "$1" && cp "$2" "$1" && shift 2 && exec "$@"'
        argv = [PORTHOLE, "serve", "--statedir", lab.path("serve"), "--library", lab.path("disk"), "--listen", "127.0.0.1:0", "--json"]
        serve = lab.start("-m", "sh", "-c", script, "sh", lab.path("disk"), lab.path("library", "film.mp4"), *argv, program="unshare", name="serve")
        serve.url = serve.wait_event("ready", 20)["url"]
        serve.wait_event("library", 20, items=1)
        subprocess.run(["nsenter", "-t", str(serve.p.pid), "-m", "umount", lab.path("disk")], check=True)
        check(run("serve", "rescan", "--statedir", lab.path("serve")).returncode == 0, "rescan")
        check_words(serve.wait_event("library_problems", 10)["problems"][0], lab.path("disk"), "disk", "away")
        server = logged_in(lab, serve.url)["id"]
        names = [e["file_name"] for e in events(client(lab, "ls", server)) if e["event"] == "item"]
        check(names == ["film.mp4"], f"listed while the disk is away: {names}")


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
