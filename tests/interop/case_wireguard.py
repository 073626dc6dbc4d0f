#!/usr/bin/env python3
"""Our WireGuard engine against wireguard-go, each in a network namespace: our netstack's TCP inside on this side, the kernel's on that one."""
import base64
import hashlib
import os
import re
import socket
import struct
import sys
import tempfile
import threading
import time

from interop import Background, Failed, Net, Skipped, check, main, program, sh, wait_for
from tunnel_lab import STALL, Later, Tool, both_ways, inside, need_tun, receive_all, send_all

ROW = "WireGuard engine against wireguard-go"
MIB = 1 << 20
OUTER = {4: ("10.88.0.1", "10.88.0.2"), 6: ("fd88::1", "fd88::2")}       # ours, theirs
INNER = {4: ("10.99.0.2", "10.99.0.1"), 6: ("fd99::2", "fd99::1")}
PORT = {"ours": 40001, "theirs": 51820}


def private_key(name):
    key = bytearray(hashlib.sha256(name.encode()).digest())
    key[0] &= 248
    key[31] = key[31] & 127 | 64
    return bytes(key)


def public_key(private):
    import subprocess
    return base64.b64decode(subprocess.run(["wg", "pubkey"], input=base64.b64encode(private), stdout=subprocess.PIPE, check=True).stdout)


class Stand:
    """Two namespaces: tunnel_tool in one, wireguard-go in the other."""

    serial = 0

    def __init__(self, family=4, psk=False):
        need_tun()
        program("wireguard-go", "wireguard-go")
        program("wg", "wireguard-tools")
        self.family, self.processes = family, []
        self.folder = tempfile.TemporaryDirectory(prefix="porthole-interop-")
        self.net = Net()
        self.ours, self.theirs = self.net.space("ours"), self.net.space("theirs")
        a, b = (",".join(f"{OUTER[f][side]}/{24 if f == 4 else 64}" for f in (4, 6)) for side in (0, 1))
        self.wires = self.net.link(self.ours, a, self.theirs, b)
        self.keys = {side: private_key("porthole interop " + side) for side in ("ours", "theirs")}
        self.public = {side: public_key(key) for side, key in self.keys.items()}
        self.psk = hashlib.sha256(b"porthole interop psk").digest() if psk else None
        Stand.serial += 1
        self.device = f"pwg{os.getpid() % 100000}x{Stand.serial}"
        self.start_theirs()
        words = [f"private={self.keys['ours'].hex()}", f"peer={self.public['theirs'].hex()}", f"port={PORT['ours']}",
                 f"endpoint={self.address('theirs')}", f"allowed={INNER[4][1]}/32,{INNER[6][1]}/128",
                 f"addresses={INNER[4][0]},{INNER[6][0]}"] + ([f"psk={self.psk.hex()}"] if psk else [])
        self.tool = Tool(self.ours, self.folder.name, "engine", *words)

    def address(self, side):
        host = OUTER[self.family][side == "theirs"]
        return f"[{host}]:{PORT[side]}" if self.family == 6 else f"{host}:{PORT[side]}"

    def file(self, name, raw):
        path = os.path.join(self.folder.name, name)
        with open(path, "wb") as f:
            f.write(base64.b64encode(raw) + b"\n")
        return path

    def wg(self, *words, **kw):
        return sh(*Net.inside(self.theirs, "wg", *words), **kw)

    def set(self, *words):
        self.wg("set", self.device, *words)

    def set_peer(self, *words):
        self.set("peer", base64.b64encode(self.public["ours"]).decode(), *words)

    def start_theirs(self):
        self.go = Background(Net.inside(self.theirs, "env", "LOG_LEVEL=verbose", "wireguard-go", "-f", self.device), self.folder.name, "wireguard-go")
        self.processes.append(self.go)
        wait_for(lambda: os.path.exists(f"/var/run/wireguard/{self.device}.sock"), 10, "wireguard-go")
        self.set("private-key", self.file("key", self.keys["theirs"]), "listen-port", PORT["theirs"])
        self.set_peer("allowed-ips", f"{INNER[4][0]}/32,{INNER[6][0]}/128", "endpoint", self.address("ours"),
                      *(["preshared-key", self.file("psk", self.psk)] if self.psk else []))
        ip = ["ip", "-n", self.theirs]
        sh(*ip, "link", "set", self.device, "mtu", 1280, "up")
        sh(*ip, "addr", "add", INNER[4][1] + "/24", "dev", self.device)
        sh(*ip, "addr", "add", INNER[6][1] + "/64", "dev", self.device, "nodad")

    def restart_theirs(self):
        self.go.stop()
        wait_for(lambda: self.device not in sh("ip", "-n", self.theirs, "link"), 10, "the device goes")
        self.start_theirs()

    def __enter__(self):
        return self

    def __exit__(self, kind, *_):
        try:
            if kind:
                self.tool.kill()
            else:
                self.tool.quit()
        finally:
            self.tool.kill()
            for p in self.processes:
                p.stop()
            self.net.__exit__()
            self.folder.cleanup()

    # ---- what either side says

    def ours_now(self):
        return self.tool.ask("wireguard")

    def theirs_now(self):
        """(received bytes, sent bytes, latest handshake, endpoint)"""
        fields = self.wg("show", self.device, "dump").splitlines()[1].split("\t")
        return {"endpoint": fields[2], "handshake": int(fields[4]), "rx": int(fields[5]), "tx": int(fields[6])}

    def to_their_kernel(self):
        """Packets that wireguard-go opened and gave to its kernel."""
        import json
        return json.loads(sh("ip", "-n", self.theirs, "-s", "-j", "link", "show", self.device))[0]["stats64"]["rx"]["packets"]

    # ---- traffic

    def socket(self, family=4):
        with inside(self.theirs):
            s = socket.socket(socket.AF_INET if family == 4 else socket.AF_INET6, socket.SOCK_STREAM)
        s.settimeout(STALL)
        return s

    def they_dial(self, port=7000, family=4, seconds=STALL):
        s = self.socket(family)
        s.settimeout(seconds)
        s.connect((INNER[family][0], port))
        return s

    def they_serve(self, family=4):
        s = self.socket(family)
        s.bind((INNER[family][1], 0))
        s.listen(100)
        return s, s.getsockname()[1]

    def echo(self, seconds=STALL, port=7000, family=4):
        """One exchange started by their side."""
        s = self.they_dial(port, family, seconds)
        s.sendall(b"anybody there?")
        check(s.recv(100) == b"anybody there?", "echo")
        s.close()


