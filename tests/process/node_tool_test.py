#!/usr/bin/env python3
"""`porthole node` as a tool: nc, whois, ip, ping, status and netcheck of a running node, and doctor without one."""
import email.utils
import hashlib
import http.client
import http.server
import json
import os
import re
import signal
import socket
import struct
import subprocess
import sys
import threading
import time

from lab import *


def two_nodes(lab, remote, *exposed, flags=()):
    """a, and b which exposes local ports: (tailnet port, local port)."""
    lab.account(remote)
    a = lab.node("a", remote.url, lab.key(remote), *flags)
    a.ips = a.wait_event("running")["ips"]
    b = lab.node("b", remote.url, lab.key(remote), *[f for t, l in exposed for f in ("--expose", f"{t}=127.0.0.1:{l}")], *flags)
    b.ips = b.wait_event("running")["ips"]
    a.wait_event("peers", match=lambda e: "b" in e["added"])
    return a, b


class OnePeer:
    """A loopback service for one connection at a time: handler(socket)."""

    def __init__(self, handler):
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.port = self.listener.getsockname()[1]
        self.handler = handler
        threading.Thread(target=self._run, daemon=True).start()

    def _run(self):
        while True:
            try:
                s, _ = self.listener.accept()
            except OSError:
                return
            with s:
                try:
                    self.handler(s)
                except OSError:
                    pass


def read_all(s):
    out = b""
    while block := s.recv(65536):
        out += block
    return out


def nc(lab, host, port, **popen):
    """The process, with pipes."""
    return subprocess.Popen([PORTHOLE, "node", "nc", "--statedir", lab.path("a"), host, str(port)], stdin=subprocess.PIPE,
                            stdout=subprocess.PIPE, stderr=subprocess.PIPE, **popen)


def test_nc():
    late = {}

    def answers_at_the_end(s):
        got = read_all(s)
        s.sendall(hashlib.sha256(got).hexdigest().encode())

    def ends_first(s):
        s.sendall(b"that is all")
        s.shutdown(socket.SHUT_WR)
        late["got"] = read_all(s)

    def breaks(s):
        s.recv(1)
        s.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))

    echo = EchoServer()
    services = [OnePeer(h) for h in (answers_at_the_end, ends_first, breaks)]
    with Lab() as lab:
        remote = lab.remote()
        a, b = two_nodes(lab, remote, (7, echo.port), *zip((1, 2, 3), (s.port for s in services)), (4, 1))
        # Our end of file is passed on, and the answer still comes; 8 MB, byte for byte, both ways at once.
        data = os.urandom(8_000_000)
        out, err = nc(lab, "b", 1).communicate(data, timeout=60 * SLOW)
        check(out.decode() == hashlib.sha256(data).hexdigest(), f"half-close: {out!r} {err!r}")
        for host in ("b", b.ips[0], b.ips[1], f"[{b.ips[1]}]", "B"):
            p = nc(lab, host, 7)
            out, err = p.communicate(data[:3_000_000], timeout=60 * SLOW)
            check(p.returncode == 0 and out == data[:3_000_000], f"echo by {host}: status {p.returncode}, {len(out)} bytes, {err!r}")
        # The other side ends first: our output ends, and what we send afterwards still arrives.
        p = nc(lab, "b", 2)
        check(p.stdout.read() == b"that is all", "what came before the end")
        check(p.poll() is None, "nc ended although its input had not")
        p.stdin.write(b"last words")
        p.stdin.close()
        check(p.wait(20 * SLOW) == 0, "status after both ends")
        wait_for(lambda: late.get("got") == b"last words", 10, "the last words")
        # A reset is no end.
        p = nc(lab, "b", 3)
        out, err = p.communicate(b"x", timeout=30 * SLOW)
        check(p.returncode == 1, f"status {p.returncode} after a reset")
        check_words(err.decode(), "porthole:", "b:3", "broke")
        # Nobody reads: an end without noise.
        p = nc(lab, "b", 7)
        p.stdin.write(b"x" * 1000)
        p.stdin.flush()
        check(p.stdout.read(1000) == b"x" * 1000, "echo")
        p.stdout.close()
        check(p.wait(20 * SLOW) == 0 and p.stderr.read() == b"", "status when nobody reads the output")
        # One socket for both, as ssh gives a ProxyCommand.
        ours, theirs = socket.socketpair()
        p = subprocess.Popen([PORTHOLE, "node", "nc", "--statedir", lab.path("a"), "b", "7"], stdin=theirs, stdout=theirs)
        theirs.close()
        sender = threading.Thread(target=lambda: (ours.sendall(data), ours.shutdown(socket.SHUT_WR)))
        sender.start()
        check(hashlib.sha256(read_all(ours)).digest() == hashlib.sha256(data).digest(), "echo through a socket pair")
        sender.join()
        check(p.wait(20 * SLOW) == 0, "status with a socket pair")
        # Refused, unknown, usage; Ctrl-C.
        for words, argv in ((("b", "4"), ("b", "4")), (("no-such-host",), ("no-such-host", "7"))):
            result = run("node", "nc", "--statedir", lab.path("a"), *argv)
            refused(result, 1, *words)
        refused(run("node", "nc", "--statedir", lab.path("a"), "b", "70000"), 2, "70000")
        refused(run("node", "nc", "--statedir", lab.path("a"), "b", "7", "--timeout", "soon"), 2, "--timeout", "soon")
        refused(run("node", "nc", "--statedir", lab.path("nobody"), "b", "7"), 1, "no node is running")
        p = nc(lab, "b", 7)
        p.stdin.write(b"x")
        p.stdin.flush()
        check(p.stdout.read(1) == b"x", "echo")
        p.send_signal(signal.SIGINT)
        check(p.wait(10 * SLOW) == 130 and p.stderr.read() == b"", "Ctrl-C")
        # The node stops under it: broken, not ended.
        p = nc(lab, "b", 7)
        p.stdin.write(b"x")
        p.stdin.flush()
        check(p.stdout.read(1) == b"x", "echo")
        a.stop()
        check(p.wait(20 * SLOW) == 1, "status when the node stops")


