"""A real Headscale as a child process, for tests.

    from headscale import Headscale, binary

    if not binary("0.29"):                 # $PORTHOLE_PEERS/headscale-0.29 (or a path in $PORTHOLE_PEERS itself)
        print("SKIPPED: ..."); sys.exit(0)
    hs = Headscale(folder).start("0.29")   # writes folder/config.yaml, waits until it is healthy
    hs.url()                               # http://127.0.0.1:PORT (https with tls=); also what devices log in to
    hs.api_key()                           # the text of an API key, made once by its own command line
    user = hs.create_user("smith")         # {"id": "1", "name": "smith", ...}
    hs.preauth_key(user)                   # "hskey-auth-..."; reusable=, ephemeral=, seconds=
    hs.nodes()                             # GET /api/v1/node: list of dicts
    hs.api("GET", "user")                  # any call of the API: (status, parsed body)
    hs.set_policy(text)                    # policy mode "database" (the default here)
    hs.stop()                              # TERM, KILL after 15 s; start("0.29") again continues with the same state
    hs.kill()

The port is chosen once and kept over restarts. Options of the constructor: policy_mode "database" or "file" (then
`policy` is the text of the file, None: no file, everything open), derp=True for the built-in relay and STUN (Headscale
refuses plain http for it, so it needs tls=(certificate, key)), derp_map (further regions: {id: region} with the members of a relay
map in lower case), base_domain, host and host6 (the addresses it is reached at), name (in its
URL), prefix (what
stands before its command lines, such as `ip netns exec`), public_url (of a proxy in front of it; it then speaks plain http on
loopback). Nothing but Python's own library is used.
"""
import json
import os
import shutil
import signal
import socket
import ssl
import subprocess
import time
import urllib.error
import urllib.request

# The rule that keeps users apart: a device reaches the devices of its own user.
ISOLATING_POLICY = '{"acls": [{"action": "accept", "src": ["autogroup:member"], "dst": ["autogroup:self:*"]}]}'
OPEN_POLICY = '{"acls": [{"action": "accept", "src": ["*"], "dst": ["*:*"]}]}'


def binary(version):
    """The path of headscale-VERSION in the folder that the environment's PORTHOLE_PEERS names; None: it is not there."""
    folder = os.environ.get("PORTHOLE_PEERS", "")
    path = os.path.join(folder, f"headscale-{version}")
    return path if folder and os.access(path, os.X_OK) else None


class Trouble(Exception):
    pass


def _free_port(kind):
    with socket.socket(socket.AF_INET, kind) as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


