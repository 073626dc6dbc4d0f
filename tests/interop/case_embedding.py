"""libporthole inside other programs: two nodes in one process, a Python program over ctypes, an event loop, and closing at any time."""
import select
import subprocess
import sys

from tailnet import *
import libporthole  # of the process tests, whose folder the line above adds

ROW = "libporthole inside other programs"
LISTEN, PACKETS = 7001, 7002


class Embedded(Member):
    """A node of this very process, in a namespace of its own: its thread is born there."""

    def __init__(self, net, name, space, key=None):
        super().__init__(net, name, space)
        self.state = net.path("embedded-" + name)
        self.start(key)

    def start(self, key=None):
        with inside(self.space):
            self.node = libporthole.Node(libporthole.load(BUILD), self.state, self.net.server.base() if key else None,
                                         "file:" + self.net.secret(key) if key else None, self.name, self.net.cert)
        self.node.wait_running()
        me = self.node.status()["self"]
        self.ips, self.fqdn = me["ips"], me["fqdn"]

    def close(self):
        super().close()
        self.node.close()


def ask_tcp(s, line=b"WHO\n"):
    with s:
        s.settimeout(20)
        s.sendall(line)
        out = b""
        while True:
            block = s.recv(65536)
            if not block:
                return out.decode().strip()
            out += block


