#!/usr/bin/env python3
"""A film crosses two NATs.

  inet namespace: coordination service (192.0.2.1), bridge
  natS / natC:    routers with nftables masquerade
  home:           media server (10.77.1.2) behind natS; the client logs in here first, as a guest of the LAN
  away:           the client (10.77.2.2) behind natC

Holds: the film arrives whole and the path ends up direct; with UDP blocked at the client's router it arrives through the
relay. Exit 77 with the reason when namespaces cannot be made.
"""
import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time

BUILD = os.path.abspath(sys.argv[1])
PORTHOLE = os.path.join(BUILD, "porthole")
TAG = str(os.getpid())
NAMES = {n: f"ph{n}{TAG}" for n in ("inet", "natS", "natC", "home", "away")}
PROCESSES = []


def skip(why):
    print(why)
    sys.exit(77)


def run(argv, check=True, text=None, **kw):
    p = subprocess.run(argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE, input=(text or "").encode(), **kw)
    if check and p.returncode != 0:
        raise RuntimeError(f"{' '.join(argv)}: {p.stderr.decode(errors='replace').strip()}")
    return p.stdout.decode()


def inside(namespace, argv):
    return ["ip", "netns", "exec", NAMES[namespace]] + argv


def veth(a, b, ip_a, ip_b, name):
    run(["ip", "-n", NAMES[a], "link", "add", name + "a", "type", "veth", "peer", "name", name + "b", "netns", NAMES[b]])
    for ns, dev, ip in ((a, name + "a", ip_a), (b, name + "b", ip_b)):
        if ip:
            run(["ip", "-n", NAMES[ns], "addr", "add", ip + "/24", "dev", dev])
        run(["ip", "-n", NAMES[ns], "link", "set", dev, "up"])


def topology():
    for n in NAMES.values():
        run(["ip", "netns", "add", n])
        run(["ip", "-n", n, "link", "set", "lo", "up"])
    run(["ip", "-n", NAMES["inet"], "link", "add", "br0", "type", "bridge"])
    run(["ip", "-n", NAMES["inet"], "addr", "add", "192.0.2.1/24", "dev", "br0"])
    run(["ip", "-n", NAMES["inet"], "link", "set", "br0", "up"])
    for nat, wan, inner, lan, host, link in (("natS", "192.0.2.11", "home", "10.77.1.1", "10.77.1.2", "s"), ("natC", "192.0.2.12", "away", "10.77.2.1", "10.77.2.2", "c")):
        veth("inet", nat, None, wan, "w" + link)
        run(["ip", "-n", NAMES["inet"], "link", "set", "w" + link + "a", "master", "br0"])
        veth(nat, inner, lan, host, "l" + link)
        run(["ip", "-n", NAMES[inner], "route", "add", "default", "via", lan])
        run(inside(nat, ["sysctl", "-qw", "net.ipv4.ip_forward=1"]))
        rules = f"""
            table ip nat {{
              chain post {{
                type nat hook postrouting priority 100; policy accept;
                oifname "w{link}b" masquerade
              }}
            }}
            table ip filter {{
              chain through {{
                type filter hook forward priority 0; policy drop;
                ct state established,related accept
                iifname "l{link}a" accept
              }}
              # As home routers do. Without it an early ping of the other side would be answered by the router itself, and
              # leave a connection-tracking entry that takes the port that our own ping wants.
              chain inward {{
                type filter hook input priority 0; policy drop;
                ct state established,related accept
                iifname "l{link}a" accept
              }}
            }}
            """
        run(inside(nat, ["nft", "-f", "-"]), text=rules)


class Process:
    def __init__(self, namespace, argv):
        self.errors = tempfile.TemporaryFile()
        self.p = subprocess.Popen(inside(namespace, argv), stdout=subprocess.PIPE, stderr=self.errors, stdin=subprocess.DEVNULL)
        PROCESSES.append(self)

    def event(self, kind, **wanted):
        for line in self.p.stdout:
            try:
                e = json.loads(line)
            except ValueError:
                continue
            if e.get("event") == kind and all(e.get(k) == v for k, v in wanted.items()):
                return e
        self.errors.seek(0)
        raise RuntimeError(f"ended before '{kind}': " + self.errors.read().decode(errors="replace")[-400:])

    def stop(self):
        if self.p.poll() is None:
            self.p.send_signal(signal.SIGTERM)
            try:
                self.p.wait(10)
            except subprocess.TimeoutExpired:
                self.p.kill()


def last_json(text):
    return [json.loads(line) for line in text.splitlines() if line.startswith("{")]