class Headscale:
    def __init__(self, folder, policy_mode="database", policy=None, derp=False, derp_map=None, tls=None, base_domain="tail.test.internal",
                 host="127.0.0.1", host6=None, name=None, prefix=(), public_url=None):
        self.folder = folder
        os.makedirs(folder, mode=0o700, exist_ok=True)
        self.policy_mode = policy_mode
        self.policy = policy
        self.derp = derp
        self.derp_map = derp_map
        self.tls = tls
        self.public_url = public_url
        self.base_domain = base_domain
        self.host, self.host6, self.name, self.prefix = host, host6, name or host, list(prefix)
        self.choose_ports()
        self.process = None
        self.version = None
        self._key = None

    def choose_ports(self):
        self.port = _free_port(socket.SOCK_STREAM)
        self.stun_port = _free_port(socket.SOCK_DGRAM)

    def _path(self, name):
        return os.path.join(self.folder, name)

    def url(self):
        return self.public_url or f"{'https' if self.tls else 'http'}://{self.name}:{self.port}"

    def base(self):
        """Where its API is asked from here."""
        return f"http://127.0.0.1:{self.port}" if self.public_url else self.url()

    def _write_config(self, version):
        q = json.dumps  # a JSON value is a YAML value
        regions = self.derp_map
        if not self.derp and not regions:   # there must be one all the same: it answers nothing
            regions = {999: {"regionid": 999, "regioncode": "none", "regionname": "none", "nodes": [
                {"name": "999a", "regionid": 999, "hostname": "127.0.0.1", "ipv4": "127.0.0.1", "derpport": 1, "stunport": -1}]}}
        if regions:
            with open(self._path("derp.yaml"), "w") as f:
                f.write("regions: {" + ", ".join(f"{id}: {q(region)}" for id, region in regions.items()) + "}\n")
        lines = [
            f"server_url: {self.url()}",
            f"listen_addr: '{'127.0.0.1' if self.public_url else '[::]' if self.host6 else self.host}:{self.port}'",
            'metrics_listen_addr: ""',
            "grpc_listen_addr: 127.0.0.1:0",
            "grpc_allow_insecure: false",
            f"noise: {{private_key_path: {q(self._path('noise_private.key'))}}}",
            'prefixes: {v4: 100.64.0.0/10, v6: "fd7a:115c:a1e0::/48", allocation: sequential}',
            f"database: {{type: sqlite, sqlite: {{path: {q(self._path('db.sqlite'))}, write_ahead_log: true}}}}",
            "disable_check_updates: true",
            "log: {level: info, format: text}",
            "logtail: {enabled: false}",
            f"dns: {{magic_dns: true, base_domain: {self.base_domain}, override_local_dns: false, nameservers: {{global: []}}}}",
            f"unix_socket: {q(self._path('hs.sock'))}",
            'unix_socket_permission: "0700"',
        ]
        if version == "0.28":
            lines.append("ephemeral_node_inactivity_timeout: 70s")
        else:
            lines.append("node: {expiry: 0, ephemeral: {inactivity_timeout: 70s}}")
            if self.public_url:
                lines.append('trusted_proxies: ["127.0.0.1/32", "::1/128"]')
        if self.policy_mode == "file" and self.policy is not None:
            with open(self._path("policy.hujson"), "w") as f:
                f.write(self.policy)
            lines.append(f"policy: {{mode: file, path: {q(self._path('policy.hujson'))}}}")
        else:
            lines.append(f"policy: {{mode: {self.policy_mode}}}")
        server = (f"enabled: {'true' if self.derp else 'false'}, region_id: 901, region_code: test, region_name: test, "
                  f'stun_listen_addr: "{"[::]" if self.host6 else self.host}:{self.stun_port}", private_key_path: {q(self._path("derp.key"))}, '
                  "verify_clients: true, automatically_add_embedded_derp_region: true, "
                  f"ipv4: {self.host}" + (f", ipv6: '{self.host6}'" if self.host6 else ""))
        paths = [self._path("derp.yaml")] if regions else []
        lines.append(f"derp: {{server: {{{server}}}, urls: [], paths: {q(paths)}, auto_update_enabled: false}}")
        if self.tls:
            lines += [f"tls_cert_path: {q(self.tls[0])}", f"tls_key_path: {q(self.tls[1])}"]
        with open(self._path("config.yaml"), "w") as f:
            f.write("\n".join(lines) + "\n")

    def _environment(self):
        return {k: v for k, v in os.environ.items() if not k.startswith("HEADSCALE_")} | {"NO_COLOR": "1"}

    def start(self, version=None, seconds=60):
        """Starts $PORTHOLE_PEERS/headscale-VERSION and waits until it is healthy. Returns self."""
        self.version = version or self.version
        program = binary(self.version)
        if not program:
            raise Trouble(f"there is no headscale-{self.version} in the folder that PORTHOLE_PEERS names")
        self._write_config(self.version)
        with open(self._path("log"), "ab") as log:
            self.process = subprocess.Popen([*self.prefix, program, "serve", "-c", self._path("config.yaml")], cwd=self.folder, stdout=log,
                                            stderr=log, stdin=subprocess.DEVNULL, env=self._environment())
        end = time.monotonic() + seconds
        while True:
            if self.process.poll() is not None:
                raise Trouble(f"headscale {self.version} ended with status {self.process.returncode}: {self.log()[-800:]}")
            try:
                if self._request("GET", "/health")[0] == 200:
                    return self
            except OSError:
                pass
            if time.monotonic() > end:
                raise Trouble(f"headscale {self.version} is not healthy after {seconds} s: {self.log()[-800:]}")
            time.sleep(0.05)

    def stop(self, seconds=15):
        """TERM; while clients are connected it may never end by itself, so KILL after the time."""
        if self.process and self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
            try:
                self.process.wait(seconds)
            except subprocess.TimeoutExpired:
                pass
        self.kill()

    def kill(self):
        if self.process and self.process.poll() is None:
            self.process.kill()
        if self.process:
            self.process.wait()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.kill()

    def remove(self):
        self.kill()
        shutil.rmtree(self.folder, ignore_errors=True)

    def log(self):
        with open(self._path("log"), errors="replace") as f:
            return f.read()

    def command(self, *argv):
        """Its command line, on the running server; stdout."""
        done = subprocess.run([*self.prefix, binary(self.version), "-c", self._path("config.yaml"), *argv], cwd=self.folder, text=True,
                              stdout=subprocess.PIPE, stderr=subprocess.PIPE, timeout=30, env=self._environment())
        if done.returncode != 0:
            raise Trouble(f"headscale {' '.join(argv)}: {done.stderr[-400:]}")
        return done.stdout

    def api_key(self):
        if not self._key:
            self._key = self.new_api_key()
        return self._key

    def new_api_key(self, expiration="1d"):
        return json.loads(self.command("apikeys", "create", "--expiration", expiration, "-o", "json"))

    def _request(self, method, path, body=None, headers=None):
        request = urllib.request.Request(self.base() + path, method=method, headers=headers or {},
                                         data=None if body is None else json.dumps(body).encode())
        if body is not None:
            request.add_header("Content-Type", "application/json")
        context = None
        if self.tls:
            context = ssl.create_default_context(cafile=self.tls[0])
        try:
            with urllib.request.urlopen(request, timeout=20, context=context) as answer:
                return answer.status, answer.read().decode(errors="replace")
        except urllib.error.HTTPError as e:
            return e.code, e.read().decode(errors="replace")

    def api(self, method, path, body=None):
        """(status, parsed body) of /api/v1/PATH; the text where it is not JSON."""
        status, text = self._request(method, "/api/v1/" + path, body, {"Authorization": "Bearer " + self.api_key()})
        try:
            return status, json.loads(text)
        except ValueError:
            return status, text

    def _must(self, method, path, body=None):
        status, answer = self.api(method, path, body)
        if status != 200:
            raise Trouble(f"headscale {self.version}: {method} {path}: {status} {answer}")
        return answer

    def users(self):
        return self._must("GET", "user")["users"]

    def create_user(self, name):
        return self._must("POST", "user", {"name": name})["user"]

    def preauth_key(self, user, reusable=False, ephemeral=False, seconds=3600):
        """`user`: what create_user() gave."""
        expiration = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(time.time() + seconds))
        return self._must("POST", "preauthkey", {"user": user["id"], "reusable": reusable, "ephemeral": ephemeral,
                                                 "expiration": expiration, "aclTags": []})["preAuthKey"]["key"]

    def preauth_keys(self):
        return self._must("GET", "preauthkey")["preAuthKeys"]

    def nodes(self, user=None):
        """All nodes, or those of the user with this name."""
        return self._must("GET", "node" + (f"?user={user}" if user else ""))["nodes"]

    def expire_node(self, node_id):
        return self._must("POST", f"node/{node_id}/expire", {})["node"]

    def delete_node(self, node_id):
        self._must("DELETE", f"node/{node_id}")

    def set_policy(self, text):
        self._must("PUT", "policy", {"policy": text})
