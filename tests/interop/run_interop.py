#!/usr/bin/env python3
"""Our programs against peers that nobody here wrote: builds the peers, runs every case_*.py, prints a line for each case and
a table, and writes docs/interop.md.

    ./run interop            all; three files at a time where that disturbs nothing
    ./run interop wireguard  only files whose name contains the word; docs/interop.md stays as it is

Closes with 'N passed, N failed, N skipped'. What cannot run says SKIPPED and why.
"""
import glob
import os
import queue
import re
import subprocess
import sys
import threading
import time

HERE = os.path.dirname(os.path.abspath(__file__))
sys.dont_write_bytecode = True
sys.path.insert(0, HERE)
import build_peers

BUILD = os.path.abspath(sys.argv[1])
WORD = sys.argv[2] if len(sys.argv) > 2 else ""
DOCUMENT = os.path.join(HERE, "..", "..", "docs", "interop.md")
LIMIT = 1500  # seconds for a file
LANES = 3     # most of the time is waiting
# The longest: first, so that no lane is left alone with one.
FIRST = ("case_headscale_api", "case_headscale_node", "case_relays")
# Needs the crate, which is built while others run.
NEEDS_CRATE = "case_guests"
# Measure times and rates: alone, at the end.
ALONE = ("case_go_nodes", "case_kernel_tcp", "case_wireguard")
SYSTEM = ("wireguard-go", "wireguard-tools", "nginx-light", "curl", "openssh-client", "netcat-openbsd", "python3-socks", "iperf3", "socat",
          "chromium", "ffmpeg", "git")
lock = threading.Lock()


def say(text):
    with lock:
        print(text, flush=True)


def row_of(path):
    with open(path) as f:
        return re.search(r'^ROW = "(.*)"', f.read(), re.M).group(1)


def run_file(path, peers):
    """[(verdict, seconds, what must hold, note)]"""
    name = os.path.basename(path)[5:-3]
    out = []
    env = {**os.environ, "PORTHOLE_PEERS": peers, "PYTHONDONTWRITEBYTECODE": "1"}
    p = subprocess.Popen([sys.executable, path, BUILD], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL, text=True,
                         errors="replace", env=env)
    timer = threading.Timer(LIMIT, p.kill)
    timer.start()
    other = []
    for line in p.stdout:
        words = line.rstrip("\n").split("\t")
        if words[0] == "CASE" and len(words) == 5:
            _, verdict, seconds, promise, note = words
            out.append((verdict, float(seconds), promise, note))
            say(f"{verdict:8}{float(seconds):7.1f} s  {name}: {promise}" + (f" [{note}]" if note else ""))
        else:
            other.append(line)
    p.wait()
    timer.cancel()
    failed = any(v == "FAILED" for v, *_ in out)
    if (p.returncode != 0 and not failed) or not out:
        why = "".join(other)[-1500:] or f"ended with status {p.returncode}"
        out.append(("FAILED", 0.0, "the whole file runs", why))
        say(f"FAILED  {name}: {why}")
    return out


def version_of(package):
    r = subprocess.run(["dpkg-query", "-W", "-f=${Version}", package], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    return r.stdout if r.returncode == 0 else None


def document(rows, results):
    own = subprocess.run([os.path.join(BUILD, "porthole"), "--version"], stdout=subprocess.PIPE, text=True).stdout.strip()
    system = ", ".join(f"{p} {v}" for p in SYSTEM if (v := version_of(p)))
    lines = ["# Interoperability", "",
             "Written by `./run interop`, which builds the peers and runs every line below on real programs in network namespaces.", "",
             f"- {time.strftime('%Y-%m-%d')}, {own}, kernel {os.uname().release.split('-')[0]}, {os.cpu_count()} cores",
             "- Peers: " + ", ".join(sorted(set(build_peers.versions().values()))),
             f"- Debian: {system}", ""]
    for path in rows:
        lines += [f"## {rows[path]}", "", "| | What must hold | Seen |", "|---|---|---|"]
        for verdict, seconds, promise, note in results[path]:
            mark = {"ok": "holds", "FAILED": "**does not hold**", "SKIPPED": "not run"}[verdict]
            lines.append(f"| {mark} | {promise.replace('|', '/')} | {note.replace('|', '/')[:400]} |")
        lines.append("")
    with open(DOCUMENT, "w") as f:
        f.write("\n".join(lines))


def main():
    files = sorted(p for p in glob.glob(os.path.join(HERE, "case_*.py")) if WORD in os.path.basename(p))
    if not files:
        sys.exit(f"run_interop.py: no case file has '{WORD}' in its name")
    missing = {}

    def build(modules):
        folder, lacking = build_peers.build(say, modules)
        for program, why in lacking.items():
            say(f"  SKIPPED what needs {program}: {why}")
        missing.update(lacking)
        return folder
    peers = build([m for m in build_peers.MODULES if m != build_peers.CRATE])
    crate = threading.Thread(target=build, args=([build_peers.CRATE],))
    crate.start()
    rows = {p: row_of(p) for p in files}
    results = {}
    waiting = queue.Queue()
    name = lambda p: os.path.basename(p)[:-3]
    for p in sorted(files, key=lambda p: name(p) not in FIRST):
        if name(p) not in ALONE:
            waiting.put(p)

    def lane():
        while True:
            try:
                path = waiting.get_nowait()
            except queue.Empty:
                return
            if name(path) == NEEDS_CRATE:
                crate.join()
            results[path] = run_file(path, peers)
    lanes = [threading.Thread(target=lane) for _ in range(LANES)]
    for t in lanes:
        t.start()
    for t in lanes + [crate]:
        t.join()
    for p in files:
        if p not in results:
            results[p] = run_file(p, peers)

    say("")
    width = max(len(r) for r in rows.values())
    count = {v: sum(1 for r in results.values() for c in r if c[0] == v) for v in ("ok", "FAILED", "SKIPPED")}
    for p in files:
        verdicts = [c[0] for c in results[p]]
        say(f"{rows[p]:{width}}  {verdicts.count('ok'):3} hold  {verdicts.count('FAILED'):3} do not  {verdicts.count('SKIPPED'):3} not run  "
            f"{sum(c[1] for c in results[p]):6.0f} s")
    if not WORD and "tailscaled" not in missing:
        document(rows, results)
        say("written: docs/interop.md")
    for p in files:
        for verdict, _, promise, note in results[p]:
            if verdict != "ok":
                say(f"  {verdict} {os.path.basename(p)}: {promise}: {note}")
    say(f"{count['ok']} passed, {count['FAILED']} failed, {count['SKIPPED']} skipped")
    return 1 if count["FAILED"] else 0


if __name__ == "__main__":
    sys.exit(main())
