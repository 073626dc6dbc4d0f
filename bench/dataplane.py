"""One flow: SOCKS5 -> node -> UDP over veth, or the relay -> node -> exposed port."""
import os
import statistics

from testbed import Lab, cpu_seconds, few, missing_peer, start_pair, steal

ROUNDS = 5


class Pair:
    """A puller and a server that are measured together, `size` bytes a round."""

    def __init__(self, name, tailnet, puller, server, size):
        self.name, self.tailnet, self.puller, self.server, self.size = name, tailnet, puller, server, size
        self.rows = []

    def warm(self):
        self.tailnet.lab.reach(self.puller, self.server)
        self.tailnet.lab.pull(self.puller, self.server, self.size // 40)  # path found, windows open

    def used(self):
        return [cpu_seconds(p) for p in (self.puller.pid, self.server.pid, self.tailnet.pid)] + [steal()]

    def round(self):
        before = self.used()
        seconds = self.tailnet.lab.pull(self.puller, self.server, self.size)["seconds"]
        spent = [y - x for x, y in zip(before, self.used())]
        self.rows.append([self.size * 8 / seconds / 1e9] + [s * 1e9 / self.size for s in spent[:3]] + [spent[3] / (seconds * os.cpu_count()) * 100])

    def median(self):
        return [statistics.median(column) for column in zip(*self.rows)]


def show(pairs, relayed):
    theirs = next((p.median() for p in pairs if p.name == "tsnet"), None)
    for p in pairs:
        m = p.median()
        relay = f"{m[3]:8.2f}" if relayed else f"{'':8}"
        line = f"  {'relayed' if relayed else 'direct':8} {p.name:28} {m[0]:8.2f} {m[1]:8.2f} {m[2]:8.2f} {relay} {m[4]:6.1f} %"
        if theirs and p.name != "tsnet":
            cpu, their_cpu = sum(m[1:4] if relayed else m[1:3]), sum(theirs[1:4] if relayed else theirs[1:3])
            line += f" {m[0] / theirs[0]:7.1f} x {cpu / their_cpu:7.2f} x"
        print(line)


def measure(relayed, why_not):
    with Lab() as lab:
        home = lab.porthole()
        size = few(500_000_000, 50_000_000) if relayed else few(2_000_000_000, 200_000_000)
        pairs = [Pair("Porthole", home, *start_pair(home, "porthole", relayed), size)]
        if not why_not:
            # A quarter of the bytes: each of their rounds takes as long as ours or longer.
            other = lab.headscale()
            pairs.append(Pair("tsnet", other, *start_pair(other, "tsnet", relayed), size // 4))
            if not relayed:
                theirs = start_pair(home, "tsnet")
                pairs.append(Pair("Porthole pulls from tsnet", home, pairs[0].puller, theirs[1], size // 4))
                pairs.append(Pair("tsnet pulls from Porthole", home, theirs[0], pairs[0].server, size // 4))
        for p in pairs:
            p.warm()
        for _ in range(few(ROUNDS, 2)):
            for p in pairs:
                p.round()
        show(pairs, relayed)
        if relayed:
            print(f"  conditions: {lab.conditions()}; GB a round: {few(2, 0.2)} direct, {few(0.5, 0.05)} relayed, a quarter of it where tsnet takes part;"
                  " the rounds alternate")


def dataplane():
    why_not = missing_peer("tsnetpeer", "headscale-0.29")
    print(f"\nData plane: one flow, SOCKS5 -> node -> UDP -> node -> exposed port (median of {few(ROUNDS, 2)})")
    print(f"  {'path':8} {'nodes':28} {'Gbit/s':>8} {'puller':>8} {'server':>8} {'relay':>8} {'steal':>8} {'speed':>9} {'CPU':>9}"
          "   (puller, server, relay: CPU seconds per GB; speed, CPU in all: of tsnet's)")
    for relayed in (False, True):
        measure(relayed, why_not)
    print(f"  tsnet SKIPPED: {why_not}" if why_not else f"  {Lab.others()}")
