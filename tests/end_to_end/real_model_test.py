"""The second quick start, launcher/real-model.sh, with the real model and few steps: every stage works, the rows are what they should be,
transformers answers as `pesc eval` does, LORA has as many trainable parameters as PESC, and mistakes are refused.

Needs the network the first time (the packages stay in the cache), and a Python with torch and transformers: the program
PESC_TRANSFORMERS_PYTHON, or the virtual environment that transformers_venv.sh makes beside this file.
"""

import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import unittest

import harness
from transformers_test import python_with_transformers

SCRIPT = os.path.join(harness.SOURCE, "launcher", "real-model.sh")
TABLE = os.path.join(harness.SOURCE, "tests", "bench", "real_model_table.py")
GENERATOR = os.path.join(harness.SOURCE, "configs", "real-model", "generate.py")
DOMAINS = ("arithmetic", "code", "words", "logic")
STEPS, EVAL = 3, 3
FEW = ("--steps", str(STEPS), "--rows", "4", "--eval", str(EVAL))
SYSTEM = {"role": "system", "content": "Reply with the answer alone."}


def read(path):
    with open(path, encoding="utf-8") as file:
        return json.load(file)


def run(*command, **variables):
    env = dict(harness.environment(), **variables)
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=env, stdin=subprocess.DEVNULL)
    return harness.Result(done.returncode, done.stdout, done.stderr)


