"""Programs that people have, each through our loopback proxy to a service on a Go peer."""
import http.server
import select
import subprocess
import sys
import urllib.parse

from tailnet import *

ROW = "programs through the loopback proxy"
WEB, SSH = 8080, 2222
BLOB = hashlib.shake_256(b"a page").digest(700_000)


class Web(http.server.BaseHTTPRequestHandler):
    """/blob, /page (HTML that shows the Host it was asked for), /headers (what arrived), POST /sum (SHA-256 of the body),
    /clip.ts (a film, with ranges), /git/... (git's own HTTP backend)."""
    protocol_version = "HTTP/1.1"
    root = None

    def log_message(self, *_):
        pass

    def answer(self, body, kind="text/plain", status=200, **headers):
        self.send_response(status)
        for name, value in {"Content-Type": kind, "Content-Length": str(len(body)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def body(self):
        if "chunked" in self.headers.get("Transfer-Encoding", ""):
            out = b""
            while size := int(self.rfile.readline().split(b";")[0], 16):
                out += self.rfile.read(size)
                self.rfile.readline()
            self.rfile.readline()
            return out
        return self.rfile.read(int(self.headers.get("Content-Length", 0)))

    def do_GET(self):
        path = urllib.parse.urlsplit(self.path).path
        if path.startswith("/git/"):
            return self.git(b"")
        if path == "/blob":
            return self.answer(BLOB, "application/octet-stream")
        if path == "/page":
            return self.answer(f"<html><title>t</title><body>page for {self.headers['Host']}</body></html>".encode(), "text/html")
        if path == "/headers":
            return self.answer(json.dumps([self.requestline, *self.headers.items()]).encode())
        if path == "/clip.ts":
            with open(os.path.join(self.root, "clip.ts"), "rb") as f:
                film = f.read()
            ranged = re.match(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
            if not ranged:
                return self.answer(film, "video/mp2t", **{"Accept-Ranges": "bytes"})
            first, last = int(ranged[1]), min(int(ranged[2] or len(film) - 1), len(film) - 1)
            return self.answer(film[first:last + 1], "video/mp2t", 206, **{"Content-Range": f"bytes {first}-{last}/{len(film)}"})
        self.answer(b"no such page", status=404)

    do_HEAD = do_GET

    def do_POST(self):
        body = self.body()
        if self.path.startswith("/git/"):
            return self.git(body)
        self.answer(hashlib.sha256(body).hexdigest().encode())

    def git(self, body):
        url = urllib.parse.urlsplit(self.path)
        env = {**os.environ, "GIT_PROJECT_ROOT": os.path.join(self.root, "repos"), "GIT_HTTP_EXPORT_ALL": "1", "PATH_INFO": url.path[len("/git"):],
               "QUERY_STRING": url.query, "REQUEST_METHOD": self.command, "CONTENT_TYPE": self.headers.get("Content-Type", ""),
               "HTTP_CONTENT_ENCODING": self.headers.get("Content-Encoding", ""), "CONTENT_LENGTH": str(len(body)), "REMOTE_USER": "t",
               "REMOTE_ADDR": "127.0.0.1"}
        out = subprocess.run(["git", "-c", "safe.directory=*", "http-backend"], input=body, stdout=subprocess.PIPE, env=env).stdout
        head, _, rest = out.partition(b"\r\n\r\n")
        fields = dict(line.split(": ", 1) for line in head.decode().split("\r\n") if line)
        status = int(fields.pop("Status", "200").split()[0])
        self.answer(rest, fields.pop("Content-Type", "text/plain"), status, **fields)


class World:
    """A Go peer with services, and our node with its proxy; made once."""
    made = None

    @classmethod
    def get(cls):
        if not cls.made:
            cls.made = cls()
        return cls.made

    def __init__(self):
        self.t = Tailnet("headscale-0.29").__enter__()
        try:
            t = self.t
            self.go = t.tsnet("go", "-expose", f"{WEB}=127.0.0.1:{WEB}", "-expose", f"{SSH}=127.0.0.1:{SSH}")
            Web.root = t.path()
            with inside(self.go.space):
                self.web = http.server.ThreadingHTTPServer(("127.0.0.1", WEB), Web)
            threading.Thread(target=self.web.serve_forever, daemon=True).start()
            self.ours = t.ours("film")
            self.host, self.port, self.user, self.word = self.ours.socks
            self.at = f"{self.host}:{self.port}"
            wait_for(lambda: self.ours.reachable(self.go), 20, "the Go peer is reached")
        except BaseException:
            self.t.__exit__(*sys.exc_info())
            raise

    def url(self, scheme, word=None):
        return f"{scheme}://{self.user}:{word or self.word}@{self.at}"

    def run(self, *argv, **how):
        """A program beside our node."""
        return sh(*Net.inside(self.ours.space, *argv), **how)

    def try_run(self, *argv, seconds=30, **how):
        """(status, stdout and stderr)"""
        how.setdefault("stdin", subprocess.DEVNULL)
        r = subprocess.run(Net.inside(self.ours.space, *argv), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace",
                           timeout=seconds, **how)
        return r.returncode, r.stdout


def test_curl():
    """curl: socks5, socks5h, an HTTP proxy for http:// URLs and for tunnels; names are resolved inside the tailnet, a wrong credential is refused"""
    w = World.get()
    curl = [program("curl"), "-sS", "--noproxy", "", "-m", "20"]
    out = w.t.path("blob")
    for scheme in ("socks5h", "http"):
        for host in ("go", w.go.fqdn, w.go.v4, f"[{w.go.v6}]"):
            w.run(*curl, "-x", w.url(scheme), "-o", out, f"http://{host}:{WEB}/blob")
            with open(out, "rb") as f:
                check(f.read() == BLOB, f"{scheme} {host}: other bytes")
    for host in (w.go.v4, f"[{w.go.v6}]"):
        w.run(*curl, "-x", w.url("socks5"), "-o", out, f"http://{host}:{WEB}/blob")
    status, text = w.try_run(*curl, "-x", w.url("socks5"), f"http://go:{WEB}/blob")
    check(status in (5, 6, 97), f"with socks5 curl resolves by itself, and no such name exists: {status} {text[-200:]}")
    w.run(*curl, "-p", "-x", w.url("http"), "-o", out, f"http://go:{WEB}/blob")
    # What the server sees of a plain request: nothing of the proxy's.
    seen = json.loads(w.run(*curl, "-x", w.url("http"), "-H", "X-Mine: 1", f"http://go:{WEB}/headers?x=1"))
    names = {name.lower(): value for name, value in seen[1:]}
    check(seen[0] == "GET /headers?x=1 HTTP/1.1" and names["host"] == f"go:{WEB}" and names["x-mine"] == "1", f"{seen}")
    check(not any(n.startswith("proxy-") for n in names) and w.word not in str(seen), f"the proxy's own headers reach the server: {seen}")
    head = w.run(*curl, "-i", "-x", w.url("http"), f"http://go:{WEB}/page").lower()
    check("\nconnection: close" in head, f"the client is not told that the connection ends: {head}")
    # Bodies, with a length and in chunks (and curl waits for 100 Continue).
    body = w.t.path("body")
    with open(body, "wb") as f:
        f.write(BLOB * 3)
    digest = hashlib.sha256(BLOB * 3).hexdigest()
    for scheme in ("socks5h", "http"):
        for extra in ([], ["-H", "Transfer-Encoding: chunked"]):
            got = w.run(*curl, "-x", w.url(scheme), "--data-binary", "@" + body, *extra, f"http://go:{WEB}/sum")
            check(got == digest, f"{scheme} {extra}: the body arrives changed: {got}")
    # Two URLs in one command: connections are not mixed up.
    two = w.run(*curl, "-x", w.url("http"), f"http://go:{WEB}/page", f"http://{w.go.v4}:{WEB}/page")
    check(f"page for go:{WEB}" in two and f"page for {w.go.v4}:{WEB}" in two, two)
    # Refusals.
    for scheme, wanted in (("socks5h", 97), ("http", 22)):
        for proxy in (w.url(scheme, "wrong"), f"{scheme}://{w.at}"):
            status, text = w.try_run(*curl, "-f", "-x", proxy, f"http://go:{WEB}/blob")
            check(status in (wanted, 97), f"{scheme} without the right credential: status {status} {text[-200:]}")
    code = w.run(*curl, "-o", "/dev/null", "-w", "%{http_code}", "-x", w.url("http", "wrong"), f"http://go:{WEB}/blob")
    check(code == "407", f"a wrong credential is answered with {code}")
    code = w.run(*curl, "-o", "/dev/null", "-w", "%{http_code}", "-x", w.url("http"), f"http://go:{WEB + 1}/")
    check(code == "502", f"a closed port is answered with {code}")
    status, text = w.try_run(*curl, "-x", w.url("socks5h"), "http://no-such-device/")
    check(status == 97, f"an unknown name: {status} {text[-200:]}")


def sshd():
    w = World.get()
    if hasattr(w, "sshd"):
        return w.ssh
    server = program("sshd", "openssh-server") if shutil.which("sshd") else "/usr/sbin/sshd"
    if not os.path.exists(server):
        raise Skipped("sshd is not installed (Debian package openssh-server)")
    d = w.t.path("ssh")
    os.mkdir(d, 0o700)
    os.makedirs("/run/sshd", exist_ok=True)
    for name in ("host", "user"):
        sh("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", f"{d}/{name}")
    with open(f"{d}/config", "w") as f:
        f.write(f"Port {SSH}\nListenAddress 127.0.0.1\nHostKey {d}/host\nAuthorizedKeysFile {d}/user.pub\nStrictModes no\nUsePAM no\nPidFile none\n"
                "PasswordAuthentication no\nPermitRootLogin yes\n")
    with open(f"{d}/host.pub") as f, open(f"{d}/known", "w") as known:
        known.write(f"[go]:{SSH} {f.read()}")
    w.sshd = Background(Net.inside(w.go.space, server, "-D", "-e", "-f", f"{d}/config"), w.t.dir, "sshd")
    w.ssh = [program("ssh", "openssh-client"), "-F", "/dev/null", "-p", str(SSH), "-i", f"{d}/user", "-o", f"UserKnownHostsFile={d}/known",
             "-o", "BatchMode=yes", "-o", "ConnectTimeout=15", "root@go"]
    return w.ssh


def ssh_works(command, what):
    """Logs in through the proxy command, with bytes both ways."""
    w = World.get()
    argv = [*sshd()[:-1], "-o", "ProxyCommand=" + command, "root@go", "wc -c; printf done"]
    body = w.t.path("ssh-body")
    with open(body, "wb") as f:
        f.write(BLOB)
    with open(body, "rb") as f:
        out = w.run(*argv, stdin=f, seconds=40)
    check(out.split() == [str(len(BLOB)), "done"], f"{what}: {out!r}")


def test_ssh_with_ncat():
    """ssh through ncat, which speaks SOCKS5 and HTTP with a credential; a wrong one is refused"""
    w = World.get()
    ncat = program("ncat", "ncat")
    for kind in ("socks5", "http"):
        command = f"{ncat} --proxy {w.at} --proxy-type {kind} --proxy-dns remote --proxy-auth {w.user}:%s %%h %%p"
        ssh_works(command % w.word, f"ssh over {kind}")
        status, text = w.try_run(*sshd()[:-1], "-o", "ProxyCommand=" + command % "wrong", "root@go", "true")
        check(status == 255, f"{kind}: a wrong credential opens the way: {status} {text[-200:]}")


def test_ssh_with_nc():
    """ssh through OpenBSD's nc: its SOCKS5 cannot send a credential and is refused; with -X connect it asks for the password"""
    w = World.get()
    nc = program("nc.openbsd", "netcat-openbsd")
    status, text = w.try_run(*sshd()[:-1], "-o", f"ProxyCommand={nc} -X 5 -x {w.at} %h %p", "root@go", "true")
    check(status == 255, f"nc without a credential gets through: {status} {text[-200:]}")
    # A person types the password; here, a pseudo-terminal.
    import pty
    leader, follower = pty.openpty()
    p = subprocess.Popen(Net.inside(w.ours.space, "setsid", "--ctty", *sshd()[:-1], "-o", f"ProxyCommand={nc} -X connect -x {w.at} -P {w.user} %h %p",
                                    "root@go", "echo through"), stdin=follower, stdout=subprocess.PIPE, stderr=follower, close_fds=True)
    os.close(follower)
    try:
        asked = b""
        end = time.monotonic() + 20
        while b"assword" not in asked and time.monotonic() < end:
            if select.select([leader], [], [], 0.2)[0]:
                asked += os.read(leader, 4096)
        check(b"assword" in asked, f"nc asks for no password: {asked!r}")
        os.write(leader, w.word.encode() + b"\n")
        out = p.communicate(timeout=20)[0]
        check(out.strip() == b"through", f"{out!r}")
    finally:
        p.kill()
        p.wait()
        os.close(leader)
    return "nc -X 5 cannot send a credential: use -X connect -P USER, ncat, or porthole node nc"


def test_ssh_with_porthole_node_nc():
    """ssh through `porthole node nc`, which needs no proxy and no password"""
    w = World.get()
    if "nc" not in re.findall(r"^  (\w+)", w.run(os.path.join(BUILD, "porthole"), "node", "--help"), re.M):
        raise Skipped("this build has no `porthole node nc`")
    ssh_works(f"{os.path.join(BUILD, 'porthole')} node nc --statedir {w.ours.dir} %h %p", "ssh over porthole node nc")


def test_git():
    """git clones and pushes over HTTP through the proxy, as SOCKS5 and as HTTP proxy; a wrong credential is refused"""
    w = World.get()
    git = program("git")
    d = w.t.path("git")
    os.mkdir(d)
    bare = w.t.path("repos", "film.git")
    env = {**os.environ, "HOME": d, "GIT_CONFIG_NOSYSTEM": "1", "GIT_TERMINAL_PROMPT": "0", "GIT_AUTHOR_NAME": "t", "GIT_AUTHOR_EMAIL": "t@t",
           "GIT_COMMITTER_NAME": "t", "GIT_COMMITTER_EMAIL": "t@t", "NO_PROXY": "", "no_proxy": ""}
    sh(git, "init", "-q", "--bare", bare)
    sh(git, "-C", bare, "config", "http.receivepack", "true")
    for i, scheme in enumerate(("socks5h", "http")):
        clone = os.path.join(d, scheme)
        proxy = "http.proxy=" + w.url(scheme)
        w.run(git, "-c", proxy, "clone", "-q", f"http://go:{WEB}/git/film.git", clone, env=env)
        with open(os.path.join(clone, f"file{i}"), "wb") as f:
            f.write(hashlib.shake_256(bytes([i])).digest(3_000_000))
        sh(git, "-C", clone, "add", ".", env=env)
        sh(git, "-C", clone, "commit", "-qm", scheme, env=env)
        w.run(git, "-C", clone, "-c", proxy, "push", "-q", "origin", "HEAD:refs/heads/main", env=env)
        head = sh(git, "-C", clone, "rev-parse", "HEAD").strip()
        check(sh(git, "-C", bare, "rev-parse", "main").strip() == head, "the push arrives")
        sh(git, "-C", bare, "symbolic-ref", "HEAD", "refs/heads/main")
        status, text = w.try_run(git, "-c", "http.proxy=" + w.url(scheme, "wrong"), "ls-remote", f"http://go:{WEB}/git/film.git", env=env)
        check(status != 0, f"{scheme}: a wrong credential works: {text[-200:]}")
    check(sh(git, "-C", bare, "rev-list", "--count", "main").strip() == "2", "the second clone had what the first pushed")


def test_pysocks():
    """PySocks: SOCKS5 with names resolved remotely, and HTTP CONNECT; a wrong credential is refused"""
    w = World.get()
    python = "/usr/bin/python3"
    if subprocess.run([python, "-c", "import socks"], stderr=subprocess.DEVNULL).returncode != 0:
        raise Skipped("PySocks is not installed (Debian package python3-socks)")
    script = """
import socks, sys
kind, host, port, user, word, to, to_port = sys.argv[1:]
s = socks.socksocket()
s.set_proxy(socks.SOCKS5 if kind == "socks5" else socks.HTTP, host, int(port), True, user, word)
s.settimeout(20)
s.connect((to, int(to_port)))
s.sendall(b"WHO\\n")
print(s.recv(100).decode().strip())
"""
    for kind in ("socks5", "http"):
        for host in ("go", w.go.fqdn, w.go.v4):
            out = w.run(python, "-c", script, kind, w.host, w.port, w.user, w.word, host, BLOBS)
            check(out.strip() == "go", f"{kind} {host}: {out!r}")
        status, text = w.try_run(python, "-c", script, kind, w.host, str(w.port), w.user, "wrong", "go", str(BLOBS))
        check(status != 0, f"{kind}: a wrong credential works: {text[-200:]}")


def test_pysocks_udp():
    """PySocks: datagrams over SOCKS5 (UDP ASSOCIATE) to names and addresses, with answers of whom was asked; a wrong credential is refused"""
    w = World.get()
    python = "/usr/bin/python3"
    if subprocess.run([python, "-c", "import socks"], stderr=subprocess.DEVNULL).returncode != 0:
        raise Skipped("PySocks is not installed (Debian package python3-socks)")
    script = """
import socket, socks, sys
host, port, user, word, to_port, *targets = sys.argv[1:]
s = socks.socksocket(socket.AF_INET, socket.SOCK_DGRAM)
s.set_proxy(socks.SOCKS5, host, int(port), True, user, word)
s.settimeout(5)
for to in targets:
    for size in (1, 500, 1232):
        data = bytes([size % 251]) * size
        for attempt in range(4):
            s.sendto(data, (to, int(to_port)))
            try:
                got = s.recvfrom(2000)
                break
            except socket.timeout:
                pass
        source = got[1][0].decode() if isinstance(got[1][0], bytes) else got[1][0]
        assert got[0] == data and (source, got[1][1]) == (to, int(to_port)), (to, size, got)
    print(to)
"""
    targets = ["go", w.go.fqdn, w.go.v4, w.go.v6]
    out = w.run(python, "-c", script, w.host, w.port, w.user, w.word, ECHO_UDP, *targets)
    check(out.split() == targets, f"{out!r}")
    status, text = w.try_run(python, "-c", script, w.host, str(w.port), w.user, "wrong", str(ECHO_UDP), "go")
    check(status != 0 and "SOCKS5Auth" in text, f"a wrong credential: {text[-200:]}")


def test_ffmpeg():
    """ffmpeg plays http:// URLs through the proxy (-http_proxy with the credential) and seeks; a wrong one is refused"""
    w = World.get()
    ffmpeg, ffprobe = program("ffmpeg", "ffmpeg"), program("ffprobe", "ffmpeg")
    sh(ffmpeg, "-v", "error", "-f", "lavfi", "-i", "testsrc=duration=20:size=320x180:rate=25", "-c:v", "mpeg2video", "-b:v", "2M", w.t.path("clip.ts"))
    url = f"http://go:{WEB}/clip.ts"
    found = w.run(ffprobe, "-v", "error", "-http_proxy", w.url("http"), "-show_entries", "format=duration", "-of", "csv=p=0", url)
    check(abs(float(found) - 20) < 1, f"duration {found}")
    frames = w.run(ffmpeg, "-v", "error", "-http_proxy", w.url("http"), "-ss", "12", "-i", url, "-f", "framemd5", "-")
    check(len([line for line in frames.splitlines() if not line.startswith("#")]) > 150, "seeking into the film")
    frames = w.run(ffmpeg, "-v", "error", "-i", url, "-t", "1", "-f", "framemd5", "-", env={**os.environ, "http_proxy": w.url("http"), "no_proxy": ""})
    check(len(frames.splitlines()) > 25, "by the environment's http_proxy")
    status, text = w.try_run(ffprobe, "-v", "error", "-http_proxy", w.url("http", "wrong"), url)
    check(status != 0 and "4XX" in text, f"a wrong credential: {status} {text[-300:]}")


class Browser:
    """Chromium, driven over its debugging pipe; answers the proxy's question for a password as a person would."""

    def __init__(self, space, chromium, folder, proxy, user, word):
        self.user, self.word, self.asked = user, word, 0
        to_browser, from_browser = os.pipe(), os.pipe()
        self.write_fd, self.read_fd = to_browser[1], from_browser[0]

        def fds():
            # Chromium reads commands at 3 and answers at 4.
            a, b = os.dup2(to_browser[0], 20), os.dup2(from_browser[1], 21)
            os.dup2(a, 3)
            os.dup2(b, 4)
        argv = Net.inside(space, chromium, "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run",
                          "--disable-background-networking", "--disable-component-update", f"--user-data-dir={folder}", f"--proxy-server={proxy}",
                          "--proxy-bypass-list=<-loopback>", "--remote-debugging-pipe", "about:blank")
        self.p = subprocess.Popen(argv, preexec_fn=fds, close_fds=False, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        os.close(to_browser[0])
        os.close(from_browser[1])
        self.buffer, self.number, self.session = b"", 0, None
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self.session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        self.call("Page.enable")
        self.call("Fetch.enable", handleAuthRequests=True)

    def send(self, method, **params):
        self.number += 1
        message = {"id": self.number, "method": method, "params": params}
        if self.session:
            message["sessionId"] = self.session
        os.write(self.write_fd, json.dumps(message).encode() + b"\0")
        return self.number

    def receive(self, seconds=20):
        end = time.monotonic() + seconds
        while b"\0" not in self.buffer:
            if not select.select([self.read_fd], [], [], max(0, end - time.monotonic()))[0]:
                raise Failed("the browser says nothing")
            block = os.read(self.read_fd, 1 << 16)
            if not block:
                raise Failed("the browser ended")
            self.buffer += block
        text, self.buffer = self.buffer.split(b"\0", 1)
        message = json.loads(text)
        if message.get("method") == "Fetch.requestPaused":
            self.send("Fetch.continueRequest", requestId=message["params"]["requestId"])
        if message.get("method") == "Fetch.authRequired":
            check(message["params"]["authChallenge"].get("source") == "Proxy", f"{message}")
            self.asked += 1
            answer = {"response": "CancelAuth"} if self.asked > 3 else {"response": "ProvideCredentials", "username": self.user, "password": self.word}
            self.send("Fetch.continueWithAuth", requestId=message["params"]["requestId"], authChallengeResponse=answer)
        return message

    def call(self, method, **params):
        number = self.send(method, **params)
        while True:
            message = self.receive()
            if message.get("id") == number:
                check("error" not in message, f"{method}: {message.get('error')}")
                return message["result"]

    def open(self, url):
        """(error text, what the page shows)"""
        number = self.send("Page.navigate", url=url)
        answer, loaded = None, False
        while answer is None or not (loaded or "errorText" in answer):
            message = self.receive()
            if message.get("id") == number:
                answer = message.get("result", {})
            loaded = loaded or message.get("method") == "Page.loadEventFired"
        text = self.call("Runtime.evaluate", expression="document.body.innerText")["result"].get("value", "")
        return answer.get("errorText", ""), text

    def close(self):
        self.p.terminate()
        try:
            self.p.wait(10)
        except subprocess.TimeoutExpired:
            self.p.kill()
            self.p.wait()
        os.close(self.write_fd)
        os.close(self.read_fd)


def test_chromium():
    """Chromium with --proxy-server=http://: asks for the credential once, opens pages by tailnet name; a wrong one is refused, and so is SOCKS5"""
    w = World.get()
    chromium = program("chromium", "chromium")
    browser = Browser(w.ours.space, chromium, w.t.path("chromium"), f"http://{w.at}", w.user, w.word)
    try:
        for host in ("go", w.go.fqdn, w.go.v4, f"[{w.go.v6}]"):
            error, text = browser.open(f"http://{host}:{WEB}/page")
            check(not error and text.strip() == f"page for {host}:{WEB}", f"{host}: {error} {text[:200]!r}")
        check(browser.asked == 1, f"the password was asked for {browser.asked} times")
        error, text = browser.open("http://no-such-device/")
        check("no device named" in text, f"an unknown name: {error} {text[:200]!r}")
    finally:
        browser.close()
    browser = Browser(w.ours.space, chromium, w.t.path("chromium-wrong"), f"http://{w.at}", w.user, "wrong")
    try:
        error, text = browser.open(f"http://go:{WEB}/page")
        check("page for" not in text and browser.asked > 1, f"a wrong credential: {error} {text[:200]!r}")
    finally:
        browser.close()
    browser = Browser(w.ours.space, chromium, w.t.path("chromium-socks"), f"socks5://{w.at}", w.user, w.word)
    try:
        error, text = browser.open(f"http://go:{WEB}/page")
        check("page for" not in text, "SOCKS5 without a credential works")
    finally:
        browser.close()
    return "Chromium has no SOCKS5 credential: use the HTTP proxy, it asks for the password"


def close_everything():
    if not World.made:
        return
    w = World.made
    if hasattr(w, "sshd"):
        w.sshd.stop()
    w.web.shutdown()
    w.t.__exit__(None)
    World.made = None


if __name__ == "__main__":
    try:
        main(sys.modules[__name__])
    finally:
        close_everything()
