#!/usr/bin/env python3
"""The main job of Porthole, shown on real processes: a film crosses the tailnet.

Starts a coordination service, a media server and a client as separate unprivileged processes on loopback, logs in at
"home", cuts the LAN way, and watches the film from "away". Exit status 0 only if every step held.
"""
import argparse
import hashlib
import json
import os
import pwd
import queue
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time

HERE = os.path.dirname(os.path.abspath(__file__))
ROOT = os.path.dirname(os.path.dirname(HERE))
START = time.monotonic()


def say(text):
    print(f"[{time.monotonic() - START:6.2f} s] {text}", flush=True)


class Failed(Exception):
    pass


class Interrupted(Exception):
    pass


def interrupted(*_):
    raise Interrupted()


def as_nobody():
    """Keyword arguments that run a child without privileges even when the demo is started by root."""
    if os.getuid() != 0:
        return {}
    nobody = pwd.getpwnam("nobody")
    return {"user": nobody.pw_uid, "group": nobody.pw_gid, "extra_groups": []}


class Process:
    """A long-running porthole process whose JSON events are collected."""

    def __init__(self, name, argv, log_dir):
        self.name = name
        self.stderr_path = os.path.join(log_dir, name + ".stderr")
        self.stderr = open(self.stderr_path, "wb")
        self.p = subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=self.stderr, stdin=subprocess.DEVNULL, **as_nobody())
        self.events = queue.Queue()
        self.log = []
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self):
        for line in self.p.stdout:
            try:
                event = json.loads(line)
            except ValueError:
                continue
            event["_at"] = time.monotonic()
            self.log.append(event)
            self.events.put(event)
        self.events.put(None)

    def wait_event(self, kind, seconds, **wanted):
        """The next event of this kind (and with these members)."""
        end = time.monotonic() + seconds
        while True:
            left = end - time.monotonic()
            if left <= 0:
                raise Failed(f"{self.name}: no '{kind}' event within {seconds} s; {self.last_words()}")
            try:
                event = self.events.get(timeout=left)
            except queue.Empty:
                continue
            if event is None:
                raise Failed(f"{self.name} ended with status {self.p.wait()}; {self.last_words()}")
            if event.get("event") == kind and all(event.get(k) == v for k, v in wanted.items()):
                return event

    def last_words(self):
        self.stderr.flush()
        with open(self.stderr_path, "rb") as f:
            text = f.read().decode(errors="replace").strip()
        return "its last words: " + (text[-400:] or "none")

    def stop(self):
        if self.p.poll() is None:
            self.p.send_signal(signal.SIGTERM)
            start = time.monotonic()
            try:
                self.p.wait(5)
            except subprocess.TimeoutExpired:
                self.p.kill()
                self.p.wait()
                raise Failed(f"{self.name} did not end within 5 s of SIGTERM")
            if self.p.returncode != 0:
                raise Failed(f"{self.name} ended with status {self.p.returncode} after SIGTERM; {self.last_words()}")
            return time.monotonic() - start
        return 0.0


def call(argv, check=True, seconds=60):
    p = subprocess.run(argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE, stdin=subprocess.DEVNULL, timeout=seconds, **as_nobody())
    if check and p.returncode != 0:
        raise Failed(f"{' '.join(argv[:4])} ...: status {p.returncode}: {p.stderr.decode(errors='replace').strip()}")
    return p


def call_json(argv, **kw):
    """The JSON lines a command printed."""
    return [json.loads(line) for line in call(argv, **kw).stdout.splitlines() if line.strip()]


def make_film(seconds):
    """A few minutes of H.264/AAC, made once."""
    folder = os.path.join(ROOT, "build", "demo-library")
    film = os.path.join(folder, f"Porthole test film ({seconds} s).mp4")
    if os.path.exists(film):
        return folder
    os.makedirs(folder, exist_ok=True)
    say(f"making a test film of {seconds} s with ffmpeg (once)")
    temporary = film + ".part.mp4"
    subprocess.run(["ffmpeg", "-v", "error", "-y", "-f", "lavfi", "-i", f"testsrc2=size=1280x720:rate=25:duration={seconds}",
                    "-f", "lavfi", "-i", f"sine=frequency=440:duration={seconds}", "-c:v", "libx264", "-preset", "ultrafast",
                    "-g", "50", "-b:v", "4M", "-maxrate", "6M", "-bufsize", "8M", "-pix_fmt", "yuv420p", "-c:a", "aac",
                    "-metadata", "title=Porthole test film", "-movflags", "+faststart", temporary],
                   check=True, stdin=subprocess.DEVNULL)
    os.rename(temporary, film)
    return folder


