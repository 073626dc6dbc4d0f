#!/usr/bin/env python3
"""porthole remote --engine headscale-api against real Headscales: enrolment, isolation, revocation, outages, refusals.

Each case runs on both versions.
"""
import hashlib
import http.client
import json
import os
import sys
import threading
import time
import urllib.parse

sys.dont_write_bytecode = True
sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "process"))
from home import *
from lab import Failed, Lab, check, run
from interop import PEERS, main, peer

os.environ["PORTHOLE_PEERS"] = PEERS
from headscale import ISOLATING_POLICY, OPEN_POLICY, Headscale, binary

ROW = "enrolment on an existing Headscale (--engine headscale-api)"
VERSIONS = ("0.29", "0.28")


def each_version(f):
    def test():
        for version in VERSIONS:
            peer("headscale-" + version)
            with Lab() as lab:
                hs = Headscale(lab.path("hs"))
                try:
                    f(lab, hs, version)
                except Failed as e:
                    raise Failed(f"Headscale {version}: {e}")
                finally:
                    hs.kill()
    test.__doc__ = f.__doc__
    return test


def flags(lab, hs, *more, statedir="remote", key=None):
    file = lab.write("api.key", (key or hs.api_key()) + "\n")
    return ["remote", "run", "--engine", "headscale-api", "--headscale-url", hs.url(), "--headscale-api-key", "file:" + file,
            "--statedir", lab.path(statedir), "--listen", "127.0.0.1:0", "--json", *more]


def start(lab, hs, *more, **popen):
    remote = lab.start(*flags(lab, hs, *more), name="remote", **popen)
    remote.proof = remote.wait_event("isolation", 40)
    ready = remote.wait_event("ready", 20)
    remote.url, remote.coordination_url, remote.state = ready["url"], ready["coordination_url"], lab.path("remote")
    with open(ready["admin_token_file"]) as f:
        remote.admin = f.read().strip()
    check(remote.proof["proved"], f"{remote.proof}")
    check(ready["engine"] == "headscale-api" and ready["stun_port"] == 0, f"{ready}")
    return remote


def api(remote, method, path, token=None, body=None):
    """(status, content type, parsed body) of a call of the enrolment API."""
    at = urllib.parse.urlsplit(remote.url)
    c = http.client.HTTPConnection(at.hostname, at.port, timeout=60 * SLOW)
    headers = {"Authorization": "Bearer " + (token or remote.admin)} if token != "" else {}
    c.request(method, "/api/v1/" + path, None if body is None else json.dumps(body), headers)
    answer = c.getresponse()
    text = answer.read().decode()
    c.close()
    return answer.status, answer.getheader("Content-Type"), json.loads(text) if text else None


def command(remote, *argv):
    out = run("remote", *argv, "--statedir", remote.state, "--json")
    check(out.returncode == 0, f"{argv}: {out.stderr}")
    return json.loads(out.stdout)


def device_key(remote, account, device):
    status, _, body = api(remote, "POST", f"accounts/{account}/devices/{device}/key")
    check(status in (200, 201), f"key of {device}: {status} {body}")
    return body["key"]


def peers(lab, name):
    """Whom the node can talk to."""
    out = run("node", "status", "--statedir", lab.path(name), "--json")
    return sorted(p["name"] for p in json.loads(out.stdout)["peers"] if not p["expired"]) if out.returncode == 0 else None


