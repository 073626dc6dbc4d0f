"""Builds the peers of the interop tests, once, into a cache outside the tree: Go modules at the versions that peers/*/go.mod pin, and
a program with the tailscale crate, whose Cargo.lock pins it.

    folder, missing = build(say)      # folder of programs; {program: reason} of what cannot be had

The cache is $XDG_CACHE_HOME (or ~/.cache)/porthole/interop. What is built is known by the module files, our own sources and
the compiler's version, so a change of any of them builds anew.
"""
import glob
import hashlib
import os
import re
import shutil
import subprocess
import time

HERE = os.path.join(os.path.dirname(os.path.abspath(__file__)), "peers")
CACHE = os.path.join(os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache"), "porthole", "interop")

# module folder -> {program: package}
MODULES = {
    "tailscale": {"tailscale": "tailscale.com/cmd/tailscale", "tailscaled": "tailscale.com/cmd/tailscaled", "derper": "tailscale.com/cmd/derper",
                  "derpprobe": "tailscale.com/cmd/derpprobe", "stunc": "tailscale.com/cmd/stunc", "tsnetpeer": "./tsnetpeer"},
    "headscale-0.29": {"headscale-0.29": "github.com/juanfont/headscale/cmd/headscale"},
    "headscale-0.28": {"headscale-0.28": "github.com/juanfont/headscale/cmd/headscale"},
}
CRATE, CRATE_PROGRAM, CRATE_COMPILER = "crate", "cratepeer", (1, 92)  # the oldest Rust that takes it


def versions():
    """{module path: version} of the peers, as pinned."""
    out = {}
    for module in MODULES:
        with open(os.path.join(HERE, module, "go.mod")) as f:
            for line in f:
                words = line.replace("require ", "").split()
                if len(words) == 2 and words[0] in ("tailscale.com", "github.com/juanfont/headscale"):
                    out[module] = f"{words[0].rsplit('/', 1)[-1]} {words[1]}"
    with open(os.path.join(HERE, CRATE, "Cargo.lock")) as f:
        out[CRATE] = "tailscale crate " + re.search(r'name = "tailscale"\nversion = "([^"]+)"', f.read()).group(1)
    return out


def fingerprint(module, compiler):
    digest = hashlib.sha256(compiler.encode())
    for path in sorted(glob.glob(os.path.join(HERE, module, "**"), recursive=True)):
        if os.path.isfile(path):
            digest.update(os.path.relpath(path, HERE).encode())
            with open(path, "rb") as f:
                digest.update(f.read())
    return digest.hexdigest()[:16]


def compile(argv, what, cwd, env, log_path, say):
    """Runs a compiler to its end; None, or its last word."""
    start = told = time.monotonic()
    with open(log_path, "ab") as log:
        p = subprocess.Popen(argv, cwd=cwd, env=env, stdout=log, stderr=log, stdin=subprocess.DEVNULL)
        while p.poll() is None:
            time.sleep(0.2)
            if time.monotonic() - told > 20:
                told = time.monotonic()
                say(f"building {what}, {told - start:.0f} s")
    if p.returncode == 0:
        return None
    with open(log_path, errors="replace") as f:
        last = [line for line in f.read().strip().splitlines() if line.strip()][-1:]
    return f"the build failed: {last[0] if last else 'no word why'}"


def build_go(folder, missing, say):
    go = shutil.which("go")
    if not go:
        missing.update({program: "Go is not installed" for programs in MODULES.values() for program in programs})
        return
    version = subprocess.run([go, "env", "GOVERSION"], stdout=subprocess.PIPE, text=True, cwd=HERE).stdout.strip()
    # Headscale 0.28 pins a fork whose checksum the public database does not have; go.sum has it.
    env = {**os.environ, "GONOSUMDB": "github.com/tailscale/*", "GOFLAGS": "-mod=readonly", "CGO_ENABLED": "0"}
    for module, programs in MODULES.items():
        where = os.path.join(CACHE, f"{module}-{fingerprint(module, version)}")
        wanted = [p for p in programs if not os.path.exists(os.path.join(where, p))]
        if wanted:
            os.makedirs(where, exist_ok=True)
            say(f"building {module} (once; minutes from an empty cache)")
        for i, p in enumerate(wanted):
            trouble = compile([go, "build", "-trimpath", "-ldflags=-s -w", "-o", os.path.join(where, p + ".new"), programs[p]], f"{module}: {p}",
                              os.path.join(HERE, module), env, os.path.join(where, "build.log"), say)
            if trouble:
                missing.update({rest: trouble for rest in wanted[i:]})
                break
            os.rename(os.path.join(where, p + ".new"), os.path.join(where, p))
        offer(folder, where, programs)


def build_crate(folder, missing, say):
    cargo = shutil.which("cargo")
    version = cargo and subprocess.run([cargo, "--version"], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True).stdout.strip()
    number = re.match(r"cargo (\d+)\.(\d+)", version or "")
    if not number:
        missing[CRATE_PROGRAM] = "Rust is not installed"
        return
    if tuple(map(int, number.groups())) < CRATE_COMPILER:
        missing[CRATE_PROGRAM] = f"the tailscale crate needs Rust {CRATE_COMPILER[0]}.{CRATE_COMPILER[1]}, here is {version}"
        return
    where = os.path.join(CACHE, f"{CRATE}-{fingerprint(CRATE, version)}")
    program = os.path.join(where, CRATE_PROGRAM)
    if not os.path.exists(program):
        os.makedirs(where, exist_ok=True)
        say(f"building {CRATE} (once; minutes)")
        objects = os.path.join(where, "target")
        trouble = compile([cargo, "build", "--release", "--locked", "--target-dir", objects], CRATE, os.path.join(HERE, CRATE), os.environ,
                          os.path.join(where, "build.log"), say)
        if trouble:
            missing[CRATE_PROGRAM] = trouble
            return
        shutil.copy(os.path.join(objects, "release", CRATE_PROGRAM), program + ".new")
        os.rename(program + ".new", program)
        shutil.rmtree(objects)
    offer(folder, where, [CRATE_PROGRAM])


def offer(folder, where, programs):
    for p in programs:
        if os.path.exists(os.path.join(where, p)):
            os.symlink(os.path.join(where, p), os.path.join(folder, p))


def build(say=print):
    folder, missing = os.path.join(CACHE, "bin"), {}
    shutil.rmtree(folder, ignore_errors=True)
    os.makedirs(folder)
    build_go(folder, missing, say)
    build_crate(folder, missing, say)
    return folder, missing
