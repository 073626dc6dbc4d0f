"""What the tests on real processes share: start porthole processes, read their events, ask them to end.

Each test script is a list of functions named test_*; `main()` runs them and reports. Everything is on loopback with
ports chosen by the kernel; waiting is always for an event or a condition, with a bound.
"""
import contextlib
import json
import os
import pwd
import queue
import select
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import traceback

BUILD = os.path.abspath(sys.argv[1]) if len(sys.argv) > 1 else "build/release"
PORTHOLE = os.path.join(BUILD, "porthole")
# Sanitizers make everything slower; bounds are for a loaded machine already.
SLOW = 6 if any(word in os.path.basename(BUILD) for word in ("asan", "tsan")) else 1
THREAD_SANITIZER = "tsan" in os.path.basename(BUILD)
if THREAD_SANITIZER:  # it would wait a second at the end of every process for what its other threads do
    os.environ["TSAN_OPTIONS"] = os.environ.get("TSAN_OPTIONS", "") + " atexit_sleep_ms=0"


class Failed(Exception):
    pass


def check(condition, message):
    if not condition:
        raise Failed(message)


def check_words(text, *words):
    """Every word is in the text, whatever the case."""
    for word in words:
        check(word.lower() in text.lower(), f"'{word}' is not in: {text!r}")


def wait_for(condition, seconds, what):
    """The first true value of condition(); asks often, gives up after the time."""
    end = time.monotonic() + seconds * SLOW
    while True:
        value = condition()
        if value:
            return value
        if time.monotonic() > end:
            raise Failed(f"{what}: not within {seconds * SLOW} s")
        time.sleep(0.02)


def terminate(p):
    """SIGTERM to a Popen that may have ended."""
    if p.poll() is None:
        p.send_signal(signal.SIGTERM)
        if THREAD_SANITIZER:  # which keeps a signal that comes just before a wait until the next one
            try:
                p.wait(2)
            except subprocess.TimeoutExpired:
                p.send_signal(signal.SIGTERM)


class Process:
    """A long-running process whose JSON events are collected."""

    def __init__(self, argv, folder, name, **popen):
        self.name = name
        self.stderr_path = os.path.join(folder, f"{name}.{time.monotonic_ns()}.stderr")
        popen.setdefault("stdin", subprocess.DEVNULL)
        with open(self.stderr_path, "wb") as stderr:
            self.p = subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=stderr, **popen)
        self.events = queue.Queue()
        self.log = []
        self.reader = threading.Thread(target=self._read, daemon=True)
        self.reader.start()

    def _read(self):
        for line in self.p.stdout:
            try:
                event = json.loads(line)
            except ValueError:
                event = {"event": "text", "text": line.decode(errors="replace")}
            self.log.append(event)
            self.events.put(event)
        self.events.put(None)

    def stderr(self):
        with open(self.stderr_path, "rb") as f:
            return f.read().decode(errors="replace")

    def wait_event(self, kind, seconds=15, match=None, **wanted):
        """The next event of this kind with these members (and for which match() holds)."""
        end = time.monotonic() + seconds * SLOW
        while True:
            try:
                event = self.events.get(timeout=max(0.001, end - time.monotonic()))
            except queue.Empty:
                raise Failed(f"{self.name}: no '{kind}' {wanted} within {seconds * SLOW} s; saw {self.log[-5:]}; {self.stderr()[-400:]}")
            if event is None:
                self.events.put(None)
                raise Failed(f"{self.name} ended with status {self.p.wait()} before '{kind}': {self.stderr()[-400:]}")
            if event.get("event") == kind and all(event.get(k) == v for k, v in wanted.items()) and (not match or match(event)):
                return event

    def wait_exit(self, seconds=15):
        """The exit status; a hang is a failure."""
        try:
            status = self.p.wait(seconds * SLOW)
        except subprocess.TimeoutExpired:
            raise Failed(f"{self.name} still runs after {seconds * SLOW} s; saw {self.log[-5:]}; {self.stderr()[-400:]}")
        self.reader.join(5)
        return status

    def stop(self, seconds=5):
        """SIGTERM; must end cleanly with status 0."""
        terminate(self.p)
        status = self.wait_exit(seconds)
        check(status == 0, f"{self.name} ended with status {status} after SIGTERM: {self.stderr()[-400:]}")

    def kill(self):
        if self.p.poll() is None:
            self.p.kill()
        self.p.wait()
        self.reader.join(5)


