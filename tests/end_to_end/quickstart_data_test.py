"""The quick start's data: the same bytes for a seed, the published format, 300 eval rows of which training has
none. What is shared is looked for here without the generator's own notion of a row's core.
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

DOMAINS = ("text", "programs", "arithmetic")
GENERATOR = os.path.join(harness.SOURCE, "configs", "quickstart")


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
        cls.eval_rows = {d: read("eval-%s.jsonl" % d) for d in DOMAINS}

    def test_a_seed_gives_its_bytes(self):
        digests = {name: harness.digests(os.path.join(self.folder, name)) for name in ("one", "again", "two")}
        self.assertEqual(sorted(digests["one"]), sorted(["train.jsonl"] + ["eval-%s.jsonl" % d for d in DOMAINS]))
        self.assertEqual(digests["one"], digests["again"])
        for name in digests["one"]:
            self.assertNotEqual(digests["one"][name], digests["two"][name])

    def test_numbers_of_rows(self):
        self.assertEqual(sum(map(len, self.eval_rows.values())), 300)
        for domain, rows in self.eval_rows.items():
            self.assertEqual([r["dataset"] for r in rows], [domain] * 100)
            self.assertEqual(sum(r["dataset"] == domain for r in self.train), 5000)
        first = [r["dataset"] for r in self.train[:300]]
        self.assertGreater(min(first.count(d) for d in DOMAINS), 50, "the domains are not mixed")

    def test_published_format(self):
        for row in self.train + sum(self.eval_rows.values(), []):
            self.assertEqual(set(row), {"instruction", "conversation", "dataset"})
            self.assertIsInstance(row["instruction"], str)
            self.assertEqual(len(row["conversation"]), 1)
            for turn in row["conversation"]:
                self.assertEqual(set(turn), {"input", "output"})
                self.assertTrue(turn["input"].strip() and turn["output"].strip(), row)
                self.assertNotIn("###", turn["input"] + turn["output"])
        self.assertTrue(any(row["instruction"] for row in self.train), "no row has a system text")

    def test_no_eval_row_is_trained_on(self):
        questions = {normal(r["conversation"][0]["input"]) for r in self.train}
        whole = {json.dumps(r, sort_keys=True) for r in self.train}
        for rows in self.eval_rows.values():
            for row in rows:
                self.assertFalse(json.dumps(row, sort_keys=True) in whole, row)
                self.assertFalse(normal(row["conversation"][0]["input"]) in questions, row)
            self.assertEqual(len({normal(r["conversation"][0]["input"]) for r in rows}), len(rows))
        # A list of words or a program of an eval row must not come back under another question.
        lists = {normal(r["conversation"][0]["input"].rpartition(": ")[2]) for r in self.train
                 if r["dataset"] == "text" and ": " in r["conversation"][0]["input"]}
        for row in self.eval_rows["text"]:
            before, colon, words = row["conversation"][0]["input"].rpartition(": ")
            if colon:
                self.assertFalse(normal(words) in lists, row)
        programs = {r["conversation"][0]["output"] for r in self.train if r["dataset"] == "programs"
                    and not r["conversation"][0]["output"].isdigit()}
        for row in self.eval_rows["programs"]:
            self.assertFalse(row["conversation"][0]["output"] in programs, row)

    def test_the_base_saw_no_template_and_no_eval_row(self):
        """The text of the committed base: pretrain.sh makes it with these flags, from the same seed."""
        with open(os.path.join(GENERATOR, "pretrain.sh"), encoding="utf-8") as script:
            self.assertIn('generate.py" --out "$work/data" --pretrain\n', script.read())
        folder = os.path.join(self.folder, "pretrain")
        harness.generate_data(folder, "--pretrain")
        rows = harness.read_jsonl(os.path.join(folder, "pretrain.jsonl"))
        self.assertTrue(all(set(row) == {"corpus"} for row in rows))
        for domain in DOMAINS:  # the eval rows of this run of the generator are those of the others
            self.assertEqual(harness.read_jsonl(os.path.join(folder, "eval-%s.jsonl" % domain)), self.eval_rows[domain])
        text = "\n\n".join(row["corpus"] for row in rows) + "\n"
        self.assertGreater(len(text), 20e6)
        for part in ("#" * 2, "Human", "Assistant", "System", "?"):  # no question either
            self.assertNotIn(part, text)
        # The vocabulary is made from the training rows as well, a line of text a line, but not from the eval rows.
        with open(os.path.join(folder, "tokenizer.txt"), encoding="utf-8") as file:
            lines = set(file.read().split("\n"))
        apart = re.compile(r"(?<=\d)(?=[^\w\s])|(?<=[^\w\s])(?=\d)")
        asked = lambda rows: {"(" + apart.sub("x", row["conversation"][0]["input"]) for row in rows
                              if "\n" not in row["conversation"][0]["input"]}
        self.assertLessEqual(asked(harness.read_jsonl(os.path.join(folder, "train.jsonl"))), lines)
        eval_rows = asked(row for rows in self.eval_rows.values() for row in rows)
        self.assertGreater(len(eval_rows), 150)
        self.assertFalse(eval_rows & lines)
        flat = normal(text)
        lists = set(re.findall(r"(?:list|words): ([a-z ]+)\.", text))
        programs = set(re.findall(r"^(\w+ = .*\n.*(?:\n.*)?)\n# prints", text, re.M))
        programs |= set(re.findall(r"^((?:def|for|\w+ =).*?)(?:  #.*)?$", text, re.M))
        for found, least in ((lists, 40000), (programs, 40000)):
            self.assertGreater(len(found), least, "the plain text has another form than is looked for here")
        looked_for = 0
        for rows in self.eval_rows.values():
            for row in rows:
                question, answer = row["conversation"][0]["input"], row["conversation"][0]["output"]
                self.assertNotIn(normal(question), flat)
                words = question.rpartition(": ")[2]
                program = question.partition("\n")[2] or answer
                if row["dataset"] == "text" and ": " in question:
                    self.assertNotIn(words, lists)
                    looked_for += 1
                if row["dataset"] == "programs":
                    self.assertNotIn(program, programs)
                    looked_for += 1
        self.assertGreater(looked_for, 150)

    def test_a_leak_is_refused(self):
        """Also under python -O, which drops assertions."""
        cases = (("training rows", "[held[0]], [], set()"), ("plain text: Q", "[], ['They ask: Q'], set()"),
                 ("program", "[], ['f(x)\\nf(y)'], {'f(x)'}"), ("template", "[], ['### Human: Q'], set()"))
        for words, arguments in cases:
            held = {"conversation": [{"input": "Q" if "Q" in words else "R", "output": "A"}]}
            code = "import generate; held = [%r]; generate.check({'d': held}, %s)" % (held, arguments)
            done = subprocess.run([sys.executable, "-O", "-c", code], cwd=GENERATOR, text=True, stderr=subprocess.PIPE)
            self.assertIn("Leak: ", done.stderr)
            self.assertIn(words, done.stderr)
        code = "import generate; generate.check({'d': [%r]}, [], ['f(x)'], set())" % held
        self.assertEqual(subprocess.run([sys.executable, "-O", "-c", code], cwd=GENERATOR).returncode, 0)

    def test_answers_are_right(self):
        sums = [r["conversation"][0]["output"] for r in self.train + self.eval_rows["arithmetic"]
                if r["dataset"] == "arithmetic"]
        checked = 0
        for answer in sums:
            match = re.fullmatch(r"(\d+) ([-+*]) (\d+) = (-?\d+)", answer)
            if match:
                a, sign, b, result = match.groups()
                self.assertEqual({"+": int(a) + int(b), "-": int(a) - int(b), "*": int(a) * int(b)}[sign], int(result))
                checked += 1
        self.assertGreater(checked, 0.5 * len(sums), "the form of the answers has changed")


class OldRun(unittest.TestCase):
    """launcher/quickstart.sh does not go on with a run of another recipe. Nothing is installed here, built or trained: its first
    step, which follows the question, ends it."""

    def setUp(self):
        folder = tempfile.TemporaryDirectory(prefix="pesc-old-run-")
        self.addCleanup(folder.cleanup)
        self.tree = folder.name
        for name in ("launcher/quickstart.sh", "configs/quickstart/tune.textproto", "configs/quickstart/generate.py",
                     "configs/quickstart/base/config.json"):
            os.makedirs(os.path.dirname(os.path.join(self.tree, name)), exist_ok=True)
            shutil.copy(os.path.join(harness.SOURCE, name), os.path.join(self.tree, name))
        self.write("cluster/install-deps.sh", "#!/bin/sh\n[ -e cmake ] || exit 3\n")
        os.chmod(os.path.join(self.tree, "cluster/install-deps.sh"), 0o755)

    def write(self, name, text, mode="w"):
        path = os.path.join(self.tree, name)
        os.makedirs(os.path.dirname(path), exist_ok=True)
        with open(path, mode, encoding="utf-8") as file:
            file.write(text)

    def run_it(self, path=None):
        env = dict(os.environ, PATH=(path + os.pathsep if path else "") + os.environ["PATH"])
        done = subprocess.run([os.path.join(self.tree, "launcher/quickstart.sh")], env=env, text=True, stderr=subprocess.PIPE,
                              stdout=subprocess.PIPE)
        return done.returncode, done.stderr

    def assert_refused(self):
        code, said = self.run_it()
        self.assertEqual(code, 64)
        self.assertEqual(len(said.splitlines()), 1, said)
        self.assertIn("another version of configs/quickstart", said)
        self.assertIn("rm -r runs/quickstart", said)

    def test_of_another_recipe(self):
        self.assertEqual(self.run_it()[0], 3)  # none
        self.write("runs/quickstart/data/train.jsonl", "")
        self.assertEqual(self.run_it()[0], 3)  # data alone
        self.write("runs/quickstart/run/metrics.jsonl", "")
        self.assert_refused()  # one that it knows nothing of
        # Now it comes to the base's evaluation, and the program that stands for pesc ends it.
        shutil.rmtree(os.path.join(self.tree, "runs"))
        for name in ("cmake", "mpirun", "python3"):
            self.write("bin/" + name, "#!/bin/sh\ncase $0 in *mpirun) exit 4 ;; esac\n")
            os.chmod(os.path.join(self.tree, "bin", name), 0o755)
        self.write("cmake", "")
        self.assertEqual(self.run_it(os.path.join(self.tree, "bin"))[0], 4)
        self.write("runs/quickstart/run/metrics.jsonl", "")
        self.assertEqual(self.run_it(os.path.join(self.tree, "bin"))[0], 4)  # its own, broken off: goes on
        for name in ("tune.textproto", "generate.py", "base/config.json"):
            with self.subTest(name):
                path = os.path.join(self.tree, "configs/quickstart", name)
                with open(path, encoding="utf-8") as file:
                    kept = file.read()
                self.write(path, "\n", "a")
                self.assert_refused()
                self.write(path, kept)
                self.assertEqual(self.run_it(os.path.join(self.tree, "bin"))[0], 4)


if __name__ == "__main__":
    harness.main()
