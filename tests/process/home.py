"""A household for the tests: a library, a media server, a client that logs in."""
import json
import os
import subprocess

from lab import *

PASSWORD = "open sesame"


def make_library(lab, seconds=4):
    """A folder with one small film, and with files that are no films."""
    folder = lab.path("library")
    os.makedirs(folder, exist_ok=True)
    subprocess.run(["ffmpeg", "-v", "error", "-y", "-f", "lavfi", "-i", f"testsrc2=size=320x180:rate=10:duration={seconds}", "-f", "lavfi", "-i",
                    f"sine=duration={seconds}", "-c:v", "libx264", "-preset", "ultrafast", "-b:v", "2M", "-minrate", "2M", "-maxrate", "2M",
                    "-bufsize", "1M", "-x264-params", "nal-hrd=cbr", "-pix_fmt", "yuv420p", "-c:a", "aac", "-movflags", "+faststart",
                    os.path.join(folder, "film.mp4")], check=True, stdin=subprocess.DEVNULL)
    with open(os.path.join(folder, "broken.mp4"), "wb") as f:
        f.write(os.urandom(100_000))
    with open(os.path.join(folder, "empty.mkv"), "wb"):
        pass
    with open(os.path.join(folder, "film.mp4"), "rb") as f, open(os.path.join(folder, "cut.mp4"), "wb") as cut:
        cut.write(f.read()[:2000])
    os.symlink("/etc/passwd", os.path.join(folder, "passwd.mp4"))
    os.symlink(folder, os.path.join(folder, "loop"))
    return folder


def set_password(lab, name="serve", password=PASSWORD):
    result = run("serve", "set-password", "--statedir", lab.path(name), "--password-file", lab.write("password", password + "\n"))
    check(result.returncode == 0, result.stderr)


def start_serve(lab, *flags, name="serve", listen="127.0.0.1:0", library=None, **popen):
    p = lab.start("serve", "--statedir", lab.path(name), "--library", library or lab.path("library"), "--listen", listen, "--json", *flags,
                  name=name, **popen)
    ready = p.wait_event("ready", 20)
    p.url, p.listen = ready["url"], ready["listen"]
    return p


def home(lab, *flags):
    make_library(lab)
    set_password(lab)
    serve = start_serve(lab, *flags)
    serve.wait_event("library", 30)
    return serve


def client(lab, *argv, statedir="client", **popen):
    return run("client", *argv, "--statedir", lab.path(statedir), "--json", **popen)


def login(lab, url, statedir="client", password=None):
    word = lab.path("password") if password is None else lab.write("other-password", password + "\n")
    return client(lab, "login", url, "--password-file", word, "--no-wait", statedir=statedir)


def events(result):
    return [json.loads(line) for line in result.stdout.splitlines()]


def event(result, kind):
    found = [e for e in events(result) if e["event"] == kind]
    check(found, f"no '{kind}' in {result.stdout!r}; {result.stderr!r}")
    return found[0]


def logged_in(lab, url, statedir="client"):
    result = login(lab, url, statedir)
    check(result.returncode == 0, f"login: {result.stderr} {result.stdout}")
    return event(result, "login")