@each_version
def test_enrolment_isolation_revocation(lab, hs, version):
    """Accounts, device keys (a thousand requests at once give one), isolation proved and shown, revocation seen by peers within seconds."""
    hs.start(version)
    remote = start(lab, hs)
    check(remote.proof["headscale"].startswith(version) and remote.proof["policy_was_set"], f"{remote.proof}")
    check(len(remote.proof["checks"]) == 3, f"{remote.proof}")
    check(json.loads(hs.api("GET", "policy")[1]["policy"]) == json.loads(ISOLATING_POLICY), "the policy that was set")
    check(hs.nodes() == [] and hs.preauth_keys() == [], f"the proof left something: {hs.nodes()} {hs.preauth_keys()}")
    token = command(remote, "account", "create", "smith")["token"]
    command(remote, "account", "create", "jones")
    check({"acct-smith", "acct-jones"} <= {u["name"] for u in hs.users()}, f"users {hs.users()}")

    # The same device, a thousand times at once: one key, there as here.
    got = []

    def ask():
        for _ in range(40):
            status, _, body = api(remote, "POST", "accounts/smith/devices/tv/key", token)
            got.append(body["key"] if status in (200, 201) else body)
    trouble = together(25, ask)
    check(not trouble and len(got) == 1000 and len(set(map(str, got))) == 1, f"{trouble} {len(got)} answers, {set(map(str, got))}")
    check(len(hs.preauth_keys()) == 1, f"keys {hs.preauth_keys()}")
    check(got[0].startswith("hskey-auth-"), "a key of Headscale's")
    for path in os.listdir(remote.state):
        if os.path.isfile(os.path.join(remote.state, path)):
            with open(os.path.join(remote.state, path), "rb") as f:
                content = f.read()
            check(got[0].encode() not in content and hs.api_key().encode() not in content, f"a secret in clear in {path}")
    check(hs.api_key() not in remote.stderr() + json.dumps(remote.log), "the API key was printed")

    status, _, body = api(remote, "POST", "accounts/smith/devices/pad/key", token)
    check(status == 201 and body["coordination_url"] == hs.url() and body["device"]["state"] == "invited", f"{body}")
    check(api(remote, "GET", "accounts/jones/devices", token)[0] == 403, "another account's token")

    keys = {"tv": got[0], "pad": body["key"], "other": device_key(remote, "jones", "tv")}
    nodes = {name: lab.node(name, remote.coordination_url, key) for name, key in keys.items()}
    for n in nodes.values():
        n.wait_event("running", 30)
    wait_for(lambda: peers(lab, "tv") == ["pad"] and peers(lab, "pad") == ["tv"], 10, "the two of one account see each other")
    check(peers(lab, "other") == [], f"the other account's sees {peers(lab, 'other')}")
    # Joined is what Headscale says; the same device id is the same device.
    listed = wait_for(lambda: [d for d in api(remote, "GET", "accounts/smith/devices")[2]["devices"] if d["state"] == "enrolled"][1:] and
                      api(remote, "GET", "accounts/smith/devices")[2]["devices"], 10, "both enrolled")
    check({(d["device"], d["name"], d["online"]) for d in listed} == {("tv", "tv", True), ("pad", "pad", True)}, f"{listed}")
    status, _, body = api(remote, "POST", "accounts/smith/devices/tv/key", token)
    check(status == 200 and body["key"] == got[0] and body["device"]["state"] == "enrolled", f"{status} {body}")
    check([(a["account"], a["devices"], a["online"]) for a in command(remote, "account", "list")["accounts"]] == [("jones", 1, 1), ("smith", 2, 2)],
          "account list")

    # Revoked: its peers drop it within seconds, and neither it nor its key comes back.
    begin = time.monotonic()
    threading.Thread(target=lambda: command(remote, "devices", "revoke", "tv", "--account", "smith"), daemon=True).start()
    wait_for(lambda: peers(lab, "pad") == [], 10, "the peer drops the revoked node")
    took = time.monotonic() - begin
    wait_for(lambda: [d["device"] for d in command(remote, "devices", "list", "--account", "smith")["devices"]] == ["pad"], 10, "the list without it")
    check([n["givenName"] for n in hs.nodes("acct-smith")] == ["pad"], f"{hs.nodes('acct-smith')}")
    print(f"        Headscale {version}: dropped after {took:.1f} s", flush=True)
    refused(run("remote", "devices", "revoke", "tv", "--account", "smith", "--statedir", remote.state), 1, "revoked already")
    nodes["tv"].wait_event("state", 20, match=lambda e: e["state"] in ("needs-login", "logged-out", "expired"))
    again = lab.node("again", remote.coordination_url, got[0])
    again.wait_event("state", 30, match=lambda e: e["state"] in ("needs-login", "failed"))
    check([n["givenName"] for n in hs.nodes("acct-smith")] == ["pad"], f"a revoked key let somebody in: {hs.nodes('acct-smith')}")
    new = device_key(remote, "smith", "tv")
    check(new != got[0], "the old key again")
    lab.node("fresh", remote.coordination_url, new).wait_event("running", 30)
    wait_for(lambda: peers(lab, "pad") == ["fresh"], 10, "the device with its new key")
    # A lost state: replaced in one call; the device's old node goes.
    status, _, body = api(remote, "POST", "accounts/smith/devices/tv/key", token, {"replace": True})
    check(status == 201 and body["key"] not in (new, got[0]), f"{status} {body}")
    wait_for(lambda: peers(lab, "pad") == [], 10, "the replaced node goes")
    # A revoked invitation, which nobody took.
    check(api(remote, "DELETE", "accounts/smith/devices/tv")[0] == 204, "revoke an invitation")
    check(all(k["used"] for k in hs.preauth_keys()), f"live keys {hs.preauth_keys()}")
    # After a restart all is as it was.
    remote.stop(8)
    remote = start(lab, hs)
    check(not remote.proof["policy_was_set"], f"{remote.proof}")
    check([d["device"] for d in command(remote, "devices", "list", "--account", "smith")["devices"]] == ["pad"], "after a restart")
    check(api(remote, "GET", "accounts", token)[0] == 403 and api(remote, "GET", "accounts/smith/devices", token)[0] == 200, "the account's token")


