"""Stripped size of a program that only dials."""
import os
import tempfile

from testbed import BUILD, missing_peer, peer, run


def stripped(path):
    with tempfile.NamedTemporaryFile() as t:
        run(["strip", "-o", t.name, path])
        return os.path.getsize(t.name)


def size():
    why_not = missing_peer("tsnetdial")
    rows = [("examples/dial", os.path.join(BUILD, "examples", "dial"), "our code and small libraries inside, system's shared OpenSSL and libc"),
            ("examples/dial_static", os.path.join(BUILD, "examples", "dial_static"), "fully static")]
    theirs = None if why_not else stripped(peer("tsnetdial"))
    print("\nSize of a program that only dials, stripped")
    for name, path, what in rows:
        if os.path.exists(path):
            ours = stripped(path)
            print(f"  {name:22} {ours / 1e6:6.2f} MB  " + (f"1/{theirs / ours:<5.1f}" if theirs else "") + f" {what}")
    print(f"  {'tsnet':22} SKIPPED: {why_not}" if why_not else f"  {'tsnet':22} {theirs / 1e6:6.2f} MB         the same in Go, fully static (without cgo)")
