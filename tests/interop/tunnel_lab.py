"""What the two lower interop cases share: tunnel_tool in a network namespace, and sockets of that namespace's kernel."""
import hashlib
import os
import queue
import re
import socket
import subprocess
import threading
import time

from interop import BUILD, Failed, Net, Process, Skipped, check, inside, need_root, sh

TOOL = os.path.join(BUILD, "tests", "interop", "tunnel_tool")
STALL = 25  # seconds without a byte that no case may show


def need_tun():
    need_root()
    if not os.path.exists("/dev/net/tun"):
        raise Skipped("there is no /dev/net/tun")
    if not os.access(TOOL, os.X_OK):
        raise Skipped("tunnel_tool has not been built (ninja interop_tools)")


class Tool(Process):
    """tunnel_tool, running."""

    def __init__(self, space, folder, name, *words):
        self.name = name
        self.stderr_path = os.path.join(folder, f"{name}.{time.monotonic_ns()}.stderr")
        with open(self.stderr_path, "wb") as stderr:
            self.p = subprocess.Popen(Net.inside(space, TOOL, *words), stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=stderr)
        self.events = queue.Queue()
        self.log = []
        self.kept = []
        self.reader = threading.Thread(target=self._read, daemon=True)
        self.reader.start()
        self.wait_event("ready")

    def tell(self, *words):
        self.p.stdin.write((" ".join(map(str, words)) + "\n").encode())
        self.p.stdin.flush()

    def wait_event(self, kind, seconds=15, match=None, **wanted):
        """As Process has it, but events of other kinds stay for those who ask for them later."""
        fits = lambda e: e.get("event") == kind and all(e.get(k) == v for k, v in wanted.items()) and (not match or match(e))
        for i, event in enumerate(self.kept):
            if fits(event):
                return self.kept.pop(i)
        end = time.monotonic() + seconds
        while True:
            try:
                event = self.events.get(timeout=max(0.001, end - time.monotonic()))
            except queue.Empty:
                raise Failed(f"{self.name}: no '{kind}' {wanted} within {seconds} s; saw {self.log[-6:]}; {self.stderr()[-400:]}")
            if event is None:
                self.events.put(None)
                raise Failed(f"{self.name} ended with status {self.p.wait()} before '{kind}': {self.stderr()[-600:]}")
            if fits(event):
                return event
            self.kept.append(event)

    def ask(self, *words, answer=None, **wanted):
        self.tell(*words)
        return self.wait_event(answer or words[0], **wanted)

    def info(self, id):
        """TcpInfo of one connection, or None when it is gone."""
        self.tell("info", id)
        self.wait_event("info_end")
        found = [e for e in self.kept if e["event"] == "info"]
        self.kept = [e for e in self.kept if e["event"] != "info"]
        return found[0] if found else None

    def connect(self, address, port, *role):
        host = f"[{address}]" if ":" in address else address
        return self.ask("connect", f"{host}:{port}", *role, answer="connecting")["id"]

    def quit(self):
        if self.p.poll() is None:
            self.tell("quit")
        check(self.wait_exit(10) == 0, f"{self.name} ended badly: {self.stderr()[-600:]}")


def receive_all(s, stall=STALL):
    """(bytes, SHA-256, what was received if short) up to the end."""
    s.settimeout(stall)
    digest, size, head = hashlib.sha256(), 0, b""
    while True:
        try:
            block = s.recv(1 << 20)
        except socket.timeout:
            raise Failed(f"no byte for {stall} s after {size}")
        if not block:
            return size, digest.hexdigest(), head
        digest.update(block)
        size += len(block)
        if len(head) < 4096:
            head += block[:4096 - len(head)]


def send_all(s, size, seed=1, chunk=1 << 18, end=True):
    """A reproducible stream; its SHA-256."""
    digest, block = hashlib.sha256(), hashlib.shake_128(str(seed).encode()).digest(1 << 16)
    left, number = size, 0
    while left > 0:
        piece = (number.to_bytes(8, "big") + block[8:])[:left]
        digest.update(piece)
        for at in range(0, len(piece), chunk):
            s.sendall(piece[at:at + chunk])
        left -= len(piece)
        number += 1
    if end:
        s.shutdown(socket.SHUT_WR)
    return digest.hexdigest()


class Later(threading.Thread):
    """A function on its own; result() gives what it returned or raised."""

    def __init__(self, f, *a, **kw):
        super().__init__(daemon=True)
        self.call, self.value, self.error = (f, a, kw), None, None
        self.start()

    def run(self):
        f, a, kw = self.call
        try:
            self.value = f(*a, **kw)
        except BaseException as e:
            self.error = e

    def result(self, seconds=600):
        self.join(seconds)
        if self.is_alive():
            raise Failed(f"{self.call[0].__name__} has not ended after {seconds} s")
        if self.error:
            raise self.error
        return self.value


def both_ways(s, size, seed=1):
    """Sends and receives at once; (SHA-256 sent, bytes received, SHA-256 received)."""
    s.settimeout(STALL)
    sender = Later(send_all, s, size, seed)
    got, digest, _ = receive_all(s)
    return sender.result(STALL * 4), got, digest


def connections(space, *filters):
    """What `ss -ti` says, a dictionary for each connection."""
    out = []
    lines = sh(*Net.inside(space, "ss", "-tinoH", *filters)).splitlines()
    for head, tail in zip(lines[::2], lines[1::2]):
        words = head.split()
        c = {"state": words[0], "local": words[3], "remote": words[4], "flags": set(tail.split())}
        for name, value in re.findall(r"([a-z_]+):(\S+)", tail):
            c[name] = value
        out.append(c)
    return out