@each_version
def test_keys_by_hand_and_approval(lab, hs, version):
    """Keys made by hand and interactive logins approved through it."""
    hs.start(version)
    remote = start(lab, hs)
    command(remote, "account", "create", "smith")
    key = command(remote, "key", "create", "--account", "smith", "--reusable", "--expires", "1h")["key"]
    for name in ("one", "two"):
        lab.node(name, remote.coordination_url, key).wait_event("running", 30)
    wait_for(lambda: peers(lab, "one") == ["two"], 10, "both joined with one key")
    # By its number, for it has no device id; the other one stays.
    number = next(d["node"] for d in command(remote, "devices", "list")["devices"] if d["name"] == "one")
    command(remote, "devices", "revoke", number)
    check([n["givenName"] for n in hs.nodes()] == ["two"], f"{hs.nodes()}")
    waiting = lab.node("three", remote.coordination_url)
    url = waiting.wait_event("login_url", 20)["url"]
    refused(run("remote", "register", "approve", "nothing", "--account", "smith", "--statedir", remote.state), 1, "nothing")
    device = command(remote, "register", "approve", url, "--account", "smith")["device"]
    check(device["account"] == "smith" and device["name"] == "three", f"{device}")
    waiting.wait_event("running", 30)
    # What the operator does to Headscale by hand is seen here.
    hs.delete_node(device["node"])
    wait_for(lambda: [d["name"] for d in command(remote, "devices", "list")["devices"]] == ["two"], 10, "a node deleted at Headscale")
    # A user of that name with devices is somebody's.
    user = hs.create_user("acct-taken")
    hs.preauth_key(user)
    refused(run("remote", "account", "create", "taken", "--statedir", remote.state), 1, "acct-taken", "another name")


