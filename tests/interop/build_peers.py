"""Builds the peers of the interop tests, once, into a cache outside the tree: Go modules at the versions that peers/*/go.mod pin, and
a program with the tailscale crate, whose Cargo.lock pins it.

    folder, missing = build(say)      # folder of programs; {program: reason} of what cannot be had
    build(say, ["tailscale"])         # only these modules; the others stay as they are

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
                  "derpprobe": "tailscale.com/cmd/derpprobe", "stunc": "tailscale.com/cmd/stunc", "tsnetpeer": "./tsnetpeer",
                  "tsnetdial": "./tsnetdial"},
    "headscale-0.29": {"headscale-0.29": "github.com/juanfont/headscale/cmd/headscale"},
    "headscale-0.28": {"headscale-0.28": "github.com/juanfont/headscale/cmd/headscale"},
    "crate": {"cratepeer": None},
}
CRATE, CRATE_COMPILER = "crate", (1, 92)  # in Rust, and the oldest that takes it


def versions():
    """{module path: version} of the peers, as pinned."""
    out = {}
    for module in MODULES.keys() - {CRATE}:
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


def link(folder, program, target):
    """folder/program leads to the target from now on, without a moment in between; target None: it is gone."""
    path = os.path.join(folder, program)
    if target:
        os.symlink(target, f"{path}.{os.getpid()}")
        os.replace(f"{path}.{os.getpid()}", path)
    elif os.path.lexists(path):
        os.unlink(path)


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


def compile_go(module, where, say):
    """All programs of a module at once, so that none waits for another's linker."""
    # Headscale 0.28 pins a fork whose checksum the public database does not have; go.sum has it.
    env = {**os.environ, "GONOSUMDB": "github.com/tailscale/*", "GOFLAGS": "-mod=readonly", "CGO_ENABLED": "0"}
    new = os.path.join(where, "new")
    os.makedirs(new, exist_ok=True)
    trouble = compile(["go", "build", "-trimpath", "-ldflags=-s -w", "-o", new + "/", *MODULES[module].values()], module,
                      os.path.join(HERE, module), env, os.path.join(where, "build.log"), say)
    if not trouble:
        for program, package in MODULES[module].items():
            os.rename(os.path.join(new, os.path.basename(package)), os.path.join(where, program))
        os.rmdir(new)
    return trouble


def compile_crate(module, where, say):
    objects = os.path.join(where, "target")
    trouble = compile(["nice", "cargo", "build", "--release", "--locked", "--target-dir", objects], module, os.path.join(HERE, module),
                      os.environ, os.path.join(where, "build.log"), say)
    if not trouble:
        for program in MODULES[module]:
            os.rename(os.path.join(objects, "release", program), os.path.join(where, program))
        shutil.rmtree(objects)
    return trouble


def compilers():
    """{language: (its compiler's version, or None; why not)}"""
    def ask(*argv):
        found = shutil.which(argv[0])
        return found and subprocess.run(argv, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, cwd=HERE).stdout.strip()
    go, cargo = ask("go", "env", "GOVERSION"), ask("cargo", "--version")
    out = {"go": (go, "Go is not installed"), "rust": (cargo, "Rust is not installed")}
    number = re.match(r"cargo (\d+)\.(\d+)", cargo or "")
    if cargo and not (number and tuple(map(int, number.groups())) >= CRATE_COMPILER):
        out["rust"] = (None, f"the tailscale crate needs Rust {CRATE_COMPILER[0]}.{CRATE_COMPILER[1]}, here is {cargo}")
    return out


def build(say=print, modules=tuple(MODULES)):
    folder, missing = os.path.join(CACHE, "bin"), {}
    os.makedirs(folder, exist_ok=True)
    known = compilers()
    for module in modules:
        programs, language = MODULES[module], "rust" if module == CRATE else "go"
        version, why_not = known[language]
        where = os.path.join(CACHE, f"{module}-{fingerprint(module, version or '')}")
        if not all(os.path.exists(os.path.join(where, p)) for p in programs):
            trouble = why_not
            if version:
                os.makedirs(where, exist_ok=True)
                say(f"building {module} (once; minutes from an empty cache)")
                trouble = (compile_crate if module == CRATE else compile_go)(module, where, say)
            if trouble:
                missing.update(dict.fromkeys(programs, trouble))
        for p in programs:
            link(folder, p, None if p in missing else os.path.join(where, p))
    return folder, missing
