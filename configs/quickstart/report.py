#!/usr/bin/env python3
"""Prints what a quick start learned, from two files of `pesc eval --out`: before and after tuning. Of the answers in them it shows
SAMPLES, spread over the domains; all unless given.
"""

import json
import sys


def main():
    if len(sys.argv) not in (3, 4):
        sys.exit("usage: report.py BEFORE.json AFTER.json [SAMPLES]")
    before, after = (json.load(open(path, encoding="utf-8")) for path in sys.argv[1:3])
    names = sorted(after["datasets"])
    print()
    print(f"{'domain':<12} {'eval loss':>19} {'exact match':>19} {'rows':>6}")
    print(f"{'':<12} {'before':>9} {'after':>9} {'before':>9} {'after':>9}")
    lines = [(name, before["datasets"][name], after["datasets"][name]) for name in names]
    for name, b, a in lines + [("total", before["total"], after["total"])]:
        print(
            f"{name:<12} {b['eval_loss']:>9.3f} {a['eval_loss']:>9.3f} "
            f"{b['exact_match']:>9.3f} {a['exact_match']:>9.3f} {a['rows']:>6}"
        )
    mean = sum(after["datasets"][n]["exact_match"] for n in names) / len(names)
    print(f"\nmean exact match over the domains after tuning: {mean:.3f}")

    if "expert_share" in after["total"]:  # a dense run has none
        print("\nexperts used by each domain, share of its choices over all layers:")
        print(f"{'':<12}" + "".join(f"{'e' + str(e):>7}" for e in range(len(after["total"]["expert_share"]))))
        for name in names:
            print(f"{name:<12}" + "".join(f"{share:>7.3f}" for share in after["datasets"][name]["expert_share"]))

    samples = after.get("samples", [])
    shown = min(int(sys.argv[3]), len(samples)) if len(sys.argv) == 4 else len(samples)
    for sample in (samples[i * len(samples) // shown] for i in range(shown)):
        print(f"\n[{sample['dataset']}] {sample['question']}")
        print(f"  answer:   {sample['answer']}")
        print(f"  expected: {sample['expected']}")


if __name__ == "__main__":
    main()
