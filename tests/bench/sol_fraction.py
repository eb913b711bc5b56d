#!/usr/bin/env python3
"""A training step's share of the speed of light against its bar, on a machine that does nothing else; see
tests/bench/two-cores.md.

  tests/bench/sol_fraction.py [--steps N]

Runs `pesc bench` for the quick start's step on four ranks and for a step at hidden 512 on one rank with two threads, prints the
figure and the bar of each, and ends with 1 when one is not reached. A benchmark: no test runs it.
"""

import argparse
import json
import os
import sys
import tempfile

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "end_to_end"))
import harness  # noqa: E402

# experiment, ranks, bar
CASES = {"the quick start's step on four ranks": (harness.QUICKSTART, 4, 0.35),
         "hidden 512 on one rank, two threads": (
             os.path.join(harness.SOURCE, "configs", "experiments", "bench-hidden512.textproto"), 1, 0.5)}


def main():
    parse = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parse.add_argument("--steps", type=int, default=20)
    steps = parse.parse_args().steps
    reached = True
    with tempfile.TemporaryDirectory(prefix="pesc-bench-") as folder:
        harness.generate_data(os.path.join(folder, "data"))
        train = ("--set", "data.train[0].path=" + os.path.join(folder, "data", "train.jsonl"), "--set", "data.eval=[]")
        for name, (config, ranks, bar) in CASES.items():
            out = os.path.join(folder, "bench.json")
            # One rank without mpirun, which would bind it to one core.
            result = harness.pesc(ranks if ranks > 1 else 0, "bench", "--config", config, "--steps", steps, "--out", out,
                                  *(train if config == harness.QUICKSTART else ()))
            if result.code != harness.OK:
                sys.exit("pesc bench: %s" % result)
            with open(out, encoding="utf-8") as file:
                bench = json.load(file)
            share = bench["sol_fraction_median"]
            reached &= share >= bar
            print("%-38s %.2f of the speed of light (%.0f ms a step, %.0f GFLOP/s of GEMMs), bar %.2f: %s" % (
                name, share, 1e3 * bench["step_seconds_median"], bench["gemm_flops_per_second"] / 1e9, bar,
                "reached" if share >= bar else "NOT REACHED"), flush=True)
    sys.exit(0 if reached else 1)


if __name__ == "__main__":
    main()