@each_version
def test_headscale_goes_and_comes_back(lab, hs, version):
    """Headscale goes and comes back: 503 meanwhile, isolation is proved again, no restart needed."""
    hs.start(version)
    remote = start(lab, hs)
    token = command(remote, "account", "create", "smith")["token"]
    key = device_key(remote, "smith", "tv")
    hs.kill()
    # What it said a moment ago may still be repeated; no longer than 2 s.
    wait_for(lambda: api(remote, "POST", "accounts/smith/devices/tv/key")[0] == 503, 5, "the outage is noticed")
    for method, path in (("POST", "accounts/smith/devices/tv/key"), ("GET", "accounts/smith/devices"), ("DELETE", "accounts/smith/devices/tv"),
                         ("GET", "accounts")):
        status, kind, body = api(remote, method, path)
        check(status == 503 and kind == "application/problem+json" and body["status"] == 503, f"{method} {path}: {status} {kind} {body}")
        check_words(body["detail"], "Headscale at " + hs.url(), "cannot be reached")
    check(api(remote, "POST", "accounts", body={"name": "new"})[0] == 503, "an account while Headscale is down")
    check(api(remote, "GET", "accounts/smith/devices", "wrong")[0] == 401 and api(remote, "GET", "accounts/jones/devices", token)[0] == 403, "tokens")
    refused(run("remote", "devices", "list", "--statedir", remote.state), 1, "Headscale at", "cannot be reached")
    wait_for(lambda: api(remote, "GET", "health", "")[0] == 503, 10, "health")
    hs.start()
    wait_for(lambda: api(remote, "GET", "health", "")[0] == 200, 25, "health after Headscale is back")
    check(remote.wait_event("isolation", 5)["proved"], "proved again")
    check(device_key(remote, "smith", "tv") == key, "the same key after the outage")
    # The API key dies; a new one in the file is enough.
    prefix = hs.api("GET", "apikey")[1]["apiKeys"][0]["prefix"]
    other = hs.new_api_key()
    hs.api("POST", "apikey/expire", {"prefix": prefix.removeprefix("hskey-api-").removesuffix("-***")})
    status, _, body = api(remote, "POST", "accounts/smith/devices/pad/key")
    check(status == 503, f"{status} {body}")
    check_words(body["detail"], "refuses the API key", "apikeys create")
    lab.write("api.key", other + "\n")
    wait_for(lambda: api(remote, "POST", "accounts/smith/devices/pad/key")[0] == 201, 25, "with the new API key")
    hs._key = other
    # Somebody opens the network: no key is given out until that is mended, and it is said why.
    hs.set_policy(OPEN_POLICY)
    bad = remote.wait_event("isolation", 30, match=lambda e: not e["proved"])
    check_words(bad["problem"], "does not keep accounts apart", "autogroup:self")
    status, _, body = api(remote, "POST", "accounts/smith/devices/new/key")
    check(status == 503, f"{status} {body}")
    check_words(body["detail"], "does not keep accounts apart")
    hs.set_policy(ISOLATING_POLICY)
    remote.wait_event("isolation", 40, match=lambda e: e["proved"])
    check(api(remote, "POST", "accounts/smith/devices/new/key")[0] == 201, "after the policy is back")


@each_version
def test_what_is_refused(lab, hs, version):
    """Wrong keys, wrong servers, flat policies and foreign devices are refused with what to do."""
    hs.start(version)
    refused(run(*flags(lab, hs, key="hskey-api-aaaaaaaaaaaa-" + "b" * 64)), 1, "refuses the API key", "apikeys create")
    refused(run(*flags(lab, hs, key="two words")), 1, "does not hold an API key")
    good = flags(lab, hs)
    os.chmod(lab.path("api.key"), 0o644)
    refused(run(*good), 1, "chmod 600", "api.key")
    os.chmod(lab.path("api.key"), 0o600)
    refused(run(*[a.replace("api.key", "none") for a in good]), 1, "none")
    refused(run(*[a.replace("file:", "") for a in good]), 2, "file:PATH")
    refused(run(*[a.replace(hs.url(), "http://192.0.2.1") for a in good]), 2, "in clear", "https")
    refused(run(*[a.replace(hs.url(), "https://127.0.0.1:" + str(hs.port)) for a in good]), 1, "not with TLS", "http://")
    refused(run(*[a.replace("headscale-api", "nonsense") if a == "headscale-api" else a for a in good]), 2, "--engine")
    refused(run("remote", "run", "--statedir", lab.path("x"), "--headscale-url", hs.url()), 2, "--engine headscale-api")
    held, port = closed_port()
    refused(run(*[a.replace(str(hs.port), str(port)) for a in good]), 1, "cannot be reached")
    # Not isolated, and not ours to change: somebody's devices are there.
    bob = hs.create_user("bob")
    lab.node("bobs", hs.url(), hs.preauth_key(bob)).wait_event("running", 30)
    refused(run(*good), 1, "no policy", "devices of other users (1)", "autogroup:self")
    for text in (OPEN_POLICY, '{"acls": [{"action": "accept", "src": ["*"], "dst": ["bob@:*"]}]}', '{"acls": []}',
                 '{"groups": {"group:all": ["bob@"]}, "acls": [{"action": "accept", "src": ["group:all"], "dst": ["group:all:*"]}]}'):
        hs.set_policy(text)
        refused(run(*good), 1, "does not keep accounts apart", "autogroup:self")
    # Rules among others are theirs.
    hs.set_policy('{"acls": [{"action": "accept", "src": ["autogroup:member"], "dst": ["autogroup:self:*"]},'
                  ' /* bob */ {"action": "accept", "src": ["bob@"], "dst": ["bob@:22"]},]}')
    remote = start(lab, hs)
    check(not remote.proof["policy_was_set"], f"{remote.proof}")
    remote.stop(8)
    # The directory belongs to this engine from now on.
    refused(run("remote", "run", "--statedir", lab.path("remote"), "--listen", "127.0.0.1:0", "--stun-port", "0"), 1, "headscale-api")
    refused(run("remote", "account", "list", "--statedir", lab.path("remote")), 1, "running service")
    embedded = lab.remote("embedded")
    embedded.stop()
    refused(run(*flags(lab, hs, statedir="embedded")), 1, "embedded coordinator")


