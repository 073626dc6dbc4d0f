#!/usr/bin/env python3
"""Our node under a real Headscale, both versions: what its life there must look like."""
import sqlite3

from tailnet import *

ROW = "our node + Headscale"
VERSIONS = ("headscale-0.29", "headscale-0.28")
DENY = '{"acls": []}'


def state_of(node, *wanted, seconds=5, match=None):
    """The node says that it is in one of these states; how long that took."""
    start = time.monotonic()
    event = node.p.wait_event("state", seconds, match=lambda e: e["state"] in wanted and (not match or match(e)))
    return event, time.monotonic() - start


def on_each(case):
    def run():
        notes = [case(version) for version in VERSIONS]
        return "; ".join(f"{v.removeprefix('headscale-')}: {n}" for v, n in zip(VERSIONS, notes) if n)
    run.__doc__ = case.__doc__
    return run


@on_each
def test_listed(version):
    """Joined with a pre-auth key: `headscale nodes list` has it online with its hostname, endpoints and version"""
    with Tailnet(version) as t:
        film = t.ours("film")
        row = next(n for n in json.loads(t.server.command("nodes", "list", "-o", "json")) if n["name"] == "film")
        check(row.get("online") is True and row["given_name"] == "film", f"listed as {row}")
        check(sorted(row["ip_addresses"]) == sorted(film.ips), f"{row['ip_addresses']} here, {film.ips} there")

        def stored():
            db = sqlite3.connect(f"file:{t.server.folder}/db.sqlite?mode=ro", uri=True)
            endpoints, info = db.execute("select endpoints, host_info from nodes where hostname='film'").fetchone()
            db.close()
            info = json.loads(info)
            return info.get("NetInfo", {}).get("PreferredDERP") == 901 and "10.77.1.2" in (endpoints or "") and (json.loads(endpoints), info)
        endpoints, info = wait_for(stored, 10, "endpoints and home relay at Headscale")
        check(re.fullmatch(r"\d+\.\d+\.\d+-porthole.*", info["IPNVersion"]) and info["OS"] == "linux" and info["Hostname"] == "film", f"host info {info}")
        return f"{len(endpoints)} endpoints, version {info['IPNVersion']}"


@on_each
def test_restart(version):
    """Starts again from its state without a key, with the same addresses"""
    with Tailnet(version) as t:
        film = t.ours("film")
        before = film.ips
        took = []
        for end in (film.stop, film.kill):
            end()
            film.start()
            check(film.ips == before, f"{before} became {film.ips}")
            took.append(time.monotonic() - film.started)
        check(len([n for n in t.server.nodes() if n["name"].startswith("film")]) == 1, "it registered again")
        return "running after " + ", ".join(f"{x * 1000:.0f} ms" for x in took)


@on_each
def test_expire(version):
    """Expired at Headscale: says so within 5 s; a new key makes it run again with another node key"""
    with Tailnet(version) as t:
        film, other = t.ours("film"), t.ours("other")
        other.reaches(film)
        node = t.server.node("film")
        t.server.expire_node(node["id"])
        event, took = state_of(film, "expired", "needs-login")
        check("expire" in json.dumps(event).lower(), f"the event says {event}")
        wait_for(lambda: not other.reachable(film, 1), 10, "its peer stops talking to it")
        if film.p.p.poll() is None:
            film.p.p.send_signal(signal.SIGTERM)
        film.p.wait_exit()
        film.start(t.server.new_key())
        again = t.server.node("film")
        check(again["id"] == node["id"] and again["nodeKey"] != node["nodeKey"], f"{node['nodeKey']} became {again['nodeKey']}")
        other.reaches(film)
        return f"seen after {took:.1f} s"


