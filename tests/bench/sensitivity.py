#!/usr/bin/env python3
"""How far two curves of a recipe part that differ by rounding alone; see tests/bench/two-cores.md.

  tests/bench/sensitivity.py [--device CPU|CUDA] [--threads N] [--ranks N,TP,EP] [FIELD=VALUE ...]

Trains the quick start's experiment, with these fields in place of its own, on one rank (float32), records which experts were
chosen, and trains it again with that choice and a learning rate that is higher by one part in ten million; or, with --ranks,
with its own rate on so many CPU ranks. Prints the recipe, the largest relative difference of the loss of a step up to
step 100, 300, 600 and the end, and the exact match of the first run on the 300 eval questions (mean of the domains). Ends
with 1 when a program of its does. The quick start's own recipe takes some fifteen minutes on one core of a busy machine.
"""

import argparse
import json
import os
import sys
import tempfile

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "end_to_end"))
import harness  # noqa: E402

DOMAINS = ("text", "programs", "arithmetic")


def main():
    parse = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parse.add_argument("--device", choices=("CPU", "CUDA"), default="CPU")
    parse.add_argument("--threads", type=int, default=1)
    parse.add_argument("--ranks", default="1,1,1", help="of the second run, with tp and ep: 8,4,8")
    parse.add_argument("fields", nargs="*", metavar="FIELD=VALUE")
    a = parse.parse_args()
    ranks, tp, ep = (int(n) for n in a.ranks.split(","))
    if ranks > 1 and a.device != "CPU":
        parse.error("--ranks is for CPU ranks")
    if not all("=" in field for field in a.fields):
        parse.error("FIELD=VALUE, as train.max_steps=600")
    fields = dict(field.split("=", 1) for field in a.fields)

    with tempfile.TemporaryDirectory(prefix="pesc-sensitivity-") as folder:
        path = lambda *parts: os.path.join(folder, *parts)
        harness.generate_data(path("data"))
        fields.update({"parallel.device": a.device, "parallel.num_threads": a.threads, "train.compute_dtype": "F32",
                       "data.train[0].path": path("data", "train.jsonl"), "checkpoint.save_steps": 0})
        fields.update({"data.eval[%d].path" % i: path("data", "eval-%s.jsonl" % d) for i, d in enumerate(DOMAINS)})

        def pesc(verb, run, ranks=1, tp=1, ep=1, flags=(), **more):
            settings = {**fields, "run_dir": path(run), "parallel.tp": tp, "parallel.ep": ep,
                        **{name.replace("__", "."): value for name, value in more.items()}}
            words = [word for name, value in settings.items() for word in ("--set", "%s=%s" % (name, value))]
            done = harness.pesc(ranks, verb, "--config", harness.QUICKSTART, *words, *flags, seconds=7200)
            if done.code != harness.OK:
                sys.exit("pesc %s: %s" % (verb, done))

        pesc("train", "first", debug__routing_record=path("recording"))
        with open(path("first", "experiment.textproto"), encoding="utf-8") as file:
            recipe = recipe_of(file)
        other = {} if ranks > 1 else {"train.learning_rate": "%.12g" % (recipe["train.learning_rate"] * (1 + 1e-7))}
        pesc("train", "second", ranks, tp, ep, debug__routing_replay=path("recording"), **other)
        pesc("eval", "first", flags=("--out", path("eval.json")))
        with open(path("eval.json"), encoding="utf-8") as file:
            datasets = json.load(file)["datasets"]
        first, second = (harness.curve(path(run)) for run in ("first", "second"))
        apart = [harness.largest_difference(first[:n], second[:n], ["loss"])["loss"][0] for n in (100, 300, 600, len(first))]
        match = sum(datasets[d]["exact_match"] for d in DOMAINS) / len(DOMAINS)
        print("rate %g, %d rows, %d steps, clip %g, dropout %g and %g; second run: %s" % (
            *(recipe[name] for name in ("train.learning_rate", "train.global_batch_size", "train.max_steps", "train.max_grad_norm",
                                        "lora.lora_dropout", "moe.adapter_dropout")),
            "%d ranks, tp %d, ep %d" % (ranks, tp, ep) if ranks > 1 else "rate * (1 + 1e-7)"))
        print("100: %.1e  300: %.1e  600: %.1e  all: %.1e  exact match: %.2f" % (*apart, match))


def recipe_of(lines):
    """{section.field: number} of an experiment as a run writes it down."""
    found, section = {}, ""
    for line in lines:
        name, _, value = line.strip().partition(":")
        if line.rstrip().endswith("{") and not line.startswith(" "):
            section = line.split()[0]
        try:
            found[section + "." + name] = float(value)
        except ValueError:
            pass
    return found


if __name__ == "__main__":
    main()
