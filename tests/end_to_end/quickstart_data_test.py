"""The quick start's data: the same bytes for a seed, the published format, 300 held-out rows of which training has
none. What is shared is looked for here without the generator's own notion of a row's core.
"""

import json
import os
import re
import shutil
import tempfile
import unittest

import harness

DOMAINS = ("text", "programs", "arithmetic")


def normal(text):
    """Case, white space and punctuation do not make another question; signs do."""
    return " ".join(re.findall(r"\w+|[-+*]", text.lower()))


class QuickStartData(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.folder = tempfile.mkdtemp(prefix="pesc-data-")
        cls.addClassCleanup(shutil.rmtree, cls.folder, ignore_errors=True)
        for name, seed in (("one", 1), ("again", 1), ("two", 2)):
            harness.generate_data(os.path.join(cls.folder, name), seed=seed)
        read = lambda name: harness.read_jsonl(os.path.join(cls.folder, "one", name))
        cls.train = read("train.jsonl")
        cls.held_out = {d: read("heldout-%s.jsonl" % d) for d in DOMAINS}

    def test_a_seed_gives_its_bytes(self):
        digests = {name: harness.digests(os.path.join(self.folder, name)) for name in ("one", "again", "two")}
        self.assertEqual(sorted(digests["one"]), sorted(["train.jsonl"] + ["heldout-%s.jsonl" % d for d in DOMAINS]))
        self.assertEqual(digests["one"], digests["again"])
        for name in digests["one"]:
            self.assertNotEqual(digests["one"][name], digests["two"][name])

    def test_numbers_of_rows(self):
        self.assertEqual(sum(map(len, self.held_out.values())), 300)
        for domain, rows in self.held_out.items():
            self.assertEqual([r["dataset"] for r in rows], [domain] * 100)
            self.assertEqual(sum(r["dataset"] == domain for r in self.train), 5000)
        first = [r["dataset"] for r in self.train[:300]]
        self.assertGreater(min(first.count(d) for d in DOMAINS), 50, "the domains are not mixed")

    def test_published_format(self):
        for row in self.train + sum(self.held_out.values(), []):
            self.assertEqual(set(row), {"instruction", "conversation", "dataset"})
            self.assertIsInstance(row["instruction"], str)
            self.assertEqual(len(row["conversation"]), 1)
            for turn in row["conversation"]:
                self.assertEqual(set(turn), {"input", "output"})
                self.assertTrue(turn["input"].strip() and turn["output"].strip(), row)
                self.assertNotIn("###", turn["input"] + turn["output"])
        self.assertTrue(any(row["instruction"] for row in self.train), "no row has a system text")

    def test_nothing_held_out_is_trained_on(self):
        questions = {normal(r["conversation"][0]["input"]) for r in self.train}
        whole = {json.dumps(r, sort_keys=True) for r in self.train}
        for rows in self.held_out.values():
            for row in rows:
                self.assertFalse(json.dumps(row, sort_keys=True) in whole, row)
                self.assertFalse(normal(row["conversation"][0]["input"]) in questions, row)
            self.assertEqual(len({normal(r["conversation"][0]["input"]) for r in rows}), len(rows))
        # A list of words or a program that is held out must not come back under another question.
        lists = {normal(r["conversation"][0]["input"].rpartition(": ")[2]) for r in self.train
                 if r["dataset"] == "text" and ": " in r["conversation"][0]["input"]}
        for row in self.held_out["text"]:
            before, colon, words = row["conversation"][0]["input"].rpartition(": ")
            if colon:
                self.assertFalse(normal(words) in lists, row)
        programs = {r["conversation"][0]["output"] for r in self.train if r["dataset"] == "programs"
                    and not r["conversation"][0]["output"].isdigit()}
        for row in self.held_out["programs"]:
            self.assertFalse(row["conversation"][0]["output"] in programs, row)

    def test_answers_are_right(self):
        sums = [r["conversation"][0]["output"] for r in self.train + self.held_out["arithmetic"]
                if r["dataset"] == "arithmetic"]
        checked = 0
        for answer in sums:
            match = re.fullmatch(r"(\d+) ([-+*]) (\d+) = (-?\d+)", answer)
            if match:
                a, sign, b, result = match.groups()
                self.assertEqual({"+": int(a) + int(b), "-": int(a) - int(b), "*": int(a) * int(b)}[sign], int(result))
                checked += 1
        self.assertGreater(checked, 0.5 * len(sums), "the form of the answers has changed")


if __name__ == "__main__":
    harness.main()