def ask_udp(s, data, seconds=10):
    """UDP may lose one: asks again."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        s.send(data)
        if select.select([s], [], [], 0.7)[0]:
            return s.recv(65536)
    raise Failed(f"no answer to a datagram of {len(data)} bytes")


def to(ip, port):
    return f"[{ip}]:{port}" if ":" in ip else f"{ip}:{port}"


def python_program(kind):
    with Tailnet(kind) as t:
        go = t.tsnet("go")
        ours = t.join(Embedded, "snake")
        node = ours.node
        node.wait_peer("go")
        for host in ("go", go.fqdn, *go.ips):
            check(ask_tcp(node.dial("tcp", to(host, BLOBS))) == "go", f"dial tcp {host}")
        for network, host, most in (("udp", "go", 1252), ("udp6", "go", 1232), ("udp", go.v4, 1252), ("udp", go.v6, 1232)):
            with node.dial(network, to(host, ECHO_UDP)) as s:
                for size in (1, 500, most):
                    check(ask_udp(s, b"u" * size) == b"u" * size, f"dial {network} {host}: {size} bytes")
        # The peer dials us, by each address and by name.
        listener = node.listen(LISTEN)
        for host in (*ours.ips, "snake"):
            with go.connect(host, LISTEN) as s:
                check(select.select([listener], [], [], 10)[0], "the listener's descriptor becomes readable")
                mine, who = listener.accept(0)
                check(who.rsplit(":", 1)[0].strip("[]") in go.ips, f"accepted from {who}")
                with mine:
                    s.sendall(b"hello")
                    check(exactly(mine, 5) == b"hello", "bytes arrive")
                    mine.sendall(b"HELLO")
                    mine.shutdown(socket.SHUT_WR)
                    check(exactly(s, 5) == b"HELLO" and s.recv(1) == b"", "bytes and the end go back")
        listener.close()
        # Status and events.
        status = node.status()
        peer_status = next(p for p in status["peers"] if p["name"] == "go")
        check(status["state"] == "running" and peer_status["rx_bytes"] > 0 and set(peer_status["ips"]) == set(go.ips), f"status: {peer_status}")
        check(select.select([node.event_fd()], [], [], 5)[0], "the event descriptor is readable while events wait")
        seen = []
        while (event := node.next_event(0)) is not None:
            seen.append(event["event"])
        check({"state", "running", "peers", "peer_path"} <= set(seen), f"events: {seen}")
        check(not select.select([node.event_fd()], [], [], 0)[0], "and not readable when none waits")
        new = t.ours("late")
        wait_for(lambda: select.select([node.event_fd()], [], [], 0)[0] and "late" in str(node.next_event(0)), 10, "an event tells of a new device")
        check(node.ping("go")["peer"] == "go", "ping")
        node.wait_peer("late")
        check(ask_tcp(node.dial("tcp", to(new.v4, BLOBS))) == "late", "the new device answers")


def test_python_program_under_headscale():
    """A Python program with libporthole.so dials TCP and UDP to tsnet, listens, reads status and events (Headscale)"""
    python_program("headscale-0.29")


def test_python_program_under_our_coordinator():
    """A Python program with libporthole.so dials TCP and UDP to tsnet, listens, reads status and events (our coordinator)"""
    python_program("porthole")


def test_two_nodes_in_one_process():
    """Two nodes in one process reach each other and a Go peer; closing one leaves the other alone, and it comes back"""
    with Tailnet("porthole") as t:
        go = t.tailscaled("go")
        a, b = t.join(Embedded, "one"), t.join(Embedded, "two")
        go.cli("serve", "--bg", "--tcp", str(BLOBS), f"tcp://127.0.0.1:{BLOBS}")
        b.node.expose(BLOBS, f"127.0.0.1:{BLOBS}")       # in the namespace of b's thread
        b.node.expose_udp(ECHO_UDP, f"127.0.0.1:{ECHO_UDP}")
        check(a.node.status()["self"]["key"] != b.node.status()["self"]["key"], "two nodes, two keys")
        pa, pb = a.node.loopback(), b.node.loopback()
        check(pa[0] != pb[0] or pa[2] != pb[2], "each has its own proxy")
        for node in (a.node, b.node):
            node.wait_peer("go")
            check(ask_tcp(node.dial("tcp", to(go.v4, BLOBS))) == "go", "the Go peer answers")
        for ip in b.ips:
            check(ask_tcp(a.node.dial("tcp", to(ip, BLOBS))) == "two", "from one to two inside one process")
            with a.node.dial("udp", to(ip, ECHO_UDP)) as s:
                check(ask_udp(s, b"datagram") == b"datagram", "and datagrams")
        check(go.ask(b.v4) == "two", "the Go peer reaches the exposed port")
        kept = a.node.dial("tcp", to(go.v4, BLOBS))
        b.node.close()
        check(ask_tcp(kept) == "go", "a connection of the other node goes on")
        try:
            b.node.status()
            raise Failed("a closed node answers")
        except libporthole.PortholeError as e:
            check(e.code == -12, str(e))
        b.start()
        a.node.wait_peer("two")
        b.node.expose(BLOBS, f"127.0.0.1:{BLOBS}")
        check(ask_tcp(a.node.dial("tcp", to(b.v4, BLOBS))) == "two", "from stored state it is back")


def test_event_loop():
    """A C program with a poll() loop of its own serves and dials with porthole.h alone, and its loop is never held up"""
    tool = os.path.join(BUILD, "tests", "interop", "event_loop")
    if not os.path.exists(tool):
        raise Skipped("event_loop has not been built (target interop_tools)")
    with Tailnet("headscale-0.29") as t:
        go = t.tsnet("go")
        space = t.place("loop")
        p = subprocess.Popen(Net.inside(space, tool, t.path("loop"), t.server.base(), t.secret(t.server.new_key()), "looper", t.cert),
                             stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1)
        lines = []
        reader = threading.Thread(target=lambda: [lines.append(json.loads(line)) for line in p.stdout], daemon=True)
        reader.start()

        def said(kind, **wanted):
            def find():
                return next((e for e in lines if e["event"] == kind and all(e.get(k) == v for k, v in wanted.items())), None)
            return wait_for(find, 20, f"the program says '{kind}' {wanted}; it said {lines[-4:]}")

        def tell(line):
            p.stdin.write(line + "\n")
        try:
            check(said("started")["ms"] < 500, "porthole_start waits for nothing")
            ips = said("running")["ips"]
            def known():
                try:
                    go.connect(ips[0], LISTEN).close()
                    return True
                except (ConnectionError, Failed):
                    return False
            wait_for(known, 20, "the Go peer knows the new device and reaches it")
            for ip in (*ips, "looper"):
                with go.connect(ip, LISTEN) as s:
                    s.sendall(b"echo me")
                    check(exactly(s, 7) == b"echo me", f"the loop echoes for {ip}")
            said("accepted")
            # Many at once, while a dial hangs.
            tell("dial tcp 100.127.1.2:9 nothing")
            connections = [go.connect(ips[0], LISTEN) for _ in range(30)]
            for i, s in enumerate(connections):
                s.sendall(b"%6d" % i)
            for i, s in enumerate(connections):
                check(exactly(s, 6) == b"%6d" % i, "each gets its own back")
                s.close()
            said("dial_failed")
            tell(f"dial tcp go:{BLOBS} ECHO")
            tell(f"dial udp go:{ECHO_UDP} a-datagram")
            tell(f"dial udp6 go:{ECHO_UDP} six")
            said("answer", text="a-datagram")
            said("answer", text="six")
            other = t.join(Embedded, "asker")
            other.node.wait_peer("looper")
            for ip in ips:
                with other.node.dial("udp", to(ip, PACKETS)) as s:
                    check(ask_udp(s, b"packet") == b"packet", f"datagrams to {ip}")
            tell("quit")
            end = said("end")
            check(p.wait(15) == 0, f"status {p.returncode}")
            check(end["longest_turn_ms"] < 250, f"the loop was held up for {end['longest_turn_ms']} ms")
            return f"longest turn of the loop {end['longest_turn_ms']} ms"
        finally:
            if p.poll() is None:
                p.kill()
            p.wait()


def test_close_at_any_time():
    """200 times: start, dial, accept, events and close from several threads at any moment; no crash, hang or leak"""
    program_path = os.path.join(BUILD, "tests", "test_capi")
    if not os.path.exists(program_path):
        raise Skipped("test_capi has not been built")
    sh(program_path, "--gtest_filter=TwoNodes.CloseAtAnyTime", seconds=150, env={**os.environ, "PORTHOLE_ROUNDS": "200"})


if __name__ == "__main__":
    main(sys.modules[__name__])
