"""lm-evaluation-harness 0.4.13 runs a local task on an exported PESC folder: its exact match is that of `pesc eval`, and so is each answer.

Needs a Python with torch, transformers and lm_eval: the program PESC_LM_EVAL_PYTHON, or the virtual environment that lm_eval_venv.sh
makes beside this file.
"""

import json
import os
import random
import shutil
import subprocess
import tempfile
import unittest

import harness
from tiny import write_chat_base

VERSION = "0.4.13"
DOMAINS = ("sums", "words")
ANSWER_TOKENS = 12
EXPERIMENT = """
name: "in-lm-eval"
run_dir: "%(folder)s/run"
model { path: "%(folder)s/base" }
train { mode: PESC max_steps: 150 global_batch_size: 12 learning_rate: 2e-2 lr_scheduler_type: LINEAR warmup_ratio: 0.1 max_grad_norm: 1 }
lora { r: 8 lora_alpha: 16 lora_dropout: 0 }
moe { num_experts: 4 num_experts_per_tok: 2 adapter_dim: 16 adapter_dropout: 0 }
parallel { num_threads: 1 }
data {
  max_seq_length: 96
  train { path: "%(folder)s/train.jsonl" }
  eval { path: "%(folder)s/sums.jsonl" }
  eval { path: "%(folder)s/words.jsonl" }
}
generate { max_new_tokens: %(tokens)d }
"""
# The task: the question and the answer of a row of chats, the answer compared without the white space around it.
TASK = r"""
task: %(name)s
dataset_path: json
dataset_kwargs:
  data_files:
    test: %(rows)s
test_split: test
output_type: generate_until
doc_to_text: "{{messages[0].content}}"
doc_to_target: "{{messages[1].content}}"
generation_kwargs:
  until: ["<|im_end|>"]
  max_gen_toks: %(tokens)d
  do_sample: false
filter_list:
  - name: stripped
    filter:
      - function: regex
        regex_pattern: "^\\s*([\\s\\S]*?)\\s*$"
      - function: take_first
metric_list:
  - metric: exact_match
    aggregation: mean
    higher_is_better: true
"""


def chats():
    """{domain: rows}; every other one is learned."""
    draw = random.Random(7)
    words = draw.sample("apple river stone cloud night green seven quiet paper north field sugar".split(), 12)
    asked = {"sums": [("%d+%d" % (a, b), str(a + b)) for a, b in ((draw.randrange(50), draw.randrange(50)) for _ in range(12))],
             "words": [("end of " + word, word[-2:]) for word in words]}
    return {domain: [{"messages": [{"role": "user", "content": q}, {"role": "assistant", "content": a}], "dataset": domain} for q, a in pairs]
            for domain, pairs in asked.items()}


class LmEval(unittest.TestCase):
    def setUp(self):
        self.folder = tempfile.mkdtemp(prefix="pesc-lm-eval-")
        self.addCleanup(shutil.rmtree, self.folder, ignore_errors=True)
        self.rows = chats()
        write_chat_base(self.path("base"), seed=3)
        self.write("train.jsonl", [row for rows in self.rows.values() for row in rows[::2]])
        os.makedirs(self.path("tasks"))
        for domain, rows in self.rows.items():
            self.write(domain + ".jsonl", rows)
            with open(self.path("tasks", domain + ".yaml"), "w", encoding="utf-8") as file:
                file.write(TASK % {"name": domain, "rows": self.path(domain + ".jsonl"), "tokens": ANSWER_TOKENS})
        with open(self.path("e.textproto"), "w", encoding="utf-8") as file:
            file.write(EXPERIMENT % {"folder": self.folder, "tokens": ANSWER_TOKENS})

    def path(self, *parts):
        return os.path.join(self.folder, *parts)

    def write(self, name, rows):
        with open(self.path(name), "w", encoding="utf-8") as file:
            file.writelines(json.dumps(row) + "\n" for row in rows)

    def pesc(self, verb, *words):
        result = harness.pesc(0, verb, "--config", self.path("e.textproto"), *words)
        self.assertEqual(result.code, harness.OK, str(result))

    def theirs(self, model):
        python = os.environ.get("PESC_LM_EVAL_PYTHON")
        here = os.path.join(harness.SOURCE, "tests", "end_to_end")
        if not python:
            python = subprocess.run([os.path.join(here, "lm_eval_venv.sh")], stdout=subprocess.PIPE, text=True, check=True).stdout.strip()
        # Nothing but this machine: datasets and metrics are local.
        env = dict(harness.environment(), HF_HOME=self.path("hf"), HF_HUB_OFFLINE="1", HF_DATASETS_OFFLINE="1", TOKENIZERS_PARALLELISM="false")
        done = subprocess.run([python, "-B", os.path.join(here, "in_lm_eval.py"), model, self.path("tasks"), *DOMAINS],
                              stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=env, cwd=self.folder)
        self.assertEqual(done.returncode, 0, done.stderr[-4000:])
        return json.loads(done.stdout[done.stdout.index("{"):])

    def test_exact_match_is_that_of_pesc_eval(self):
        self.pesc("train")
        self.pesc("eval", "--samples", 24, "--out", self.path("ours.json"))
        self.pesc("export", "--out", self.path("model"), "--dtype", "F32")
        with open(self.path("ours.json"), encoding="utf-8") as file:
            ours = json.load(file)
        report = self.theirs(self.path("model"))
        self.assertEqual(report["lm_eval"], VERSION)
        for domain in DOMAINS:
            answers = [sample["answer"].strip() for sample in ours["samples"] if sample["dataset"] == domain]
            self.assertEqual(report[domain]["answers"], answers)
            self.assertAlmostEqual(report[domain]["exact_match"], ours["datasets"][domain]["exact_match"], places=12)
            # Some of the answers are right and some are not: the comparison sees both.
            self.assertGreater(ours["datasets"][domain]["exact_match"], 0, domain)
            self.assertLess(ours["datasets"][domain]["exact_match"], 1, domain)


if __name__ == "__main__":
    harness.main()