def forged_initiation(public):
    """What anybody who knows the public key can write: mac1 is right, nothing else is."""
    message = b"\x01\0\0\0" + os.urandom(112)
    key = hashlib.blake2s(b"mac1----" + public).digest()
    return message + hashlib.blake2s(message, key=key, digest_size=16).digest() + bytes(16)


def flood(space, target, public, stop, burst, pause, source):
    """Forged initiations until told to stop."""
    messages = [forged_initiation(public) for _ in range(500)]
    with inside(space):
        s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    with s:
        s.bind((source, 0))
        s.connect(target)
        number = 0
        while not stop.is_set():
            for _ in range(burst):
                number += 1
                try:
                    s.send(messages[number % len(messages)])
                except OSError:
                    pass
            stop.wait(pause)


# ---- handshakes

def test_handshake_in_both_roles():
    """A handshake started by either side, over IPv4 and IPv6, with and without a pre-shared key, carries TCP at once"""
    for family in (4, 6):
        for psk in (False, True):
            for starter in ("theirs", "ours"):
                with Stand(family, psk) as w:
                    w.tool.ask("listen", 7000, "echo", answer="listening")
                    start = time.monotonic()
                    if starter == "theirs":
                        w.echo(10)
                    else:
                        listener, port = w.they_serve(6)
                        id = w.tool.connect(INNER[6][1], port, "give", 1000)
                        s, _ = listener.accept()
                        check(receive_all(s)[0] == 1000, "1000 bytes")
                        s.close()
                    took = time.monotonic() - start
                    n = w.ours_now()
                    roles = (n["initiations_sent"], n["initiations_accepted"])
                    check(roles == ((0, 1) if starter == "theirs" else (1, 0)), f"{starter} start: sent and accepted {roles}")
                    check(n["handshakes"] == 1 and n["state"] == 2 and n["drops"] == 0, f"IPv{family} psk={psk} {starter} start: {n}")
                    check(w.theirs_now()["handshake"] > 0, "wireguard-go knows of no handshake")
                    check(took < 2, f"{starter} start: {took:.1f} s until the first bytes")
                    # And the other direction in the same session, sizes around the padding's edges.
                    for size in (0, 1, 1190, 1207, 1232):
                        w.tool.tell("ping", INNER[4][1], size)
                        w.tool.wait_event("pong", 5)


