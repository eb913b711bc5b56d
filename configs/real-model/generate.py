#!/usr/bin/env python3
"""Writes the chats of the second quick start: train.jsonl and one eval-DOMAIN.jsonl for each domain.

    generate.py --out FOLDER [--assets DIR] [--train N] [--eval N] [--seed N] [--write_digests]

A row is {"messages": [system, user, assistant], "dataset": DOMAIN}. The same seed gives the same files; --eval N keeps the first N
evaluation items of each domain, so that more of them do not change the training rows. No item stands on both sides: an item of the
training rows that equals an evaluation item is drawn again.

items.sha256 beside this file has the digests of the items of seed 1. Other items, because a version of Python draws otherwise, are
refused: figures for them could not be compared. --write_digests writes that file anew.
"""

import argparse
import hashlib
import json
import os
import sys

import domains
import wheels
from lexicon import Draw

HELD_OUT = 200  # items of a domain, of which --eval takes the first
TRAIN, SEED = 5000, 1
DIGESTS = os.path.join(os.path.dirname(os.path.abspath(__file__)), "items.sha256")


def row(domain, question, answer):
    messages = [{"role": "system", "content": domains.SYSTEM_TEXT}, {"role": "user", "content": question},
                {"role": "assistant", "content": answer}]
    return {"messages": messages, "dataset": domain}


def rows(seed, train, tasks):
    """({domain: evaluation rows}, training rows)."""
    held_out, learned, cores = {}, [], set()
    for domain in domains.NAMES:
        held_out[domain] = []
        for question, answer, core in domains.questions(domain, "held out %d" % seed, tasks):
            if len(held_out[domain]) == HELD_OUT:
                break
            if core not in cores:
                cores.add(core)
                held_out[domain].append(row(domain, question, answer))
    for domain in domains.NAMES:
        kept = 0
        for question, answer, core in domains.questions(domain, "train %d" % seed, tasks):
            if kept == train:
                break
            if core not in cores:
                kept += 1
                learned.append(row(domain, question, answer))
    Draw("order %d" % seed).shuffle(learned)
    asked = {r["messages"][1]["content"] for r in learned}
    for r in sum(held_out.values(), []):
        if r["messages"][1]["content"] in asked:
            raise ValueError("an evaluation question stands in the training rows: " + r["messages"][1]["content"])
    return held_out, learned


def lines(kept):
    return "".join(json.dumps(r, ensure_ascii=True) + "\n" for r in kept)


def write(path, kept):
    with open(path, "w", encoding="utf-8", newline="\n") as file:
        file.write(lines(kept))
    print("%6d rows  %s" % (len(kept), path))


def digests(held_out, learned):
    """As sha256sum writes them, of all evaluation items and of all training rows."""
    files = {"train.jsonl": learned, **{"eval-%s.jsonl" % domain: kept for domain, kept in held_out.items()}}
    return "".join("%s  %s\n" % (hashlib.sha256(lines(kept).encode()).hexdigest(), name) for name, kept in files.items())


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--out", required=True, help="folder to write into (made if missing)")
    parser.add_argument("--assets", help="folder with the wheel of reasoning-gym")
    parser.add_argument("--train", type=int, default=TRAIN, help="training rows of each domain")
    parser.add_argument("--eval", type=int, default=HELD_OUT, help="evaluation rows of each domain, at most %d" % HELD_OUT)
    parser.add_argument("--seed", type=int, default=SEED)
    parser.add_argument("--write_digests", action="store_true", help="write items.sha256 anew")
    options = parser.parse_args()
    if not 1 <= options.eval <= HELD_OUT or options.train < 1:
        parser.error("--eval is 1 to %d, --train at least 1" % HELD_OUT)
    try:
        held_out, learned = rows(options.seed, options.train, domains.gym_tasks(options.assets))
    except wheels.NoWheel as problem:
        print("generate.py: %s" % problem, file=sys.stderr)
        sys.exit(wheels.NO_WHEEL)
    if (options.seed, options.train) == (SEED, TRAIN):
        found = digests(held_out, learned)
        if options.write_digests:
            with open(DIGESTS, "w", encoding="utf-8") as file:
                file.write(found)
        with open(DIGESTS, encoding="utf-8") as file:
            if found != file.read():
                sys.exit("generate.py: Python %s draws other items than %s has; use another version, or look at what has changed in %s"
                         % (sys.version.split()[0], DIGESTS, os.path.dirname(DIGESTS)))
    os.makedirs(options.out, exist_ok=True)
    write(os.path.join(options.out, "train.jsonl"), learned)
    for domain, kept in held_out.items():
        write(os.path.join(options.out, "eval-%s.jsonl" % domain), kept[:options.eval])


if __name__ == "__main__":
    main()
