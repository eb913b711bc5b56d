"""`pesc report` and TensorBoard's event files of a small run that was resumed, and bad input."""

import json
import os
import re
import shutil
import struct
import tempfile
import unittest

import harness
import made_run
from tiny import write_base, write_rows

EXPERIMENT = """
name: "small"
run_dir: "%(folder)s/run"
model { path: "%(folder)s/base" }
train { max_steps: %(steps)d global_batch_size: 4 learning_rate: 1e-2 eval_steps: 2 logging_steps: 2 }
lora { r: 4 lora_alpha: 4 }
moe { num_experts: 4 num_experts_per_tok: 2 adapter_dim: 4 }
parallel { num_threads: 1 }
data { max_seq_length: 48 train { path: "%(folder)s/rows.jsonl" } eval { path: "%(folder)s/rows.jsonl" } }
generate { max_new_tokens: 4 }
"""


def records(path):
    """The payloads of a TFRecord file, up to one that is not whole."""
    with open(path, "rb") as file:
        data = file.read()
    at, found = 0, []
    while at + 12 <= len(data):
        (length,) = struct.unpack_from("<Q", data, at)
        if at + 16 + length > len(data):
            break
        found.append(data[at + 12:at + 12 + length])
        at += 16 + length
    return found


class Report(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.folder = tempfile.mkdtemp(prefix="pesc-report-")
        cls.addClassCleanup(shutil.rmtree, cls.folder, ignore_errors=True)
        write_base(cls.path("base"))
        write_rows(cls.path("rows.jsonl"), [("say %d" % i, "number %d" % i, "ab"[i % 2]) for i in range(8)])

    @classmethod
    def path(cls, *parts):
        return os.path.join(cls.folder, *parts)

    def pesc(self, verb, *words, code=0, ranks=0, steps=4, config=True, **options):
        if config:
            with open(self.path("e.textproto"), "w", encoding="utf-8") as file:
                file.write(EXPERIMENT % {"folder": self.folder, "steps": steps})
            words = ("--config", self.path("e.textproto"), *words)
        result = harness.pesc(ranks, verb, *words, seconds=60, **options)
        self.assertEqual(result.code, code, str(result))
        return result

    def test_a_run_that_was_resumed(self):
        self.pesc("train", steps=4)
        self.pesc("train", steps=6)  # goes on
        self.pesc("eval", "--base")
        self.pesc("eval")
        for part in ("train", "eval"):
            (name,) = os.listdir(self.path("run", "tensorboard", part))
            self.assertRegex(name, r"^events\.out\.tfevents\.\d{10}\..*\.pesc$")
            found = records(self.path("run", "tensorboard", part, name))
            self.assertIn(b"brain.Event:2", found[0])
            # Each step once: its varint stands behind the 9 bytes of the time.
            steps = [r[10] for r in found[2:] if r[9:10] == b"\x10" and (part == "eval" or b"grad_norm" in r)]
            self.assertEqual(steps, [1, 2, 3, 4, 5, 6] if part == "train" else [6])
        self.assertIn(b"answers/a", found[-1])
        evaluations = harness.read_jsonl(self.path("run", "evaluations.jsonl"))
        self.assertEqual([(e["step"], e.get("base", False)) for e in evaluations], [(0, True), (6, False)])
        self.assertEqual(len(evaluations[1]["samples"]), 8)

        self.pesc("report", "--run", self.path("run"), "--out", self.path("page.html"), config=False)
        with open(self.path("page.html"), encoding="utf-8") as file:
            page = file.read()
        data = json.loads(re.search(r'id="data">(.*?)</script>', page, re.S).group(1))
        (run,) = data["runs"]
        self.assertEqual(run["sums"]["steps"], 6)
        self.assertEqual(run["curves"]["loss"]["to"], [1, 2, 3, 4, 5, 6])
        self.assertEqual((run["experts"]["layers"], run["experts"]["experts"]), (2, 4))
        self.assertEqual({t["tag"] for t in run["experts"]["tags"]}, {"a", "b"})
        self.assertEqual([e["step"] for e in run["evals"] if e["tag"] == ""], [[2, 4, 6]])
        self.assertEqual([e["name"] for e in run["evaluations"]], ["base", "step 6"])
        self.assertEqual({(a["before"]["name"], a["after"]["name"]) for a in run["answers"]}, {("base", "step 6")})
        self.assertEqual([(l["from"], l["to"]) for l in run["launches"]], [(0, 4), (4, 6)])
        self.assertEqual(run["recipe"]["name"], "small")
        self.assertIn("max_steps: 6", run["config"])
        self.assertGreater(dict(map(tuple, run["phases"]))["training steps"], 0)
        self.assertNotRegex(page, r"(?:src|href)=\"(?!#|data:)")

    def test_an_evaluation_of_what_is_no_run_writes_nothing(self):
        self.pesc("eval", "--base", "--set", "run_dir=" + self.path("none"))
        self.assertFalse(os.path.exists(self.path("none")))

    def test_bad_input(self):
        made_run.make(self.path("made"), 20)
        out = self.path("out.html")
        for words, said in ((("--out", out), "needs --run"), (("--run", self.path("made")), "needs --out"),
                            (("--run", self.path("base"), "--out", out), "has no metrics.jsonl"),
                            (("--run", self.path("made"), "--out", self.path("e")), "is a folder"),
                            (("--run", self.path("made"), "--out", self.path("made", "metrics.jsonl")), "nothing is overwritten")):
            os.makedirs(self.path("e"), exist_ok=True)
            result = self.pesc("report", *words, code=harness.USAGE, config=False)
            self.assertIn(said, result.message)
            self.assertEqual(len(result.complaints), 1, str(result))
        result = self.pesc("report", "--run", self.path("made"), "--out", out, code=harness.USAGE, config=False, ranks=2)
        self.assertIn("runs on one rank", result.message)
        # A disk that fills: a file may have 6 MiB, more than Open MPI's own of 4 MiB and less than the page of these runs.
        words = []
        for i in range(32):
            run = self.path("large-%d" % i)
            shutil.copytree(self.path("made"), run)
            with open(os.path.join(run, "experiment.textproto"), "a", encoding="utf-8") as file:
                file.write(("# " + "a long remark " * 70 + "\n") * 250)
            words += ["--run", run]
        limited = ["bash", "-c", 'ulimit -f 6144; trap "" XFSZ; exec "$@"', "bash"]  # KiB
        result = self.pesc("report", *words, "--out", out, code=harness.IO, config=False, prefix=limited)
        self.assertEqual(len(result.complaints), 1, str(result))
        self.assertIn("File too large", result.message)
        self.assertNotIn("PMIX", result.err)
        self.assertEqual([n for n in os.listdir(self.folder) if "out.html" in n], [])
        # What is being written when it is read.
        with open(self.path("made", "metrics.jsonl"), "a", encoding="utf-8") as file:
            file.write('{"kind":"step","st')
        self.pesc("report", "--run", self.path("made"), "--out", out, config=False)
        with open(out, encoding="utf-8") as file:
            self.assertIn("is not whole and is left out", file.read())


if __name__ == "__main__":
    harness.main()