def sha256(path):
    h = hashlib.sha256()
    with open(path, "rb") as f:
        for block in iter(lambda: f.read(1 << 20), b""):
            h.update(block)
    return h.hexdigest()


def scenario(work):
    library = os.path.join(work, "library")
    os.mkdir(library)
    film = os.path.join(library, "Film.mp4")
    run(["ffmpeg", "-v", "error", "-y", "-f", "lavfi", "-i", "testsrc2=size=640x360:rate=25:duration=30", "-f", "lavfi", "-i", "sine=duration=30",
         "-c:v", "libx264", "-preset", "ultrafast", "-b:v", "4M", "-minrate", "4M", "-c:a", "aac", film])
    remote = Process("inet", [PORTHOLE, "remote", "run", "--statedir", work + "/remote", "--listen", "192.0.2.1:0", "--json"])
    url = remote.event("ready")["url"]
    account = last_json(run([PORTHOLE, "remote", "account", "create", "home", "--statedir", work + "/remote", "--json"]))[-1]
    with open(work + "/token", "w") as f:
        f.write(account["token"] + "\n")
    with open(work + "/password", "w") as f:
        f.write("open sesame\n")
    os.chmod(work + "/password", 0o600)
    run([PORTHOLE, "serve", "set-password", "--statedir", work + "/serve", "--password-file", work + "/password"])
    serve = Process("home", [PORTHOLE, "serve", "--statedir", work + "/serve", "--library", library, "--listen", "10.77.1.2:0", "--remote", url,
                             "--account-token", "file:" + work + "/token", "--json"])
    lan = serve.event("ready")["url"]
    serve.event("remote", state="running")
    client = ["--statedir", work + "/client", "--json"]
    login = last_json(run(inside("home", [PORTHOLE, "client", "login", lan, "--password-file", work + "/password", *client])))
    server = next(e for e in login if e.get("event") == "login")["id"]
    items = [e for e in last_json(run(inside("away", [PORTHOLE, "client", "ls", server, "--remote", *client]))) if e.get("event") == "item"]
    wanted = sha256(film)

    def watch(expected_path):
        play = Process("away", [PORTHOLE, "client", "play", server, items[0]["id"], "--listen", "127.0.0.1:0", "--remote", *client])
        playing = play.event("playing")
        out = os.path.join(work, "film-" + expected_path)
        paths = [playing["path"]]
        # A direct path is found while traffic flows: watch the film again until the path is the expected one.
        for _ in range(20):
            run(inside("away", ["curl", "-sS", "--fail", "--max-time", "60", "-o", out, playing["url"]]))
            if sha256(out) != wanted:
                raise RuntimeError("the film that came is not the film")
            status = last_json(run([PORTHOLE, "node", "status", "--statedir", node_dir(work + "/client"), "--json"]))[-1]
            paths.append(next(p["path"] for p in status["peers"]))
            if paths[-1] == expected_path:
                break
        play.stop()
        if paths[-1] != expected_path:
            raise RuntimeError(f"expected the path to end up {expected_path}, it was {paths}; {status}")
        print(f"{expected_path}: {os.path.getsize(out)} bytes, intact; paths seen {paths}", flush=True)

    watch("direct")
    run(inside("natC", ["nft", "insert", "rule", "ip", "filter", "through", "meta", "l4proto", "udp", "drop"]))
    watch("relay")


def node_dir(client_dir):
    """The folder of the client's node: the one with its control socket."""
    for folder, _, names in os.walk(client_dir):
        if "node.sock" in names:
            return folder
    raise RuntimeError("the client runs no node")


def main():
    if os.getuid() != 0:
        skip("needs root for network namespaces")
    for tool in ("ip", "nft", "ffmpeg"):
        if not shutil.which(tool):
            skip(f"needs {tool}")
    if not os.path.exists(PORTHOLE):
        skip("the porthole program was not built")
    try:
        run(["ip", "netns", "add", "phtry" + TAG])
        run(["ip", "netns", "del", "phtry" + TAG])
    except RuntimeError as e:
        skip(f"network namespaces are not to be had here: {e}")
    work = tempfile.mkdtemp(prefix="porthole-netlab-")
    ok = False
    try:
        topology()
        scenario(work)
        ok = True
    finally:
        for p in reversed(PROCESSES):
            p.stop()
            if not ok:
                p.errors.seek(0)
                sys.stdout.write(p.errors.read().decode(errors="replace")[-2000:])
        for n in NAMES.values():
            subprocess.run(["ip", "netns", "del", n], stderr=subprocess.DEVNULL)
        shutil.rmtree(work, ignore_errors=True)


if __name__ == "__main__":
    main()
