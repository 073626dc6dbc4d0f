#!/usr/bin/env python3
"""Runs every fuzzer for some seconds on its corpus (fuzz/corpus/NAME), two at a time.

  run_fuzzers.py BUILD_FOLDER [SECONDS] [TARGET]

What a run finds is kept in BUILD_FOLDER/fuzz-findings; new corpus entries in BUILD_FOLDER/fuzz-corpus.
"""
import concurrent.futures
import glob
import os
import re
import subprocess
import sys


def main():
    build = sys.argv[1]
    seconds = int(sys.argv[2]) if len(sys.argv) > 2 else 30
    wanted = sys.argv[3] if len(sys.argv) > 3 else ""
    here = os.path.dirname(os.path.abspath(__file__))
    programs = [p for p in sorted(glob.glob(os.path.join(build, "fuzz", "*_fuzz"))) if wanted in os.path.basename(p)]
    findings = os.path.join(build, "fuzz-findings")
    os.makedirs(findings, exist_ok=True)

    def run(path):
        name = os.path.basename(path)
        grown = os.path.join(build, "fuzz-corpus", name)
        os.makedirs(grown, exist_ok=True)
        seeds = os.path.join(here, "corpus", name.removesuffix("_fuzz"))
        argv = [path, f"-max_total_time={seconds}", "-timeout=10", "-rss_limit_mb=3000", "-print_final_stats=1",
                f"-artifact_prefix={findings}/{name}-", grown] + ([seeds] if os.path.isdir(seeds) else [])
        p = subprocess.run(argv, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL)
        return name, p.returncode, p.stdout.decode(errors="replace")

    passed = failed = 0
    with concurrent.futures.ThreadPoolExecutor(max_workers=os.cpu_count() or 1) as pool:
        for name, code, output in pool.map(run, programs):
            runs = re.search(r"stat::number_of_executed_units: (\d+)", output)
            print(f"{'ok' if code == 0 else 'FAILED':7}{name:32}{runs.group(1) if runs else '?':>10} runs", flush=True)
            if code == 0:
                passed += 1
            else:
                failed += 1
                print(output[-6000:])
    print(f"{passed} passed, {failed} failed, 0 skipped")
    sys.exit(1 if failed or passed == 0 else 0)


if __name__ == "__main__":
    main()