class Lab:
    """A folder, the processes that work in it, and short ways to start the usual ones."""

    def __init__(self):
        self.dir = tempfile.mkdtemp(prefix="porthole-process-")
        self.processes = []
        self.count = 0

    def __enter__(self):
        return self

    def __exit__(self, kind, *_):
        trouble = []
        for p in reversed(self.processes):
            if p.p.poll() is not None:
                if p.p.returncode < 0 and p.p.returncode not in (-signal.SIGKILL, -signal.SIGTERM):
                    trouble.append(f"{p.name} crashed with signal {-p.p.returncode}: {p.stderr()[-600:]}")
                continue
            if kind:
                p.kill()
                continue
            try:
                p.stop(10)
            except Failed as e:
                trouble.append(str(e))
                p.kill()
        shutil.rmtree(self.dir, ignore_errors=True)
        if trouble and not kind:
            raise Failed("; ".join(trouble))

    def path(self, *parts):
        return os.path.join(self.dir, *parts)

    def write(self, name, text, mode=0o600):
        path = self.path(name)
        with open(path, "w") as f:
            f.write(text)
        os.chmod(path, mode)
        return path

    def start(self, *argv, name=None, **popen):
        self.count += 1
        p = Process([popen.pop("program", PORTHOLE), *argv], self.dir, name or f"{argv[0]}{self.count}", **popen)
        self.processes.append(p)
        return p

    # ---- the usual processes

    def remote(self, statedir="remote", listen="127.0.0.1:0", tls=None, stun_port="0", **popen):
        argv = ["remote", "run", "--statedir", self.path(statedir), "--listen", listen, "--stun-port", stun_port, "--json"]
        if tls:
            argv += ["--tls-cert", tls[0], "--tls-key", tls[1]]
        p = self.start(*argv, name=statedir, **popen)
        ready = p.wait_event("ready")
        p.url = ready["url"]
        p.listen = ready["listen"]
        p.stun_port = ready["stun_port"]
        p.state = self.path(statedir)
        return p

    def account(self, remote, name="home"):
        out = run("remote", "account", "create", name, "--statedir", remote.state, "--json")
        check(out.returncode == 0, out.stderr)
        return json.loads(out.stdout)["token"]

    def key(self, remote, account="home", *flags):
        out = run("remote", "key", "create", "--account", account, "--statedir", remote.state, "--json", *flags)
        check(out.returncode == 0, out.stderr)
        return json.loads(out.stdout)["key"]

    def node(self, name, url=None, key=None, *flags, **popen):
        argv = ["node", "run", "--statedir", self.path(name), "--hostname", name, "--json"]
        if url:
            argv += ["--login-server", url]
        if key:
            argv += ["--auth-key", "file:" + self.write(name + ".key", key + "\n")]
        return self.start(*argv, *flags, name=name, **popen)


def run(*argv, seconds=30, **popen):
    """A command to its end; stdout and stderr as text."""
    program = popen.pop("program", PORTHOLE)
    popen.setdefault("stdin", subprocess.DEVNULL)
    try:
        return subprocess.run([program, *argv], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, errors="replace",
                              timeout=seconds * SLOW, **popen)
    except subprocess.TimeoutExpired:
        raise Failed(f"porthole {' '.join(argv[:3])} still runs after {seconds * SLOW} s")


def refused(result, status, *words):
    """The command failed with this status and one plain line that has these words."""
    check(result.returncode == status, f"status {result.returncode}, expected {status}: {result.stderr!r} {result.stdout[-300:]!r}")
    lines = [line for line in result.stderr.strip().splitlines() if line.startswith("porthole: ")]
    check(len(lines) == 1, f"expected one line 'porthole: ...' on stderr, got {result.stderr!r}")
    check_words(lines[0], *words)


def ended_with(process, status, *words, seconds=15):
    """A started process ended by itself with this status and one plain line."""
    got = process.wait_exit(seconds)
    text = process.stderr()
    check(got == status, f"{process.name}: status {got}, expected {status}: {text!r}; events {process.log[-4:]}")
    lines = [line for line in text.strip().splitlines() if line.startswith("porthole: ")]
    check(len(lines) == 1, f"{process.name}: expected one line 'porthole: ...' on stderr, got {text!r}")
    check_words(lines[0], *words)


def handles_term(pid):
    """The process has its handler for SIGTERM in place."""
    try:
        with open(f"/proc/{pid}/status") as f:
            caught = next(int(line.split()[1], 16) for line in f if line.startswith("SigCgt"))
    except (OSError, StopIteration):
        return False
    return bool(caught & (1 << (signal.SIGTERM - 1)))


def closed_port():
    """A TCP port of 127.0.0.1 nobody listens on; it stays reserved while the returned socket lives."""
    s = socket.socket()
    s.bind(("127.0.0.1", 0))
    return s, s.getsockname()[1]


