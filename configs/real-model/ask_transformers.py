#!/usr/bin/env python3
"""Asks an exported folder in transformers what `pesc eval` has asked, and compares the answers. Needs torch and transformers.

    ask_transformers.py FOLDER AFTER.json --rows DATA [--asked N] [--device CPU|CUDA] [--least_same SHARE] [--out FILE.json]

AFTER.json is what `pesc eval --samples ALL --out AFTER.json` wrote; DATA has the eval-DOMAIN.jsonl that it was asked, of which the first
N of each domain are asked here. The weights are taken as float32. Exit code 1: fewer than SHARE of the answers are the same text. In
float32 on both sides only a near tie of two tokens may differ; a GPU tunes and answers in bf16, and differs more often.
"""

import argparse
import glob
import json
import os
import sys

import torch
import transformers
from transformers import AutoModelForCausalLM, AutoTokenizer

LEAST_SAME = {"CPU": 0.97, "CUDA": 0.8}
TOGETHER = 16  # questions of one batch


def read_rows(folder, asked):
    """[(domain, messages before the answer, expected answer)], the first `asked` of each domain."""
    found = []
    for path in sorted(glob.glob(os.path.join(folder, "eval-*.jsonl"))):
        with open(path, encoding="utf-8") as lines:
            rows = [json.loads(line) for line in lines][:asked]
        found += [(r["dataset"], r["messages"][:-1], r["messages"][-1]["content"]) for r in rows]
    return found


def answers(folder, chats, device, max_new_tokens):
    tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=True, padding_side="left")
    model = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True, torch_dtype=torch.float32)
    model = model.to("cuda" if device == "CUDA" else "cpu").eval()
    given = []
    for at in range(0, len(chats), TOGETHER):
        texts = [tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True) for chat in chats[at:at + TOGETHER]]
        batch = tokenizer(texts, return_tensors="pt", padding=True, add_special_tokens=False).to(model.device)
        with torch.no_grad():
            ids = model.generate(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"], do_sample=False,
                                 max_new_tokens=max_new_tokens)
        given += tokenizer.batch_decode(ids[:, batch["input_ids"].shape[1]:], skip_special_tokens=True)
    return [text.strip() for text in given]


def compare(rows, theirs, ours):
    """Prints a line a domain; returns the numbers, and the share of answers that are the same text."""
    of, seen = {}, {}
    for sample in ours:
        of.setdefault(sample["dataset"], []).append(sample)
    numbers = {}
    for (domain, messages, expected), answer in zip(rows, theirs):
        at = seen.setdefault(domain, 0)
        seen[domain] += 1
        sample = of[domain][at]
        if sample["question"] != messages[-1]["content"] or sample["expected"].strip() != expected:
            sys.exit("ask_transformers.py: question %d of %s is another one in the file of pesc eval" % (at + 1, domain))
        n = numbers.setdefault(domain, {"asked": 0, "same": 0, "exact": 0, "exact_of_pesc": 0, "different": []})
        mine = sample["answer"].strip()
        n["asked"] += 1
        n["same"] += answer == mine
        n["exact"] += answer == expected
        n["exact_of_pesc"] += mine == expected
        if answer != mine:
            n["different"].append({"question": sample["question"], "pesc": mine, "transformers": answer})
    print("%-12s %6s %12s %14s %20s" % ("domain", "asked", "same answer", "exact of pesc", "exact of transformers"))
    for domain, n in numbers.items():
        print("%-12s %6d %12d %14d %20d" % (domain, n["asked"], n["same"], n["exact_of_pesc"], n["exact"]))
    return numbers, sum(n["same"] for n in numbers.values()) / len(rows)


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("folder", help="the exported model")
    parser.add_argument("after", help="what pesc eval --samples ALL --out wrote")
    parser.add_argument("--rows", required=True, help="folder of eval-DOMAIN.jsonl")
    parser.add_argument("--asked", type=int, default=1000, help="questions of each domain")
    parser.add_argument("--device", choices=["CPU", "CUDA"], default="CPU")
    parser.add_argument("--max_new_tokens", type=int, default=24)
    parser.add_argument("--least_same", type=float, help="share of answers that must be the same text")
    parser.add_argument("--out", help="JSON file for the comparison")
    options = parser.parse_args()
    transformers.logging.set_verbosity_error()
    rows = read_rows(options.rows, options.asked)
    with open(options.after, encoding="utf-8") as file:
        ours = json.load(file)["samples"]
    theirs = answers(os.path.abspath(options.folder), [messages for _, messages, _ in rows], options.device, options.max_new_tokens)
    numbers, same = compare(rows, theirs, ours)
    least = LEAST_SAME[options.device] if options.least_same is None else options.least_same
    print("transformers %s: %.1f %% of the answers are the same text, at least %.0f %% are wanted"
          % (transformers.__version__, 100 * same, 100 * least))
    if options.out:
        with open(options.out, "w", encoding="utf-8") as file:
            json.dump({"transformers": transformers.__version__, "same": same, "domains": numbers}, file, indent=1)
    sys.exit(0 if same >= least else 1)


if __name__ == "__main__":
    main()
