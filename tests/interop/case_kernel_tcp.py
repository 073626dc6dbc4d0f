#!/usr/bin/env python3
"""Our netstack against the Linux kernel's TCP, through a TUN device in a network namespace of its own."""
import hashlib
import itertools
import os
import random
import select
import socket
import struct
import subprocess
import sys
import tempfile
import threading
import time

from interop import Background, Failed, Net, Skipped, check, main, program, sh, wait_for
from tunnel_lab import STALL, Later, Tool, both_ways, connections, inside, need_tun, receive_all, send_all

ROW = "netstack against the Linux kernel's TCP"
KERNEL = {4: "10.77.0.1", 6: "fd77::1"}
OURS = {4: "10.77.0.2", 6: "fd77::2"}
MIB = 1 << 20


class Stand:
    """A namespace whose kernel talks to our netstack."""

    def __init__(self, sysctls=None, tun_mtu=1280, mtu=1280, control="cubic", **link):
        need_tun()
        self.folder = tempfile.TemporaryDirectory(prefix="porthole-interop-")
        self.net = Net()
        self.space = self.net.space("k")
        self.control = control  # of our own sockets: a namespace may not default to every algorithm
        self.sysctl(**(sysctls or {}))
        self.tool = Tool(self.space, self.folder.name, "netstack", "tun=tun0", "addresses=" + ",".join(OURS.values()), f"mtu={mtu}",
                         *(f"{k}={v}" for k, v in link.items()))
        ip = ["ip", "-n", self.space]
        # The device drops what does not fit into its queue; no losses but those that are asked for.
        sh(*ip, "link", "set", "tun0", "mtu", tun_mtu, "txqueuelen", 10000, "up")
        sh(*ip, "addr", "add", KERNEL[4] + "/24", "dev", "tun0")
        if tun_mtu >= 1280:
            sh(*ip, "addr", "add", KERNEL[6] + "/64", "dev", "tun0", "nodad")
        self.sockets = []
        self.processes = []

    def sysctl(self, **values):
        for name, value in values.items():
            with inside(self.space):
                path = "/proc/sys/net/" + name.replace(".", "/")
                try:
                    with open(path, "w") as f:
                        f.write(str(value))
                except OSError as e:
                    raise Skipped(f"this kernel does not take {name}={value}: {e.strerror}")

    def __enter__(self):
        return self

    def __exit__(self, kind, *_):
        for s in self.sockets:
            s.close()
        for p in self.processes:
            p.kill()
        try:
            if kind:
                self.tool.kill()
            else:
                self.tool.quit()
        finally:
            self.tool.kill()
            self.net.__exit__()
            self.folder.cleanup()

    def socket(self, family=4, **kw):
        with inside(self.space):
            s = socket.socket(socket.AF_INET if family == 4 else socket.AF_INET6, socket.SOCK_STREAM, **kw)
        self.sockets.append(s)
        s.setsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, self.control.encode())
        s.settimeout(STALL)
        return s

    def dial(self, port, family=4, prepare=None):
        s = self.socket(family)
        if prepare:
            prepare(s)
        s.connect((OURS[family], port))
        return s

    def serve(self, family=4, port=0, backlog=1024, prepare=None):
        s = self.socket(family)
        s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if prepare:
            prepare(s)
        s.bind((KERNEL[family], port))
        s.listen(backlog)
        return s, s.getsockname()[1]

    def accept(self, listener):
        s, _ = listener.accept()
        self.sockets.append(s)
        s.settimeout(STALL)
        return s

    def run(self, *argv, **kw):
        return sh(*Net.inside(self.space, *argv), **kw)

    def background(self, name, *argv):
        p = Background(Net.inside(self.space, *argv), self.folder.name, name)
        self.processes.append(p)
        return p

    def listen(self, port, *role):
        self.tool.ask("listen", port, *role, answer="listening")

    # ---- transfers, hashes compared

    def dialled_both_ways(self, size, family=4, port=7000, look=None, stall_seconds=STALL * 4):
        """The kernel connects; both sides send at once."""
        s = self.dial(port, family)
        id = self.tool.wait_event("accepted")["id"]
        if look:
            look(id, s)
        sent, got, digest = both_ways(s, size, seed=port)
        done = self.tool.wait_event("done", stall_seconds, id=id)
        check(done["received"] == size and done["received_sha256"] == sent, f"we received {done['received']} of {size} bytes, or others")
        check(got == done["sent"] and digest == done["sent_sha256"], f"the kernel received {got} of {done['sent']} bytes, or others")
        s.close()
        return done

    def served_both_ways(self, size, family=4, look=None, *options):
        """We connect; both sides send at once."""
        listener, port = self.serve(family)
        id = self.tool.connect(KERNEL[family], port, "give", size, *options)
        s = self.accept(listener)
        self.tool.wait_event("connected", id=id)
        if look:
            look(id, s)
        sent, got, digest = both_ways(s, size, seed=port)
        done = self.tool.wait_event("done", STALL * 4, id=id)
        check(done["received"] == size and done["received_sha256"] == sent, f"we received {done['received']} of {size} bytes, or others")
        check(got == done["sent"] == size and digest == done["sent_sha256"], f"the kernel received {got} of {size} bytes, or others")
        s.close()
        listener.close()
        return done