def test_ssh_proxy_command():
    """ssh speaks through it: its identification string arrives, and it reads the other side's."""
    got = {}

    def server(s):
        s.sendall(b"SSH-2.0-porthole_test\r\n")
        got["line"] = s.recv(1)
        while not got["line"].endswith(b"\n") and (more := s.recv(1)):
            got["line"] += more
        got["key exchange"] = s.recv(1)  # which follows once ssh has read our line, and told about it
        got["rest"] = read_all(s)

    service = OnePeer(server)
    with Lab() as lab:
        remote = lab.remote()
        two_nodes(lab, remote, (22, service.port))
        ssh = subprocess.Popen(["ssh", "-v", "-F", "none", "-o", "StrictHostKeyChecking=no", "-o", "UserKnownHostsFile=/dev/null", "-o",
                                f"ProxyCommand={PORTHOLE} node nc --statedir {lab.path('a')} %h %p", "nobody@b", "true"],
                               stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
        wait_for(lambda: got.get("key exchange"), 20, "ssh's identification, and what it says to ours")
        check(got["line"].startswith(b"SSH-2.0-"), f"{got}")
        ssh.terminate()
        check_words(ssh.communicate(timeout=20 * SLOW)[1], "remote software version porthole_test")
        wait_for(lambda: "rest" in got, 20, "the end of the connection after ssh ended")


def test_whois_and_ip():
    echo = EchoServer()
    with Lab() as lab:
        remote = lab.remote()
        a, b = two_nodes(lab, remote, (7, echo.port))
        folder = lab.path("a")
        for address in (b.ips[0], b.ips[1], b.ips[0] + ":80", f"[{b.ips[1]}]:80"):
            out = run("node", "whois", "--statedir", folder, address)
            check(out.returncode == 0, out.stderr)
            check_words(out.stdout, "Machine:", "Name:          b", b.ips[0], b.ips[1], "User:", "home")
        who = json.loads(run("node", "whois", "--statedir", folder, b.ips[0], "--json").stdout)
        check(who["machine"]["ips"] == b.ips and who["machine"]["name"].split(".")[0] == "b" and who["user"]["login"], f"whois --json: {who}")
        check(json.loads(run("node", "whois", "--statedir", folder, a.ips[0], "--json").stdout)["machine"]["name"].startswith("a"), "whois of oneself")
        refused(run("node", "whois", "--statedir", folder, "100.99.98.97"), 1, "not found", "100.99.98.97")
        refused(run("node", "whois", "--statedir", folder, "b"), 2, "'b'", "not an IP")
        refused(run("node", "whois", "--statedir", folder, "127.0.0.1:1"), 1, "127.0.0.1:1")
        # Behind a forwarded connection: b's service sees a loopback port, b knows that it is a.
        seen = {}
        service = OnePeer(lambda s: (seen.update(port=s.getpeername()[1]), s.recv(1)))
        b2 = lab.node("b2", remote.url, lab.key(remote), "--expose", f"9=127.0.0.1:{service.port}")
        b2.wait_event("running")
        a.wait_event("peers", match=lambda e: "b2" in e["added"])
        p = nc(lab, "b2", 9)
        wait_for(lambda: "port" in seen, 20, "the forwarded connection")
        out = run("node", "whois", "--statedir", lab.path("b2"), f"127.0.0.1:{seen['port']}")
        check_words(out.stdout, "Name:          a", a.ips[0])
        p.kill()
        p.communicate()

        def ip(*argv):
            out = run("node", "ip", "--statedir", folder, *argv)
            check(out.returncode == 0, out.stderr)
            return out.stdout.split()

        check(ip() == a.ips and ip("-4") == [a.ips[0]] and ip("-6") == [a.ips[1]] and ip("-1") == [a.ips[0]], "ip of this node")
        check(ip("b") == b.ips and ip("B", "-6") == [b.ips[1]] and ip(b.ips[1], "-4") == [b.ips[0]], "ip of a peer")
        check(json.loads(run("node", "ip", "--statedir", folder, "b", "--json").stdout) == {"name": "b", "ips": b.ips}, "ip --json")
        refused(run("node", "ip", "--statedir", folder, "nobody"), 1, "nobody")
        refused(run("node", "ip", "--statedir", folder, "-4", "-6"), 2, "-4")


def test_ping():
    with Lab() as lab:
        remote = lab.remote()
        lab.account(remote)
        a = lab.node("a", remote.url, lab.key(remote))
        a.wait_event("running")
        b = lab.node("b", remote.url, lab.key(remote))
        a.wait_event("peers", match=lambda e: "b" in e["added"])
        folder = lab.path("a")
        # Directly after the peer appeared, perhaps before any way to it is known: the ping waits for the way.
        first = run("node", "ping", "--statedir", folder, "b", "-c", "1", "--until-direct=false")
        check(first.returncode == 0, f"the first ping: {first}")
        check_words(first.stdout, "pong from b (", ") via ", " in ", "ms")
        out = run("node", "ping", "--statedir", folder, "b", "--json")
        check(out.returncode == 0, f"until direct: {out}")
        pongs = [json.loads(line) for line in out.stdout.splitlines()]
        check(pongs[-1]["path"] == "direct" and all(p.get("path") != "direct" for p in pongs[:-1]), f"it stops at the first direct pong: {pongs}")
        out = run("node", "ping", "--statedir", folder, "b", "-c", "2", "--until-direct=false")
        check(out.returncode == 0 and out.stdout.count("pong from b") == 2 and "DERP" not in out.stdout, f"on the direct path: {out}")
        for flag, word in (("--tsmp", "via TSMP in"), ("--icmp", "via ICMP in")):
            out = run("node", "ping", "--statedir", folder, "b", flag)
            check(out.returncode == 0 and out.stdout.count(word) == 1, f"{flag}: {out}")
            v6 = json.load(open(lab.path("b", "node.json")))["addresses"][1]
            out = run("node", "ping", "--statedir", folder, v6, flag, "-c", "2", "--json")
            check(out.returncode == 0 and [json.loads(line)["ip"] for line in out.stdout.splitlines()] == [v6, v6], f"{flag} by IPv6: {out}")
        # Ctrl-C ends an endless one.
        p = lab.start("node", "ping", "--statedir", folder, "b", "-c", "0", "--until-direct=false", "--json")
        wait_for(lambda: len(p.log) >= 2, 20, "two pongs")
        p.p.send_signal(signal.SIGINT)
        check(p.wait_exit(5) == 0, "Ctrl-C after answers")
        refused(run("node", "ping", "--statedir", folder, "nobody-there"), 1, "nobody-there")
        refused(run("node", "ping", "--statedir", folder, "a"), 2, "this node itself")
        refused(run("node", "ping", "--statedir", folder, "b", "--tsmp", "--icmp"), 2, "--tsmp", "--icmp")
        refused(run("node", "ping", "--statedir", folder, "b", "--timeout", "0s"), 2, "--timeout")
        # Nobody there any more.
        b.stop()
        for flags in ((), ("--tsmp",), ("--icmp",)):
            refused(run("node", "ping", "--statedir", folder, "b", "-c", "1", "--timeout", "500ms", *flags), 1, "b did not answer within 500ms")
        began = time.monotonic()
        out = run("node", "ping", "--statedir", folder, "b", "-c", "2", "--timeout", "300ms", "--json")
        refused(out, 1, "no reply from b")
        check(all("did not answer" in json.loads(line)["error"] for line in out.stdout.splitlines()), f"as JSON: {out.stdout}")
        check(time.monotonic() - began < 8 * SLOW, "it took too long")


def test_ping_without_a_direct_path():
    with Lab() as lab:
        remote = lab.remote()
        two_nodes(lab, remote, flags=("--relay-only",))
        out = run("node", "ping", "--statedir", lab.path("a"), "b", "-c", "2")
        refused(out, 1, "direct connection not established", "b")
        check(out.stdout.count("via DERP(") == 2, f"{out.stdout}")
        out = run("node", "status", "--statedir", lab.path("a"))
        check_words(out.stdout, "active; relay \"", "not direct: this node is set to use relays only")


def test_status_and_netcheck():
    echo = EchoServer()
    with Lab() as lab:
        remote = lab.remote()
        a, b = two_nodes(lab, remote, (7, echo.port))
        folder = lab.path("a")
        lines = run("node", "status", "--statedir", folder).stdout.splitlines()
        check(len(lines) == 2, f"{lines}")
        check_words(lines[0], *a.ips, "  a  ", "running", "home relay \"")
        check_words(lines[1], *b.ips, "  b  ", "online, idle")
        check(run("node", "status", "--statedir", folder, "--active").stdout.count("\n") == 1, "nobody is active yet")
        check(run("node", "ping", "--statedir", folder, "b", "--tsmp").returncode == 0, "ping")
        check(run("node", "ping", "--statedir", folder, "b").returncode == 0, "ping")
        lines = run("node", "status", "--statedir", folder, "--active").stdout.splitlines()
        check_words(lines[1], "active; direct 127.0.0.1:" if "127.0.0.1" in lines[1] else "active; direct ", "ms", "tx ", " rx ", "handshake ", "s ago")
        check(len(run("node", "status", "--statedir", folder, "--peers=false").stdout.splitlines()) == 1, "--peers=false")
        whole = run("node", "status", "--statedir", folder, "--json").stdout
        check(whole.count("\n") == 1, "one object a line")
        status = json.loads(whole)
        peer = status["peers"][0]
        check(status["state"] == "running" and status["self"]["home_relay_name"] and peer["path"] == "direct" and peer["os"] == "linux", f"{status}")
        check(json.loads(run("node", "status", "--statedir", folder, "--peers=false", "--json").stdout)["peers"] == [], "--peers=false --json")
        # The peer goes: seen as offline, then the traffic finds no direct path.
        b.stop()
        wait_for(lambda: "offline" in run("node", "status", "--statedir", folder).stdout
                 or json.loads(run("node", "status", "--statedir", folder, "--json").stdout)["peers"][0]["online"] is False, 30, "b is offline")
        out = run("node", "netcheck", "--statedir", folder)
        check(out.returncode == 0, out.stderr)
        check_words(out.stdout, "UDP:", "yes", "IPv4:", "IPv6:", "MappingVariesByDestIP:", "Nearest relay:", "Relay latency:", "ms")
        check(json.loads(run("node", "netcheck", "--statedir", folder, "--json").stdout)["udp"] is True, "netcheck --json")
    # Before it is on a tailnet.
    with Lab() as lab:
        hold, port = closed_port()
        node = lab.node("n", f"http://127.0.0.1:{port}", "k")
        node.wait_event("state")
        wait_for(lambda: "refused" in run("node", "status", "--statedir", lab.path("n")).stdout, 10, "the reason")
        check_words(run("node", "status", "--statedir", lab.path("n")).stdout, "# state: starting", "refused")
        refused(run("node", "ip", "--statedir", lab.path("n")), 1, "no tailnet address yet", "starting")
        refused(run("node", "whois", "--statedir", lab.path("n"), "100.64.0.1"), 1, "network map")
        hold.close()


# ---- doctor

class Web(http.server.ThreadingHTTPServer):
    """answer(handler) for every request; closes with the `with` block."""
    daemon_threads = True

    def __init__(self, answer, server="scripted"):
        outer = self

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def version_string(self):
                return server

            def date_time_string(self, timestamp=None):
                return email.utils.formatdate(time.time() + outer.clock, usegmt=True)

            def log_message(self, *_):
                pass

            def reply(self, status, body=b"", **headers):
                self.close_connection = True
                self.send_response(status)
                for name, value in headers.items():
                    self.send_header(name.replace("_", "-"), value)
                self.send_header("Content-Length", str(len(body)))
                self.send_header("Connection", "close")
                self.end_headers()
                self.wfile.write(body)

            def do_GET(self):
                answer(self)

            do_POST = do_GET

        self.clock = 0
        super().__init__(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server_port}"
        threading.Thread(target=self.serve_forever, daemon=True).start()

    def __exit__(self, *_):
        self.shutdown()
        self.server_close()


def plain_proxy(remote):
    """Passes requests on as a proxy does that knows no upgrades: hop-by-hop headers stay behind."""
    def answer(handler):
        connection = http.client.HTTPConnection(remote.listen, timeout=10)
        connection.request(handler.command, handler.path, headers={"Host": handler.headers["Host"]})
        back = connection.getresponse()
        handler.reply(back.status, back.read(), Content_Type=back.headers.get("Content-Type", "text/plain"))
        connection.close()
    return answer


def doctor(*argv, seconds=20):
    """(exit status, {check: its JSON}, result) of one run."""
    result = run("node", "doctor", *argv, "--json", seconds=seconds)
    checks = {c["check"]: c for c in map(json.loads, result.stdout.splitlines())}
    return result.returncode, checks, result


def failed(run_of_doctor, check_name, *words):
    status, checks, result = run_of_doctor
    check(status == 1, f"status {status}: {result}")
    refused(result, 1, "cannot use", "failed")
    check(checks.get(check_name, {}).get("result") == "failed", f"{check_name} did not fail: {checks}")
    check_words(checks[check_name]["text"] + " | " + checks[check_name].get("advice", ""), *words)
    return checks


def test_doctor_on_a_healthy_server():
    with Lab() as lab:
        cert = make_certificate(lab.dir)
        for remote, flags in ((lab.remote(), ()), (lab.remote("tls", tls=cert), ("--ca-file", cert[0]))):
            flags += ("--stun-port", str(remote.stun_port))
            out = run("node", "doctor", remote.url, *flags)
            check(out.returncode == 0 and out.stderr == "", f"{out}")
            lines = out.stdout.splitlines()
            check(all(line.startswith("ok ") for line in lines[:-1]) and lines[-1].startswith("all well: ") and remote.url in lines[-1], f"{lines}")
            status, checks, _ = doctor(remote.url, *flags)
            check(list(checks) == ["DNS", "TCP"] + (["TLS"] if flags[0] == "--ca-file" else []) + ["clock", "server", "upgrade", "relay", "UDP"], f"{list(checks)}")
            check(checks["server"]["key"].startswith("mkey:") and checks["upgrade"]["status"] == 101 and checks["relay"]["relay"], f"{checks}")
        # UDP blocked: a warning, since the relay carries everything.
        silent = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        silent.bind(("127.0.0.1", 0))
        status, checks, _ = doctor(remote.url, "--ca-file", cert[0], "--stun-port", str(silent.getsockname()[1]))
        check(status == 0 and checks["UDP"]["result"] == "warning", f"{checks}")
        check_words(checks["UDP"]["text"], "UDP is blocked")


def test_doctor_on_certificates():
    with Lab() as lab:
        good, old, future = (make_certificate(lab.dir), make_certificate(lab.dir, "old", dates=("20240101000000Z", "20240201000000Z")),
                             make_certificate(lab.dir, "future", dates=("20500101000000Z", "20510101000000Z")))
        soon = make_certificate(lab.dir, "soon", days=2)
        stun = ("--stun-port", "1")

        def remote(name, cert, **kwargs):
            return lab.remote(name, tls=cert, **kwargs)

        r = remote("good", good)
        checks = failed(doctor(r.url, *stun), "TLS", "signed by itself", "--ca-file")
        check(checks["upgrade"]["result"] == "ok", "what lies behind a bad certificate is looked at all the same")
        failed(doctor(remote("old", old).url, "--ca-file", old[0], *stun), "TLS", "expired", "days ago", "2024-02-01", "renew")
        failed(doctor(remote("future", future).url, "--ca-file", future[0], *stun), "TLS", "valid only from 2050-01-01", "clock")
        other = remote("other", good, listen="127.0.0.2:0")
        failed(doctor("https://" + other.listen, "--ca-file", good[0], *stun), "TLS", "certificate is for localhost, 127.0.0.1", "not for 127.0.0.2")
        status, checks, _ = doctor(remote("soon", soon).url, "--ca-file", soon[0], *stun)
        check(status == 0 and checks["TLS"]["result"] == "warning" and re.search(r": [12] day\(s\) left", checks["TLS"]["text"]), f"{checks['TLS']}")
        # The wrong scheme, both ways.
        failed(doctor(r.url.replace("https://", "http://")), "server", "speaks TLS", "https://")
        plain = lab.remote("plain")
        failed(doctor(plain.url.replace("http://", "https://")), "TLS", "not with TLS", "http://")
        refused(run("node", "doctor", r.url, "--ca-file", lab.path("missing.pem")), 1, "missing.pem")


def test_doctor_on_what_stands_in_between():
    portal = b"<html><title>Welcome to the hotel</title></html>"
    with Lab() as lab:
        remote = lab.remote()
        with Web(lambda h: h.reply(200, portal, Content_Type="text/html")) as web:
            failed(doctor(web.url), "server", "web page", "captive portal", "browser")
        with Web(lambda h: h.reply(302, Location="http://portal.hotel.example/login")) as web:
            failed(doctor(web.url), "server", "302", "http://portal.hotel.example/login", "captive portal")
        with Web(lambda h: h.reply(404, b"no such page")) as web:
            failed(doctor(web.url), "server", "404", "by scripted", "no control server")
        with Web(lambda h: h.reply(502, b"Bad Gateway"), server="nginx/1.22.1") as web:
            failed(doctor(web.url), "server", "502", "nginx/1.22.1", "not running")
        for server, words in (("nginx/1.22.1", ("proxy_http_version 1.1", "proxy_set_header Upgrade $http_upgrade", "docs/nginx.md")),
                              ("cloudflare", ("DNS only",)), ("Apache/2.4", ("upgrade=any",)), ("", ("header Upgrade",))):
            with Web(plain_proxy(remote), server=server) as web:
                checks = failed(doctor(web.url), "upgrade", "POST /ts2021", "400", server, "strips the upgrade", *words)
                check(checks["server"]["result"] == "ok" and checks["clock"]["result"] == "ok", f"{checks}")
                failed(doctor(web.url), "relay", "GET /derp", "426", "strips")
        # The relay's share of the server is away, the rest is not.
        rest = plain_proxy(remote)
        with Web(lambda h: h.reply(502, b"Bad Gateway") if h.path.startswith("/derp") else rest(h), server="nginx/1.22.1") as web:
            failed(doctor(web.url), "relay", "GET /derp/probe", "502", "nginx/1.22.1", "relay is down", "start the relay")
        with Web(plain_proxy(remote)) as web:
            web.clock = 3 * 86400
            _, checks, _ = doctor(web.url)
            check(checks["clock"]["result"] == "warning", f"{checks}")
            check_words(checks["clock"]["text"], "this machine's clock is", "behind")


def test_doctor_without_an_answer():
    with Lab():
        hold, port = closed_port()
        failed(doctor(f"http://127.0.0.1:{port}"), "TCP", f"127.0.0.1:{port}", "refused", "nothing listens")
        hold.close()
        failed(doctor("https://no-such-host.invalid"), "DNS", "no-such-host.invalid", "spelling")
        # Someone takes the connection and says nothing: bounded, whatever the protocol.
        mute = socket.create_server(("127.0.0.1", 0))
        for scheme, name in (("http", "server"), ("https", "TLS")):
            began = time.monotonic()
            checks = failed(doctor(f"{scheme}://127.0.0.1:{mute.getsockname()[1]}", "--timeout", "1s"), name)
            check(time.monotonic() - began < 4 * SLOW, f"{scheme}: it took {time.monotonic() - began:.1f} s")
            check_words(checks[name]["text"], "no answer" if scheme == "http" else "does not finish")
        p = subprocess.Popen([PORTHOLE, "node", "doctor", f"http://127.0.0.1:{mute.getsockname()[1]}"], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        check(p.stdout.readline().startswith(b"ok "), "the first line comes at once")
        check(p.stdout.readline().startswith(b"ok "), "the second, too")
        p.send_signal(signal.SIGINT)
        check(p.wait(3 * SLOW) == 130 and p.stderr.read() == b"", "Ctrl-C")
        refused(run("node", "doctor", "nonsense"), 2, "https://")
        refused(run("node", "doctor"), 2, "url")
        refused(run("node", "doctor", "http://127.0.0.1", "--timeout", "never"), 2, "--timeout")


if __name__ == "__main__":
    main(sys.modules[__name__])
