"""What the interop tests share. They run our processes against peers that nobody here wrote.

A test file (case_*.py) has a line `ROW = "what meets what"` and functions test_*, whose docstring's first line says what must hold;
`main()` runs them as the process tests' main() does and prints one line a case, which run_interop.py collects:

    CASE <TAB> ok | FAILED | SKIPPED <TAB> seconds <TAB> what must hold <TAB> note

A case returns None or a short note (a measured figure), raises Failed, or raises Skipped when a peer or a right is missing.
Peers are programs in the folder $PORTHOLE_PEERS (`./run interop` builds them). Everything lives on loopback or in network
namespaces of the test's own; only processes started here are ended.
"""
import contextlib
import ctypes
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import traceback

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "process"))
from lab import *  # noqa: F401,F403  (the process tests' helpers are ours, too)
from lab import BUILD, Failed, Process, check, wait_for

PEERS = os.environ.get("PORTHOLE_PEERS") or os.path.join(os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache"), "porthole", "interop", "bin")


_LIBC = ctypes.CDLL(None, use_errno=True)
_CLONE_NEWNET = 0x40000000


class Skipped(Exception):
    pass


def peer(name):
    """The path of a peer's program."""
    path = os.path.join(PEERS, name)
    if not os.access(path, os.X_OK):
        raise Skipped(f"{name} has not been built")
    return path


def program(name, package=None):
    """The path of a program of the system."""
    path = shutil.which(name)
    if not path:
        raise Skipped(f"{name} is not installed" + (f" (Debian package {package})" if package else ""))
    return path


def in_folder(name):
    """A fresh folder for a test's files; the caller removes it."""
    return tempfile.mkdtemp(prefix=f"porthole-{name}-")


def need_root():
    if os.getuid() != 0:
        raise Skipped("network namespaces need root")


def sh(*argv, seconds=60, status=0, **popen):
    """A command to its end: its stdout; another status than expected (None: any) is a failure."""
    popen.setdefault("stdin", subprocess.DEVNULL)
    try:
        r = subprocess.run([str(a) for a in argv], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, errors="replace",
                           timeout=seconds, **popen)
    except subprocess.TimeoutExpired as e:
        raise Failed(f"{' '.join(map(str, argv))[:200]}: still runs after {seconds} s; said {(e.stdout or b'')[-300:]!r} {(e.stderr or b'')[-300:]!r}")
    if status is not None and r.returncode != status:
        raise Failed(f"{' '.join(map(str, argv))[:200]}: status {r.returncode}: {r.stderr[-600:]} {r.stdout[-300:]}")
    return r.stdout


class Background:
    """A peer's process; its output goes to a file that failures quote."""

    def __init__(self, argv, folder, name, **popen):
        self.name = name
        self.log_path = os.path.join(folder, f"{name}.{time.monotonic_ns()}.log")
        with open(self.log_path, "wb") as log:
            self.p = subprocess.Popen([str(a) for a in argv], stdout=log, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL, **popen)

    def log(self, last=1500):
        with open(self.log_path, "rb") as f:
            return f.read().decode(errors="replace")[-last:]

    def alive(self):
        return self.p.poll() is None

    def stop(self, seconds=10):
        if self.alive():
            self.p.terminate()
            try:
                self.p.wait(seconds)
            except subprocess.TimeoutExpired:
                self.p.kill()
        self.p.wait()

    def kill(self):
        if self.alive():
            self.p.kill()
        self.p.wait()


class Net:
    """Network namespaces of this test, and veth links between them. Gone with the test."""

    serial = 0

    def __init__(self):
        need_root()
        program("ip", "iproute2")
        self.spaces = []

    def __enter__(self):
        return self

    def __exit__(self, *_):
        for ns in self.spaces:
            subprocess.run(["ip", "netns", "del", ns], stderr=subprocess.DEVNULL)
            shutil.rmtree(f"/etc/netns/{ns}", ignore_errors=True)

    def space(self, name, hosts=""):
        """`hosts`: lines of the /etc/hosts that programs see there."""
        Net.serial += 1
        ns = f"phi{os.getpid()}-{Net.serial}{name}"
        sh("ip", "netns", "add", ns)
        self.spaces.append(ns)
        os.makedirs(f"/etc/netns/{ns}")
        with open(f"/etc/netns/{ns}/hosts", "w") as f:
            f.write("127.0.0.1 localhost\n::1 localhost\n" + hosts)
        sh("ip", "-n", ns, "link", "set", "lo", "up")
        return ns

    def link(self, a, a_address, b, b_address, mtu=1500):
        """A veth between two namespaces. Addresses with their prefix length."""
        Net.serial += 1
        x, y = f"v{Net.serial}a", f"v{Net.serial}b"
        sh("ip", "-n", a, "link", "add", x, "mtu", mtu, "type", "veth", "peer", "name", y, "mtu", mtu, "netns", b)
        for ns, device, address in ((a, x, a_address), (b, y, b_address)):
            for one in address.split(","):
                sh("ip", "-n", ns, "addr", "add", one, "dev", device, *(["nodad"] if ":" in one else []))
            sh("ip", "-n", ns, "link", "set", device, "up")
        return x, y

    def route(self, ns, to, via):
        sh("ip", "-n", ns, "route", "add", to, "via", via)

    @staticmethod
    def inside(ns, *argv):
        return ["ip", "netns", "exec", ns, *map(str, argv)]


class Authority:
    """A CA of one's own: what a household with its own certificates has."""

    def __init__(self, folder, name="Own CA"):
        self.folder = folder
        os.mkdir(folder)
        self.key, self.cert = os.path.join(folder, "ca.key"), os.path.join(folder, "ca.pem")
        open(os.path.join(folder, "index.txt"), "w").close()
        with open(os.path.join(folder, "ca.cnf"), "w") as f:
            f.write(f"[ca]\ndefault_ca=d\n[d]\ndatabase={folder}/index.txt\nrand_serial=yes\nnew_certs_dir={folder}\ndefault_md=sha256\n"
                    "policy=p\ncopy_extensions=copy\nunique_subject=no\n[p]\ncommonName=supplied\n")
        self._sign(name, "basicConstraints=critical,CA:TRUE", self.cert, self.key, -400, 4000, "-selfsign")

    def _sign(self, name, extension, cert, key, since, until, *how):
        def when(days):
            return time.strftime("%Y%m%d%H%M%SZ", time.gmtime(time.time() + days * 86400))
        sh("openssl", "req", "-new", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-keyout", key, "-out", cert + ".csr",
           "-subj", f"/CN={name}", "-addext", extension)
        sh("openssl", "ca", "-batch", "-config", os.path.join(self.folder, "ca.cnf"), "-keyfile", self.key, "-in", cert + ".csr", "-out", cert,
           "-notext", "-startdate", when(since), "-enddate", when(until), *how)

    def issue(self, name, names="DNS:hub.test", since=-30, until=30):
        """(certificate, key); valid from and until, in days from now."""
        cert, key = os.path.join(self.folder, name + ".pem"), os.path.join(self.folder, name + ".key")
        self._sign(name, f"subjectAltName={names}", cert, key, since, until, "-cert", self.cert)
        return cert, key


@contextlib.contextmanager
def inside(space):
    """Sockets that this thread makes in the block belong to that namespace, for good."""
    with open("/proc/thread-self/ns/net") as home, open(f"/run/netns/{space}") as there:
        if _LIBC.setns(there.fileno(), _CLONE_NEWNET) != 0:
            raise Failed(f"setns: {os.strerror(ctypes.get_errno())}")
        try:
            yield
        finally:
            _LIBC.setns(home.fileno(), _CLONE_NEWNET)


def free_port(kind=socket.SOCK_STREAM, address="127.0.0.1"):
    """For programs that cannot choose one themselves."""
    with socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET, kind) as s:
        s.bind((address, 0))
        return s.getsockname()[1]


def main(module):
    wanted = sys.argv[2] if len(sys.argv) > 2 else ""
    failures = 0
    for name, f in list(vars(module).items()):
        if not name.startswith("test_") or not callable(f) or wanted not in name:
            continue
        start, note = time.monotonic(), ""
        try:
            note = f() or ""
            verdict = "ok"
        except Skipped as e:
            verdict, note = "SKIPPED", str(e)
        except Failed as e:
            verdict, note = "FAILED", str(e)
        except Exception:
            verdict, note = "FAILED", traceback.format_exc()
        failures += verdict == "FAILED"
        promise = (f.__doc__ or name).strip().splitlines()[0].rstrip(".")
        print("\t".join(["CASE", verdict, f"{time.monotonic() - start:.1f}", promise, " ".join(str(note).split())]), flush=True)
    sys.exit(1 if failures else 0)