def parallel(jobs, width):
    """Runs callables, `width` at a time; the first failure with its name."""
    todo, lock, failures = list(jobs), threading.Lock(), []

    def work():
        while True:
            with lock:
                if not todo or failures:
                    return
                name, job = todo.pop(0)
            try:
                job()
            except Skipped:
                raise
            except BaseException as e:
                with lock:
                    failures.append(f"{name}: {e}")

    workers = [Later(work) for _ in range(width)]
    for w in workers:
        w.result(900)
    if failures:
        raise Failed("; ".join(failures))


# ---- the matrix

def matrix_cell(sack, ts, scaling, ecn, cc, family, loss, seed):
    sysctls = {"ipv4.tcp_sack": sack, "ipv4.tcp_timestamps": ts, "ipv4.tcp_window_scaling": scaling, "ipv4.tcp_ecn": ecn}
    with Stand(sysctls, control=cc, loss=loss, delay=2, seed=seed) as k:
        k.listen(7000, "give", 2_000_000)

        def look(id, s):
            i = k.tool.info(id)
            agreed = (i["sack"], i["timestamps"], i["window_scaling"])
            check(agreed == (bool(sack), bool(ts), bool(scaling)), f"SACK, timestamps, window scaling: {agreed}")

        k.dialled_both_ways(2_000_000, family, look=look)
        k.served_both_ways(2_000_000, family, look)


def test_option_matrix():
    """Every combination of SACK, timestamps, window scaling, ECN, congestion control, loss 0-3 %: both ways, hashes equal"""
    need_tun()
    with open("/proc/sys/net/ipv4/tcp_available_congestion_control") as f:
        controls = f.read().split()
    losses, families = itertools.cycle([0, 0.01, 0.03, 0.002]), itertools.cycle([4, 6, 6, 4, 6])
    cells = list(itertools.product([1, 0], [1, 0], [1, 0], [0, 1, 2], controls))
    jobs = []
    for number, (sack, ts, scaling, ecn, cc) in enumerate(cells):
        family, loss = next(families), next(losses)
        name = f"sack={sack} ts={ts} ws={scaling} ecn={ecn} {cc} IPv{family} loss={loss} seed={number}"
        jobs.append((name, lambda a=(sack, ts, scaling, ecn, cc, family, loss, number): matrix_cell(*a)))
    parallel(jobs, 8)
    return f"{len(cells)} combinations"


# ---- programs that nobody here wrote

def test_iperf3():
    """iperf3 through the netstack: both ways, several streams, IPv4 and IPv6; no checksum is wrong"""
    iperf = program("iperf3", "iperf3")
    import json
    figures = []
    with Stand() as k:
        k.background("iperf3", iperf, "-s", "-B", "127.0.0.1", "-p", 5201)
        k.listen(5201, "to", "127.0.0.1:5201")
        wait_for(lambda: k.run("ss", "-ltnH", "sport = :5201"), 10, "iperf3's listener")
        for family, flags in ((4, []), (4, ["-R"]), (6, ["-P", "4"]), (6, ["--bidir", "-P", "2"]), (4, ["-C", "cubic", "-P", "8", "-R"])):
            wait_for(lambda: k.run("ss", "-ltnH", "sport = :5201"), 10, "iperf3's listener")   # it is away between tests
            out = json.loads(k.run(iperf, "-c", OURS[family], "-t", 2, "-J", *flags, seconds=40))
            check("error" not in out, f"iperf3 {flags}: {out.get('error')}")
            rate = out["end"]["sum_received"]["bits_per_second"] / 1e9
            check(out["end"]["sum_received"]["bytes"] > 50 * MIB, f"iperf3 {flags}: only {out['end']['sum_received']['bytes']} bytes")
            figures.append(f"{' '.join(flags) or 'up'} {rate:.1f}")
        counters = k.tool.ask("counters")
        check(counters.get("drop_tcp_checksum", 0) == 0, f"checksums: {counters}")
    return "Gbit/s: " + ", ".join(figures)


def test_iperf3_with_loss():
    """iperf3 with 1 % loss, 5 ms delay and reordering keeps going, both ways"""
    iperf = program("iperf3", "iperf3")
    import json
    figures = []
    with Stand(loss=0.01, delay=2, jitter=1) as k:
        k.background("iperf3", iperf, "-s", "-B", "127.0.0.1", "-p", 5201)
        k.listen(5201, "to", "127.0.0.1:5201")
        wait_for(lambda: k.run("ss", "-ltnH", "sport = :5201"), 10, "iperf3's listener")
        for family, flags in ((4, []), (6, ["-R"])):
            wait_for(lambda: k.run("ss", "-ltnH", "sport = :5201"), 10, "iperf3's listener")
            out = json.loads(k.run(iperf, "-c", OURS[family], "-t", 4, "-i", 1, "-J", "-C", "cubic", *flags, seconds=60))
            check("error" not in out, f"iperf3 {flags}: {out.get('error')}")
            dead = [i["sum"]["start"] for i in out["intervals"] if i["sum"]["bytes"] == 0]
            check(not dead, f"iperf3 {flags}: nothing moved in the seconds from {dead}")
            figures.append(f"{' '.join(flags) or 'up'} {out['end']['sum_received']['bits_per_second'] / 1e6:.0f}")
    return "Mbit/s: " + ", ".join(figures)