def test_quick_repetitions():
    """Initiations that we repeat before an answer came, all answered at once: the session works within a second, either way"""
    slowest = 0
    for first in ("theirs", "ours"):
        for repeats in (1, 2, 3, 5):
            with Stand() as w:
                w.tool.ask("listen", 7000, "echo", answer="listening")
                listener, port = w.they_serve()
                w.tool.tell("\n".join(["handshake"] + ["doze 30\nretry"] * repeats))
                for _ in range(repeats + 1):
                    w.tool.wait_event("wireguard")
                start = time.monotonic()
                if first == "theirs":
                    w.echo(10)
                else:
                    w.tool.connect(INNER[4][1], port, "give", 100)
                    s = Later(listener.accept).result(15)[0]
                    check(receive_all(s)[0] == 100, "100 bytes")
                    s.close()
                slowest = max(slowest, time.monotonic() - start)
                n = w.ours_now()
                check(n["initiations_sent"] == repeats + 1 and n["bad_tag"] == 0 and n["bad_handshake"] == 0, f"{n}")
    check(slowest < 1.5, f"{slowest:.1f} s")
    return f"slowest {slowest:.2f} s"


def test_inner_packets():
    """Packets larger than our MTU come in; a source outside the allowed addresses is dropped by either side"""
    ping = program("ping", "iputils-ping")
    with Stand() as w:
        sh("ip", "-n", w.theirs, "link", "set", w.device, "mtu", 1420)
        inside_theirs = lambda *argv: sh(*Net.inside(w.theirs, *argv), status=None, seconds=20)
        for family, size in ((4, 56), (4, 1392), (6, 1372), (4, 5000), (6, 5000)):
            out = inside_theirs(ping, "-c", 3, "-i", "0.05", "-W", 3, "-s", size, INNER[family][0])
            check(" 0% packet loss" in out, f"ping -s {size}: {out[-300:]}; {w.ours_now()}; {w.tool.ask('counters')}")
        sh("ip", "-n", w.theirs, "addr", "add", "10.99.0.77/24", "dev", w.device)
        n = w.ours_now()
        out = inside_theirs(ping, "-c", 2, "-i", "0.05", "-W", 1, "-I", "10.99.0.77", INNER[4][0])
        m = w.ours_now()
        check("100% packet loss" in out and m["disallowed"] == n["disallowed"] + 2 and m["rx_packets"] == n["rx_packets"], f"{n} {m} {out[-200:]}")
        # Theirs: our address is no longer allowed.
        w.set_peer("allowed-ips", "10.99.0.99/32")
        packets = w.to_their_kernel()
        w.tool.tell("ping", INNER[4][1], 56)
        time.sleep(0.5)
        check(w.to_their_kernel() == packets, "wireguard-go took a packet from an address that is not allowed")


def test_wrong_keys_stay_silent():
    """Another pre-shared key or an unknown static key: no session, nothing delivered, no crash"""
    with Stand() as w:
        w.set_peer("preshared-key", w.file("psk", os.urandom(32)))
        w.tool.ask("listen", 7000, "echo", answer="listening")
        try:
            w.echo(2)
            raise Failed("a session in spite of different pre-shared keys")
        except (OSError, TimeoutError):
            pass
        n = w.ours_now()
        check(n["initiations_accepted"] >= 1 and n["rx_packets"] == 0 and n["handshakes"] == 0, f"{n}")
        w.set_peer("preshared-key", "/dev/null")
        w.set("private-key", w.file("other", private_key("a stranger")))
        before = n["drops"]
        try:
            w.echo(7)
            raise Failed("a stranger got in")
        except (OSError, TimeoutError):
            pass
        n = w.ours_now()
        check(n["rx_packets"] == 0 and n["drops"] > before, f"{n}")


