#!/usr/bin/env python3
"""What a tuned model loses by frozen weights in FP8 and NF4: both quick starts with each format, some seeds of each, as a table.

    tests/bench/frozen_formats_table.py --pesc build/gpu/pesc --device CUDA [--seeds 1,2,3] [--only quickstart|real-model]
                                        [--out FOLDER] [--assets DIR] [--steps N]

For each experiment, format and seed it tunes, evaluates, and keeps the loss of every step. The formats of a seed have the same rows,
dropout masks and initial values. "plain" is the weights in the compute type: bf16 on a GPU, float32 on a CPU. The table gives exact match
by domain and the evaluation loss, each also less plain of the same seed; the loss curve, as means over ranges of steps; and how far the
curve is from the plain one of the same seed, beside how far two seeds' plain curves are from each other. Runs that are in FOLDER already
are not repeated. Writes table.md and table.json there. DIR holds the wheels of the real model, for a machine without a network
(tests/bench/real-model.md).
"""

import argparse
import itertools
import json
import os
import statistics
import subprocess
import sys
import time

SOURCE = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
FORMATS = {"plain": "AUTO", "FP8": "FP8", "NF4": "NF4"}
EXPERIMENTS = {
    "quickstart": ("configs/quickstart/tune.textproto", ("text", "programs", "arithmetic"), 100),
    "real-model": ("configs/experiments/real-model.textproto", ("arithmetic", "code", "words", "logic"), 200),
}
# The loss curve is given as means over these shares of the steps.
CURVE = ((0, 0.02), (0.02, 0.05), (0.05, 0.1), (0.1, 0.2), (0.2, 0.4), (0.4, 0.6), (0.6, 0.8), (0.8, 0.9), (0.9, 1))


def read(path):
    with open(path, encoding="utf-8") as file:
        return json.load(file)


def run(command, log):
    with open(log, "a", encoding="utf-8") as out:
        code = subprocess.run(command, stdout=out, stderr=subprocess.STDOUT, cwd=SOURCE).returncode
    if code != 0:
        with open(log, encoding="utf-8") as text:
            sys.exit("frozen_formats_table.py: exit code %d of %s\n%s" % (code, " ".join(command), text.read()[-4000:]))


def data_of(options, experiment, questions):
    """(flags that name base and rows, made where they are not there yet)."""
    folder = os.path.join(options.out, experiment)
    os.makedirs(folder, exist_ok=True)
    log = os.path.join(folder, "data.log")
    if experiment == "quickstart":
        data = os.path.join(folder, "data")
        if not os.path.exists(os.path.join(data, "train.jsonl")):
            run([sys.executable, "configs/quickstart/generate.py", "--out", data], log)
        return data, []
    command = ["launcher/real-model.sh", "--pesc", options.pesc, "--out", folder, "--eval", str(questions), "--until", "data"]
    run(command + (["--assets", options.assets] if options.assets else []), log)
    return os.path.join(folder, "data-%d" % questions), ["--set", "model.path=" + os.path.join(folder, "base")]


def tune(options, experiment, form, seed):
    """One run and its evaluation, unless they are there. Returns (losses of all steps, the evaluation)."""
    config, domains, questions = EXPERIMENTS[experiment]
    data, flags = data_of(options, experiment, questions)
    name = "%s-seed%d" % (form, seed)
    folder = os.path.join(options.out, experiment, name)
    flags = ["--config", config, "--set", "run_dir=" + folder, "--set", "train.seed=%d" % seed, "--set", "train.logging_steps=1",
             "--set", "train.frozen_dtype=" + FORMATS[form], "--set", "parallel.device=" + options.device, "--set", "parallel.tp=1",
             "--set", "parallel.ep=1", "--set", "data.train[0].path=%s/train.jsonl" % data, *flags]
    for i, domain in enumerate(domains):
        flags += ["--set", "data.eval[%d].path=%s/eval-%s.jsonl" % (i, data, domain)]
    if options.steps:
        flags += ["--set", "train.max_steps=%d" % options.steps]
    elif experiment == "real-model" and options.device == "CUDA":  # as launcher/real-model.sh has it
        flags += ["--set", "train.max_steps=400", "--set", "train.global_batch_size=32"]
    after = folder + ".after.json"
    begin = time.monotonic()
    if not os.path.exists(after):
        run([options.pesc, "train", *flags], folder + ".log")
        run([options.pesc, "eval", *flags, "--out", after], folder + ".log")
    losses = {}
    with open(os.path.join(folder, "metrics.jsonl"), encoding="utf-8") as lines:
        for line in map(json.loads, lines):
            if "loss" in line and "step" in line:
                losses[line["step"]] = line["loss"]
    print("%s %s: %d steps, %.0f s" % (experiment, name, len(losses), time.monotonic() - begin), flush=True)
    return [losses[step] for step in sorted(losses)], read(after)