def test_socat_half_close():
    """socat sends a file and half-closes; the answer that needs the whole file comes back, then the end"""
    socat = program("socat", "socat")
    with Stand(loss=0.005, delay=1) as k:
        k.listen(7100, "take")
        k.listen(7101, "echo")
        path = os.path.join(k.folder.name, "file")
        content = os.urandom(3 * MIB + 17)
        with open(path, "wb") as f:
            f.write(content)
        for family in (4, 6):
            kind = "TCP4" if family == 4 else "TCP6"
            host = OURS[family] if family == 4 else f"[{OURS[6]}]"
            with open(path, "rb") as f:
                out = k.run(socat, "-t", 60, "-", f"{kind}:{host}:7100", stdin=f)
            check(out == f"{len(content)} {hashlib.sha256(content).hexdigest()}\n", f"IPv{family}: the answer is {out!r}")
            back = os.path.join(k.folder.name, "back")
            with open(path, "rb") as f, open(back, "wb") as b:
                subprocess.run(Net.inside(k.space, socat, "-t", 60, "-", f"{kind}:{host}:7101"), stdin=f, stdout=b, timeout=120, check=True)
            with open(back, "rb") as b:
                check(b.read() == content, f"IPv{family}: the echo differs")
        # We connect and half-close; socat's shell answers after the end of input.
        server = k.background("socat", socat, "-t", 60, f"TCP4-LISTEN:7200,bind={KERNEL[4]},reuseaddr", "SYSTEM:sha256sum")
        wait_for(lambda: k.run("ss", "-ltnH", "sport = :7200"), 10, "socat's listener")
        done = k.tool.wait_event("done", 60, id=k.tool.connect(KERNEL[4], 7200, "give", 2 * MIB))
        want = hashlib.sha256((done["sent_sha256"] + "  -\n").encode()).hexdigest()
        check(done["received_sha256"] == want, "sha256sum behind socat saw other bytes")
        check(not server.alive() or wait_for(lambda: not server.alive(), 10, "socat's end"), "socat still runs")


def test_curl():
    """curl downloads from an HTTP server that is reached through the netstack, 30 at once, and through a door of ours the other way"""
    curl = program("curl", "curl")
    with Stand(loss=0.002, delay=1) as k:
        content = os.urandom(4 * MIB + 5)
        with open(os.path.join(k.folder.name, "film"), "wb") as f:
            f.write(content)
        k.background("http", sys.executable, "-u", "-m", "http.server", "8000", "--bind", "127.0.0.1", "--directory", k.folder.name)
        wait_for(lambda: k.run("ss", "-ltnH", "sport = :8000"), 15, "the HTTP server")
        k.listen(80, "to", "127.0.0.1:8000")

        def fetch(number):
            host = OURS[4] if number % 2 else f"[{OURS[6]}]"
            out = os.path.join(k.folder.name, f"out{number}")
            k.run(curl, "-sS", "-g", "--max-time", 100, "-o", out, f"http://{host}/film", seconds=120)
            with open(out, "rb") as f:
                check(f.read() == content, f"download {number} differs")

        parallel([(f"curl {n}", lambda n=n: fetch(n)) for n in range(30)], 15)
        # The other way: curl goes out through a door of ours to a server of the kernel.
        k.tool.tell("door", "127.0.0.1:8081", f"{KERNEL[4]}:8001")
        k.background("http2", sys.executable, "-u", "-m", "http.server", "8001", "--bind", KERNEL[4], "--directory", k.folder.name)
        wait_for(lambda: k.run("ss", "-ltnH", "sport = :8001"), 15, "the HTTP server")
        out = os.path.join(k.folder.name, "door")
        k.run(curl, "-sS", "--max-time", 100, "-o", out, "http://127.0.0.1:8081/film", seconds=120)
        with open(out, "rb") as f:
            check(f.read() == content, "the download through the door differs")
        refused = subprocess.run(Net.inside(k.space, curl, "-sS", f"http://{OURS[4]}:81/"), capture_output=True, text=True, timeout=30)
        check(refused.returncode == 7, f"a closed port: {refused.stderr!r}")


# ---- loss, disorder, damage

def test_transfers_over_bad_links():
    """4 to 16 MiB each way over loss, reordering, doubles and flipped bits: nothing is corrupted, nothing stalls"""
    need_tun()
    links = {"loss 3 %, 5 ms": dict(loss=0.03, delay=5), "reordering 8 ms": dict(delay=2, jitter=8), "doubles 20 %": dict(duplicate=0.2, delay=1),
             "flipped bits 1 %": dict(corrupt=0.01, delay=1), "all": dict(loss=0.01, duplicate=0.02, corrupt=0.005, delay=2, jitter=4),
             "25 ms, loss 1 %": dict(delay=12, loss=0.01)}
    notes = []

    def one(name, link, control):
        size = 4 * MIB if "3 %" in name or "25 ms" in name else 16 * MIB
        with Stand(control=control, seed=11, **link) as k:
            k.listen(7000, "give", size)
            a = k.dialled_both_ways(size, 4)
            b = k.served_both_ways(size, 6)
            c = k.tool.ask("counters")
            notes.append(f"{name} {control}: {2 * size / 125 / (a['took'] + b['took']):.0f} Mbit/s each way")
            if "flipped" in name:
                check(c.get("drop_tcp_checksum", 0) > 10, f"flipped bits were not noticed: {c}")

    parallel([(f"{name} {control}", lambda n=name, l=link, c=control: one(n, l, c)) for name, link in links.items() for control in ("cubic", "reno", "bbr")], 4)
    return "; ".join(sorted(notes))


