"""A real small model, SmolLM2-135M-Instruct, against transformers in float32: the tokens of its chats, the logits of 20 prompts, and the
greedy answers of 50 chats; and the answers once more of the folder that is exported after a few steps of PESC.

The model is made of a package of PyPI (smollm2_folder.py: 93 MB once). The test needs a Python with numpy, torch and transformers: the
program PESC_TRANSFORMERS_PYTHON, or the virtual environment that transformers_venv.sh makes beside this file (2 GB from PyPI, once).
"""

import json
import os
import shutil
import subprocess
import sys
import tempfile
import unittest

import harness
import smollm2_folder
from transformers_test import NEWEST, RUN_LOGITS, VERSION, python_with_transformers

EXPERIMENT = """
name: "smollm2"
run_dir: "%(folder)s/run"
model { path: "%(base)s" }
train { max_steps: 1 }
data { max_seq_length: 256 train { path: "%(folder)s/chats.jsonl" } }
generate { max_new_tokens: %(tokens)d }
"""
TUNED = """
name: "smollm2-tuned"
run_dir: "%(folder)s/tuned"
model { path: "%(base)s" }
train { mode: PESC max_steps: 3 global_batch_size: 4 learning_rate: 2e-3 }
lora { r: 4 lora_alpha: 8 }
moe { num_experts: 4 num_experts_per_tok: 2 adapter_dim: 8 }
data { max_seq_length: 256 train { path: "%(folder)s/answered.jsonl" } }
generate { max_new_tokens: %(tokens)d }
"""
LOGITS, ANSWERS, TOKENS, TUNED_TOKENS = 20, 50, 40, 16
BOUND = 1e-5  # of the largest logit
NEAR_TIE = 1e-4  # of the two best logits: either may be the greedy one
COUNTRIES = "France Japan Brazil Egypt Canada Kenya India Norway Peru Italy".split()
ANIMALS = "bee whale owl fox spider".split()


def user(text):
    return {"role": "user", "content": text}


def assistant(text):
    return {"role": "assistant", "content": text}


def chats():
    """50 of them, which end with a question: facts, numbers, texts to rewrite, further turns, a system text, other scripts."""
    asked = [[user("What is the capital of %s?" % country)] for country in COUNTRIES]
    asked += [[user("What is a %s? Answer in one sentence." % animal)] for animal in ANIMALS]
    asked += [[user("What is %d plus %d?" % (3 * n + 1, n * n))] for n in range(5)]
    asked += [[user("Write one line about the %s." % thing)] for thing in "sea moon winter city bread".split()]
    asked += [[user("Rewrite politely: %s" % text)] for text in
              ("Give me the book!", "You are late.", "I don't like it.", "Be quiet.", "Where's my\n\tmoney?")]
    asked += [[user("Hello!"), assistant("Hello! How can I help you?"), user("Name %d %s." % (n, what))] for n, what in
              ((2, "colours"), (3, "fruits"), (4, "rivers"), (5, "metals"), (2, "planets"))]
    asked += [[{"role": "system", "content": "You answer with one word."}, user("Is a %s an animal?" % animal)] for animal in ANIMALS]
    asked += [[user(text)] for text in (
        "Who wrote Hamlet?", "\u00bfQu\u00e9 es una abeja?", "\u65e5\u672c\u306e\u9996\u90fd\u306f\u3069\u3053\u3067\u3059\u304b\u3002",
        "Translate to English: \u041f\u0440\u0438\u0432\u0435\u0442, \u043c\u0438\u0440!", "\U0001f41d?", "def add(a, b):\n    return", "1 2 3 4 5",
        "List three things to pack for a hike.", "Why is the sky blue?", "   Trim me.   ")]
    assert len(asked) == ANSWERS
    return asked


