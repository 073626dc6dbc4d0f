"""A household for the tests: a library, a media server, a client that logs in."""
import json
import os
import ssl
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


# ---- a session as any program could speak it, to say what no client of ours would

UPGRADE = (b"GET /porthole/v1/session HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
           b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n")


def tls_to(serve, newest=None):
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    if newest:
        context.maximum_version = newest
    host, port = serve.listen.rsplit(":", 1)
    return context.wrap_socket(socket.create_connection((host, int(port)), timeout=20 * SLOW))


def raw_session(serve):
    s = tls_to(serve)
    s.sendall(UPGRADE)
    head = read_head(s)
    check(head.startswith(b"HTTP/1.1 101"), f"the upgrade was answered with {head!r}")
    return s


def field(number, value):
    """Of a protobuf message: bytes, or a number; both below 128."""
    wire = 2 if isinstance(value, bytes) else 0
    tag = number * 8 + wire
    out = bytes([tag & 127 | 128, tag >> 7]) if tag > 127 else bytes([tag])
    return out + (bytes([len(value)]) + value if wire == 2 else bytes([value]))


def frame(message):
    """One binary WebSocket message of a client, shorter than 126 bytes, masked with zeros."""
    return bytes([0x82, 0x80 | len(message)]) + bytes(4) + message


def login_message(password):
    return frame(field(1, 1) + field(2, 1) + field(10, field(1, password) + field(2, b"00000000-0000-4000-8000-000000000001")))


def read_message(s):
    """The payload of the next frame; b"" when the connection ends."""
    head = s.recv(2)
    if len(head) < 2 or head[0] & 15 != 2:
        return b""
    size = int.from_bytes(exactly(s, 2), "big") if head[1] == 126 else head[1]
    return exactly(s, size)