def test_blackouts():
    """Nothing passes for 3 s in the middle of a transfer either way: it goes on soon after"""
    notes = []
    with Stand(delay=5) as k:
        for sender in ("we", "the kernel"):
            if sender == "we":
                listener, port = k.serve()
                id = k.tool.connect(KERNEL[4], port, "give", 2 * MIB, "chunk=1000", "gap=1000")
                Later(receive_all, k.accept(listener))
            else:
                k.listen(7000, "take")
                s = k.dial(7000)
                id = k.tool.wait_event("accepted")["id"]

                def trickle():
                    for _ in range(2000):
                        s.sendall(bytes(1000))
                        time.sleep(0.001)

                Later(trickle)
            member = "bytes_acked" if sender == "we" else "bytes_received"
            time.sleep(0.5)
            k.tool.ask("link", "loss=1", answer="link")
            time.sleep(3)
            before = k.tool.info(id)[member]
            k.tool.ask("link", "loss=0", answer="link")
            start = time.monotonic()
            wait_for(lambda: k.tool.info(id)[member] > before, 5, f"{sender} send again")
            notes.append(f"{sender} send again after {time.monotonic() - start:.1f} s")
            wait_for(lambda: (k.tool.info(id) or {}).get(member, 2 * MIB) >= 2_000_000, 20, "the rest")
    return ", ".join(notes)


def test_reordering_speed():
    """Packets that overtake each other by 8 ms, none lost: we send at least a tenth as fast as the kernel does"""
    with Stand(delay=2, jitter=8, seed=11) as k:
        size = 8 * MIB
        k.listen(7000, "give", size)
        k.listen(7001, "take")
        start = time.monotonic()
        s = k.dial(7000)
        check(receive_all(s)[0] == size, "8 MiB")
        ours = time.monotonic() - start
        s.close()
        start = time.monotonic()
        s = k.dial(7001)
        send_all(s, size)
        receive_all(s)
        theirs = time.monotonic() - start
        s.close()
        check(ours < 10 * theirs, f"we take {ours:.1f} s, the kernel {theirs:.1f} s")
    return f"we {size / 125000 / ours:.0f}, the kernel {size / 125000 / theirs:.0f} Mbit/s"


# ---- shapes of traffic

def test_tiny_and_big_writes():
    """Writes of one byte with Nagle off, 64 MiB in one write, tiny segments and tiny windows: everything arrives"""
    with Stand() as k:
        k.listen(7000, "echo")
        k.listen(7001, "take")
        k.listen(7002, "give", 3000, "chunk=1", "gap=100")
        s = k.dial(7000)
        s.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        letters = os.urandom(2000)
        for i in range(len(letters)):
            s.sendall(letters[i:i + 1])
        s.shutdown(socket.SHUT_WR)
        size, digest, head = receive_all(s)
        check(digest == hashlib.sha256(letters).hexdigest(), f"echo of single bytes: {size} bytes, or others")
        # Ping-pong: no delayed acknowledgment, no Nagle of ours in the way.
        s = k.dial(7000, 6)
        s.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        times = []
        for i in range(500):
            start = time.monotonic()
            s.sendall(b"x")
            check(s.recv(1) == b"x", "echo")
            times.append(time.monotonic() - start)
        each = sorted(times)[50]   # the machine may be busy; a timer in the way would hold up all of them
        check(each < 0.01, f"a round trip of one byte takes {each * 1000:.1f} ms")
        s.close()
        s = k.dial(7002)
        size, digest, _ = receive_all(s)
        s.close()
        done = k.tool.wait_event("done", role="give")
        check(size == 3000 and digest == done["sent_sha256"], "single bytes of ours")
        big = os.urandom(64 * MIB)
        s = k.dial(7001)
        s.settimeout(60)
        s.sendall(big)
        s.shutdown(socket.SHUT_WR)
        answer = receive_all(s)[2].decode().split()
        check(answer == [str(len(big)), hashlib.sha256(big).hexdigest()], f"64 MiB in one write: {answer[:1]}")
        # Small segments, and the smallest buffer the kernel gives.
        for what, prepare in (("MSS 88", lambda s: s.setsockopt(socket.IPPROTO_TCP, socket.TCP_MAXSEG, 88)),
                              ("MSS 536", lambda s: s.setsockopt(socket.IPPROTO_TCP, socket.TCP_MAXSEG, 536)),
                              ("small receive buffer", lambda s: s.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2304)),
                              ("window clamp", lambda s: s.setsockopt(socket.IPPROTO_TCP, 10, 1000)),
                              ("small send buffer", lambda s: s.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4608))):
            total = 300_000
            k.listen(7010, "give", total) if what == "MSS 88" else None
            s = k.dial(7010, prepare=prepare)
            start = time.monotonic()
            sent, got, digest = both_ways(s, total)
            done = k.tool.wait_event("done", 60, role="give")
            check(got == total and digest == done["sent_sha256"] and sent == done["received_sha256"], f"{what}: wrong bytes")
            check(time.monotonic() - start < 15, f"{what}: {time.monotonic() - start:.1f} s")
            listener, port = k.serve(prepare=prepare)
            id = k.tool.connect(KERNEL[4], port, "give", total)
            s = k.accept(listener)
            start = time.monotonic()
            sent, got, digest = both_ways(s, total)
            done = k.tool.wait_event("done", 60, id=id)
            check(got == total and digest == done["sent_sha256"] and sent == done["received_sha256"], f"{what}, served: wrong bytes")
            check(time.monotonic() - start < 15, f"{what}, served: {time.monotonic() - start:.1f} s")
            listener.close()
    return f"one byte there and back {each * 1e6:.0f} us"