@each_version
def test_a_policy_file_that_is_not_in_force(lab, hs, version):
    """Headscale shows the file, not what it loaded: only the test devices find that out."""
    hs.policy_mode, hs.policy = "file", OPEN_POLICY
    hs.start(version)
    with open(os.path.join(hs.folder, "policy.hujson"), "w") as f:
        f.write(ISOLATING_POLICY)
    check(json.loads(hs.api("GET", "policy")[1]["policy"]) == json.loads(ISOLATING_POLICY), "Headscale shows the file")
    refused(run(*flags(lab, hs), seconds=60), 1, "see each other although its policy says otherwise")
    hs.stop()
    hs.policy = ISOLATING_POLICY
    hs.start()
    remote = start(lab, hs)
    check(not remote.proof["policy_was_set"] and hs.nodes() == [], f"{remote.proof} {hs.nodes()}")


def sha256(path):
    with open(path, "rb") as f:
        return hashlib.sha256(f.read()).hexdigest()


def test_film_over_headscale():
    """From login to picture with Headscale's coordination and relay, over TLS."""
    for version in VERSIONS:
        with Lab() as lab:
            cert, key = make_certificate(lab.dir)
            hs = Headscale(lab.path("hs"), tls=(cert, key), derp=True)
            try:
                hs.start(version)
                remote = start(lab, hs, "--ca-file", cert)
                os.environ["SSL_CERT_FILE"] = cert
                token = lab.write("token", command(remote, "account", "create", "smith")["token"] + "\n")
                serve = home(lab, "--remote", remote.url, "--account-token", "file:" + token)
                serve.wait_event("remote", 30, state="running")
                result = client(lab, "login", serve.url, "--password-file", lab.path("password"), seconds=60)
                check(result.returncode == 0, f"login: {result.stderr} {result.stdout}")
                server = event(result, "login")["id"]
                check(event(result, "joined")["coordination_url"] == hs.url(), f"joined {result.stdout}")
                connected = client(lab, "connect", server, "--remote", seconds=60)
                check(connected.returncode == 0, f"connect: {connected.stderr} {connected.stdout}")
                result = client(lab, "get", server, "film.mp4", "--remote", "--output", lab.path("out.mp4"), seconds=60)
                check(result.returncode == 0, f"get: {result.stderr} {result.stdout}")
                check(sha256(lab.path("out.mp4")) == sha256(lab.path("library", "film.mp4")), "the film that came is not the film")
                states = {d["state"] for d in command(remote, "devices", "list", "--account", "smith")["devices"]}
                check(states == {"enrolled"}, f"devices {states}")
                # Revoked, the client has nothing left.
                device = next(d for d in command(remote, "devices", "list")["devices"] if d["device"] != "" and d["name"] != serve_name(hs, serve))
                command(remote, "devices", "revoke", device["device"], "--account", "smith")
                gone = client(lab, "connect", server, "--remote", seconds=90)
                check(gone.returncode != 0, f"a revoked client connects: {gone.stdout}")
            except Failed as e:
                raise Failed(f"Headscale {version}: {e}")
            finally:
                os.environ.pop("SSL_CERT_FILE", None)
                hs.kill()


def serve_name(hs, serve):
    hostname = next(e["hostname"] for e in serve.log if e.get("event") == "remote" and e.get("state") == "running")
    return hostname.split(".")[0]


if __name__ == "__main__":
    main(sys.modules[__name__])