@on_each
def test_delete(version):
    """Expired and deleted at Headscale, as a revocation does it: says so within 5 s, peers drop it, its state does not bring it back"""
    with Tailnet(version) as t:
        film, other = t.ours("film"), t.ours("other")
        other.reaches(film)
        node = t.server.node("film")["id"]
        t.server.expire_node(node)
        event, took = state_of(film, "expired", "needs-login")
        time.sleep(2)   # a deletion within Headscale's batch would swallow the news
        t.server.delete_node(node)
        wait_for(lambda: other.peer(film) is None, 10, "the peer drops it")
        if film.p.p.poll() is None:
            film.p.p.send_signal(signal.SIGTERM)
        film.p.wait_exit()
        film.start(wait=False)
        state_of(film, "needs-login")   # and not "running"
        film.p.wait_event("login_url")
        return f"seen after {took:.1f} s"


@on_each
def test_ephemeral(version):
    """An ephemeral node is removed: at once when it ends, in Headscale's time when it is killed; one that was only deleted notices within 1.5 minutes"""
    with Tailnet(version) as t:
        keep, deleted = t.ours("keep"), t.ours("deleted")
        gone, killed = (t.ours(n, "--ephemeral", key_flags=("--ephemeral",)) for n in ("gone", "killed"))
        gone.stop()
        wait_for(lambda: t.server.node("gone") is None, 5, "the ended one is removed")
        killed.kill()
        start = time.monotonic()
        # Headscale says nothing to a node that is deleted, and leaves its map stream open.
        t.server.delete_node(t.server.node("deleted")["id"])
        event, noticed = state_of(deleted, "needs-login", "logged-out", "failed", seconds=90, match=lambda e: e.get("reason"))
        ended_with(deleted.p, 1, "removed")
        wait_for(lambda: t.server.node("killed") is None, 100, "the killed one is removed")
        removed = time.monotonic() - start
        wait_for(lambda: [p["name"] for p in keep.status()["peers"]] == [], 5, "its peer knows")
        return f"killed one removed after {removed:.0f} s, deleted one noticed after {noticed:.0f} s: {event['reason']}"


@on_each
def test_interactive(version):
    """Interactive login: the printed URL, then Headscale's own register command"""
    with Tailnet(version) as t:
        user = t.server.user("home")
        film = Ours(t, "film", t.place("film"), wait=False)
        t.members.append(film)
        url = film.p.wait_event("login_url")["url"]
        check(url.startswith(t.url + "/register/"), f"the URL is {url}")
        t.server.command("nodes", "register", "--user", user["name"], "--key", url.rsplit("/", 1)[1])
        film.running(10)
        check(t.server.node("film")["user"]["name"] == "home", "it has another user")
        film.stop()
        film.start()


@on_each
def test_policy(version):
    """A policy change in mid-stream: what is not allowed any more is refused within 5 s, what is allowed again works"""
    with Tailnet(version) as t:
        film, other = t.ours("film"), t.tailscaled("other")
        other.reaches(film)
        film.reaches(other)
        t.server.set_policy(DENY)
        start = time.monotonic()
        wait_for(lambda: not other.reachable(film, 1) and not film.reachable(other, 1), 8, "the policy is in force")
        took = time.monotonic() - start
        t.server.set_policy(headscale.ISOLATING_POLICY)
        back = other.reaches(film, 15), film.reaches(other, 15)
        return f"cut within {took:.1f} s, back after {max(back):.1f} s"


@on_each
def test_rename(version):
    """Renamed at Headscale: it and its peers know the new name within 5 s, and it resolves"""
    with Tailnet(version) as t:
        film, other = t.ours("film"), t.ours("other")
        other.reaches(film)
        status, answer = t.server.api("POST", f"node/{t.server.node('film')['id']}/rename/cinema")
        check(status == 200, f"{status} {answer}")
        wait_for(lambda: film.status()["self"]["fqdn"].startswith("cinema."), 5, "it knows its new name")
        wait_for(lambda: any(p["name"] == "cinema" for p in other.status()["peers"]), 5, "its peer knows it")
        check(other.ask("cinema") == "film" and other.ask(film.status()["self"]["fqdn"]) == "film", "the new name does not resolve")


if __name__ == "__main__":
    main(sys.modules[__name__])
