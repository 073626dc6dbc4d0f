"""Many households on one coordination service: over loopback, plain http, SQLite on disk."""
import json

from testbed import COORDINATOR_BENCH, Lab, few, missing_peer, run

HOUSEHOLDS, NODES, CHANGES = 1000, 5, 500
# Headscale's CPU time for a change grows with all nodes; more of them would take hours.
THEIR_HOUSEHOLDS, THEIR_CHANGES = 100, 50
# On their way in at a time; of more than these Headscale breaks connections off.
JOINS, THEIR_JOINS = 256, 25

ROWS = [("all registered and seeing their account", "join_seconds", "s"), ("  CPU of the service for it", "join_cpu", "s"),
        ("a new disco key reaches the first peer, p50", "first_p50_ms", "ms"), ("a new disco key reaches all peers, p50", "all_p50_ms", "ms"),
        ("a new disco key reaches all peers, p99", "all_p99_ms", "ms"), ("CPU of the service for one such change", "change_cpu_ms", "ms"),
        ("resident memory, all connected", "resident_mb", "MB"), ("  of it anonymous", "anonymous_mb", "MB"),
        ("map streams that it ended, opened again", "streams_lost", "")]


def fleet(tailnet, keys, changes, joins):
    return json.loads(run([COORDINATOR_BENCH, "fleet", tailnet.url, tailnet.pid, keys, NODES, changes, joins]))


def ours(households, changes, joins):
    with Loopback() as lab:
        home = lab.porthole(tls=False)
        enrolled = json.loads(run([COORDINATOR_BENCH, "enrol", home.url, home.admin_token_file, home.pid, households, NODES, lab.path("keys")]))
        return {**fleet(home, lab.path("keys"), changes, joins), "enrol_seconds": enrolled["seconds"], "enrol_cpu": enrolled["cpu"]}


def theirs(households, changes):
    with Loopback() as lab:
        other = lab.headscale(tls=False)
        with open(lab.path("keys"), "w") as f:
            for i in range(households):
                f.write((other.preauth_key(other.create_user(f"home-{i}"), reusable=True) + "\n") * NODES)
        return fleet(other, lab.path("keys"), changes, THEIR_JOINS)


class Loopback(Lab):
    """Without hosts: clients and service on this one."""

    def __enter__(self):
        return self


def coordinator():
    why_not = missing_peer("headscale-0.29")
    many, some = few(HOUSEHOLDS, 20), few(THEIR_HOUSEHOLDS, 10)
    columns = [(f"{many} x {NODES}", ours(many, few(CHANGES, 50), JOINS))]
    if not why_not:
        changes = few(THEIR_CHANGES, 5)
        columns += [(f"{some} x {NODES}", ours(some, changes, THEIR_JOINS)), (f"Headscale {some} x {NODES}", theirs(some, changes))]
    print("\nCoordinator: accounts x nodes, simulated control clients that register, open the map stream and see their whole account")
    print(f"  {'':46}" + "".join(f"{name:>20}" for name, _ in columns) + ("" if why_not else f"{f'of Headscale, {some} x {NODES}':>28}"))
    for what, name, unit in [("accounts and device keys made over the API", "enrol_seconds", "s"), ("  CPU of the service for it", "enrol_cpu", "s"), *ROWS]:
        line = f"  {what:46}" + "".join(f"{c[name]:17.2f} {unit:2}" if name in c else f"{'':20}" for _, c in columns)
        if not why_not and unit and name in columns[2][1]:
            line += f"{f'1/{columns[2][1][name] / max(columns[1][1][name], 0.01):.0f}':>28}"
        print(line)
    print(f"  conditions: loopback, plain http, SQLite (WAL) on disk, zstd maps, {JOINS} joins at once, clients in another process on the same cores;"
          f" changes: {few(CHANGES, 50)}" + ("" if why_not else f" ({some} x {NODES}: {few(THEIR_CHANGES, 5)}, and {THEIR_JOINS} joins at once)"))
    print(f"  Headscale SKIPPED: {why_not}" if why_not else f"  {Lab.others().split(' under ')[1]}, isolating policy; its keys are made with its own API, not timed")
