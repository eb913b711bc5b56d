#!/usr/bin/env python3
"""Writes the data of the quick start: instruction rows in three domains, and the plain text of its base model.

    generate.py --out DIR             train.jsonl and eval-{text,programs,arithmetic}.jsonl
    generate.py --out DIR --pretrain  also pretrain.jsonl (rows of `corpus`) and tokenizer.txt for spm_train

Instruction rows have the published form {"instruction": system, "conversation": [{"input", "output"}], "dataset"}.
The same seed gives the same bytes on any Python from 3.9 on. Eval rows are drawn first; a training row or a
sentence of the plain text with the core of an eval row (see tasks.py) is drawn again, and the finished files are
checked: no eval input stands in the training rows or the plain text, no program to be written or read either.
"""

import argparse
import json
import os
import re
import sys

from lexicon import Draw
from plain_text import documents
from tasks import DOMAINS

TEMPLATE_WORDS = ["###", "Human:", "Assistant:", "System:"]
SYSTEM_TEXT = "Be brief."
SYSTEM_SHARE = 0.05


def weighted(draw, choices):
    ticket = draw.below(sum(weight for weight, _ in choices))
    for weight, choice in choices:
        ticket -= weight
        if ticket < 0:
            return choice
    raise ValueError("weights are not positive")


def row(draw, domain, question, answer):
    system = SYSTEM_TEXT if draw.below(1000) < 1000 * SYSTEM_SHARE else ""
    return {"instruction": system, "conversation": [{"input": question, "output": answer}], "dataset": domain}


def instruction_rows(seed, eval_count, train_count):
    """Returns ({domain: eval rows}, training rows, cores of the eval rows)."""
    eval_rows, train, cores = {}, [], set()
    for domain in DOMAINS:
        draw = Draw("%d held-out %s" % (seed, domain))  # another text would be other rows
        eval_rows[domain] = []
        while len(eval_rows[domain]) < eval_count:
            question, answer, core = weighted(draw, DOMAINS[domain])(draw)
            if core not in cores:
                cores.add(core)
                eval_rows[domain].append(row(draw, domain, question, answer))
    for domain in DOMAINS:
        draw = Draw("%d train %s" % (seed, domain))
        kept = 0
        while kept < train_count:
            question, answer, core = weighted(draw, DOMAINS[domain])(draw)
            if core not in cores:
                train.append(row(draw, domain, question, answer))
                kept += 1
    Draw("%d order" % seed).shuffle(train)
    return eval_rows, train, cores


class Leak(Exception):
    """Something that should not be there stands in the training rows or the plain text."""


def check(eval_rows, train, texts, cores):
    """Raises Leak where an eval row leaked, or the plain text holds the prompt template."""
    def refuse(found, what):
        if found:
            raise Leak(what)

    seen = {turn["input"] for r in train for turn in r["conversation"]}
    plain = "\n\n".join(texts) + "\n"
    for rows in eval_rows.values():
        for r in rows:
            turn = r["conversation"][0]
            refuse(turn["input"] in seen, "eval question in the training rows: " + turn["input"])
            refuse(turn["input"] in plain, "eval question in the plain text: " + turn["input"])
    for core in cores:
        for end in ("\n", "  #") if "(" in core or "[" in core else ():
            refuse(core + end in plain, "eval program in the plain text: " + core)
    for word in TEMPLATE_WORDS:
        refuse(word in plain, "the prompt template stands in the plain text: " + word)


def write_lines(path, lines):
    with open(path, "w", encoding="utf-8", newline="\n") as out:
        for line in lines:
            out.write(line + "\n")


def tokenizer_lines(texts, train):
    """Lines for spm_train: plain text, questions and answers, so that the vocabulary has pieces for all of them.

    Two helps, since sentencepiece reads lines and lets a piece run from a number into a punctuation mark. In the rows
    a word can follow a newline and then carries no mark of a space before it: a bracket before such a word shows the
    trainer that form. A letter between a number and a punctuation mark keeps "14." from becoming one piece, and
    gives "###" a form without the mark, for the middle of the template.
    """
    apart = lambda line: re.sub(r"(?<=\d)(?=[^\w\s])|(?<=[^\w\s])(?=\d)", "x", line)
    for text in texts[:20000]:
        lines = text.split("\n")
        yield apart(lines[0])
        for line in lines[1:]:
            yield "(" + apart(line)
    for r in train:
        turn = r["conversation"][0]
        yield "### Human: x### Assistant: " + apart(turn["output"])
        for line in turn["input"].split("\n"):
            yield "(" + apart(line)
        if r["instruction"]:
            yield "### System: " + r["instruction"]


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--out", required=True, help="folder to write into (made if missing)")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--train", type=int, default=5000, help="training rows per domain")
    parser.add_argument("--eval", type=int, default=100, help="eval rows per domain")
    parser.add_argument("--pretrain", action="store_true", help="also write pretrain.jsonl and tokenizer.txt")
    parser.add_argument("--characters", type=int, default=24000000, help="characters of plain text")
    options = parser.parse_args()

    eval_rows, train, cores = instruction_rows(options.seed, options.eval, options.train)
    texts = []
    if options.pretrain:
        texts = list(documents(Draw("%d plain" % options.seed), options.characters, weighted, cores))
    check(eval_rows, train, texts, cores)

    os.makedirs(options.out, exist_ok=True)
    to_json = lambda r: json.dumps(r, ensure_ascii=True)
    write_lines(os.path.join(options.out, "train.jsonl"), map(to_json, train))
    for domain, rows in eval_rows.items():
        write_lines(os.path.join(options.out, "eval-%s.jsonl" % domain), map(to_json, rows))
    if options.pretrain:
        write_lines(os.path.join(options.out, "pretrain.jsonl"), (to_json({"corpus": text}) for text in texts))
        write_lines(os.path.join(options.out, "tokenizer.txt"), tokenizer_lines(texts, train))
    print("%d training rows, %d eval rows, %d documents of plain text in %s"
          % (len(train), sum(map(len, eval_rows.values())), len(texts), options.out), file=sys.stderr)


if __name__ == "__main__":
    main()
