#!/usr/bin/env python3
"""Shell completion and the man page: they name every verb and flag that --help names, and what is stored is what is printed."""
import os
import re
import shutil
import subprocess
import sys

from lab import *

SHARE = os.path.join(os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__)))), "share")
STORED = {"bash": "completions/porthole.bash", "zsh": "completions/_porthole", "fish": "completions/porthole.fish", "man": "man/porthole.1"}


def printed(kind):
    out = run("completion", kind)
    check(out.returncode == 0 and out.stderr == "", f"{kind}: {out}")
    return out.stdout


def verbs_of_help(path=()):
    """(path, flags) of every verb, as --help tells them."""
    text = run(*path, "--help").stdout
    options = re.search(r"^Options:\n((?:  .*\n)+)", text, re.M)
    flags = re.findall(r"^  (-[^\s{]*)", options.group(1), re.M)
    yield path, [name for f in flags for name in re.split("[,:]", f) if name.startswith("-")]
    below = re.search(r"^Subcommands:\n((?:  .*\n?)+)", text, re.M)
    for name in re.findall(r"^  (\S+)", below.group(1), re.M) if below else []:
        yield from verbs_of_help((*path, name))


def test_what_is_stored_is_what_is_printed():
    for kind, name in STORED.items():
        with open(os.path.join(SHARE, name)) as f:
            check(f.read() == printed(kind), f"share/{name} is old: run share/update.sh")


def test_every_verb_and_flag_is_named():
    verbs = list(verbs_of_help())
    check(len(verbs) > 25 and all(len(flags) >= 2 for _, flags in verbs), f"--help was not understood: {verbs}")
    manual = printed("man").replace("\\-", "-")
    sections = dict(re.findall(r"^\.SS (porthole[^\n]*)\n(.*?)(?=^\.S[SH] )", manual, re.M | re.S))
    for path, flags in verbs:
        if path:
            title = " ".join(("porthole", *path))
            text = next((t for head, t in sections.items() if head == title or head.startswith(title + " ")), None)
            check(text, f"the man page has no section '{title}'")
        else:
            text = manual
        for flag in flags:
            if flag in ("-h", "--help") and path:
                continue
            check(re.search(re.escape(flag) + r"(?![\w-])", text), f"the man page does not name {flag} at {path}")
    for kind in ("bash", "zsh", "fish"):
        script = printed(kind)
        for path, flags in verbs:
            check(" ".join(("porthole", *path)) in script, f"{kind} does not know {path}")
            for flag in flags:
                word = flag if kind != "fish" else ("-l " + flag[2:] if flag.startswith("--") else "-s " + flag[1:])
                check(word in script, f"{kind} does not know {flag} of {path}")


def complete_in_bash(*words):
    """What bash offers for the last word."""
    listed = " ".join(f"'{w}'" for w in words)
    script = f"source {SHARE}/completions/porthole.bash; COMP_WORDS=({listed}); COMP_CWORD={len(words) - 1}; _porthole; printf '%s\\n' \"${{COMPREPLY[@]}}\""
    env = {**os.environ, "PATH": BUILD + ":" + os.environ["PATH"]}
    return subprocess.run(["bash", "-c", script], env=env, capture_output=True, text=True, timeout=30 * SLOW).stdout.split()


def complete_in_fish(line):
    env = {**os.environ, "PATH": BUILD + ":" + os.environ["PATH"]}
    out = subprocess.run(["fish", "--no-config", "-c", f"source {SHARE}/completions/porthole.fish; complete -C '{line}'"], env=env, capture_output=True,
                         text=True, timeout=30 * SLOW).stdout
    return [offer.split("\t")[0] for offer in out.splitlines()]


def test_completion_at_work():
    with Lab() as lab:
        remote = lab.remote()
        lab.account(remote)
        a = lab.node("a", remote.url, lab.key(remote))
        b = lab.node("living-room", remote.url, lab.key(remote))
        b.wait_event("running")
        a.wait_event("peers", match=lambda e: "living-room" in e["added"])
        folder = lab.path("a")
        check(complete_in_bash("porthole", "no") == ["node"], "porthole no")
        check(complete_in_bash("porthole", "node", "n") == ["nc", "netcheck"], "porthole node n")
        check(complete_in_bash("porthole", "node", "ping", "--un") == ["--until-direct"], "a flag")
        check(complete_in_bash("porthole", "node", "ping", "--statedir", folder, "liv") == ["living-room"], "a peer")
        check(complete_in_bash("porthole", "node", "nc", "--statedir", "=", folder, "liv") == ["living-room"], "a peer, with =")
        check(complete_in_bash("porthole", "node", "nc", "--statedir", folder[:-1]) == [folder, lab.path("a.key")] or
              folder in complete_in_bash("porthole", "node", "nc", "--statedir", folder[:-1]), "a folder")
        check(complete_in_bash("porthole", "completion", "--h") == ["--help"], "the last verb")
        if shutil.which("fish"):
            check(complete_in_fish("porthole node n") == ["nc", "netcheck"], f"fish: {complete_in_fish('porthole node n')}")
            check(complete_in_fish(f"porthole node ping --statedir {folder} liv") == ["living-room"], "fish: a peer")
            check("--until-direct" in complete_in_fish("porthole node ping --un"), "fish: a flag")
        for shell in ("bash", "zsh", "fish"):
            if shutil.which(shell):
                out = subprocess.run([shell, "-n", os.path.join(SHARE, STORED[shell])], capture_output=True, text=True)
                check(out.returncode == 0 and not out.stderr, f"{shell}: {out.stderr}")
    refused(run("completion", "tcsh"), 2, "tcsh")
    refused(run("completion"), 2, "kind")


if __name__ == "__main__":
    main(sys.modules[__name__])