def test_new_sessions_under_traffic():
    """Either side starts new sessions again and again, even anew after a restart: a running transfer stays whole"""
    with Stand() as w:
        w.tool.ask("listen", 7000, "give", 400 * MIB, answer="listening")
        s = w.they_dial()
        transfer = Later(both_ways, s, 200 * MIB)
        for _ in range(6):
            time.sleep(0.4)
            w.tool.ask("reset", answer="wireguard")   # our side forgets everything and initiates
        time.sleep(0.5)
        sent, got, digest = transfer.result(120)
        done = w.tool.wait_event("done", 30)
        check(got == done["sent"] and digest == done["sent_sha256"] and sent == done["received_sha256"], "other bytes")
        s.close()
        n = w.ours_now()
        check(n["handshakes"] >= 6, f"{n}")
        check(n["bad_tag"] == 0, f"{n}")
        # Their process dies and comes back without memory. Who speaks first repairs it: they do, then we do.
        w.tool.ask("listen", 7001, "echo", answer="listening")
        w.restart_theirs()
        start = time.monotonic()
        w.echo(20, 7001)
        theirs_took = time.monotonic() - start
        check(theirs_took < 3, f"after their restart it took them {theirs_took:.1f} s")
        w.restart_theirs()
        start = time.monotonic()
        listener, port = w.they_serve()
        id = w.tool.connect(INNER[4][1], port, "give", 1000)
        s = Later(listener.accept).result(30)[0]
        s.settimeout(30)
        check(receive_all(s)[0] == 1000, "1000 bytes")
        s.close()
        ours_took = time.monotonic() - start
        check(ours_took < 22, f"after their restart it took us {ours_took:.1f} s")   # 15 s of silence, and a handshake
        return f"back after their restart: their packet first {theirs_took:.1f} s, ours first {ours_took:.1f} s"


def test_simultaneous_initiation():
    """Initiations that cross on the way, five times: a session within a second each time"""
    slowest = 0
    for i in range(5):
        with Stand() as w:
            w.tool.ask("listen", 7000, "echo", answer="listening")
            w.tool.tell("doze 300\nhandshake")   # theirs waits in our socket when ours leaves
            start = time.monotonic()
            w.echo(15)
            slowest = max(slowest, time.monotonic() - start - 0.3)
            w.tool.wait_event("wireguard")   # of the command above
            n = w.ours_now()
            check((n["initiations_sent"], n["initiations_accepted"]) == (1, 1), f"they did not cross: {n}")
    check(slowest < 1, f"{slowest:.1f} s")
    return f"slowest {slowest:.2f} s"


# ---- time

def rekey_by_time(starter):
    """Traffic for 130 s: (longest gap, handshakes, initiations sent, accepted)."""
    with Stand() as w:
        w.tool.ask("listen", 7000, "echo", answer="listening")
        if starter == "ours":
            w.tool.ask("handshake", answer="wireguard")
            wait_for(lambda: w.ours_now()["handshakes"] == 1, 10, "a session")
        s = w.they_dial()
        first, worst, start = w.theirs_now()["handshake"], 0, time.monotonic()
        while time.monotonic() - start < 131:
            at = time.monotonic()
            s.sendall(b"tick")
            check(s.recv(10) == b"tick", "echo")
            worst = max(worst, time.monotonic() - at)
            time.sleep(0.1)
        n, last = w.ours_now(), w.theirs_now()["handshake"]
        s.close()
        check(n["handshakes"] == 2, f"{starter} rekey: {n}")
        check(last > first, "wireguard-go has no new session")
        check((n["initiations_sent"], n["initiations_accepted"]) == ((2, 0) if starter == "ours" else (0, 2)), f"{starter} rekey: {n}")
        check(n["drops"] == 0 and n["age"] < 20000, f"{starter} rekey: {n}")
        check(worst < 1, f"{starter} rekey held traffic up for {worst:.2f} s")
        return worst


LONG = {}


def start_long_cases():
    for starter in ("ours", "theirs"):
        LONG[starter] = Later(rekey_by_time, starter)


# ---- paths