def apart(a, b):
    """The mean over the steps of the difference of two loss curves, without its sign."""
    if len(a) != len(b):
        sys.exit("frozen_formats_table.py: loss curves of %d and %d steps; name another --out" % (len(a), len(b)))
    return statistics.mean(abs(x - y) for x, y in zip(a, b))


def spread(values, form="%.1f"):
    return (form + " (" + form + " to " + form + ")") % (statistics.mean(values), min(values), max(values))


def table(experiment, seeds, results):
    domains = EXPERIMENTS[experiment][1]
    match = lambda report, domain: 100 * report["datasets"][domain]["exact_match"]
    mean = lambda report: statistics.mean(match(report, d) for d in domains)
    plain = [results["plain", seed][0] for seed in seeds]
    lines = ["| %s | %s |" % (experiment, " | ".join(FORMATS)), "| --- |" + " --- |" * len(FORMATS)]
    numbers = {}

    def row(name, value, form):
        found = {f: [value(*results[f, seed]) for seed in seeds] for f in FORMATS}
        lines.append("| %s | %s |" % (name, " | ".join(spread(found[f], form) for f in FORMATS)))
        numbers[name] = found
        return found

    def row_and_less(name, value, form):
        found = row(name, value, form)
        less = {f: [a - b for a, b in zip(found[f], found["plain"])] for f in FORMATS if f != "plain"}
        lines.append("| the same, less plain of the same seed | | %s |" % " | ".join(spread(less[f], form) for f in less))

    for domain in domains:
        row_and_less("exact match, %s" % domain, lambda _, report: match(report, domain), "%.1f")
    row_and_less("exact match, mean of the domains", lambda _, report: mean(report), "%.1f")
    row_and_less("evaluation loss", lambda _, report: report["total"]["eval_loss"], "%.4f")
    steps = len(plain[0])
    for begin, end in ((int(steps * begin), int(steps * end)) for begin, end in CURVE):
        if begin < end:
            row("loss, steps %d to %d" % (begin + 1, end), lambda losses, _: statistics.mean(losses[begin:end]), "%.4f")
    curves = {f: [apart(results[f, s][0], p) for s, p in zip(seeds, plain)] for f in FORMATS if f != "plain"}
    numbers["curve, from plain of the same seed"] = curves
    others = [apart(a, b) for a, b in itertools.combinations(plain, 2)]
    lines.append("| loss curve, mean distance from plain of the same seed | %s | %s |" % (
        "two seeds of plain: " + spread(others, "%.4f") if others else "", " | ".join(spread(curves[f], "%.4f") for f in curves)))
    return "\n".join(lines) + "\n", numbers


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pesc", required=True)
    parser.add_argument("--device", choices=["CPU", "CUDA"], default="CPU")
    parser.add_argument("--seeds", default="1,2,3")
    parser.add_argument("--only", choices=sorted(EXPERIMENTS))
    parser.add_argument("--out", default="runs/frozen-formats-table")
    parser.add_argument("--assets")
    parser.add_argument("--steps", type=int)
    options = parser.parse_args()
    for name in ("pesc", "out", "assets"):
        if getattr(options, name):
            setattr(options, name, os.path.abspath(getattr(options, name)))
    seeds = [int(seed) for seed in options.seeds.split(",")]
    texts, numbers = [], {}
    for experiment in [options.only] if options.only else list(EXPERIMENTS):
        results = {(form, seed): tune(options, experiment, form, seed) for seed in seeds for form in FORMATS}
        text, numbers[experiment] = table(experiment, seeds, results)
        texts.append(text)
    text = "\n".join(texts)
    print("\n" + text)
    with open(os.path.join(options.out, "table.md"), "w", encoding="utf-8") as file:
        file.write(text)
    with open(os.path.join(options.out, "table.json"), "w", encoding="utf-8") as file:
        json.dump({"device": options.device, "seeds": seeds, "numbers": numbers}, file, indent=1)


if __name__ == "__main__":
    main()
