#!/usr/bin/env python3
"""The client: servers that are not there or not the right ones, damaged files, wrong options, a full disk."""
import fcntl
import json
import os
import resource
import select
import signal
import socket
import subprocess
import sys
import termios
import time

from home import *


def test_lan_without_the_coordination_service():
    with Lab() as lab:
        reserved, port = closed_port()
        made = run("remote", "account", "create", "home", "--statedir", lab.path("remote"), "--json")
        token = lab.write("token", json.loads(made.stdout)["token"] + "\n")
        serve = home(lab, "--remote", f"http://127.0.0.1:{port}", "--account-token", "file:" + token)
        start = time.monotonic()
        info = logged_in(lab, serve.url)
        check(time.monotonic() - start < 8 * SLOW, f"the login took {time.monotonic() - start:.1f} s")
        check(info["remote"] is False and info.get("remote_problem"), f"the login says {info}")
        film = open(lab.path("library", "film.mp4"), "rb").read()
        result = client(lab, "get", info["id"], "film.mp4", "--output", lab.path("out"))
        check(result.returncode == 0 and open(lab.path("out"), "rb").read() == film, f"get: {result.stderr}")
        serve.stop()
        reserved.close()
        # And when the LAN is not there either, it says so and does not offer what it does not have.
        refused(client(lab, "connect", info["id"], "--auto"), 1, "no remote access")
        refused(client(lab, "connect", info["id"], "--local"), 1, "cannot be reached")
        refused(client(lab, "connect", info["id"], "--remote"), 1, "no remote access")


def test_changed_certificate():
    with Lab() as lab:
        serve = home(lab)
        info = logged_in(lab, serve.url)
        saved = open(lab.path("client", "servers.json")).read()
        serve.stop()
        os.remove(lab.path("serve", "tls.pem"))
        serve = start_serve(lab, listen=serve.listen)
        for result in (client(lab, "connect", info["id"], "--auto"), login(lab, serve.url)):
            refused(result, 1, "certificate", info["fingerprint"])
        check(open(lab.path("client", "servers.json")).read() == saved, "the saved server was changed")
        # Forgotten on purpose, it can be met anew.
        check(client(lab, "remove", info["id"]).returncode == 0, "remove")
        logged_in(lab, serve.url)
        # Somebody else's server on the known address.
        serve.stop()
        set_password(lab, "stranger")
        start_serve(lab, name="stranger", listen=serve.listen)
        refused(client(lab, "connect", info["id"], "--auto"), 1, "certificate")


def test_servers_that_are_none():
    with Lab() as lab:
        lab.write("password", PASSWORD)
        reserved, port = closed_port()
        refused(login(lab, f"wss://127.0.0.1:{port}"), 1, f"127.0.0.1:{port}", "cannot be reached")
        refused(login(lab, "wss://no-such-host.invalid:1"), 1, "no-such-host.invalid")
        for bad in ("http://x", "", "x:0", "x:70000", "1:2:3", "[::1"):
            refused(login(lab, bad), 2, bad)
        echo = EchoServer()
        refused(login(lab, f"wss://127.0.0.1:{echo.port}"), 1, "not a Porthole media server")
        remote = lab.remote(tls=make_certificate(lab.dir))
        refused(login(lab, remote.url.replace("https:", "wss:")), 1, "not a Porthole media server")
        mute = socket.create_server(("127.0.0.1", 0))
        start = time.monotonic()
        refused(login(lab, f"wss://127.0.0.1:{mute.getsockname()[1]}"), 1, "does not answer")
        check(time.monotonic() - start < 15 * SLOW, "too slow")
        check(not os.path.exists(lab.path("client", "servers.json")), "something was saved")