class SmolLM2(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.folder = tempfile.mkdtemp(prefix="pesc-smollm2-")
        cls.addClassCleanup(shutil.rmtree, cls.folder, ignore_errors=True)
        cls.base = cls.made_folder()
        cls.chats = chats()
        with open(cls.path("chats.jsonl"), "w", encoding="utf-8") as file:
            file.write("".join(json.dumps({"messages": chat}) + "\n" for chat in cls.chats))
        with open(cls.path("e.textproto"), "w", encoding="utf-8") as file:
            file.write(EXPERIMENT % {"folder": cls.folder, "base": cls.base, "tokens": TOKENS})
        with open(cls.path("answered.jsonl"), "w", encoding="utf-8") as file:
            file.write("".join(json.dumps({"messages": chat + [assistant("Of course: %s!" % chat[-1]["content"].strip()[:20])]}) + "\n"
                               for chat in cls.chats))
        with open(cls.path("tuned.textproto"), "w", encoding="utf-8") as file:
            file.write(TUNED % {"folder": cls.folder, "base": cls.base, "tokens": TUNED_TOKENS})
        # transformers' own tokenizer, in this process, which has it.
        os.environ["HF_HUB_OFFLINE"] = "1"
        from transformers import AutoTokenizer
        cls.tokenizer = AutoTokenizer.from_pretrained(cls.base)
        cls.prompts = [cls.ids_of(chat, add_generation_prompt=True) for chat in cls.chats]

    @staticmethod
    def made_folder():
        tests = os.path.join(harness.SOURCE, "tests")
        python = subprocess.run([os.path.join(tests, "venv.sh"), *smollm2_folder.REQUIREMENTS], stdout=subprocess.PIPE, text=True, check=True)
        made = subprocess.run([python.stdout.strip(), "-B", os.path.join(tests, "end_to_end", "smollm2_folder.py")],
                              stdout=subprocess.PIPE, text=True, check=True)
        return made.stdout.strip().splitlines()[-1]

    @classmethod
    def path(cls, *parts):
        return os.path.join(cls.folder, *parts)

    @classmethod
    def ids_of(cls, chat, **options):
        ids = cls.tokenizer.apply_chat_template(chat, tokenize=True, **options)
        return list(ids["input_ids"] if hasattr(ids, "keys") else ids)

    def theirs(self, prompts, **job):
        path = self.path("jobs.json")
        with open(path, "w", encoding="utf-8") as file:
            json.dump({"prompts": prompts, "jobs": [{"folder": self.base, "trust": False, **job}]}, file)
        script = os.path.join(harness.SOURCE, "tests", "end_to_end", "in_transformers.py")
        env = dict(os.environ, HF_HOME=self.path("hf"), HF_HUB_OFFLINE="1")
        done = subprocess.run([sys.executable, "-B", script, path], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=env)
        self.assertEqual(done.returncode, 0, done.stderr[-4000:])
        (result,) = json.loads(done.stdout)["results"]
        self.assertNotIn("error", result)
        self.assertEqual(result["unexpected"], [])
        return result

    def ours(self, prompts, *words, model=("e.textproto", "--base")):
        """What run_logits writes."""
        ids, out = self.path("ids.json"), self.path("out")
        with open(ids, "w", encoding="utf-8") as file:
            json.dump(prompts, file)
        done = subprocess.run([RUN_LOGITS, "--config", self.path(model[0]), *model[1:], "--ids", ids, "--out", out, *words],
                              env=harness.environment(), cwd=harness.SOURCE, stderr=subprocess.PIPE, text=True)
        self.assertEqual(done.returncode, 0, done.stderr[-4000:])
        return out

    def test_tokens(self):
        """`pesc tokenize` gives apply_chat_template's ids, and shows a chat with the learned part marked."""
        rows = [chat + [assistant("An answer.")] for chat in self.chats]
        rows.append([user("Say <|im_end|> aloud."), assistant("An answer.")])
        lines = self.path("rows.jsonl")
        with open(lines, "w", encoding="utf-8") as file:
            file.write("".join(json.dumps({"messages": row}) + "\n" for row in rows))
        with open(lines, encoding="utf-8") as file:
            result = harness.pesc(0, "tokenize", "--model", self.base, stdin=file)
        self.assertEqual(result.code, harness.OK, str(result))
        answers = [json.loads(line) for line in result.out.splitlines()]
        self.assertEqual(len(answers), len(rows))
        for row, answer in zip(rows, answers):
            if row is rows[-1]:  # special tokens in a user's text are plain text here, and control tokens there
                self.assertEqual(answer["text"], self.tokenizer.apply_chat_template(row, tokenize=False))
                self.assertGreater(len(answer["ids"]), len(self.ids_of(row)))
                continue
            self.assertEqual(answer["ids"], self.ids_of(row), row)
            begin, end = answer["learned"][-1]
            self.assertEqual(self.tokenizer.decode(answer["ids"][begin:end]), "An answer.<|im_end|>")
        with open(lines, encoding="utf-8") as file:
            shown = harness.pesc(0, "tokenize", "--model", self.base, "--show", stdin=file)
        self.assertEqual(shown.code, harness.OK, str(shown))
        self.assertIn("⟦<|im_start|>⟧user\nWhat is the capital of France?⟦<|im_end|>⟧\n"
                      "⟦<|im_start|>⟧assistant\n>>>An answer.⟦<|im_end|>⟧<<<\n", shown.out)
        print(shown.out.split("\n\n")[0], flush=True)

    def test_logits(self):
        import numpy
        prompts = [chat for i, chat in enumerate(self.prompts) if i % 5 in (0, 3)]  # of every kind
        self.assertEqual(len(prompts), LOGITS)
        ours = numpy.fromfile(self.ours(prompts), dtype=numpy.float32)
        theirs = numpy.fromfile(self.theirs(prompts)["logits"], dtype=numpy.float32)
        self.assertEqual(len(ours), sum(map(len, prompts)) * smollm2_folder.CONFIG["vocab_size"])
        self.assertEqual(len(ours), len(theirs))
        largest, begin, errors = float(numpy.abs(theirs).max()), 0, []
        for prompt in prompts:
            end = begin + len(prompt) * smollm2_folder.CONFIG["vocab_size"]
            errors.append(float(numpy.abs(ours[begin:end] - theirs[begin:end]).max() / numpy.abs(theirs[begin:end]).max()))
            begin = end
        print("logits of %d prompts, %d positions, the largest %.1f: they differ by %.1e of the largest of a prompt" % (
            len(prompts), sum(map(len, prompts)), largest, max(errors)), flush=True)
        self.assertLess(max(errors), BOUND)

    def greedy_answers(self, model, tokens, **job):
        """Our answers to all chats, which transformers gives too, or parts from at a near tie."""
        result = self.pesc("generate", model, "--prompts", self.path("chats.jsonl"))
        ours = [json.loads(line)["output"] for line in result.out.splitlines()]
        theirs = self.theirs(self.prompts, greedy=tokens, logits=False, **job)["answers"]
        self.assertEqual((len(ours), len(theirs)), (ANSWERS, ANSWERS))
        decoded = [self.tokenizer.decode(ids, skip_special_tokens=True) for ids in theirs]
        parted = [i for i in range(ANSWERS) if ours[i] != decoded[i]]
        if parted:
            with open(self.ours([self.prompts[i] for i in parted], "--greedy", str(tokens), model=model), encoding="utf-8") as file:
                again = json.load(file)
            for i, answer in zip(parted, again):
                at = next((n for n, (a, b) in enumerate(zip(answer["ids"], theirs[i])) if a != b), None)
                self.assertIsNotNone(at, "%r against %r, of the same tokens" % (ours[i], decoded[i]))
                self.assertLess(answer["gaps"][at], NEAR_TIE, "%r against %r" % (ours[i], decoded[i]))
        print("greedy answers of %d chats, up to %d tokens: %d the same, %d first differ at a near tie; %r is answered with %r" % (
            ANSWERS, tokens, ANSWERS - len(parted), len(parted), self.chats[0][0]["content"], ours[0]), flush=True)
        return ours

    def pesc(self, verb, model, *words):
        result = harness.pesc(0, verb, "--config", self.path(model[0]), *model[1:], *words, seconds=3000)
        self.assertEqual(result.code, harness.OK, str(result))
        return result

    def test_greedy_answers(self):
        self.assertIn("Paris", self.greedy_answers(("e.textproto", "--base"), TOKENS)[0])

    def test_greedy_answers_of_an_exported_model(self):
        """The folder has experts; a few steps have changed what the model says."""
        import numpy
        tuned = ("tuned.textproto",)
        self.pesc("train", tuned)
        self.pesc("export", tuned, "--out", self.path("exported"), "--dtype", "F32")
        base, after = (numpy.fromfile(self.ours(self.prompts[:1], model=model), dtype=numpy.float32)
                       for model in (("e.textproto", "--base"), tuned))
        self.assertGreater(float(numpy.abs(after - base).max()), 0.05 * float(numpy.abs(base).max()))
        with open(self.path("exported", "config.json"), encoding="utf-8") as file:
            self.assertTrue(json.load(file)["model_type"].startswith("pesc_"))
        self.greedy_answers(tuned, TUNED_TOKENS, folder=self.path("exported"), trust=True)


if __name__ == "__main__":
    try:
        import numpy  # noqa: F401
        import transformers
        found = transformers.__version__
    except ImportError:
        found = None
    # PESC_TRANSFORMERS_VERSION asks for one; without it any will do.
    if found is None or (VERSION != NEWEST and found != VERSION):
        python = python_with_transformers()
        os.execv(python, [python, "-B", *sys.argv])
    print("transformers", found, flush=True)
    harness.main()