class RealModel(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.folder = tempfile.mkdtemp(prefix="pesc-real-model-")
        cls.addClassCleanup(shutil.rmtree, cls.folder, ignore_errors=True)

    def path(self, *parts):
        return os.path.join(self.folder, *parts)

    def script(self, *flags, out="out", **variables):
        return run(SCRIPT, "--pesc", harness.PESC, "--out", self.path(out), *FEW, *flags, **variables)

    def assert_good(self, result):
        self.assertEqual(result.code, harness.OK, str(result))

    def test_1_every_stage(self):
        result = self.script(PESC_TRANSFORMERS_PYTHON=python_with_transformers())
        self.assert_good(result)
        ours = self.path("out", "PESC-CPU-seed1")
        losses = [record["loss"] for record in harness.curve(os.path.join(ours, "run"))]
        self.assertEqual(len(losses), STEPS)
        before, after = read(os.path.join(ours, "before.json")), read(os.path.join(ours, "after.json"))
        self.assertEqual(sorted(after["datasets"]), sorted(DOMAINS))
        for domain in DOMAINS:
            self.assertEqual(after["datasets"][domain]["rows"], EVAL)
            self.assertLess(after["datasets"][domain]["eval_loss"], before["datasets"][domain]["eval_loss"])
            self.assertEqual(len(after["datasets"][domain]["expert_share"]), 8)
            self.assertIn(domain, result.out)
        self.assertTrue(read(os.path.join(ours, "model", "config.json"))["model_type"].startswith("pesc_"))
        asked = read(os.path.join(ours, "transformers.json"))
        self.assertEqual({domain: n["asked"] for domain, n in asked["domains"].items()}, dict.fromkeys(DOMAINS, EVAL))
        self.assertGreaterEqual(asked["same"], 0.9, asked)
        if "\n  report " in run(harness.PESC, "help").out:
            self.assert_page_has_before_and_after(os.path.join(ours, "report.html"), before, after)
        # Again, it goes on where it was: nothing is tuned, evaluated or exported twice.
        again = self.script(PESC_TRANSFORMERS_PYTHON=python_with_transformers())
        self.assert_good(again)
        self.assertEqual(len(harness.curve(os.path.join(ours, "run"))), STEPS)
        self.assertEqual(len(harness.read_jsonl(os.path.join(ours, "run", "evaluations.jsonl"))), 2)

    def assert_page_has_before_and_after(self, page, before, after):
        """The page has both evaluations, and beside each answer of the tuned model the base's to the same question."""
        with open(page, encoding="utf-8") as file:
            data = json.loads(re.search(r'id="data">(.*?)</script>', file.read(), re.S).group(1))
        (shown,) = data["runs"]
        self.assertEqual([evaluation["name"] for evaluation in shown["evaluations"]], ["base", "step %d" % STEPS])
        for evaluation, report in zip(shown["evaluations"], (before, after)):
            self.assertAlmostEqual(evaluation["total"]["loss"], report["total"]["eval_loss"], places=3)
        self.assertEqual({answer["dataset"] for answer in shown["answers"]}, set(DOMAINS))
        bases = {(sample["dataset"], sample["question"]): sample["answer"] for sample in before["samples"]}
        for answer in shown["answers"]:
            self.assertEqual(answer["before"]["name"], "base")
            # A page shows white space and control characters in its own way: the letters are the base's.
            letters = [re.sub(r"\W", "", text)[:40] for text in (answer["before"]["text"], bases[answer["dataset"], answer["question"]])]
            self.assertEqual(*letters)

    def test_2_the_table_of_both_modes(self):
        """The PESC run of the test before is there already; LORA is tuned."""
        result = run(sys.executable, "-B", TABLE, "--pesc", harness.PESC, "--seeds", "1", "--out", self.path("out"), *FEW)
        self.assert_good(result)
        self.assertIn("PESC seed 1: was there", result.out)
        table = read(self.path("out", "table.json"))
        self.assertEqual(table["trainable_parameters"]["LORA"], table["trainable_parameters"]["PESC"])
        self.assertEqual(sorted(table["percent"]), sorted(DOMAINS + ("mean of the domains",)))
        with open(self.path("out", "LORA-CPU-seed1", "run", "experiment.textproto"), encoding="utf-8") as file:
            self.assertIn("mode: LORA", file.read())
        with open(self.path("out", "table.md"), encoding="utf-8") as file:
            self.assertEqual(len([line for line in file if line.startswith("| ")]), 2 + len(DOMAINS) + 1)

    def test_rows(self):
        for name, flags in (("rows", ("--eval", "200")), ("few", ("--eval", "5")), ("other", ("--eval", "200", "--seed", "2"))):
            self.assert_good(run(sys.executable, "-B", GENERATOR, "--out", self.path(name), *flags))
        train = harness.read_jsonl(self.path("rows", "train.jsonl"))
        self.assertEqual(train, harness.read_jsonl(self.path("few", "train.jsonl")))
        self.assertNotEqual(train, harness.read_jsonl(self.path("other", "train.jsonl")))
        questions = {row["messages"][1]["content"] for row in train}
        self.assertEqual({domain: sum(row["dataset"] == domain for row in train) for domain in DOMAINS}, dict.fromkeys(DOMAINS, 5000))
        first = [row["dataset"] for row in train[:200]]
        self.assertGreater(min(first.count(domain) for domain in DOMAINS), 25, "the domains are not mixed")
        for domain in DOMAINS:
            rows = harness.read_jsonl(self.path("rows", "eval-%s.jsonl" % domain))
            self.assertEqual(rows[:5], harness.read_jsonl(self.path("few", "eval-%s.jsonl" % domain)))
            self.assertEqual(len({row["messages"][1]["content"] for row in rows}), 200)
            for row in rows:
                self.assertEqual(row["dataset"], domain)
                self.assertEqual([m["role"] for m in row["messages"]], ["system", "user", "assistant"])
                self.assertEqual(row["messages"][0], SYSTEM)
                self.assertTrue(row["messages"][2]["content"])
                self.assertNotIn(row["messages"][1]["content"], questions)

    def test_refusals(self):
        os.makedirs(self.path("empty"))
        for flags, words in ((("--mode", "FULL"), "--mode is PESC or LORA, not 'FULL'"), (("--device", "TPU"), "--device is CPU or CUDA"),
                             (("--eval", "201"), "--eval is at most 200"), (("--seed", "x"), "--seed is a number from 1 on, not 'x'"),
                             (("--until", "dawn"), "no stage 'dawn'"), (("--assets", self.path("absent")), "no folder " + self.path("absent")),
                             (("--lr", "1"), "launcher/real-model.sh [--device CPU|CUDA]")):
            result = self.script(*flags, out="refused")
            self.assertEqual(result.code, harness.USAGE, str(result))
            self.assertIn(words, result.err)
        self.assertFalse(os.path.exists(self.path("refused")))
        result = self.script("--assets", self.path("empty"), out="refused")
        self.assertEqual(result.code, harness.IO, str(result))
        self.assertIn("reasoning_gym-0.1.25", result.err)
        self.assertIn("pip download", result.err)
        # A folder of other settings is not gone on with.
        result = self.script("--steps", "5", "--until", "data", out="refused")
        self.assertEqual(result.code, harness.USAGE, str(result))
        self.assertIn("to start anew: rm -r", result.err)


if __name__ == "__main__":
    harness.main()
