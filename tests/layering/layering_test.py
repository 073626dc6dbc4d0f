#!/usr/bin/env python3
"""The rules of docs/architecture.md, "Layers", as a test.

1. Include lines: each folder of src/ includes only what the table allows.
2. Symbols: archives up to `node` (and coordinator, relay) import no socket, clock, thread, entropy, file or environment
   function.
3. Texts: no host of a package registry, no absolute path of a machine.
"""
import glob
import os
import re
import subprocess
import sys

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

CORE_BASE = {"base", "crypto", "wire"}
CORE = CORE_BASE | {"ts2021"}
# folder -> folders it may include besides itself; the reason is the sentence in docs/architecture.md.
ALLOWED = {
    "base": set(),
    "crypto": {"base"},
    "wire": {"base"},
    "ts2021": CORE_BASE,
    "wg": CORE_BASE,
    "paths": CORE,
    "derp": CORE,
    "control": CORE,
    "netstack": CORE_BASE,
    "proxy": CORE_BASE,
    "node": CORE | {"wg", "paths", "derp", "control", "netstack", "proxy"},
    "coordinator": CORE,
    "relay": CORE,
    "runtime": CORE | {"wg", "paths", "derp", "control", "netstack", "proxy", "node"},
    "capi": CORE | {"node", "runtime"},
}
# Tests may look further where a real pair is the better proof.
TEST_EXTRA = {"coordinator": {"control"}, "relay": {"derp", "wire"}, "derp": {"relay"}, "control": set(), "proxy": set()}

SANS_IO = ["base", "crypto", "wire", "ts2021", "wg", "paths", "derp", "control", "netstack", "proxy", "node", "coordinator", "relay"]
FORBIDDEN = re.compile(
    r"^(socket|connect|bind|listen|accept4?|send(to|msg|mmsg)?|recv(from|msg|mmsg)?|read|write|readv|writev|open(at)?(64)?|fopen(64)?|"
    r"close|unlink|rename|getenv|secure_getenv|clock_gettime|gettimeofday|time|nanosleep|usleep|sleep|getrandom|getentropy|"
    r"arc4random\w*|rand|srand|random|pthread_\w+|epoll_\w+|poll|ppoll|select|eventfd|timerfd_\w+|getaddrinfo|gethostby\w+|fork|execve|"
    r"system|syslog|randombytes\w*|_ZNSt6thread\w*|_ZNSt6chrono3_V2\w*now\w*|_ZNSt13random_device\w*|_ZNSt14basic_[io]f\w*)$")
# assertion_failed prints before it aborts; nothing else may.
SYMBOLS_ALLOWED = {("base", "abort"), ("base", "fprintf")}


def includes():
    bad = []
    for folder, allowed in ALLOWED.items():
        for path in sorted(glob.glob(os.path.join(ROOT, "src", folder, "*.*"))):
            may = allowed | {folder}
            if path.endswith("_test.cpp") or "_test_" in os.path.basename(path):
                may = may | TEST_EXTRA.get(folder, set()) | {"support"}
            with open(path, encoding="utf-8") as f:
                for number, line in enumerate(f, 1):
                    m = re.match(r'\s*#\s*include\s+"([^"/]+)/', line)
                    if m and m.group(1) not in may:
                        bad.append(f"{os.path.relpath(path, ROOT)}:{number}: {folder} may not include {m.group(1)}")
    return bad


def symbols(build):
    bad = []
    for folder in SANS_IO:
        archive = os.path.join(build, "lib", f"libporthole_{folder}.a")
        if not os.path.exists(archive):
            bad.append(f"{archive} is missing")
            continue
        out = subprocess.run(["nm", "-u", "--format=posix", archive], capture_output=True, text=True).stdout
        for line in out.splitlines():
            name = line.split(" ")[0]
            if FORBIDDEN.match(name) and (folder, name) not in SYMBOLS_ALLOWED:
                bad.append(f"{folder} imports {name}")
    return sorted(set(bad))


def texts():
    bad = []
    # Spelled in pieces so that this file does not trip over itself.
    forbidden = ["/wo" + "rk/", "proxy.go" + "lang.org", "deb.deb" + "ian.org", "registry.npm" + "js.org", "/ro" + "ot/"]
    files = subprocess.run(["git", "-C", ROOT, "ls-files"], capture_output=True, text=True).stdout.splitlines()
    for name in files:
        path = os.path.join(ROOT, name)
        try:
            with open(path, encoding="utf-8") as f:
                text = f.read()
        except (UnicodeDecodeError, OSError):
            continue
        for word in forbidden:
            if word in text:
                bad.append(f"{name} contains {word}")
    return bad


def main():
    build = sys.argv[1]
    bad = includes() + texts()
    # Sanitizer runtimes add their own imports; the plain builds hold the symbol rule.
    if "asan" not in os.path.basename(build) and "tsan" not in os.path.basename(build):
        bad += symbols(build)
    for line in bad:
        print(line)
    sys.exit(1 if bad else 0)


if __name__ == "__main__":
    main()
