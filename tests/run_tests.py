#!/usr/bin/env python3
"""Runs every test program of a build and the script tests, and closes with 'N passed, N failed, N skipped'.

Test programs are build/.../tests/test_* (GoogleTest; counted test by test). Script tests are tests/*/*_test.py: exit 0
passed, 77 skipped with the reason as the last line, anything else failed. Programs run one after the other, with the machine
for themselves; of the scripts, which wait for most of their time, two at once. PORTHOLE_SCRIPTS: which scripts, by name; all
when it is not set.
"""
import concurrent.futures
import glob
import json
import os
import subprocess
import sys
import tempfile
import time

TIME_LIMIT_SECONDS = 900
LANES = 2
ALONE = ("media_load_test.py", "node_start_test.py")  # how fast something is


def run_program(path):
    with tempfile.NamedTemporaryFile(suffix=".json") as report:
        start = time.monotonic()
        try:
            p = subprocess.run([path, f"--gtest_output=json:{report.name}", "--gtest_brief=1"], stdout=subprocess.PIPE,
                               stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL, timeout=TIME_LIMIT_SECONDS)
            output, code = p.stdout, p.returncode
        except subprocess.TimeoutExpired as e:
            output, code = (e.stdout or b"") + b"\ntest program ran into the time limit\n", -1
        seconds = time.monotonic() - start
        passed = failed = skipped = 0
        try:
            with open(report.name) as f:
                data = json.load(f)
            for suite in data["testsuites"]:
                for t in suite["testsuite"]:
                    if t.get("result") == "SKIPPED":
                        skipped += 1
                        reason = (t.get("skipped") or [{}])[0].get("message", "").strip().splitlines()
                        print(f"  SKIPPED {suite['name']}.{t['name']}: {reason[-1] if reason else 'no reason given'}")
                    elif t.get("result") == "SUPPRESSED":
                        continue
                    elif t.get("failures"):
                        failed += 1
                    else:
                        passed += 1
        except (OSError, ValueError, KeyError):
            pass
        if code != 0 and failed == 0:
            failed = 1  # crashed, or a sanitizer spoke after the last test
        if code == 0 and passed + failed + skipped == 0:
            failed = 1
            output += b"\nno test was run\n"
        return passed, failed, skipped, seconds, output


def run_script(path, build):
    start = time.monotonic()
    try:
        p = subprocess.run([sys.executable, path, build], stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                           stdin=subprocess.DEVNULL, timeout=TIME_LIMIT_SECONDS)
        output, code = p.stdout, p.returncode
    except subprocess.TimeoutExpired as e:
        output, code = (e.stdout or b"") + b"\nscript ran into the time limit\n", -1
    seconds = time.monotonic() - start
    if code == 77:
        lines = output.decode(errors="replace").strip().splitlines()
        print(f"  SKIPPED {os.path.basename(path)}: {lines[-1] if lines else 'no reason given'}")
        return 0, 0, 1, seconds, output
    return (1, 0, 0, seconds, output) if code == 0 else (0, 1, 0, seconds, output)


def main():
    if len(sys.argv) < 2:
        sys.exit("usage: run_tests.py BUILD_FOLDER [FILTER]")
    build = sys.argv[1]
    wanted = sys.argv[2] if len(sys.argv) > 2 else ""
    here = os.path.dirname(os.path.abspath(__file__))
    programs = [p for p in sorted(glob.glob(os.path.join(build, "tests", "test_*"))) if os.access(p, os.X_OK) and wanted in p]
    scripts = [s for s in sorted(glob.glob(os.path.join(here, "*", "*_test.py"))) if wanted in s]
    if "PORTHOLE_SCRIPTS" in os.environ:
        chosen = os.environ["PORTHOLE_SCRIPTS"].split()
        scripts = [s for s in scripts if os.path.basename(s).removesuffix("_test.py") in chosen]
    totals = [0, 0, 0]

    def results():
        for path in programs:
            yield path, run_program(path)
        alone = [s for s in scripts if os.path.basename(s) in ALONE]
        others = [s for s in scripts if s not in alone]
        with concurrent.futures.ThreadPoolExecutor(LANES) as pool:
            yield from zip(others, pool.map(lambda s: run_script(s, build), others))
        for path in alone:
            yield path, run_script(path, build)

    for path, run in results():
        passed, failed, skipped, seconds, output = run
        for i, n in enumerate(run[:3]):
            totals[i] += n
        verdict = "FAILED" if failed else "ok"
        print(f"{verdict:7}{os.path.basename(path):32}{passed:5} passed {failed:3} failed {skipped:3} skipped {seconds:7.1f} s", flush=True)
        if failed:
            sys.stdout.write(output.decode(errors="replace")[-20000:] + "\n")
    print(f"{totals[0]} passed, {totals[1]} failed, {totals[2]} skipped", flush=True)
    sys.exit(1 if totals[1] or totals[0] == 0 else 0)


if __name__ == "__main__":
    main()