def test_closed_windows():
    """A reader that stops: the window closes, probes are answered both ways, everything arrives once it reads again"""
    with Stand() as k:
        k.listen(7000, "take", "paused=1")
        s = k.dial(7000)
        id = k.tool.wait_event("accepted")["id"]
        sender = Later(send_all, s, 24 * MIB)
        wait_for(lambda: k.tool.info(id)["receive_window"] < 3000, 20, "our window closes")
        time.sleep(3)   # the kernel probes meanwhile
        check(sender.is_alive(), "the kernel has sent everything into a closed window")
        check(connections(k.space, "dport", "=", ":7000"), "the kernel gave the connection up")
        k.tool.tell("resume", id)
        sent = sender.result(30)
        answer = receive_all(s)[2].decode().split()
        check(answer[1] == sent, "wrong bytes behind a closed window")
        # The other way round.
        listener, port = k.serve(prepare=lambda s: s.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65536))
        id = k.tool.connect(KERNEL[4], port, "give", 8 * MIB)
        s = k.accept(listener)
        wait_for(lambda: (lambda i: i["send_window"] < i["max_segment"] and i["unacked"] == 0)(k.tool.info(id)), 20, "the kernel's window closes")
        time.sleep(3)
        got, digest, _ = receive_all(s, 10)
        s.close()
        done = k.tool.wait_event("done", 30, id=id)
        check(got == 8 * MIB and digest == done["sent_sha256"], "wrong bytes behind the kernel's closed window")
        # A window of a few segments, and the news of its opening may be lost.
        k.tool.ask("link", "loss=0.1", "delay=1", answer="link")
        id = k.tool.connect(KERNEL[4], listen_small(k), "give", 60_000)
        s = k.accept(k.small)
        got = b""
        while block := s.recv(1500):
            got += block
            time.sleep(0.002)
        k.tool.ask("link", "loss=0", answer="link")
        s.close()
        done = k.tool.wait_event("done", 30, id=id)
        check(hashlib.sha256(got).hexdigest() == done["sent_sha256"], "wrong bytes through a small window with loss")


def listen_small(k):
    k.small, port = k.serve(prepare=lambda s: s.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 8192))
    return port


def test_half_close():
    """Each side may end first and go on receiving; TIME-WAIT is kept by whoever closed first, and the port is free again"""
    with Stand() as k:
        k.listen(7000, "give", 5 * MIB)
        k.listen(7001, "take")
        k.listen(7002, "give", 0)
        for family in (4, 6):
            # The kernel ends first, and receives 5 MiB after its FIN.
            s = k.dial(7000, family)
            s.shutdown(socket.SHUT_WR)
            got, digest, _ = receive_all(s)
            done = k.tool.wait_event("done")
            check(got == 5 * MIB and digest == done["sent_sha256"], "after our peer's FIN")
            s.close()
            # We end first (0 bytes), and receive 5 MiB after our FIN.
            s = k.dial(7002, family)
            check(s.recv(10) == b"", "an early end")
            sent = send_all(s, 5 * MIB)
            done = k.tool.wait_event("done")
            check(done["received_sha256"] == sent, "after our FIN")
            s.close()
        # The same pair of ports again and again: TIME-WAIT must not stand in the way, whoever holds it.
        for closer, port in (("us", 7002), ("kernel", 7001)):
            for i in range(20):
                s = k.socket()
                s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                s.bind((KERNEL[4], 45000))
                s.settimeout(3)
                try:
                    s.connect((OURS[4], port))
                except OSError as e:
                    raise Failed(f"connection {i} from the same port, {closer} close first: {e}; {k.tool.ask('counters')}")
                id = k.tool.wait_event("accepted", match=lambda e: e["remote"].endswith(":45000"))["id"]
                if closer == "us":
                    check(s.recv(1) == b"", "an end")
                    s.shutdown(socket.SHUT_WR)
                else:
                    s.shutdown(socket.SHUT_WR)
                    receive_all(s)
                s.close()
                k.tool.wait_event("done", id=id)
                wait_for(lambda: not k.run("ss", "-tnH", "sport = :45000"), 5, "the kernel's end")
                if closer == "kernel":
                    break   # the kernel does not dial over its own TIME-WAIT
        # We dial from one port of ours again and again; the kernel keeps TIME-WAIT.
        listener, port = k.serve()
        for i in range(10):
            id = k.tool.connect(KERNEL[4], port, "take", "local=46000")
            s = k.accept(listener)
            sent = send_all(s, 1000)
            check(receive_all(s)[2].decode().split()[1] == sent, "1000 bytes")
            s.close()
            k.tool.wait_event("done", id=id)


