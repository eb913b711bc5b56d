#!/usr/bin/env python3
"""Prints what the quick start learned, from two files of `pesc eval --out`: before and after tuning."""

import json
import sys


def main():
    if len(sys.argv) != 3:
        sys.exit("usage: report.py BEFORE.json AFTER.json")
    before, after = (json.load(open(path, encoding="utf-8")) for path in sys.argv[1:])
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

    print("\nexperts used by each domain, share of its choices over all layers:")
    experts = len(after["datasets"][names[0]]["expert_share"])
    print(f"{'':<12}" + "".join(f"{'e' + str(e):>7}" for e in range(experts)))
    for name in names:
        print(f"{name:<12}" + "".join(f"{share:>7.3f}" for share in after["datasets"][name]["expert_share"]))

    for sample in after.get("samples", []):
        print(f"\n[{sample['dataset']}] {sample['question']}")
        print(f"  answer:   {sample['answer']}")
        print(f"  expected: {sample['expected']}")


if __name__ == "__main__":
    main()
