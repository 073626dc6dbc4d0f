"""Process start to first byte from a peer, with a new key and from stored state."""
import shutil
import subprocess
import time

from testbed import PORT, PUMP, Lab, Net, few, missing_peer, start_pair

OURS, THEIRS = 100, 10  # one of their starts takes up to 7 s


class Starts:
    def __init__(self, name, tailnet, server):
        self.name, self.tailnet, self.server = name, tailnet, server
        self.seconds = {"cold": [], "warm": []}
        self.refused = 0

    def start(self, i):
        """One node, started twice: at first with a key, then from what it stored."""
        lab = self.tailnet.lab
        for kind in ("cold", "warm"):
            begin = time.monotonic()
            if self.name == "Porthole":
                n = self.tailnet.node(f"start{i}", lab.a, "--socks5", "127.0.0.1:0", keep=False)
            else:
                n = self.tailnet.tsnet(f"start{i}", lab.a, keep=False)
            try:
                n.event("socks5")
                while not self.pulled(n):
                    self.refused += 1
                    if time.monotonic() - begin > 60:
                        raise SystemExit(f"{self.name}: no byte within a minute of the start")
                    time.sleep(0.02)
                self.seconds[kind].append(time.monotonic() - begin)
            finally:
                n.stop()
        shutil.rmtree(lab.path(f"{self.tailnet.kind}-start{i}"), ignore_errors=True)

    def pulled(self, n):
        lab = self.tailnet.lab
        p = subprocess.run((Net.inside(lab.a) if lab.a else []) + [PUMP, "pull", "1000", f"{self.server.ip}:{PORT}", "socks5", *n.proxy],
                           stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, timeout=60)
        return p.returncode == 0

    def rank(self, kind, share):
        v = sorted(self.seconds[kind])
        return v[min(len(v) - 1, int(len(v) * share))] * 1e3 if v else float("nan")


def startup():
    why_not = missing_peer("tsnetpeer", "headscale-0.29")
    ours, theirs = few(OURS, 10), few(THEIRS, 2)
    with Lab() as lab:
        kinds = []
        for name in ["Porthole"] if why_not else ["Porthole", "tsnet"]:
            tailnet = lab.porthole() if name == "Porthole" else lab.headscale()
            puller, server = start_pair(tailnet, name.lower())
            lab.reach(puller, server)
            puller.stop()
            kinds.append(Starts(name, tailnet, server))
        for i in range(ours):
            kinds[0].start(i)
            if not why_not and i % (ours // theirs) == 0:
                kinds[1].start(i)
        print("\nProcess start to first byte from a peer (fork of the node's process to the first byte through its SOCKS5 proxy)")
        print(f"  {'':6} {'':10} {'runs':>5} {'p50 ms':>8} {'p90 ms':>8} {'max ms':>8} {'p50 of tsnet':>14}")
        for kind in ("cold", "warm"):
            for k in kinds:
                ratio = "" if why_not or k.name == "tsnet" else f"1/{kinds[1].rank(kind, 0.5) / k.rank(kind, 0.5):.0f}"
                print(f"  {kind:6} {k.name:10} {len(k.seconds[kind]):5} {k.rank(kind, 0.5):8.0f} {k.rank(kind, 0.9):8.0f} {k.rank(kind, 1):8.0f} {ratio:>14}")
        print("  connections refused by the proxy and tried again after 20 ms: " + ", ".join(f"{k.name} {k.refused}" for k in kinds))
        print(f"  conditions: {lab.conditions()}")
    print(f"  tsnet SKIPPED: {why_not}" if why_not else f"  {Lab.others()}; fewer of its starts, since each takes seconds")