def test_many_connections():
    """600 connections at once, each way, IPv4 and IPv6, with loss: every byte right, every end in order, nothing left over"""
    with Stand(loss=0.005, delay=1) as k:
        k.listen(7000, "echo")
        listeners = {f: k.serve(f) for f in (4, 6)}
        count, size = 600, 20_000
        sums = []

        def one(number):
            s = k.dial(7000, 4 if number % 2 else 6)
            sent, got, digest = both_ways(s, size + number, seed=number)
            check(digest == sent, f"echo {number}: {got} bytes, or others")
            s.close()

        parallel([(f"connection {n}", lambda n=n: one(n)) for n in range(count)], 100)

        def serve(s):
            sums.append(receive_all(s)[1])
            s.shutdown(socket.SHUT_WR)
            s.close()

        for n in range(count):
            family = 4 if n % 2 else 6
            k.tool.tell("connect", f"{KERNEL[4]}:{listeners[4][1]}" if family == 4 else f"[{KERNEL[6]}]:{listeners[6][1]}", "give", size, f"seed={n}")
        threads = []
        for n in range(count):
            threads.append(Later(serve, k.accept(listeners[4 if n % 2 else 6][0])))
        for t in threads:
            t.result(60)
        want = []
        for _ in range(count):
            e = k.tool.wait_event("done", 60, role="give")
            want.append(e["sent_sha256"])
        check(sorted(sums) == sorted(want), "other bytes than sent")
        wait_for(lambda: k.tool.ask("counters")["connections"] == 0, 20, "all connections end")
        c = k.tool.ask("counters")
        check(c["half_open"] == 0 and c["buffers"] == 0, f"left over: {c}")


# ---- both sides' view of one connection

def test_info_agrees_with_ss():
    """TcpInfo and ss -ti agree: MSS, options, round trip times, bytes sent, resent, acknowledged and received"""
    with Stand(delay=10) as k:
        k.listen(7000, "give", 3 * MIB)
        notes = []
        for family, sysctls in ((4, {}), (6, {}), (4, {"ipv4.tcp_timestamps": 0}), (4, {"ipv4.tcp_sack": 0}), (6, {"ipv4.tcp_window_scaling": 0})):
            k.sysctl(**{"ipv4.tcp_timestamps": 1, "ipv4.tcp_sack": 1, "ipv4.tcp_window_scaling": 1} | sysctls)
            s = k.dial(7000, family)
            id = k.tool.wait_event("accepted")["id"]
            sent = Later(send_all, s, 2 * MIB, end=False)
            s.settimeout(STALL)
            left = 3 * MIB
            while left:
                left -= len(s.recv(min(left, 1 << 18)))
            sent.result()
            wait_for(lambda: k.tool.info(id)["bytes_received"] == 2 * MIB, 10, "everything is received")
            time.sleep(0.3)
            ours, theirs = k.tool.info(id), connections(k.space, "dport", "=", ":7000")[-1]
            where = f"IPv{family} {sysctls}: ours {ours}; theirs {theirs}"
            check(ours["timestamps"] == ("ts" in theirs["flags"]), "timestamps; " + where)
            check(ours["sack"] == ("sack" in theirs["flags"]), "SACK; " + where)
            check(ours["window_scaling"] == ("wscale" in theirs), "window scaling; " + where)
            check("wscale" not in theirs or theirs["wscale"].split(",")[0] == "8", "our window shift; " + where)
            want = 1280 - (20 if family == 4 else 40) - 20 - (12 if ours["timestamps"] else 0)
            check(ours["max_segment"] == want and int(theirs["mss"]) == want, f"segment size, {want} expected; " + where)
            check(int(theirs["bytes_received"]) in (3 * MIB, 3 * MIB + 1) and ours["bytes_sent"] == 3 * MIB, "bytes there; " + where)
            check(int(theirs["bytes_acked"]) in (2 * MIB, 2 * MIB + 1) and ours["bytes_received"] == 2 * MIB, "bytes here; " + where)
            check(ours["bytes_acked"] == 3 * MIB, "bytes acknowledged; " + where)
            check(int(theirs.get("bytes_retrans", 0)) == 0 and ours["bytes_resent"] == 0, "resent without loss; " + where)
            rtt = float(theirs["rtt"].split("/")[0])
            check(19 < ours["srtt"] < 60 and 19 < rtt < 60 and 0.4 < ours["srtt"] / rtt < 2.5, "round trip; " + where)
            check(19.5 < ours["min_rtt"] < 30, "smallest round trip; " + where)
            check(0.3 < ours["rto"] / float(theirs["rto"]) < 3, "timeout; " + where)
            notes.append(f"{ours['srtt']:.0f}/{rtt:.0f} ms")
            s.shutdown(socket.SHUT_WR)
            receive_all(s)
            s.close()
            k.tool.wait_event("done", id=id)
    return "srtt ours/theirs: " + ", ".join(notes)


# ---- corners