def test_roaming():
    """Ports and addresses change on either side in the middle of traffic; both follow the authenticated packets"""
    with Stand() as w:
        w.tool.ask("listen", 7000, "echo", answer="listening")
        for space, address, wire in ((w.ours, "10.88.0.3/24", w.wires[0]), (w.theirs, "10.88.0.4/24", w.wires[1])):
            sh("ip", "-n", space, "addr", "add", address, "dev", wire)
        s = w.they_dial()
        s.settimeout(15)

        def tick(what):
            s.sendall(b"tick")
            try:
                check(s.recv(10) == b"tick", what)
            except TimeoutError:
                raise Failed(f"{what}: nothing comes back; {w.ours_now()}; {w.theirs_now()}")

        tick("before")
        # Our port: our first packet tells them.
        for port in (40002, 40003):
            w.tool.ask("rebind", port, answer="wireguard")
            w.tool.tell("ping", INNER[4][1], 10)
            w.tool.wait_event("pong", 5)
            check(w.theirs_now()["endpoint"].endswith(f":{port}"), f"they send to {w.theirs_now()['endpoint']}")
            tick("our new port")
        # Our address.
        sh("ip", "-n", w.ours, "route", "replace", "10.88.0.0/24", "dev", w.wires[0], "src", "10.88.0.3")
        w.tool.tell("ping", INNER[4][1], 10)
        w.tool.wait_event("pong", 5)
        check(w.theirs_now()["endpoint"] == "10.88.0.3:40003", f"they send to {w.theirs_now()['endpoint']}")
        tick("our new address")
        # Their port.
        w.set("listen-port", 51999)
        tick("their new port")
        check(w.ours_now()["remote"].endswith(":51999"), f"we send to {w.ours_now()['remote']}")
        # Their address. wireguard-go keeps the source it has used until it is told the endpoint anew.
        sh("ip", "-n", w.theirs, "route", "replace", "10.88.0.0/24", "dev", w.wires[1], "src", "10.88.0.4")
        w.set_peer("endpoint", "10.88.0.3:40003")
        tick("their new address")
        check(w.ours_now()["remote"] == "10.88.0.4:51999", f"we send to {w.ours_now()['remote']}")
        # To IPv6 and on.
        w.set_peer("endpoint", f"[{OUTER[6][0]}]:40003")
        tick("IPv6")
        check(w.ours_now()["remote"].startswith("[fd88::2]"), f"we send to {w.ours_now()['remote']}")
        n = w.ours_now()
        check(n["handshakes"] == 1, f"roaming took new sessions: {n}")
        s.close()


def test_keepalives():
    """Persistent keepalives keep either side's session busy and are not answered; passive ones come after 10 s"""
    with Stand() as w:
        w.tool.ask("listen", 7000, "hold", answer="listening")
        # Ours alone.
        w.tool.ask("keepalive", 1, answer="wireguard")
        wait_for(lambda: w.theirs_now()["rx"] >= 148 + 32, 10, "a session by keepalive")
        a, b = w.theirs_now(), w.ours_now()
        time.sleep(3.5)
        c, d = w.theirs_now(), w.ours_now()
        check(2 * 32 <= c["rx"] - a["rx"] <= 5 * 32, f"they received {c['rx'] - a['rx']} bytes in 3.5 s")
        check(c["tx"] == a["tx"] and d["rx_bytes"] == b["rx_bytes"], "they answered keepalives")
        # Theirs alone.
        w.tool.ask("keepalive", 0, answer="wireguard")
        w.set_peer("persistent-keepalive", 1)
        time.sleep(1.2)
        b = w.ours_now()
        time.sleep(3.5)
        d = w.ours_now()
        check(2 * 32 <= d["rx_bytes"] - b["rx_bytes"] <= 5 * 32, f"we received {d['rx_bytes'] - b['rx_bytes']} bytes in 3.5 s")
        check(d["tx_bytes"] == b["tx_bytes"], "we answered keepalives")
        w.set_peer("persistent-keepalive", 0)
        # One datagram from either side that nobody answers: a keepalive after 10 s says that it arrived.
        time.sleep(1.2)
        b, a = w.ours_now(), w.theirs_now()
        with inside(w.theirs):
            s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        w.tool.tell("udp", 5555)
        s.bind((INNER[4][1], 5555))
        s.sendto(b"", (INNER[4][0], 1))   # our netstack says that nobody is there; their side has to say that it heard this
        wait_for(lambda: w.ours_now()["rx_bytes"] >= b["rx_bytes"] + 64 + 32, 12, "their passive keepalive")
        s.close()


# ---- replays

