#!/usr/bin/env python3
"""The second quick start with PESC and with LORA, some seeds of each, as a table: exact match by domain before and after tuning.

    tests/bench/real_model_table.py --pesc build/gpu/pesc --device CUDA [--seeds 1,2,3] [--out FOLDER] [--assets DIR] [--report]
                                    [--steps N] [--rows N] [--eval N]

Both modes have the same rows, steps and learning rate, and as many trainable parameters (launcher/real-model.sh chooses LoRA's rank;
the program counts the parameters of each finished run here once more, and a difference of more than 0.5 % ends this with 1). Domains,
items and hyper-parameters are those of configs/experiments/real-model.textproto and configs/real-model. Runs that are in FOLDER already
are not repeated, so that it can be started again. Writes table.md and table.json there, and with --report report.html of all runs.
Without a network the wheels come from DIR.
"""

import argparse
import collections
import json
import os
import statistics
import subprocess
import sys
import time

SOURCE = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
sys.path.insert(0, os.path.join(SOURCE, "configs", "real-model"))
from same_parameters import MOST_APART, Counter  # noqa: E402

MODES = ("PESC", "LORA")


def read(path):
    with open(path, encoding="utf-8") as file:
        return json.load(file)


def rows_of(path):
    with open(path, encoding="utf-8") as lines:
        return [json.loads(line) for line in lines]


def tune(options, mode, seed):
    """One run, unless it is there. Returns its folder and the seconds it took, None for one that was there."""
    folder = os.path.join(options.out, "%s-%s-seed%d" % (mode, options.device, seed))
    if os.path.exists(os.path.join(folder, "after.json")):
        return folder, None
    command = [os.path.join(SOURCE, "launcher", "real-model.sh"), "--pesc", options.pesc, "--device", options.device, "--mode", mode,
               "--seed", str(seed), "--out", options.out, "--until", "after"]
    for flag in ("assets", "steps", "rows", "eval"):
        if getattr(options, flag):
            command += ["--" + flag, str(getattr(options, flag))]
    begin = time.monotonic()
    with open(os.path.join(options.out, os.path.basename(folder) + ".log"), "w", encoding="utf-8") as log:
        code = subprocess.run(command, stdout=log, stderr=subprocess.STDOUT).returncode
    if code != 0:
        with open(log.name, encoding="utf-8") as text:
            sys.exit("real_model_table.py: exit code %d of %s\n%s" % (code, " ".join(command), text.read()[-4000:]))
    return folder, time.monotonic() - begin


def trainable(options, folder, mode):
    """Trainable parameters of a finished run, as the program counts them for the experiment that the run has recorded."""
    config = os.path.join(folder, "run", "experiment.textproto")
    return Counter(options.pesc, ["--config", config]).parameters(mode)


def most_frequent(options, domain, questions):
    """Exact match, in percent, of always giving the most frequent answer of the domain's training rows."""
    learned = [r["messages"][-1]["content"] for r in rows_of(os.path.join(options.out, "data-%d" % questions, "train.jsonl")) if r["dataset"] == domain]
    answer = collections.Counter(learned).most_common(1)[0][0]
    held_out = [r["messages"][-1]["content"] for r in rows_of(os.path.join(options.out, "data-%d" % questions, "eval-%s.jsonl" % domain))]
    return 100 * held_out.count(answer) / len(held_out)


def spread(values):
    return "%.1f (%.1f to %.1f)" % (statistics.mean(values), min(values), max(values))


def table(options, results):
    """(markdown, the numbers). Percent of the domain's questions; the mean over seeds, and the least and the most."""
    before = read(os.path.join(results["PESC"][0], "before.json"))
    domains = sorted(before["datasets"])
    guesses = {d: most_frequent(options, d, before["datasets"][d]["rows"]) for d in domains}
    after = {mode: [read(os.path.join(folder, "after.json")) for folder in folders] for mode, folders in results.items()}
    lines = ["| domain | questions | always the most frequent answer | before | %s | PESC less LORA |" % " | ".join("after " + m for m in MODES),
             "| --- | --- | --- | --- | --- | --- | --- |"]
    numbers = {}
    for name in domains + ["mean of the domains"]:
        of = lambda report: (100 * report["datasets"][name]["exact_match"] if name in domains else
                             statistics.mean(100 * report["datasets"][d]["exact_match"] for d in domains))
        points = {mode: [of(report) for report in after[mode]] for mode in MODES}
        difference = [a - b for a, b in zip(points["PESC"], points["LORA"])]
        guess = guesses[name] if name in domains else statistics.mean(guesses.values())
        rows = before["datasets"][name]["rows"] if name in domains else sum(before["datasets"][d]["rows"] for d in domains)
        lines.append("| %s | %d | %.1f | %.1f | %s | %s |" % (
            name, rows, guess, of(before), " | ".join(spread(points[m]) for m in MODES), spread(difference)))
        numbers[name] = {"rows": rows, "most_frequent": guess, "before": of(before), **points}
    return "\n".join(lines) + "\n", numbers


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pesc", required=True)
    parser.add_argument("--device", choices=["CPU", "CUDA"], default="CPU")
    parser.add_argument("--seeds", default="1,2,3")
    parser.add_argument("--out", default="runs/real-model-table")
    parser.add_argument("--assets")
    parser.add_argument("--report", action="store_true")
    for name in ("steps", "rows", "eval"):
        parser.add_argument("--" + name, type=int)
    options = parser.parse_args()
    for name in ("pesc", "out", "assets"):
        if getattr(options, name):
            setattr(options, name, os.path.abspath(getattr(options, name)))
    os.makedirs(options.out, exist_ok=True)
    seeds = [int(seed) for seed in options.seeds.split(",")]

    results, seconds = {mode: [] for mode in MODES}, {}
    for seed in seeds:  # the modes in turn, so that a machine that slows down slows both
        for mode in MODES:
            folder, took = tune(options, mode, seed)
            results[mode].append(folder)
            seconds["%s seed %d" % (mode, seed)] = took
            print("%s seed %d: %s" % (mode, seed, "was there" if took is None else "%.0f s" % took), flush=True)
    parameters = {mode: {trainable(options, folder, mode) for folder in results[mode]} for mode in MODES}
    one = {mode: min(parameters[mode]) for mode in MODES}
    if any(len(found) != 1 for found in parameters.values()) or abs(one["PESC"] - one["LORA"]) > MOST_APART * one["PESC"]:
        sys.exit("real_model_table.py: the runs have other numbers of trainable parameters: %s" % parameters)

    text, numbers = table(options, results)
    text += "\nTrainable parameters: %s; seeds %s.\n" % (", ".join("%s %d" % item for item in one.items()), options.seeds)
    print("\n" + text)
    with open(os.path.join(options.out, "table.md"), "w", encoding="utf-8") as file:
        file.write(text)
    with open(os.path.join(options.out, "table.json"), "w", encoding="utf-8") as file:
        json.dump({"device": options.device, "seeds": seeds, "trainable_parameters": one, "seconds": seconds, "percent": numbers}, file, indent=1)
    if options.report:
        runs = [word for mode in MODES for folder in results[mode] for word in ("--run", os.path.join(folder, "run"))]
        page, new = os.path.join(options.out, "report.html"), os.path.join(options.out, "report-new.html")
        if os.path.exists(new):  # the program writes over no file
            os.remove(new)
        subprocess.run([options.pesc, "report", *runs, "--out", new], check=True)
        os.replace(new, page)


if __name__ == "__main__":
    main()