def test_resets_and_refusals():
    """Resets, refusals and timeouts look on either side as what they are"""
    with Stand() as k:
        k.listen(7000, "hold")
        for family in (4, 6):
            s = k.dial(7000, family)
            id = k.tool.wait_event("accepted")["id"]
            k.tool.tell("abort", id)
            try:
                s.settimeout(5)
                got = s.recv(1)
                raise Failed(f"our reset looks like {got!r}")
            except ConnectionResetError:
                pass
            s = k.dial(7000, family)
            id = k.tool.wait_event("accepted")["id"]
            s.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            s.close()
            k.tool.wait_event("reset", 5, id=id)
            # Closed ports.
            try:
                k.dial(9, family)
                raise Failed("a connection to a closed port")
            except ConnectionRefusedError:
                pass
            id = k.tool.connect(KERNEL[family], 9, "hold")
            start = time.monotonic()
            k.tool.wait_event("failed", 5, id=id)
            check(time.monotonic() - start < 1, "a refusal takes long")
            # Closing with unread data: a reset, not an end.
            s = k.dial(7000, family)
            id = k.tool.wait_event("accepted")["id"]
            s.sendall(b"unread")
            wait_for(lambda: k.tool.info(id)["unread"] == 6, 5, "six bytes")
            k.tool.tell("close", id)
            try:
                s.settimeout(5)
                got = s.recv(1)
                raise Failed(f"a close with unread data looks like {got!r}")
            except ConnectionResetError:
                pass
            # And the kernel's.
            listener, port = k.serve(family)
            id = k.tool.connect(KERNEL[family], port, "give", 100_000)
            s = k.accept(listener)
            wait_for(lambda: k.run("ss", "-tnH", f"sport = :{port}").split()[1] != "0", 5, "unread data at the kernel")
            s.close()
            k.tool.wait_event("reset", 5, id=id)


def test_keepalive():
    """Keepalive probes of either side are answered, and find a silent death"""
    with Stand() as k:
        def alive(s):
            s.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
            for option, value in ((socket.TCP_KEEPIDLE, 1), (socket.TCP_KEEPINTVL, 1), (socket.TCP_KEEPCNT, 2)):
                s.setsockopt(socket.IPPROTO_TCP, option, value)
        k.listen(7000, "hold")
        listener, port = k.serve()
        theirs = k.dial(7000, prepare=alive)
        k.tool.wait_event("accepted")
        id = k.tool.connect(KERNEL[4], port, "hold", "keepalive=0.5")
        k.tool.wait_event("connected", id=id)
        accepted = k.accept(listener)
        time.sleep(4)
        check(len(connections(k.space, "dport", "=", ":7000")) == 1, "the kernel's keepalive was not answered")
        check(k.tool.info(id)["state"] == 4, "our keepalive was not answered")
        k.tool.ask("link", "loss=1", answer="link")
        k.tool.wait_event("reset", 5, id=id)
        try:
            theirs.settimeout(8)
            theirs.recv(1)
            raise Failed("the kernel does not notice the silence")
        except (TimeoutError, ConnectionError) as e:
            check(getattr(e, "errno", None) == 110, f"the kernel's keepalive ended with {e!r}")
        accepted.close()