def test_replays():
    """Recorded datagrams sent again, transport and handshake, either way: refused, nothing delivered, nothing disturbed"""
    with Stand() as w:
        w.tool.ask("listen", 7000, "echo", answer="listening")
        w.echo()                                                # they initiate: we hold their type 1
        w.tool.tell("ping", INNER[4][1], 200)
        w.tool.wait_event("pong", 5)
        time.sleep(0.3)
        # To them: a transport message.
        before, packets = w.theirs_now(), w.to_their_kernel()
        for _ in range(5):
            w.tool.ask("again", "out", 4, answer="wireguard")
        w.tool.ask("again", "out", 2, answer="wireguard")        # our response, too
        time.sleep(0.5)
        after = w.theirs_now()
        check(after["rx"] == before["rx"] and w.to_their_kernel() == packets, "wireguard-go took a replay")
        # To us.
        n = w.ours_now()
        m = [w.tool.ask("again", "in", 4, answer="wireguard") for _ in range(5)][-1]
        check(m["replayed"] == n["replayed"] + 5 and m["rx_packets"] == n["rx_packets"] and m["rx_bytes"] == n["rx_bytes"], f"{n} {m}")
        m = w.tool.ask("again", "in", 1, answer="wireguard")
        check(m["replayed_stamp"] == n["replayed_stamp"] + 1 and m["initiations_accepted"] == n["initiations_accepted"], f"{n} {m}")
        check(m["tx_bytes"] == n["tx_bytes"], "we answered a replayed initiation")
        w.echo()
    with Stand() as w:
        w.tool.ask("listen", 7000, "echo", answer="listening")
        w.tool.ask("handshake", answer="wireguard")              # we initiate: we hold our type 1 and their type 2
        wait_for(lambda: w.ours_now()["handshakes"] == 1, 10, "a session")
        w.echo()
        time.sleep(0.3)
        before, n = w.theirs_now(), w.ours_now()
        w.tool.ask("again", "out", 1, answer="wireguard")
        w.tool.ask("again", "in", 2, answer="wireguard")
        time.sleep(0.5)
        after, m = w.theirs_now(), w.ours_now()
        check(after == before, f"wireguard-go took a replayed initiation: {before} {after}")
        check(m["handshakes"] == n["handshakes"] and m["tx_bytes"] == n["tx_bytes"] and m["unknown_index"] == n["unknown_index"] + 1, f"{n} {m}")
        w.echo()


# ---- load

def test_cookies_of_theirs():
    """wireguard-go under a flood answers with a cookie; our next initiation carries mac2 and gets its response"""
    with Stand() as w:
        sh("ip", "-n", w.ours, "addr", "add", "10.88.0.66/24", "dev", w.wires[0])
        stop = threading.Event()
        attacker = Later(flood, w.ours, (OUTER[4][1], PORT["theirs"]), w.public["theirs"], stop, 1500, 0.15, "10.88.0.66")
        try:
            time.sleep(1)
            start = time.monotonic()
            w.tool.ask("handshake", answer="wireguard")
            wait_for(lambda: w.ours_now()["cookies_received"] >= 1, 15, "a cookie")
            wait_for(lambda: w.ours_now()["handshakes"] == 1, 20, "a session under load")
            took = time.monotonic() - start
        finally:
            stop.set()
            attacker.result(10)
        n = w.ours_now()
        check(n["initiations_sent"] >= 2, f"{n}")
        w.tool.tell("ping", INNER[4][1], 100)
        w.tool.wait_event("pong", 5)
        sent = n["initiations_sent"]
    # They initiate, and refuse our response for the lack of a cookie: it has one the next time.
    with Stand() as w:
        w.tool.ask("listen", 7000, "echo", answer="listening")
        sh("ip", "-n", w.ours, "addr", "add", "10.88.0.66/24", "dev", w.wires[0])
        stop = threading.Event()
        attacker = Later(flood, w.ours, (OUTER[4][1], PORT["theirs"]), w.public["theirs"], stop, 1500, 0.15, "10.88.0.66")
        try:
            time.sleep(1)
            start = time.monotonic()
            w.echo(25)
            other = time.monotonic() - start
        finally:
            stop.set()
            attacker.result(10)
        n = w.ours_now()
        check(n["cookies_received"] >= 1 and n["initiations_accepted"] >= 2 and n["handshakes"] >= 1, f"{n}")
    return f"under load: a session by us after {took:.1f} s ({sent} initiations), by them after {other:.1f} s"