def make_certificate(folder):
    """A CA-less certificate for 127.0.0.1, as a household might make it."""
    key, cert = os.path.join(folder, "remote.key"), os.path.join(folder, "remote.pem")
    subprocess.run(["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-keyout", key,
                    "-out", cert, "-days", "30", "-subj", "/CN=localhost", "-addext",
                    "subjectAltName=DNS:localhost,IP:127.0.0.1,IP:::1"], check=True, stderr=subprocess.DEVNULL)
    return key, cert


def sha256(path, first=None, last=None):
    h = hashlib.sha256()
    with open(path, "rb") as f:
        if first is not None:
            f.seek(first)
        left = None if last is None else last - first + 1
        while True:
            block = f.read(1 << 20 if left is None else min(1 << 20, left))
            if not block:
                return h.hexdigest()
            h.update(block)
            if left is not None:
                left -= len(block)


class Demo:
    def __init__(self, options):
        self.options = options
        self.dir = tempfile.mkdtemp(prefix="porthole-demo-")
        os.chmod(self.dir, 0o755)
        # A copy that children without privileges can reach wherever this checkout lies.
        self.porthole = os.path.join(self.dir, "porthole")
        shutil.copy(options.porthole, self.porthole)
        os.chmod(self.porthole, 0o755)
        self.processes = []
        self.table = []

    def path(self, *parts):
        return os.path.join(self.dir, *parts)

    def private_dir(self, name):
        d = self.path(name)
        os.mkdir(d, 0o700)
        if os.getuid() == 0:
            nobody = pwd.getpwnam("nobody")
            os.chown(d, nobody.pw_uid, nobody.pw_gid)
        return d

    def private_file(self, name, text):
        with open(self.path(name), "w") as f:
            f.write(text)
        os.chmod(self.path(name), 0o600)
        if os.getuid() == 0:
            nobody = pwd.getpwnam("nobody")
            os.chown(self.path(name), nobody.pw_uid, nobody.pw_gid)
        return self.path(name)

    def start(self, name, argv):
        p = Process(name, argv, self.dir)
        self.processes.append(p)
        return p

    def row(self, step, path, seconds, byte_count=None):
        rate = f"{byte_count * 8 / seconds / 1e6:8.1f}" if byte_count else "       -"
        self.table.append((step, path, f"{seconds:7.2f}", rate))

    def client(self, *argv, statedir=None):
        return [self.porthole, "client", *argv, "--statedir", statedir or self.path("client"), "--json", "--ca-file", self.path("remote.pem")]

    # ---- steps

    def step_0_services(self):
        key, cert = make_certificate(self.dir)
        os.chmod(cert, 0o644)
        os.chmod(key, 0o644 if os.getuid() == 0 else 0o600)
        for name in ("remote", "serve", "client", "neighbour"):
            self.private_dir(name)
        self.remote = self.start("remote", [self.porthole, "remote", "run", "--statedir", self.path("remote"), "--listen", "127.0.0.1:0",
                                            "--stun-port", "0", "--tls-cert", cert, "--tls-key", key, "--json"])
        self.url = self.remote.wait_event("ready", 10)["url"]
        say(f"coordination service: {self.url}")
        self.tokens = {}
        for account in ("home", "neighbour"):
            made = call_json([self.porthole, "remote", "account", "create", account, "--statedir", self.path("remote"), "--json"])[-1]
            self.tokens[account] = self.private_file(account + ".token", made["token"] + "\n")
        self.password = self.private_file("password", "open sesame\n")
        call([self.porthole, "serve", "set-password", "--statedir", self.path("serve"), "--password-file", self.password])
        argv = [self.porthole, "serve", "--statedir", self.path("serve"), "--library", self.library, "--listen", "127.0.0.1:0",
                "--remote", self.url, "--account-token", "file:" + self.tokens["home"], "--name", "Living room", "--ca-file",
                self.path("remote.pem"), "--json"]
        if self.options.relay_only:
            argv.append("--relay-only")
        self.serve = self.start("serve", argv)
        ready = self.serve.wait_event("ready", 20)
        self.lan_url = ready["url"]
        say(f"media server on the LAN: {self.lan_url}, certificate {ready['fingerprint'][:23]}...")
        joined = self.serve.wait_event("remote", 20, state="running")
        say(f"media server on the tailnet: {joined.get('hostname')} {joined.get('ip')}")

    def step_1_login(self):
        start = time.monotonic()
        argv = self.client("login", self.lan_url, "--password-file", self.password, "--name", "Curtis’s iPad Pro")
        if self.options.relay_only:
            argv.append("--relay-only")
        events = call_json(argv)
        seconds = time.monotonic() - start
        logged_in = next((e for e in events if e.get("event") == "login"), None)
        if not logged_in or not logged_in.get("remote"):
            raise Failed(f"the login brought no remote access: {events}")
        if not any(e.get("event") == "joined" for e in events):
            raise Failed(f"the login did not join the tailnet: {events}")
        self.server = logged_in["id"]
        say(f"step 1: logged in over TLS and WebSocket, remote access to {logged_in.get('remote_hostname')} {logged_in.get('remote_ip')}, "
            "joined the tailnet in the background")
        self.row("login on the LAN, join", "local", seconds)

    def step_2_away(self):
        call([self.porthole, "serve", "lan", "off", "--statedir", self.path("serve")])
        host, port = self.lan_url.split("//")[1].split("/")[0].rsplit(":", 1)
        try:
            socket.create_connection((host.strip("[]"), int(port)), timeout=2).close()
            raise Failed("the LAN listener still answers after the cut")
        except OSError:
            say("step 2: the LAN way is cut (the server's LAN listener is closed)")
        start = time.monotonic()
        argv = self.client("connect", self.server, "--auto")
        if self.options.relay_only:
            argv.append("--relay-only")
        events = call_json(argv)
        seconds = time.monotonic() - start
        local = [e for e in events if e.get("event") == "local_failed"]
        remote = [e for e in events if e.get("event") == "remote_attempt"]
        connected = next((e for e in events if e.get("event") == "connected"), None)
        if not local or not connected:
            raise Failed(f"expected a failed local attempt, then a connection: {events}")
        if len(remote) != 1:
            raise Failed(f"the remote connection took {len(remote)} attempts")
        say(f"        the client says: {local[0]['reason']}")
        say(f"        connected remotely at the first attempt ({connected.get('path')}) after {seconds:.2f} s")
        self.row("connect away", connected.get("path", "remote"), seconds)

    def step_3_film(self):
        start = time.monotonic()
        events = call_json(self.client("ls", self.server, "--remote") + self.relay_flag())
        items = [e for e in events if e.get("event") == "item"]
        playable = [i for i in items if not i["unplayable"] and i["size_bytes"] > 0]
        if not playable:
            raise Failed(f"no film that can be played was found in {self.library} ({len(items)} item(s) listed)")
        say(f"step 3: the library has {len(items)} item(s): " + ", ".join(i["title"] for i in items[:5]))
        path = next((e["path"] for e in events if e.get("event") == "connected" and "path" in e), "remote")
        self.row("list the library", path, time.monotonic() - start)
        item = max(playable, key=lambda i: i["size_bytes"])
        size = item["size_bytes"]
        original = next((p for d, _, names in os.walk(self.library, followlinks=True) if item["file_name"] in names
                         and os.path.getsize(p := os.path.join(d, item["file_name"])) == size), None)
        if not original:
            raise Failed(f"the library has no file {item['file_name']} of {size} bytes, as it is listed")
        say(f"        the largest: {item['title']}, {size / 1e6:.1f} MB")

        self.play = self.start("play", self.client("play", self.server, item["id"], "--listen", "127.0.0.1:0", "--remote") + self.relay_flag())
        playing = self.play.wait_event("playing", 20)
        url = playing["url"]
        say(f"        local playback URL {url}")
        whole, path, seconds = self.fetch(url, None)
        if whole != sha256(original):
            raise Failed("the film that arrived is not the film that was sent")
        say(f"        {size} bytes through WireGuard in {seconds:.2f} s ({size * 8 / seconds / 1e6:.0f} Mbit/s), SHA-256 equal")
        self.row("stream the film", path, seconds, size)
        first = size // 2
        part, path, seconds = self.fetch(url, (first, size - 1))
        if part != sha256(original, first, size - 1):
            raise Failed("the part after the seek is not what the file has there")
        say(f"        seek to the middle: {size - first} bytes in {seconds:.2f} s, SHA-256 equal")
        self.row("seek to the middle", path, seconds, size - first)
        probe = subprocess.run(["ffprobe", "-v", "error", "-show_entries", "format=duration:stream=codec_name", "-of", "json", url],
                               stdout=subprocess.PIPE, stderr=subprocess.PIPE, timeout=60, stdin=subprocess.DEVNULL)
        if probe.returncode != 0:
            raise Failed(f"ffprobe cannot open {url}: {probe.stderr.decode()}")
        info = json.loads(probe.stdout)
        say(f"        ffprobe opens it: {', '.join(s['codec_name'] for s in info['streams'])}, {float(info['format']['duration']):.0f} s")

    def relay_flag(self):
        return ["--relay-only"] if self.options.relay_only else []

    def fetch(self, url, byte_range):
        import urllib.request
        request = urllib.request.Request(url)
        if byte_range:
            request.add_header("Range", f"bytes={byte_range[0]}-{byte_range[1]}")
        start = time.monotonic()
        h = hashlib.sha256()
        with urllib.request.urlopen(request, timeout=60) as answer:
            if byte_range and answer.status != 206:
                raise Failed(f"a range request was answered with {answer.status}")
            while True:
                block = answer.read(1 << 18)
                if not block:
                    break
                h.update(block)
        seconds = time.monotonic() - start
        path = "remote"
        for e in self.play.log:
            if e.get("event") in ("playing", "path"):
                path = e.get("path", path)
        return h.hexdigest(), path, seconds

    def step_4_strangers(self):
        # A device of another account, with a valid key of its own account.
        key = call_json([self.porthole, "remote", "key", "create", "--account", "neighbour", "--statedir", self.path("remote"), "--json"])[-1]["key"]
        key_file = self.private_file("neighbour.key", key + "\n")
        node = self.start("neighbour", [self.porthole, "node", "run", "--statedir", self.path("neighbour"), "--login-server", self.url,
                                        "--auth-key", "file:" + key_file, "--ca-file", self.path("remote.pem"), "--hostname", "neighbour",
                                        "--socks5", "127.0.0.1:0", "--json"])
        proxy = node.wait_event("socks5", 10)
        node.wait_event("running", 10)
        ip = next(e for e in self.serve.log if e.get("event") == "remote" and e.get("ip"))["ip"]
        reply = socks5_connect(proxy, ip, 8443)
        if reply == 0:
            raise Failed("a device of another account reached the server")
        status = call_json([self.porthole, "node", "status", "--statedir", self.path("neighbour"), "--json"])[-1]
        if status["peers"]:
            raise Failed(f"a device of another account sees peers: {status['peers']}")
        say(f"step 4: another account's device sees no peer and cannot reach {ip}:8443 (SOCKS5 reply {reply})")

    def step_4_revocation(self):
        url = next(e for e in self.play.log if e.get("event") == "playing")["url"]
        result = {}
        started = threading.Event()

        def watch():
            try:
                # At the pace of a player, and again from the beginning: it still runs when the device is revoked.
                import urllib.request
                while "how" not in result:
                    with urllib.request.urlopen(url, timeout=60) as answer:
                        total = 0
                        while block := answer.read(65536):
                            total += len(block)
                            started.set()
                            time.sleep(0.02)
                        length = int(answer.headers["Content-Length"])
                        if total != length:
                            result["how"] = f"ended after {total} of {length} bytes"
            except Exception as e:  # the reason is the result
                result["how"] = f"broke: {type(e).__name__}: {e}"
            result["at"] = time.monotonic()

        viewer = threading.Thread(target=watch, daemon=True)
        viewer.start()
        if not started.wait(20):
            raise Failed(f"no stream to watch: {result}")
        devices = call_json([self.porthole, "remote", "devices", "list", "--account", "home", "--statedir", self.path("remote"), "--json"])
        rows = devices[-1].get("devices", devices) if isinstance(devices[-1], dict) and "devices" in devices[-1] else devices
        mine = next(d for d in rows if "ipad" in json.dumps(d).lower())
        revoked_at = time.monotonic()
        call([self.porthole, "remote", "devices", "revoke", str(mine.get("id") or mine.get("device")), "--statedir", self.path("remote")])
        name = mine["name"]
        while name in self.peers_of_the_server():
            if time.monotonic() - revoked_at > 5:
                raise Failed(f"the server's node still knows {name} 5 s after the revocation")
        dropped = time.monotonic() - revoked_at
        viewer.join(20)
        if viewer.is_alive():
            raise Failed("the stream still runs 20 s after the revocation")
        seconds = result["at"] - revoked_at
        if seconds > 5:
            raise Failed(f"the stream ended only {seconds:.1f} s after the revocation")
        say(f"        device revoked: the server's node dropped it within {dropped:.2f} s, the running stream {result['how']} after {seconds:.2f} s")
        self.row("revoke, node drops it", "-", dropped)
        self.row("revoke, stream ends", "-", seconds)
        words = self.play.wait_event("problem", 15)
        say(f"        the client says: {words.get('reason')}")
        self.play.p.terminate()
        self.play.p.wait(5)
        self.processes.remove(self.play)
        again = call(self.client("connect", self.server, "--remote") + self.relay_flag(), check=False, seconds=60)
        if again.returncode == 0:
            raise Failed("the revoked device connected again")
        say(f"        rejoining fails: {again.stderr.decode().strip()}")

    def peers_of_the_server(self):
        status = call_json([self.porthole, "node", "status", "--statedir", self.path("serve", "tailnet", "node"), "--json"])[-1]
        return [p["name"] for p in status["peers"]]

    # ---- whole

    def run(self):
        self.library = self.options.folder or make_film(180)
        if call(["test", "-r", self.library, "-a", "-x", self.library], check=False).returncode != 0:
            who = "the user nobody, whom the demo's processes run as when root starts it," if as_nobody() else "this user"
            raise Failed(f"{who} cannot read {self.library}")
        self.step_0_services()
        self.step_1_login()
        self.step_2_away()
        self.step_3_film()
        self.step_4_strangers()
        if self.options.keep:
            self.keep()
        else:
            self.step_4_revocation()

    def keep(self):
        say("        revocation is left out, so that everything can go on")
        # `play` has the tailnet to itself; other commands take the LAN.
        call([self.porthole, "serve", "lan", "on", "--statedir", self.path("serve")])
        print(f"\nEverything keeps running until Ctrl-C. Try:\n"
              f"  mpv '{next(e for e in self.play.log if e.get('event') == 'playing')['url']}'   (or VLC, or a browser)\n"
              f"  {self.porthole} client ls {self.server} --local --statedir {self.path('client')} --ca-file {self.path('remote.pem')}\n"
              f"  {self.porthole} remote devices list --statedir {self.path('remote')}\n", flush=True)
        try:
            signal.pause()
        except Interrupted:
            pass

    def finish(self, ok):
        trouble = []
        for p in reversed(self.processes):
            try:
                p.stop()
            except Failed as e:
                trouble.append(str(e))
        if self.table:
            print(f"\n{'step':28} {'path':8} {'time s':>7} {'Mbit/s':>8}")
            for step, path, seconds, rate in self.table:
                print(f"{step:28} {path:8} {seconds:>7} {rate:>8}")
        for t in trouble:
            print("FAILED: " + t)
        if (ok and not trouble) or not self.processes:
            shutil.rmtree(self.dir, ignore_errors=True)
        else:
            print(f"logs and state are kept in {self.dir}")
        return ok and not trouble