def test_handshake_corners():
    """Lost SYNs, SYN cookies, Fast Open data, simultaneous open, urgent data, MPTCP, unusual sysctls, accurate ECN where the kernel has it: all fall back gracefully"""
    notes = []
    with Stand() as k:
        k.listen(7000, "echo")
        k.listen(7001, "take")

        def echo(s, what):
            s.settimeout(10)
            s.sendall(b"hello")
            check(s.recv(100) == b"hello", what)

        # SYN and SYN-ACK lost once: the link passes nothing for the first 0.3 s.
        for direction in ("in", "out"):
            k.tool.ask("link", direction, "loss=1", answer="link")
            timer = threading.Timer(0.3, lambda: k.tool.ask("link", "loss=0", answer="link"))
            timer.start()
            s = k.dial(7000)
            timer.join()
            echo(s, f"SYN lost {direction}")
            s.close()
        listener, port = k.serve()
        for direction in ("in", "out"):
            k.tool.ask("link", direction, "loss=1", answer="link")
            id = k.tool.connect(KERNEL[4], port, "give", 1000)
            time.sleep(0.3)
            k.tool.ask("link", "loss=0", answer="link")
            s = k.accept(listener)
            check(receive_all(s)[0] == 1000, f"our SYN, lost {direction}")
            s.close()
            k.tool.wait_event("done", id=id)
        # Always SYN cookies: the kernel encodes what was agreed into its timestamp, or forgets it.
        for ts in (1, 0):
            k.sysctl(**{"ipv4.tcp_syncookies": 2, "ipv4.tcp_timestamps": ts})
            k.served_both_ways(MIB, 4)
            k.served_both_ways(MIB, 6)
        k.sysctl(**{"ipv4.tcp_syncookies": 1, "ipv4.tcp_timestamps": 1})
        # Data in the SYN (0x4: without a cookie).
        k.sysctl(**{"ipv4.tcp_fastopen": 0x5})
        s = k.socket()
        s.sendto(b"early words", 0x20000000, (OURS[4], 7000))  # MSG_FASTOPEN
        check(s.recv(100) == b"early words", "data in a SYN")
        s.close()
        s = k.socket()
        s.sendto(os.urandom(1000), 0x20000000, (OURS[4], 7001))
        select.select([], [s], [], 5)   # a socket that is connecting would be closed
        s.shutdown(socket.SHUT_WR)
        check(receive_all(s)[2].startswith(b"1000 "), "1000 bytes in a SYN")
        s.close()
        # Urgent data comes inline.
        s = k.dial(7001)
        s.sendall(b"abc")
        s.send(b"!", socket.MSG_OOB)
        s.sendall(b"def")
        s.shutdown(socket.SHUT_WR)
        answer = receive_all(s)[2].decode().split()
        check(answer == ["7", hashlib.sha256(b"abc!def").hexdigest()], f"urgent data: {answer}")
        s.close()
        # Both SYNs cross.
        k.tool.ask("link", "delay=60", answer="link")
        for round in range(3):
            s = k.socket()
            s.bind((KERNEL[4], 47000 + round))
            s.setblocking(False)
            id = k.tool.connect(KERNEL[4], 47000 + round, "give", 100_000, f"local={48000 + round}")
            s.connect_ex((OURS[4], 48000 + round))
            check(select.select([], [s], [], 5)[1], "simultaneous open: the kernel does not connect")
            check(s.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) == 0, "simultaneous open: refused")
            s.setblocking(True)
            sent, got, digest = both_ways(s, 50_000)
            done = k.tool.wait_event("done", id=id)
            check(got == 100_000 and digest == done["sent_sha256"] and sent == done["received_sha256"], "bytes after a simultaneous open")
            s.close()
        k.tool.ask("link", "delay=1", answer="link")
        # Newer things of Linux.
        for name, values in (("ipv4.tcp_ecn", (3, 4, 5, 1)), ("ipv4.tcp_shrink_window", (1,)), ("ipv4.tcp_recovery", (0, 3)), ("ipv4.tcp_mtu_probing", (2,)),
                             ("ipv4.tcp_early_retrans", (0,)), ("ipv4.tcp_limit_output_bytes", (4096,)), ("ipv4.tcp_autocorking", (0,)),
                             ("ipv4.tcp_rfc1337", (1,)), ("ipv4.tcp_abort_on_overflow", (1,)), ("ipv4.tcp_comp_sack_nr", (0, 200)),
                             ("ipv4.tcp_rmem", ("4096 8192 16384", "4096 131072 1000000000")), ("ipv4.tcp_wmem", ("4096 4096 8192",)),
                             ("ipv4.tcp_timestamps", (2,)), ("ipv4.tcp_frto", (0,)), ("ipv4.tcp_dsack", (0,))):
            for value in values:
                try:
                    before = open_sysctl(k, name)
                    k.sysctl(**{name: value})
                except Skipped as e:
                    notes.append(str(e))
                    continue
                k.tool.ask("link", "loss=0.01", answer="link")
                s = k.dial(7000)
                sent, got, digest = both_ways(s, 400_000)
                check(sent == digest, f"{name}={value}: echo {got}")
                k.served_both_ways(400_000, 6)
                k.tool.ask("link", "loss=0", answer="link")
                k.sysctl(**{name: before})
        # Multipath TCP asks, and falls back.
        try:
            with inside(k.space):
                s = socket.socket(socket.AF_INET, socket.SOCK_STREAM, 262)
            s.settimeout(10)
            s.connect((OURS[4], 7000))
            echo(s, "MPTCP")
            s.close()
        except OSError as e:
            notes.append(f"no MPTCP here ({e.strerror})")
    return "; ".join(notes)


def open_sysctl(k, name):
    with inside(k.space):
        try:
            with open("/proc/sys/net/" + name.replace(".", "/")) as f:
                return f.read().strip()
        except OSError:
            raise Skipped(f"no {name} here")


def test_other_mtus():
    """Kernel MTU 1500 and 576, ours 1280 and 9000: both ways, hashes equal"""
    for tun, ours in ((1500, 1280), (576, 1280), (9000, 9000), (1280, 9000), (9000, 1500)):
        with Stand(tun_mtu=tun, mtu=ours, loss=0.002, delay=1) as k:
            k.listen(7000, "give", 2 * MIB)
            for family in (4, 6) if tun >= 1280 else (4,):
                k.dialled_both_ways(2 * MIB, family)
                k.served_both_ways(2 * MIB, family)


def test_echo_and_datagrams():
    """Ping of every size both ways, fragments too, and UDP there and back"""
    ping = program("ping", "iputils-ping")
    with Stand() as k:
        for family in (4, 6):
            for size in (0, 8, 56, 1200, 1252 - (20 if family == 6 else 0), 1472, 4000):
                out = k.run(ping, "-c", 2, "-i", "0.01", "-W", 2, "-s", size, OURS[family], status=None, seconds=20)
                check(" 0% packet loss" in out, f"ping -s {size} {OURS[family]}: {out[-200:]}")
            for size in (0, 56, 1200):
                k.tool.tell("ping", KERNEL[family], size)
                k.tool.wait_event("pong", 5)
            k.tool.tell("udp", 9000) if family == 4 else None
            with inside(k.space):
                s = socket.socket(socket.AF_INET if family == 4 else socket.AF_INET6, socket.SOCK_DGRAM)
            s.settimeout(5)
            for size in (0, 1, 1000, 1232):
                data = os.urandom(size)
                s.sendto(data, (OURS[family], 9000))
                check(s.recv(4000) == data, f"UDP echo of {size} bytes")
            s.connect((OURS[family], 9001))
            s.send(b"nobody there")
            try:
                s.recv(10)
                raise Failed("an answer from nobody")
            except ConnectionRefusedError:
                pass
            s.close()


if __name__ == "__main__":
    main(sys.modules[__name__])
