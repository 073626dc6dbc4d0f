"""Private memory of nodes: idle, after much traffic, per peer in the network map, per peer talked to."""
import json
import subprocess
import time

from testbed import COORDINATOR_BENCH, PORTHOLE, Lab, Net, few, missing_peer, private_kb, resident_kb, run, start_pair

PEERS, SESSIONS = 1000, 20
SETTLE = 3      # s until what a start needed is given back
LATER = 15
SAVED = 35      # s: a changed map has been written by then


def idle_and_after():
    why_not = missing_peer("tsnetpeer", "headscale-0.29")
    with Lab() as lab:
        home = lab.porthole()
        puller, server = start_pair(home, "porthole")
        embedded = home.embedded("embedded", lab.a)
        columns = [("embedded", embedded), ("puller", puller), ("server", server)]
        pulls = [(embedded, server), (puller, server)]
        if not why_not:
            theirs = start_pair(lab.headscale(), "tsnet")
            columns += [("tsnet puller", theirs[0]), ("tsnet server", theirs[1])]
            pulls.append(theirs)
        size = few(4_000_000_000, 200_000_000)
        print("\nPrivate (dirty) memory of a node, KB (puller, server: porthole node run; embedded: the library in examples/socks_proxy, pulling)")
        print("  " + f"{'':32}" + "".join(f"{name:>14}" for name, _ in columns) + f"{'puller : tsnet':>18}")

        def row(what, of=private_kb):
            values = [of(n.pid) for _, n in columns]
            ratio = "" if why_not else f"1/{values[3] / values[1]:.1f}"
            print(f"  {what:32}" + "".join(f"{v:14}" for v in values) + f"{ratio:>18}")

        for a, b in pulls:
            lab.reach(a, b)
        time.sleep(SETTLE)
        row("idle, few peers")
        row("  resident, shared pages too", resident_kb)
        after = {}
        for a, b in pulls:
            lab.pull(a, b, size)
            after.update({n.pid: private_kb(n.pid) for n in (a, b)})
        row(f"right after {size / 1e9:g} GB in one flow", after.get)
        time.sleep(LATER)
        row(f"{LATER} s later")
        row("  resident, shared pages too", resident_kb)
        print(f"  conditions: {lab.conditions()}; one pull after the other, embedded and puller from the same server")
    print(f"  tsnet SKIPPED: {why_not}" if why_not else f"  {Lab.others()}")


class Grown:
    """The private memory of some nodes, as it grows."""

    def __init__(self, nodes):
        self.nodes = nodes
        self.before = [private_kb(n.pid) for n in nodes]

    def row(self, what, count, nodes=None):
        after = [private_kb(n.pid) for n in nodes or self.nodes]
        print(f"  {what:46}" + "".join(f"{y:12} {(y - x) / count:10.2f}" for x, y in zip(self.before, after)))


def known(home):
    """How many peers the puller's map has."""
    status = json.loads(run([PORTHOLE, "node", "status", "--statedir", home.lab.path("porthole-puller"), "--json"]))
    return len(status["peers"])


def per_peer():
    why_not = missing_peer("tsnetpeer")
    with Lab() as lab:
        home = lab.porthole()

        def start():
            n = [home.node("puller", lab.a, "--socks5", "127.0.0.1:0")]
            n[0].event("running")
            if not why_not:
                n.append(home.tsnet("tsnet", lab.a))
                n[1].event("socks5")
            return n
        nodes = start()
        servers = []
        for i in range(few(SESSIONS, 5)):
            servers.append(home.node(f"server{i}", lab.b, *lab.exposed()))
            servers[-1].event("running")
        time.sleep(SETTLE)
        print("\nPrivate (dirty) memory per peer, KB (porthole node run; tsnet in the same tailnet, under Porthole's coordinator)")
        print(f"  {'':46}" + "".join(f"{name:>12} {'each':>10}" for name in ["Porthole", "tsnet"][:len(nodes)]))
        grown = Grown(nodes)
        print(f"  {f'{len(servers)} peers that nothing was said to':46}" + "".join(f"{v:12} {'':10}" for v in grown.before))
        for n in nodes:
            for s in servers:
                lab.reach(n, s)
        grown.row(f"  a WireGuard session with each of the {len(servers)}", len(servers))
        for s in servers:
            s.stop()
        # Fresh, so that what the sessions took is not taken for room.
        for n in nodes:
            n.stop()
        nodes = start()
        time.sleep(SETTLE)
        grown = Grown(nodes)
        print(f"  {'started again, the same peers, offline':46}" + "".join(f"{v:12} {'':10}" for v in grown.before))
        count = few(PEERS, 100)
        run((Net.inside(lab.middle) if lab.middle else []) + [COORDINATOR_BENCH, "fill", home.url, home.key, count])
        end = time.monotonic() + 60
        while known(home) < count + len(servers):
            if time.monotonic() > end:
                raise SystemExit(f"the node knows {known(home)} peers, not {count} more")
            time.sleep(0.2)
        time.sleep(SAVED)
        grown.row(f"  {count} peers more, one after the other", count)
        for n in nodes:
            n.stop()
        nodes = start()
        time.sleep(SAVED)
        grown.row("  started anew with all of them", count, nodes)
        print(f"  conditions: {lab.conditions()}; the peers are registered devices of the account with keys and endpoints, offline;"
              f" each figure {SETTLE} s ({SAVED} s: with the new peers) after the last event")
    if why_not:
        print(f"  tsnet SKIPPED: {why_not}")


def memory():
    idle_and_after()
    per_peer()