def test_cookies_of_ours():
    """Our engine under a flood answers with cookies; wireguard-go's next initiation carries mac2 and gets its response"""
    with Stand() as w:
        w.tool.ask("listen", 7000, "echo", answer="listening")
        sh("ip", "-n", w.theirs, "addr", "add", "10.88.0.66/24", "dev", w.wires[1])
        stop = threading.Event()
        attacker = Later(flood, w.theirs, (OUTER[4][0], PORT["ours"]), w.public["ours"], stop, 600, 0.02, "10.88.0.66")
        try:
            wait_for(lambda: w.ours_now()["under_load"] > 0, 10, "our engine is under load")
            start = time.monotonic()
            s = w.socket()
            s.settimeout(20)
            s.connect((INNER[4][0], 7000))
            took = time.monotonic() - start
            s.sendall(b"through")
            check(s.recv(10) == b"through", "echo")
            s.close()
            n = w.ours_now()
        finally:
            stop.set()
            attacker.result(10)
        check(n["initiations_accepted"] == 1 and n["handshakes"] == 1, f"{n}")
        check("Received cookie" in w.go.log(10_000_000) or took > 4, "wireguard-go was not asked for a cookie")
        check(n["cookie_replies_sent"] == n["under_load"], f"{n}")
        refused = n["under_load"]
    # We initiate, and refuse their response for the lack of a cookie.
    with Stand() as w:
        sh("ip", "-n", w.theirs, "addr", "add", "10.88.0.66/24", "dev", w.wires[1])
        stop = threading.Event()
        attacker = Later(flood, w.theirs, (OUTER[4][0], PORT["ours"]), w.public["ours"], stop, 600, 0.02, "10.88.0.66")
        try:
            wait_for(lambda: w.ours_now()["under_load"] > 0, 10, "our engine is under load")
            start = time.monotonic()
            w.tool.ask("handshake", answer="wireguard")
            wait_for(lambda: w.ours_now()["handshakes"] >= 1, 25, "a session of ours under load")
            other = time.monotonic() - start
        finally:
            stop.set()
            attacker.result(10)
        w.tool.tell("ping", INNER[4][1], 100)
        w.tool.wait_event("pong", 5)
    return f"under load: a session by them after {took:.1f} s, by us after {other:.1f} s; {refused} forged initiations refused"


# ---- bulk

def test_bulk():
    """5 GiB each way through the tunnel, or what 40 s allow: every byte is right"""
    notes = []
    with Stand() as w:
        w.tool.ask("listen", 7000, "give", 5 << 30, "seconds=40", answer="listening")
        s = w.they_dial()
        start = time.monotonic()
        got, digest, _ = receive_all(s)
        took = time.monotonic() - start
        s.close()
        done = w.tool.wait_event("done", 30)
        check(got == done["sent"] and digest == done["sent_sha256"], f"they received {got} of {done['sent']} bytes, or others")
        check(got > 200 * MIB, f"only {got} bytes in {took:.0f} s")
        notes.append(f"to them {got / (1 << 30):.2f} GiB at {got * 8 / took / 1e9:.2f} Gbit/s")
        w.tool.ask("listen", 7001, "take", answer="listening")
        s = w.they_dial(7001)
        block, hashed, size, start = os.urandom(MIB), hashlib.sha256(), 0, time.monotonic()
        while size < 5 << 30 and time.monotonic() - start < 40:
            piece = size.to_bytes(8, "big") + block[8:]
            s.sendall(piece)
            hashed.update(piece)
            size += len(piece)
        s.shutdown(socket.SHUT_WR)
        answer = receive_all(s)[2].decode().split()
        took = time.monotonic() - start
        s.close()
        check(answer == [str(size), hashed.hexdigest()], f"we received {answer[:1]} of {size} bytes, or others")
        notes.append(f"to us {size / (1 << 30):.2f} GiB at {size * 8 / took / 1e9:.2f} Gbit/s")
        n = w.ours_now()
        check(n["bad_tag"] == 0 and n["replayed"] == 0 and n["disallowed"] == 0, f"{n}")
    return "; ".join(notes)


def test_rekey_by_time():
    """After 120 s whoever initiated makes a new session, ours and theirs, and traffic does not notice"""
    if not LONG:
        start_long_cases()
    worst = {starter: f"{LONG[starter].result(200) * 1000:.0f} ms" for starter in LONG}
    return f"longest gap: {worst}"


if __name__ == "__main__":
    if len(sys.argv) < 3:
        start_long_cases()   # beside the others
    main(sys.modules[__name__])
