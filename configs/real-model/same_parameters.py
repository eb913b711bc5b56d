#!/usr/bin/env python3
"""Prints the flags with which train.mode LORA has as many trainable parameters as PESC has for the same flags.

    same_parameters.py PESC FLAG...

The program counts both (`pesc plan`). The rank is the one that comes nearest, within 0.5 %. lora_alpha is the experiment's, whatever
the rank: the factor lora_alpha / r is there so that another rank needs no other learning rate (Hu et al., 2021, section 4.1).
"""

import json
import os
import subprocess
import sys
import tempfile

MOST_APART = 0.005


class Counter:
    def __init__(self, program, flags):
        self._program, self._flags = program, flags

    def parameters(self, mode, *more):
        with tempfile.TemporaryDirectory() as folder:
            path = os.path.join(folder, "plan.json")
            command = [self._program, "plan", "--ranks", "1", *self._flags, "--set", "train.mode=" + mode, *more, "--out", path]
            done = subprocess.run(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
            if not os.path.exists(path):
                sys.exit("same_parameters.py: %s\n%s" % (" ".join(command), done.stderr))
            with open(path, encoding="utf-8") as file:
                return json.load(file)["trainable_parameters"]


def main():
    if len(sys.argv) < 4 or "--config" not in sys.argv:
        sys.exit("usage: same_parameters.py PESC --config FILE [FLAG...]")
    flags = sys.argv[2:]
    counter = Counter(sys.argv[1], flags)
    wanted = counter.parameters("PESC")
    rank = round(wanted / counter.parameters("LORA", "--set", "lora.r=1"))
    found = ["--set", "lora.r=%d" % rank]
    has = counter.parameters("LORA", *found)
    if abs(has - wanted) > MOST_APART * wanted:
        sys.exit("same_parameters.py: LoRA of rank %d has %d trainable parameters, PESC has %d: more than %g %% apart; change moe.adapter_dim"
                 % (rank, has, wanted, 100 * MOST_APART))
    print("PESC %d, LORA %d trainable parameters" % (wanted, has), file=sys.stderr)
    print(" ".join(found))


if __name__ == "__main__":
    main()