def make_certificate(folder, name="tls", days=None, dates=None):
    """(certificate, key), self-signed for 127.0.0.1 and localhost. `dates` = (start, end) as openssl writes them."""
    key, cert = os.path.join(folder, name + ".key"), os.path.join(folder, name + ".pem")
    subprocess.run(["openssl", "ecparam", "-name", "prime256v1", "-genkey", "-noout", "-out", key], check=True, stderr=subprocess.DEVNULL)
    names = "subjectAltName=DNS:localhost,IP:127.0.0.1,IP:::1"
    if not dates:
        subprocess.run(["openssl", "req", "-x509", "-new", "-key", key, "-out", cert, "-days", str(days or 30), "-subj", "/CN=localhost",
                        "-addext", names], check=True, stderr=subprocess.DEVNULL)
        return cert, key
    # Only `openssl ca` takes dates of the past.
    home = os.path.join(folder, name + ".ca")
    os.mkdir(home)
    open(os.path.join(home, "index.txt"), "w").close()
    with open(os.path.join(home, "serial"), "w") as f:
        f.write("01\n")
    with open(os.path.join(home, "ca.cnf"), "w") as f:
        f.write(f"[ca]\ndefault_ca=d\n[d]\ndatabase={home}/index.txt\nserial={home}/serial\nnew_certs_dir={home}\n"
                f"default_md=sha256\npolicy=p\nx509_extensions=e\n[p]\ncommonName=supplied\n[e]\n{names}\nbasicConstraints=CA:TRUE\n")
    csr = os.path.join(home, "request")
    subprocess.run(["openssl", "req", "-new", "-key", key, "-out", csr, "-subj", "/CN=localhost"], check=True, stderr=subprocess.DEVNULL)
    subprocess.run(["openssl", "ca", "-batch", "-config", os.path.join(home, "ca.cnf"), "-selfsign", "-keyfile", key, "-in", csr,
                    "-out", cert, "-notext", "-startdate", dates[0], "-enddate", dates[1]], check=True, stderr=subprocess.DEVNULL,
                   stdout=subprocess.DEVNULL)
    return cert, key


def nobody():
    """Popen arguments that take the privileges away; empty when there are none."""
    if os.getuid() != 0:
        return {}
    entry = pwd.getpwnam("nobody")
    return {"user": entry.pw_uid, "group": entry.pw_gid, "extra_groups": []}


# ---- SOCKS5, as a program would speak it

def exactly(s, size):
    out = b""
    while len(out) < size:
        block = s.recv(size - len(out))
        if not block:
            raise Failed(f"the connection ended after {len(out)} of {size} bytes")
        out += block
    return out


def socks_log_in(s, user, password):
    """On a fresh connection to a SOCKS5 proxy; user None: without a credential. ConnectionRefusedError when it is refused."""
    method = 0 if user is None else 2
    s.sendall(bytes([5, 1, method]))
    check(exactly(s, 2) == bytes([5, method]), "the proxy wants another method")
    if user is None:
        return
    s.sendall(bytes([1, len(user)]) + user.encode() + bytes([len(password)]) + password.encode())
    if exactly(s, 2)[1] != 0:
        s.close()
        raise ConnectionRefusedError("wrong credential")


def socks_address(host, port):
    """As RFC 1928 writes it: an address, or a name."""
    try:
        literal = socket.inet_pton(socket.AF_INET6 if ":" in host else socket.AF_INET, host)
        return (b"\x04" if ":" in host else b"\x01") + literal + port.to_bytes(2, "big")
    except OSError:
        return b"\x03" + bytes([len(host)]) + host.encode() + port.to_bytes(2, "big")


def socks_ask(s, command, host, port):
    """(reply code, bound address, bound port); the address is empty unless it is IPv4."""
    s.sendall(bytes([5, command, 0]) + socks_address(host, port))
    head = exactly(s, 4)
    bound = exactly(s, 6 if head[3] == 1 else 18 if head[3] == 4 else exactly(s, 1)[0] + 2)
    return head[1], socket.inet_ntop(socket.AF_INET, bound[:4]) if head[3] == 1 else "", int.from_bytes(bound[-2:], "big")


def socks_login(proxy, password=None, seconds=20):
    """A socket after the credential; raises ConnectionRefusedError when the credential is refused."""
    host, port = proxy["address"].rsplit(":", 1)
    s = socket.create_connection((host, int(port)), timeout=seconds * SLOW)
    socks_log_in(s, proxy["username"], proxy["password"] if password is None else password)
    return s


def socks_connect(proxy, host, port, seconds=20):
    """(reply code, socket) of a CONNECT."""
    s = socks_login(proxy, seconds=seconds)
    return socks_ask(s, 1, host, port)[0], s


