#!/usr/bin/env python3
"""Benchmarks of whole processes, as tables with their conditions. Never a gate: numbers are for reading.

  ./run bench              all that this machine can do
  ./run bench dataplane    one flow SOCKS5 -> node -> UDP over veth -> node -> exposed port, direct and relayed
  ./run bench startup      process start to first byte, cold and warm
  ./run bench memory       private memory idle, after 4 GB, per session, per peer of 1,000
  ./run bench size         stripped size of a program that only dials
  ./run bench coordinator  1,000 accounts x 5 nodes
  --quick                  small sizes and few rounds: for work on the benchmarks

Beside ours, in the same run, stands what Tailscale's tsnet and Headscale need for the same job. They are built once, into a
cache outside the tree (Go is needed; PORTHOLE_PEERS names a folder that has them already). Without them their columns say
SKIPPED and why. With root, the two nodes sit in network namespaces joined by veth; without, all use loopback (and the
table says so).
"""
import os
import sys

import testbed
from coordinator import coordinator
from dataplane import dataplane
from memory import memory
from size import size
from startup import startup


def main():
    jobs = {"size": size, "dataplane": dataplane, "startup": startup, "memory": memory, "coordinator": coordinator}
    wanted = [a for a in sys.argv[2:] if a != "--quick"] or list(jobs)
    for name in wanted:
        if name not in jobs:
            sys.exit(f"unknown benchmark {name}; known: {', '.join(jobs)}")
    with open("/proc/cpuinfo") as f:
        model = next((line.split(":")[1].strip() for line in f if line.startswith("model name")), "unknown CPU")
    print(f"machine: {model}, {os.cpu_count()} cores, Linux {os.uname().release}" + ("; --quick: not for publishing" if testbed.QUICK else ""))
    os.sync()  # pages of programs that were built just now count as dirty until they are written
    failed = False
    for name in wanted:
        try:
            jobs[name]()
        except (Exception, SystemExit) as e:  # the others are still worth their time
            failed = True
            print(f"  FAILED {name}: {e}")
        sys.stdout.flush()
    sys.exit(failed)


if __name__ == "__main__":
    main()
