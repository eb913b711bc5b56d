#!/usr/bin/env python3
"""What a checkpoint written behind the steps costs them; see tests/bench/two-cores.md.

    tests/faults/save_stall.py [quickstart|gigabyte] [--ranks N] [--saves N] [--between STEPS] [--no-bar]

quickstart: the quick start's experiment as it stands (configs/quickstart/tune.textproto: its model, rows of a step and
layout) on four ranks. gigabyte: 84 million trained parameters (the quick start's base with adapters of inner size 10240), 1 GB
of weights and moments, steps of 64 rows whatever the quick start's have, on one rank with all cores.

From metrics.jsonl of a real `pesc train`, median and largest of all saves but the last:
  quiet     median step while no save is under way
  stall     time that the step loop stands still for one save: between two steps to start it (the wait for the
            previous one included), before optimizer steps until the copy is made, and at every step boundary until it is
            committed to ask the other ranks how far they are
  behind    median step that ran while a save was being copied, written or committed, less the quiet one
  excess    all that steps behind one save took more than quiet ones, per save, stall included: where the
            CPU is the device, copying, checksums and writing take their time from the same cores
Shares are of the quiet step. Ends with 1 when the median stall is more than 5 % of it (--no-bar: only
prints); the machine should be idle.
"""

import argparse
import json
import os
import shutil
import statistics
import sys
import tempfile

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "end_to_end"))
import harness  # noqa: E402

BAR = 0.05  # of a step


def long_rows(source, path, characters):
    """The quick start's texts joined into rows that fill the sequence."""
    with open(source, encoding="utf-8") as file, open(path, "w", encoding="utf-8") as out:
        text = ""
        for line in file:
            for turn in json.loads(line)["conversation"]:
                text += turn["input"] + " " + turn["output"] + "\n"
            if len(text) >= characters:
                out.write(json.dumps({"corpus": text, "dataset": "joined"}) + "\n")
                text = ""


def command(case, folder, saves, between):
    data = os.path.join(folder, "data")
    harness.generate_data(data, train=5000 if case == "quickstart" else 20000)
    rows, fields = os.path.join(data, "train.jsonl"), {}
    if case == "gigabyte":
        joined = os.path.join(data, "joined.jsonl")
        long_rows(rows, joined, 1000)
        rows = joined
        fields = {"moe__adapter_dim": 10240, "parallel__tp": 1, "parallel__ep": 1, "train__global_batch_size": 64}
    fields.update({"data.eval": "[]", "run_dir": os.path.join(folder, "run"), "data.train[0].path": rows,
                   "train__max_steps": saves * between,
                   "checkpoint__save_steps": between})
    return ["--config", harness.QUICKSTART] + harness.sets(**fields)


def split(records):
    """(seconds of quiet steps, [seconds of the steps behind a save, per save], seconds to start each save, of waits for
    its copy, of asking how far it is)."""
    quiet, behind, starts, copies, polls, under_way = [], [], [], [], [], False
    for r in records:
        if "save_stall_seconds" in r:
            starts.append(r["save_stall_seconds"])
            copies.append(0)
            polls.append(0)
            behind.append([])
            under_way = True
        elif "save_copy_wait_seconds" in r:
            copies[-1] += r["save_copy_wait_seconds"]
        elif "save_poll_seconds" in r:
            polls[-1] += r["save_poll_seconds"]
        elif "saved_step" in r:
            under_way = False
        elif "loss" in r and r["step"] > 3:  # the first steps warm up
            (behind[-1] if under_way else quiet).append(r["seconds"])
    return quiet, behind[:-1], starts[:-1], copies[:-1], polls[:-1]  # behind the last save there is no step


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("case", nargs="?", choices=("quickstart", "gigabyte"), default="quickstart")
    parser.add_argument("--ranks", type=int)
    parser.add_argument("--saves", type=int)
    parser.add_argument("--between", type=int)
    parser.add_argument("--no-bar", action="store_true")
    options = parser.parse_args()
    small = options.case == "quickstart"
    ranks = options.ranks or (4 if small else 1)
    folder = tempfile.mkdtemp(prefix="pesc-save-stall-", dir=os.path.join(harness.SOURCE, "build"))
    try:
        arguments = command(options.case, folder, options.saves or (21 if small else 8),
                            options.between or (15 if small else 4))
        result = harness.pesc(ranks if ranks > 1 else 0, "train", *arguments, seconds=1800)
        if result.code != 0:
            sys.exit(str(result))
        run = os.path.join(folder, "run")
        records = harness.read_jsonl(os.path.join(run, "metrics.jsonl"))
        newest = max(int(name[5:]) for name in os.listdir(run) if name.startswith("step-"))
        size = sum(os.path.getsize(os.path.join(run, "step-%d" % newest, name))
                   for name in os.listdir(os.path.join(run, "step-%d" % newest)))
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    quiet, behind, starts, copies, polls = split(records)
    stall = [sum(parts) for parts in zip(starts, copies, polls)]
    step = statistics.median(quiet)
    steps_behind = [s for group in behind for s in group]
    more = statistics.median(steps_behind) - step if steps_behind else 0
    excess = [sum(s - step for s in group) + start for group, start in zip(behind, starts)]
    per = lambda seconds: "%.1f ms (%.1f %%)" % (1e3 * seconds, 100 * seconds / step)  # noqa: E731
    several = lambda values: "%s, at most %s" % (per(statistics.median(values)), per(max(values)))  # noqa: E731
    print("%s on %d ranks: %.1f MB a checkpoint, %d saves; quiet step %.1f ms (%d steps)" % (
        options.case, ranks, size / 1e6, len(stall), 1e3 * step, len(quiet)))
    share = statistics.median(stall) / step
    for what, values in (("stall of a save", stall), ("  start", starts), ("  copy", copies), ("  asking", polls),
                         ("excess of a save", excess)):
        print("  %-18s %s" % (what, several(values)))
    print("  a step behind a save %s more (%d steps, %.1f a save)" % (
        per(more), len(steps_behind), len(steps_behind) / max(1, len(behind))))
    if share > BAR and not options.no_bar:
        sys.exit("FAILED: the step loop stands still for %.1f %% of a step a save; at most %.0f %% is allowed" % (
            100 * share, 100 * BAR))


if __name__ == "__main__":
    main()