def test_saved_servers_file():
    with Lab() as lab:
        serve = home(lab)
        info = logged_in(lab, serve.url)
        for name in ("servers.json", "device.json"):
            path = lab.path("client", name)
            check(os.stat(path).st_mode & 0o077 == 0, f"{name} can be read by others")
            good = open(path).read()
            for text, words in (("", ("damaged",)), (good[:-20], ("damaged",)), ("[]", ("damaged",)), ('{"version":1,"servers":7}', ("damaged",)),
                                ('{"version":2,"more":true}', ("newer", "update")), ("[" * 100_000, ("damaged",)), (" " * 3_000_000, ("damaged",))):
                with open(path, "w") as f:
                    f.write(text)
                for verb in (["servers"], ["connect", info["id"]], ["login", serve.url, "--password-file", lab.path("password")]):
                    refused(client(lab, *verb), 1, path, *words)
                check(open(path).read() == text, f"{name} was overwritten")
            with open(path, "w") as f:
                f.write(good)
        check(client(lab, "connect", info["id"]).returncode == 0, "with the files back it works")
        # Unknown servers and items, wrong options.
        refused(client(lab, "connect", "no-such-server"), 1, "no-such-server")
        refused(client(lab, "get", info["id"], "no-such-item", "--output", lab.path("out")), 1, "no-such-item")
        check(not os.path.exists(lab.path("out")), "an empty file was left for an item that does not exist")
        refused(client(lab, "play", info["id"], "no-such-item"), 1, "no-such-item")
        refused(client(lab, "play", info["id"], "film.mp4", "--listen", "0.0.0.0:0"), 2, "loopback")
        for bad in ("nonsense", "127.0.0.1", "127.0.0.1:70000", ""):
            refused(client(lab, "play", info["id"], "film.mp4", "--listen", bad), 2, bad)
        refused(run("client", "servers", "--statedir", ""), 2, "--statedir", "empty")
        refused(client(lab, "connect", info["id"], "--local", "--remote"), 2, "--local")
        for bad in ("x", "5-1", "-", "999999999999-"):
            result = client(lab, "get", info["id"], "film.mp4", "--output", lab.path("out"), "--range", bad)
            check(result.returncode in (1, 2) and "porthole: " in result.stderr, f"--range {bad}: {result}")
        refused(client(lab, "get", info["id"], "film.mp4", "--output", "/no/such/place"), 1, "/no/such/place")

        def no_room():
            signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
            resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, resource.RLIM_INFINITY))

        refused(client(lab, "get", info["id"], "film.mp4", "--output", lab.path("out"), preexec_fn=no_room, restore_signals=False), 1, "cannot write", "out")
        check(not [f for f in os.listdir(lab.dir) if f.startswith("out")], "a part of the film was left")

        def none_at_all():
            signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
            resource.setrlimit(resource.RLIMIT_FSIZE, (20, resource.RLIM_INFINITY))

        before = open(lab.path("client", "servers.json")).read()
        result = client(lab, "login", serve.url, "--password-file", lab.path("password"), "--no-wait", preexec_fn=none_at_all, restore_signals=False)
        refused(result, 1, "cannot write", "old content is kept")
        check(open(lab.path("client", "servers.json")).read() == before, "the saved servers changed although there was no room")
        refused(client(lab, "connect", info["id"], statedir="fresh", preexec_fn=none_at_all, restore_signals=False), 1, "cannot write")


def test_copy_that_does_not_come_about():
    """What is in the file's place stays, whatever keeps the copy from being whole; and a stalled reader holds nobody up."""
    with Lab() as lab:
        make_library(lab)
        with open(lab.path("library", "film.mp4"), "ab") as f:
            f.write(bytes(64 << 20))
        set_password(lab)
        serve = start_serve(lab)
        serve.wait_event("library", 30)
        server = logged_in(lab, serve.url)["id"]
        out = lab.write("out", "precious")
        get = [PORTHOLE, "client", "get", server, "film.mp4", "--statedir", lab.path("client"), "--local"]
        # Into a pipe that nobody empties, named or not.
        pipe = lab.path("pipe")
        os.mkfifo(pipe)
        reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
        for output in (["--output", pipe], []):
            r, w = os.pipe()
            copy = subprocess.Popen([*get, *output], stdout=w, stderr=subprocess.PIPE, text=True)
            os.close(w)
            waiting = lambda: int.from_bytes(fcntl.ioctl(reader if output else r, termios.FIONREAD, bytes(4)), sys.byteorder)
            wait_for(lambda: waiting() == 65536, 20, "a full pipe")
            start = time.monotonic()
            copy.send_signal(signal.SIGTERM)
            check(copy.wait(20 * SLOW) == 1, "status")
            check(time.monotonic() - start < 2 * SLOW, f"it took {time.monotonic() - start:.1f} s to end")
            with copy.stderr:
                check_words(copy.stderr.read(), "interrupted", "not complete")
            os.close(r)
        os.close(reader)
        # The item is gone from the server's disk, though not from its list.
        os.rename(lab.path("library", "film.mp4"), lab.path("film.mp4"))
        result = client(lab, "get", server, "film.mp4", "--output", out)
        check(result.returncode == 1 and open(out).read() == "precious", f"the file that was there is gone: {result}")
        check([f for f in os.listdir(lab.dir) if f.startswith("out")] == ["out"], "a part was left")
        os.rename(lab.path("film.mp4"), lab.path("library", "film.mp4"))
        check(client(lab, "get", server, "film.mp4", "--output", out).returncode == 0, "the copy")
        check(os.path.getsize(out) == os.path.getsize(lab.path("library", "film.mp4")), "not the film")
        result = client(lab, "get", server, "film.mp4", "--output", "-", "--range", "0-9")
        check(result.returncode == 0 and "ftyp" in result.stdout and not os.path.exists("-"), f"standard output: {result}")


if __name__ == "__main__":
    main(sys.modules[__name__])