def socks5_connect(proxy, host, port):
    """The reply code of a CONNECT through the proxy."""
    address, proxy_port = proxy["address"].rsplit(":", 1)
    s = socket.create_connection((address, int(proxy_port)), timeout=20)
    s.settimeout(60)
    s.sendall(b"\x05\x01\x02")
    s.recv(2)
    user, password = proxy["username"].encode(), proxy["password"].encode()
    s.sendall(bytes([1, len(user)]) + user + bytes([len(password)]) + password)
    if s.recv(2)[1] != 0:
        raise Failed("the proxy refused its own credential")
    s.sendall(b"\x05\x01\x00\x03" + bytes([len(host)]) + host.encode() + port.to_bytes(2, "big"))
    answer = s.recv(10)
    s.close()
    return answer[1]


def main():
    parser = argparse.ArgumentParser(prog="./run demo", description=__doc__)
    parser.add_argument("folder", nargs="?", help="your own films instead of the test film")
    parser.add_argument("--relay-only", action="store_true", help="never use a direct path")
    parser.add_argument("--keep", action="store_true", help="leave everything running and say how to use it")
    parser.add_argument("--porthole", required=True, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.folder:
        options.folder = os.path.abspath(os.path.join(os.environ.get("PORTHOLE_CALLER", ""), options.folder))
        if not os.path.isdir(options.folder):
            parser.error(f"{options.folder} is not a folder")
    # Also when a shell that started this in the background has told it to ignore Ctrl-C.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, interrupted)
    demo = Demo(options)
    ok = False
    try:
        demo.run()
        ok = True
    except Failed as e:
        say(f"FAILED: {e}")
    except Interrupted:
        say("interrupted")
    finally:
        good = demo.finish(ok)
    if good:
        print("\nAll of it held" + (", but for the revocation, which was left out." if options.keep else "."))
    sys.exit(0 if good else 1)


if __name__ == "__main__":
    main()
