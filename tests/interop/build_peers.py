"""Builds the peers of the interop tests: Go modules at the versions that peers/*/go.mod pin, once, into a cache outside the tree.

    folder, missing = build(say)      # folder of programs; {program: reason} of what cannot be had
    build(say, ["tailscale"])         # only these modules; the others stay as they are

The cache is $XDG_CACHE_HOME (or ~/.cache)/porthole/interop. What is built is known by the module files, our own sources and
the Go version, so a change of any of them builds anew.
"""
import glob
import hashlib
import os
import shutil
import subprocess
import time

HERE = os.path.join(os.path.dirname(os.path.abspath(__file__)), "peers")
CACHE = os.path.join(os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache"), "porthole", "interop")

# module folder -> {program: package}
MODULES = {
    "tailscale": {"tailscale": "tailscale.com/cmd/tailscale", "tailscaled": "tailscale.com/cmd/tailscaled", "derper": "tailscale.com/cmd/derper",
                  "derpprobe": "tailscale.com/cmd/derpprobe", "stunc": "tailscale.com/cmd/stunc", "tsnetpeer": "./tsnetpeer",
                  "tsnetdial": "./tsnetdial"},
    "headscale-0.29": {"headscale-0.29": "github.com/juanfont/headscale/cmd/headscale"},
    "headscale-0.28": {"headscale-0.28": "github.com/juanfont/headscale/cmd/headscale"},
}


def versions():
    """{module path: version} of the peers, as pinned."""
    out = {}
    for module in MODULES:
        with open(os.path.join(HERE, module, "go.mod")) as f:
            for line in f:
                words = line.replace("require ", "").split()
                if len(words) == 2 and words[0] in ("tailscale.com", "github.com/juanfont/headscale"):
                    out[module] = f"{words[0].rsplit('/', 1)[-1]} {words[1]}"
    return out


def fingerprint(module, go_version):
    digest = hashlib.sha256(go_version.encode())
    for path in sorted(glob.glob(os.path.join(HERE, module, "**"), recursive=True)):
        if os.path.isfile(path):
            digest.update(os.path.relpath(path, HERE).encode())
            with open(path, "rb") as f:
                digest.update(f.read())
    return digest.hexdigest()[:16]


def link(folder, program, target):
    """folder/program leads to the target from now on, without a moment in between; target None: it is gone."""
    path = os.path.join(folder, program)
    if target:
        os.symlink(target, f"{path}.{os.getpid()}")
        os.replace(f"{path}.{os.getpid()}", path)
    elif os.path.lexists(path):
        os.unlink(path)


def build(say=print, modules=tuple(MODULES)):
    go = shutil.which("go")
    every = {program for module in modules for program in MODULES[module]}
    folder = os.path.join(CACHE, "bin")
    os.makedirs(folder, exist_ok=True)
    if not go:
        for program in every:
            link(folder, program, None)
        return folder, {program: "Go is not installed" for program in every}
    go_version = subprocess.run([go, "env", "GOVERSION"], stdout=subprocess.PIPE, text=True, cwd=HERE).stdout.strip()
    missing = {}
    for module in modules:
        programs = MODULES[module]
        where = os.path.join(CACHE, f"{module}-{fingerprint(module, go_version)}")
        wanted = [p for p in programs if not os.path.exists(os.path.join(where, p))]
        if wanted:
            os.makedirs(where, exist_ok=True)
            log_path = os.path.join(where, "build.log")
            # Headscale 0.28 pins a fork whose checksum the public database does not have; go.sum has it.
            env = {**os.environ, "GONOSUMDB": "github.com/tailscale/*", "GOFLAGS": "-mod=readonly", "CGO_ENABLED": "0"}
            start = told = time.monotonic()
            say(f"building {module} (once; minutes from an empty cache)")
            for p in wanted:
                with open(log_path, "ab") as log:
                    b = subprocess.Popen([go, "build", "-trimpath", "-ldflags=-s -w", "-o", os.path.join(where, p + ".new"), programs[p]],
                                         cwd=os.path.join(HERE, module), env=env, stdout=log, stderr=log, stdin=subprocess.DEVNULL)
                    while b.poll() is None:
                        time.sleep(0.2)
                        if time.monotonic() - told > 20:
                            told = time.monotonic()
                            say(f"building {module}: {p}, {told - start:.0f} s")
                if b.returncode == 0:
                    os.rename(os.path.join(where, p + ".new"), os.path.join(where, p))
                else:
                    with open(log_path, errors="replace") as f:
                        last = [line for line in f.read().strip().splitlines() if line.strip()][-1:]
                    missing[p] = f"go build failed: {last[0] if last else 'no word why'}"
                    break
            for p in wanted:
                if p not in missing and not os.path.exists(os.path.join(where, p)):
                    missing[p] = missing[next(iter(missing))]
        for p in programs:
            there = os.path.join(where, p)
            link(folder, p, there if os.path.exists(there) else None)
    return folder, missing