class SocksUdp:
    """UDP ASSOCIATE (RFC 1928): `control` is its connection, `s` the socket for its datagrams, `relay` where they go."""

    def __init__(self, proxy, seconds=20):
        self.control = socks_login(proxy, seconds=seconds)
        self.reply, host, port = socks_ask(self.control, 3, "0.0.0.0", 0)
        self.relay = (host, port)
        self.s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self.s.bind(("127.0.0.1", 0))

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.s.close()
        self.control.close()

    def send(self, host, port, data, fragment=0, s=None):
        (s or self.s).sendto(bytes([0, 0, fragment]) + socks_address(host, port) + data, self.relay)

    def echoes(self, host, port, data, seconds=10):
        """An EchoUdp there answers, with a head that repeats the target. UDP may lose a datagram, so this asks again; then there
        may be late answers to earlier questions."""
        wanted = b"\0\0\0" + socks_address(host, port) + b"seen " + data
        end = time.monotonic() + seconds * SLOW
        came = None
        while time.monotonic() < end:
            self.send(host, port, data)
            while select.select([self.s], [], [], 0.5 * SLOW)[0]:
                came, source = self.s.recvfrom(65536)
                check(source == self.relay, f"a datagram of {source}, not of the proxy")
                if came == wanted:
                    return
        raise Failed(f"no answer of {host}:{port} to {data[:40]!r}; the last that came: {came and came[:60]!r}")


def read_head(s):
    """An HTTP head, and what came with it; OSError when the connection ends before."""
    data = b""
    while b"\r\n\r\n" not in data:
        block = s.recv(4096)
        if not block:
            raise OSError("it ended before the head did")
        data += block
    return data


def together(count, do):
    """do() in so many threads at once, to their end; what they raised."""
    trouble = []

    def one():
        try:
            do()
        except Exception as e:
            trouble.append(e)
    threads = [threading.Thread(target=one) for _ in range(count)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    return trouble


def serve_each(listener, handle):
    """Until the listener is closed, every connection gets a thread that runs handle(socket) and closes it; OSError is its end, too."""
    def one(s):
        with contextlib.suppress(OSError), s:
            handle(s)

    def accept():
        while True:
            try:
                s, _ = listener.accept()
            except OSError:
                return
            threading.Thread(target=one, args=(s,), daemon=True).start()
    threading.Thread(target=accept, daemon=True).start()


class WebServer:
    """Gives every connection to `serve`, until closed."""

    def __init__(self, serve):
        self.serve = serve
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self.listener.getsockname()[1]}"
        serve_each(self.listener, self._one)

    def _one(self, s):
        s.settimeout(30 * SLOW)
        self.serve(s)


class EchoServer:
    """On loopback: sends back what it gets; or, with a first line 'GIVE n', n bytes."""

    def __init__(self):
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.port = self.listener.getsockname()[1]
        serve_each(self.listener, self._serve)

    def _serve(self, s):
        first = s.recv(65536)
        if first.startswith(b"GIVE "):
            left = int(first.split()[1])
            block = bytes(65536)
            while left > 0:
                left -= s.send(block[:min(left, len(block))])
        else:
            while first:
                s.sendall(first)
                first = s.recv(65536)
        s.shutdown(socket.SHUT_WR)


class EchoUdp:
    """On loopback: answers 'seen ' and what came; keeps that, and the sources."""

    def __init__(self):
        self.socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self.socket.bind(("127.0.0.1", 0))
        self.port = self.socket.getsockname()[1]
        self.sources, self.seen = set(), set()
        threading.Thread(target=self._run, daemon=True).start()

    def _run(self):
        while True:
            data, source = self.socket.recvfrom(65536)
            self.sources.add(source)
            self.seen.add(data)
            self.socket.sendto(b"seen " + data, source)


def portal(s):
    """As the network of a hotel answers everything."""
    read_head(s)
    page = b"<!doctype html><html><title>Hotel Seaview</title>Please log in</html>"
    s.sendall(b"HTTP/1.1 200 OK\r\nContent-Type: text/html\r\nContent-Length: %d\r\nConnection: close\r\n\r\n" % len(page) + page)


def main(module):
    """Runs the module's test_* functions in the order they are written; exit status for run_tests.py."""
    tests = [(name, f) for name, f in vars(module).items() if name.startswith("test_") and callable(f)]
    wanted = sys.argv[2] if len(sys.argv) > 2 else ""
    failures = 0
    for name, f in tests:
        if wanted not in name:
            continue
        start = time.monotonic()
        try:
            f()
            verdict = "ok"
        except Failed as e:
            verdict = f"FAILED: {e}"
            failures += 1
        except Exception:
            verdict = "FAILED: " + traceback.format_exc()
            failures += 1
        print(f"{time.monotonic() - start:6.1f} s  {name}: {verdict}", flush=True)
    sys.exit(1 if failures else 0)
