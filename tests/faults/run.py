#!/usr/bin/env python3
"""The fault matrix: causes every fault, checks what must hold, and writes down what happened.

    tests/faults/run.py [--kills N] [--seed S] [--only NAME ...] [--skip_unprivileged] [--write tests/faults/MATRIX.md]
    tests/faults/run.py --only kills --kills 200

O1 the final weights are bitwise those of a run to which nothing happened. O2 only a fully verified checkpoint is ever
selected. O3 one error that names rank, file or field, the right exit code, in time. O4 no process, shared memory or temporary
directory is left. The table goes to faults-matrix.md beside the program, and with --write there too; a line that cannot be
tried on this machine says why. Ends with 1 when a line does not hold, or could not be tried for another reason than a
missing GPU. As root it can also fill a real disk.
"""

import argparse
import os
import platform
import statistics
import subprocess
import sys
import time
import traceback

import cases
import kills
import saves
from rig import CannotRun, Rig, harness, launch_test


def several(values, form="%.1f"):
    """"2.0", or median and largest of several."""
    if not values:
        return "–"
    if len(values) == 1 or min(values) == max(values):
        return form % max(values)
    return (form + ", at most " + form) % (statistics.median(values), max(values))


def commit_now():
    """"" without git."""
    def git(*words):
        return subprocess.run(["git", "-C", harness.SOURCE, *words], capture_output=True, text=True, check=True).stdout.strip()
    try:
        return git("rev-parse", "--short", "HEAD") + (" with changes" if git("status", "--porcelain", "-uno") else "")
    except (FileNotFoundError, subprocess.CalledProcessError):
        return ""


def what_happened(error):
    """"AssertionError at cases.py:120: noticed after 12.1 s": the first line of the message, and where in our own files."""
    ours = [f for f in traceback.extract_tb(error.__traceback__) if "/tests/" in f.filename]
    where = " at %s:%d" % (os.path.basename(ours[-1].filename), ours[-1].lineno) if ours else ""
    first = next((l.strip() for l in str(error).splitlines() if l.strip()), "")
    return "%s%s: %s" % (type(error).__name__, where, first[:300])


def table(rows, all_kills, seconds, seed):
    lines = ["# Fault matrix", "",
             "Written by `tests/faults/run.py` (kills of seed %d), which ctest runs as `faults.matrix`: %s, %d cores, %s, "
             "%.0f s. " % (seed, "commit " + (commit_now() or "unknown"), os.cpu_count(), platform.machine(), seconds), "",
             "O1 final weights bitwise those of a run without faults. O2 only a verified checkpoint is selected. O3 one error "
             "that names rank, file or field, the right exit code, in time. O4 no process, shared memory or temporary "
             "directory left. Detected: until the supervisor notices it (without one: until the program has ended). "
             "Recovered: from the fault (where only the supervisor saw it: from the last sign of progress) to the first new step, "
             "or to the end of the next run where one had to be started. "
             "Median and largest.", "",
             "| fault | how | tried | must hold | detected after, s | recovered after, s | lost steps | outcome |",
             "| --- | --- | --- | --- | --- | --- | --- | --- |"]
    for r in rows:
        outcome = "; ".join([r.outcome] + r.notes)
        lines.append("| %s | %s | %d | %s | %s | %s | %s | %s |" % (
            r.fault, r.how, r.tried, r.oracles, several(r.detected), several(r.recovered), several(r.lost, "%d"),
            outcome.replace("|", "/").replace("\n", " ")))
    lines += ["", "## Random kills", "",
              "Each `kill -9` from outside; section and step are the supervisor's word on the killed rank.", "",
              "| kill | run, ranks | rank | when | section at death | after step | resumed from | lost steps | detected, s | "
              "recovered, s |", "| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |"]
    for k in all_kills:
        lines.append("| %d | %d, %d | %d | %s | %s | %d | %d | %d | %.1f | %.1f |" % (
            k.number, k.run, k.ranks, k.rank, k.where, k.section, k.after_step, k.resumed, k.lost, k.detected, k.recovered))
    return "\n".join(lines) + "\n"


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--kills", type=int, default=12)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--only", nargs="*", help="names of cases; 'kills' for the random ones")
    parser.add_argument("--skip_unprivileged", action="store_true",
                        help="a line that this machine does not allow (no root, no namespaces) is no failure")
    parser.add_argument("--write")
    options = parser.parse_args()
    harness.ordinary_signals()
    try:
        saves.private_mounts()
    except CannotRun as why:
        print("no private mounts: %s" % why, flush=True)
    began, rows, failed, all_kills = time.monotonic(), [], [], []

    def log(text):
        print(text, flush=True)

    def random_kills(rig, log):
        kills.run_kills(rig, random_kills.row, all_kills, options.seed, options.kills, log)
        return random_kills.row

    random_kills.__name__ = "kills"
    random_kills.row = kills.new_row(options.seed)
    Rig.setUpClass()
    rig = Rig()
    try:
        for case in [random_kills] + cases.CASES:
            if options.only and case.__name__ not in options.only:
                continue
            at = time.monotonic()
            try:
                row = case(rig, log)
                row.outcome = "holds"
            except CannotRun as why:
                row = case.row
                row.outcome = "NOT RUN HERE: %s" % why
                if case.__name__ != "gpu" and not options.skip_unprivileged:
                    failed.append("%s, which cannot run here (%s)" % (case.__name__, why))
            except Exception as error:  # pylint: disable=broad-except
                row = case.row
                row.outcome = "FAILED: " + what_happened(error)
                failed.append(case.__name__)
                log(traceback.format_exc())
            rows.append(row)
            log("%-22s %5.1f s  %d tried, %s" % (case.__name__, time.monotonic() - at, row.tried,
                                                 "; ".join([row.outcome] + row.notes)))
        if not options.only:
            missing = {n for n in dir(launch_test.Launch) if n.startswith("test_")} - cases.ran
            if missing and not failed:
                failed.append("cases of launch_test.py that no line runs: " + ", ".join(sorted(missing)))
    finally:
        Rig.doClassCleanups()
    text = table(rows, all_kills, time.monotonic() - began, options.seed)
    for path in [os.path.join(os.path.dirname(harness.PESC), "faults-matrix.md")] + ([options.write] if options.write else []):
        with open(path, "w", encoding="utf-8") as file:
            file.write(text)
        log("wrote " + path)
    if failed:
        sys.exit("FAILED: " + ", ".join(failed))


if __name__ == "__main__":
    main()
