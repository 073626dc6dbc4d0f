#!/usr/bin/env python3
"""Benchmarks of whole processes, as tables with their conditions. Never a gate: numbers are for reading.

  ./run bench              all that this machine can do
  ./run bench dataplane    one flow SOCKS5 -> node -> UDP over veth -> node -> exposed port, direct and relayed
  ./run bench startup      process start to first byte, cold and warm, 100 times each
  ./run bench memory       private memory idle, after 4 GB, per peer
  ./run bench size         stripped size of examples/dial
  ./run bench coordinator  1,000 accounts x 5 nodes

With root, the two nodes sit in network namespaces joined by veth; without, both use loopback (and the table says so).
"""
import json
import os
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import time

BUILD = sys.argv[1] if len(sys.argv) > 1 else "build/release"
PORTHOLE = os.path.abspath(os.path.join(BUILD, "porthole"))
PUMP = os.path.abspath(os.path.join(BUILD, "bench", "pump"))
TICK = os.sysconf("SC_CLK_TCK")


def run(argv, **kw):
    return subprocess.run(argv, check=True, stdout=subprocess.PIPE, stdin=subprocess.DEVNULL, **kw).stdout.decode()


def cpu_seconds(pid):
    with open(f"/proc/{pid}/stat") as f:
        fields = f.read().rsplit(") ", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / TICK


def private_kb(pid):
    """Private dirty memory: what the process costs that it shares with nobody and cannot drop."""
    with open(f"/proc/{pid}/smaps_rollup") as f:
        return sum(int(line.split()[1]) for line in f if line.startswith("Private_Dirty:"))


def steal():
    with open("/proc/stat") as f:
        return int(f.readline().split()[8]) / TICK


class Node:
    """A `porthole node run` whose events are read as they come."""

    def __init__(self, argv, namespace=None):
        prefix = ["ip", "netns", "exec", namespace] if namespace else []
        self.started = time.monotonic()
        self.p = subprocess.Popen(prefix + argv, stdout=subprocess.PIPE, stdin=subprocess.DEVNULL)

    def event(self, kind):
        for line in self.p.stdout:
            e = json.loads(line)
            if e.get("event") == kind:
                return e
            if e.get("event") == "state" and e.get("state") in ("failed", "logged-out"):
                raise SystemExit(f"node: {e}")
        raise SystemExit(f"node ended before '{kind}'")

    def stop(self):
        self.p.terminate()
        self.p.wait(10)


class Lab:
    """Coordinator, and namespaces a and b joined through the middle one, where the coordinator lives."""

    def __init__(self):
        self.dir = tempfile.mkdtemp(prefix="porthole-bench-")
        self.netns = os.getuid() == 0 and shutil.which("ip") is not None
        self.tag = str(os.getpid())
        self.a = self.b = self.mid = None
        if self.netns:
            self.a, self.b, self.mid = (f"ph{x}{self.tag}" for x in "abm")
            for ns in (self.a, self.b, self.mid):
                run(["ip", "netns", "add", ns])
                run(["ip", "-n", ns, "link", "set", "lo", "up"])
            self.link(self.a, self.mid, "198.51.100.1", "198.51.100.2", "m1")
            self.link(self.b, self.mid, "203.0.113.1", "203.0.113.2", "m2")
            # The direct link between the two nodes.
            self.link(self.a, self.b, "192.0.2.1", "192.0.2.2", "d1")
            run(["ip", "netns", "exec", self.mid, "sysctl", "-qw", "net.ipv4.ip_forward=1"])
            run(["ip", "-n", self.a, "route", "add", "203.0.113.0/24", "via", "198.51.100.2"])
            run(["ip", "-n", self.b, "route", "add", "198.51.100.0/24", "via", "203.0.113.2"])
            self.listen = "198.51.100.2:0"
        else:
            self.listen = "127.0.0.1:0"
        self.processes = []
        key, cert = self.dir + "/remote.key", self.dir + "/remote.pem"
        run(["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-keyout", key, "-out", cert,
             "-days", "30", "-subj", "/CN=localhost", "-addext", "subjectAltName=IP:" + self.listen.rsplit(":", 1)[0]], stderr=subprocess.DEVNULL)
        os.environ["SSL_CERT_FILE"] = cert  # for every node of this lab
        self.remote = Node([PORTHOLE, "remote", "run", "--statedir", self.dir + "/remote", "--listen", self.listen, "--stun-port", "0",
                            "--tls-cert", cert, "--tls-key", key, "--json"], self.mid)
        self.processes.append(self.remote)
        self.url = self.remote.event("ready")["url"]
        run([PORTHOLE, "remote", "account", "create", "bench", "--statedir", self.dir + "/remote", "--json"])
        self.key = self.new_key()
        source = Node([PUMP, "serve", "127.0.0.1:0"], self.b)
        self.processes.append(source)
        self.source_port = json.loads(source.p.stdout.readline())["port"]

    def link(self, x, y, ip_x, ip_y, name):
        run(["ip", "-n", x, "link", "add", name + "x", "type", "veth", "peer", "name", name + "y", "netns", y])
        run(["ip", "-n", x, "addr", "add", ip_x + "/24", "dev", name + "x"])
        run(["ip", "-n", y, "addr", "add", ip_y + "/24", "dev", name + "y"])
        run(["ip", "-n", x, "link", "set", name + "x", "up"])
        run(["ip", "-n", y, "link", "set", name + "y", "up"])

    def new_key(self):
        out = run([PORTHOLE, "remote", "key", "create", "--account", "bench", "--reusable", "--statedir", self.dir + "/remote", "--json"])
        return json.loads(out.strip().splitlines()[-1])["key"]

    def node(self, name, namespace, *extra, keep=False):
        argv = [PORTHOLE, "node", "run", "--statedir", f"{self.dir}/{name}", "--login-server", self.url, "--auth-key", self.key,
                "--hostname", name, "--json", *extra]
        n = Node(argv, namespace)
        if not keep:
            self.processes.append(n)
        return n

    def server(self, *extra):
        n = self.node("server", self.b, "--expose", f"8080=127.0.0.1:{self.source_port}", *extra)
        n.event("running")
        return n

    def pull(self, proxy, target, size):
        prefix = ["ip", "netns", "exec", self.a] if self.netns else []
        return json.loads(run(prefix + [PUMP, "pull", str(size), target, "socks5", proxy["address"], proxy["username"], proxy["password"]]))

    def conditions(self):
        where = "veth between two namespaces" if self.netns else "loopback (not root)"
        return f"{where}, {os.cpu_count()} cores, both nodes, both applications and the coordinator on them, coordinator and relay over TLS"

    def close(self):
        for p in reversed(self.processes):
            try:
                p.stop()
            except subprocess.TimeoutExpired:
                p.p.kill()
        if self.netns:
            for ns in (self.a, self.b, self.mid):
                subprocess.run(["ip", "netns", "del", ns], stderr=subprocess.DEVNULL)
        shutil.rmtree(self.dir, ignore_errors=True)


def with_lab(f):
    lab = Lab()
    try:
        f(lab)
    finally:
        lab.close()


def dataplane():
    for relayed in (False, True):
        def measure(lab):
            extra = ("--relay-only",) if relayed else ()
            server = lab.server(*extra)
            puller = lab.node("puller", lab.a, "--socks5", "127.0.0.1:0", *extra)
            proxy = puller.event("socks5")
            puller.event("running")
            lab.pull(proxy, "server:8080", 50_000_000)  # warm: path found, windows open
            size = 500_000_000 if relayed else 2_000_000_000
            rows = []
            for _ in range(5):
                before = cpu_seconds(puller.p.pid), cpu_seconds(server.p.pid), cpu_seconds(lab.remote.p.pid), steal()
                r = lab.pull(proxy, "server:8080", size)
                after = cpu_seconds(puller.p.pid), cpu_seconds(server.p.pid), cpu_seconds(lab.remote.p.pid), steal()
                rows.append([size * 8 / r["seconds"] / 1e9] + [(y - x) * 1e9 / size for x, y in zip(before[:3], after[:3])] +
                            [(after[3] - before[3]) / (r["seconds"] * os.cpu_count()) * 100])
            m = [statistics.median(c) for c in zip(*rows)]
            print(f"  {'relayed' if relayed else 'direct':8} {m[0]:8.2f} {m[1]:10.2f} {m[2]:10.2f} {m[3] if relayed else 0:10.2f} {m[4]:8.1f} %")
            if relayed:
                print(f"  conditions: {lab.conditions()}; 2 GB direct, 0.5 GB relayed")
        if not relayed:
            print("\nData plane: one flow, SOCKS5 -> node -> UDP -> node -> exposed port (median of 5)")
            print(f"  {'path':8} {'Gbit/s':>8} {'puller':>10} {'server':>10} {'relay':>10} {'steal':>10}   (CPU seconds per GB)")
        with_lab(measure)


def startup():
    def measure(lab):
        lab.server()
        prefix = ["ip", "netns", "exec", lab.a] if lab.netns else []
        results = {"cold": [], "warm": []}
        failures = 0
        for i in range(100):
            for kind in ("cold", "warm"):
                name = f"start{i}"
                begin = time.monotonic()
                n = lab.node(name, lab.a, "--socks5", "127.0.0.1:0", keep=True)
                proxy = n.event("socks5")
                p = subprocess.run(prefix + [PUMP, "pull", "1000", "server:8080", "socks5", proxy["address"], proxy["username"], proxy["password"]],
                                   stdout=subprocess.PIPE, stderr=subprocess.PIPE)
                seconds = time.monotonic() - begin
                n.stop()
                if p.returncode != 0:
                    failures += 1
                else:
                    results[kind].append(seconds)
            shutil.rmtree(f"{lab.dir}/start{i}", ignore_errors=True)
        print("\nProcess start to first byte from a peer (fork of `porthole node run` to the first byte through its SOCKS5 proxy)")
        print(f"  {'':6} {'runs':>5} {'p50 ms':>8} {'p90 ms':>8} {'max ms':>8}")
        for kind, values in results.items():
            v = sorted(values)
            print(f"  {kind:6} {len(v):5} {v[len(v) // 2] * 1e3:8.0f} {v[int(len(v) * 0.9)] * 1e3:8.0f} {v[-1] * 1e3:8.0f}")
        print(f"  failed: {failures} of 200; conditions: {lab.conditions()}")
    with_lab(measure)


def memory():
    def measure(lab):
        server = lab.server()
        # The node as a program embeds it; `porthole` itself also carries the media libraries' relocations.
        puller = Node([os.path.abspath(os.path.join(BUILD, "examples", "socks_proxy")), f"{lab.dir}/embedded", lab.url, lab.key], lab.a)
        lab.processes.append(puller)
        user, password, address = re.search(r"socks5h://([^:]+):([^@]+)@(\S+)", puller.p.stdout.readline().decode()).groups()
        proxy = {"address": address, "username": user, "password": password}
        puller.event("running")
        lab.pull(proxy, "server:8080", 1000)
        time.sleep(3)
        print("\nPrivate (dirty) memory of a node, KB (puller: examples/socks_proxy, the library embedded; server: porthole node run)")
        print(f"  idle, one peer                puller {private_kb(puller.p.pid):8}   server {private_kb(server.p.pid):8}")
        lab.pull(proxy, "server:8080", 4_000_000_000)
        print(f"  right after 4 GB in one flow  puller {private_kb(puller.p.pid):8}   server {private_kb(server.p.pid):8}")
        time.sleep(15)
        print(f"  15 s later                    puller {private_kb(puller.p.pid):8}   server {private_kb(server.p.pid):8}")
        print(f"  conditions: {lab.conditions()}")
    with_lab(measure)


def size():
    print("\nSize of examples/dial, stripped")
    for name, what in (("dial", "our code and small libraries inside, system's shared OpenSSL and libc"), ("dial_static", "fully static")):
        path = os.path.join(BUILD, "examples", name)
        if not os.path.exists(path):
            continue
        with tempfile.NamedTemporaryFile() as t:
            run(["strip", "-o", t.name, path])
            print(f"  {os.path.getsize(t.name) / 1e6:6.2f} MB  {name}: {what}")


def coordinator():
    fleet = os.path.join(BUILD, "bench", "coordinator_bench")
    if not os.path.exists(fleet):
        print("\ncoordinator: not built")
        return
    subprocess.run([fleet, PORTHOLE], check=True)


def main():
    jobs = {"size": size, "dataplane": dataplane, "startup": startup, "memory": memory, "coordinator": coordinator}
    wanted = sys.argv[2:] or list(jobs)
    with open("/proc/cpuinfo") as f:
        model = next((line.split(":")[1].strip() for line in f if line.startswith("model name")), "unknown CPU")
    print(f"machine: {model}, {os.cpu_count()} cores, Linux {os.uname().release}")
    for name in wanted:
        if name not in jobs:
            sys.exit(f"unknown benchmark {name}; known: {', '.join(jobs)}")
        jobs[name]()
        sys.stdout.flush()


if __name__ == "__main__":
    main()
