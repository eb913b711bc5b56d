"""Exported folders in transformers and PEFT: the logits of every folder are those of this program within 1e-5 of the largest, the
greedy answers are the same tokens, and a folder with experts does not load as its dense base.

Needs a Python with torch, transformers and peft: the program PESC_TRANSFORMERS_PYTHON, or the virtual environment that
transformers_venv.sh makes beside this file (2 GB from PyPI, once, in ~/.cache/pesc). PESC_TRANSFORMERS_VERSION says with which version:
5.24.0 unless given, or 4.57.6, whose environment that script always makes.
"""

import array
import json
import os
import random
import shutil
import subprocess
import tempfile
import unittest

import harness
from tiny import (CHATML_TOKENS, DISTILLED_STEPS, HEADS, HIDDEN, LAYERS, MERGES, QWEN2_STEPS, SPACED_STEPS, VOCAB, write_base,
                  write_byte_tokenizer, write_rows)

NEWEST = "5.24.0"
VERSION = os.environ.get("PESC_TRANSFORMERS_VERSION", NEWEST)
FAMILIES = {
    "llama": {"rope_theta": 5e5},
    "mistral": {"model_type": "mistral", "architectures": ["MistralForCausalLM"], "sliding_window": None},
    "qwen2": {"model_type": "qwen2", "architectures": ["Qwen2ForCausalLM"], "biases": True, "tie_word_embeddings": True,
              "use_sliding_window": False},
    "qwen3": {"model_type": "qwen3", "architectures": ["Qwen3ForCausalLM"], "head_norms": True, "tie_word_embeddings": True,
              "head_dim": HIDDEN // HEADS, "use_sliding_window": False, "attention_bias": False},
    "phi3": {"model_type": "phi3", "architectures": ["Phi3ForCausalLM"], "fused": True, "sliding_window": None, "pad_token_id": None,
             "original_max_position_embeddings": 128},
    "smollm3": {"model_type": "smollm3", "architectures": ["SmolLM3ForCausalLM"], "tie_word_embeddings": True,
                "no_rope_layers": [1, 0], "no_rope_layer_interval": 2, "rope_theta": 2e6, "use_sliding_window": False,
                "pad_token_id": None},
}
EXPERIMENT = """
name: "in-transformers"
run_dir: "%(folder)s/run"
model { path: "%(folder)s/base" }
train { mode: PESC max_steps: 8 global_batch_size: 4 learning_rate: 3e-2 }
lora { r: 4 lora_alpha: 8 }
moe { num_experts: 4 num_experts_per_tok: 2 adapter_dim: 8 adapter_scaling: 0.5 }
parallel { num_threads: 1 }
data { max_seq_length: 48 train { path: "%(folder)s/rows.jsonl" } }
generate { max_new_tokens: 12 }
"""
PROMPTS, GREEDY = 50, 12
BOUND = 1e-5
NEAR_TIE = 1e-4  # of two logits: either may be the greedy one
RUN_LOGITS = os.environ.get("PESC_RUN_LOGITS", os.path.join(os.path.dirname(harness.PESC), "tests", "run_logits"))
TOKENIZER_CHECK = os.environ.get("TOKENIZER_CHECK", os.path.join(os.path.dirname(harness.PESC), "tests", "tokenizer_check"))


def python_with_transformers():
    named = os.environ.get("PESC_TRANSFORMERS_PYTHON")
    if named and VERSION == NEWEST:
        return named
    script = os.path.join(harness.SOURCE, "tests", "end_to_end", "transformers_venv.sh")
    made = subprocess.run([script, VERSION], stdout=subprocess.PIPE, text=True, check=True)
    return made.stdout.strip()


class InTransformers(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.python = python_with_transformers()
        cls.folder = tempfile.mkdtemp(prefix="pesc-transformers-")
        cls.addClassCleanup(shutil.rmtree, cls.folder, ignore_errors=True)
        words = "one two three four five six seven eight".split()
        draw = random.Random(3)
        cls.prompts = [[1] + [draw.randrange(3, VOCAB) for _ in range(draw.randrange(2, 20))] for _ in range(PROMPTS)]
        with open(cls.path("prompts.json"), "w", encoding="utf-8") as file:
            json.dump(cls.prompts, file)
        for family, config in FAMILIES.items():
            os.makedirs(cls.path(family))
            write_base(cls.path(family, "base"), seed=5, **config)
            write_rows(cls.path(family, "rows.jsonl"),
                       [("say " + w, w + " and " + v, "t") for w, v in zip(words, words[1:] + words[:1])])
            with open(cls.path(family, "e.textproto"), "w", encoding="utf-8") as file:
                file.write(EXPERIMENT % {"folder": cls.path(family)})

    @classmethod
    def path(cls, *parts):
        return os.path.join(cls.folder, *parts)

    def pesc(self, ranks, verb, family, mode, *words, **settings):
        result = harness.pesc(ranks, verb, *self.flags(family, mode, **settings), *words)
        self.assertEqual(result.code, 0, str(result))

    def flags(self, family, mode, **settings):
        return ["--config", self.path(family, "e.textproto")] + harness.sets(run_dir=self.path(family, mode), train__mode=mode, **settings)

    def ours(self, family, mode):
        """(logits, greedy continuations with their gaps) of the tuned model."""
        found = []
        for words in ((), ("--greedy", str(GREEDY))):
            out = self.path("ours")
            subprocess.run([RUN_LOGITS, *self.flags(family, mode), "--ids", self.path("prompts.json"), "--out", out, *words],
                           check=True, env=harness.environment(), cwd=harness.SOURCE, stderr=subprocess.DEVNULL)
            with open(out, "rb") as file:
                found.append(file.read())
        return array.array("f", found[0]), json.loads(found[1])

    def theirs(self, *jobs):
        path = self.path("jobs.json")
        with open(path, "w", encoding="utf-8") as file:
            json.dump({"prompts": self.prompts, "jobs": jobs}, file)
        script = os.path.join(harness.SOURCE, "tests", "end_to_end", "in_transformers.py")
        env = dict(harness.environment(), HF_HOME=self.path("hf"), HF_HUB_OFFLINE="1")
        done = subprocess.run([self.python, "-B", script, path], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=env)
        self.assertEqual(done.returncode, 0, done.stderr[-4000:])
        report = json.loads(done.stdout)
        self.assertEqual(report["transformers"], VERSION)
        return report["results"]

    def assert_same(self, what, ours, theirs):
        logits, answers = ours
        self.assertNotIn("error", theirs)
        self.assertEqual(theirs["unexpected"], [], what)
        with open(theirs["logits"], "rb") as file:
            got = array.array("f", file.read())
        self.assertEqual(len(got), len(logits), what)
        largest = max(map(abs, logits))
        error = max(abs(a - b) for a, b in zip(got, logits)) / largest
        self.assertGreater(largest, 0)
        self.assertLess(error, BOUND, what)
        ties = 0
        for ours_of, theirs_of in zip(answers, theirs["answers"]):
            if ours_of["ids"] == theirs_of:
                continue
            at = next(i for i, (a, b) in enumerate(zip(ours_of["ids"], theirs_of)) if a != b)
            self.assertLess(ours_of["gaps"][at], NEAR_TIE, "%s: %s against %s" % (what, ours_of["ids"], theirs_of))
            ties += 1
        print("%-24s logits %.1e, %d of %d answers the same, %d part at a near tie" % (
            what, error, len(answers) - ties, len(answers), ties), flush=True)

    def family(self, family):
        trained = {"PESC": (4, {"parallel__tp": 2, "parallel__ep": 4}), "LORA": (2, {"parallel__tp": 2}), "FULL": (1, {})}
        jobs, of = [], []
        for mode, (ranks, layout) in trained.items():
            self.pesc(ranks, "train", family, mode, **layout)
            hf, peft = self.path(family, mode + "-hf"), self.path(family, mode + "-peft")
            self.pesc(0, "export", family, mode, "--out", hf, "--dtype", "F32")
            jobs.append({"folder": hf, "greedy": GREEDY, "trust": mode == "PESC"})
            of.append((mode, "HF"))
            if mode == "FULL":
                continue
            self.pesc(0, "export", family, mode, "--format", "PEFT", "--out", peft)
            base = self.path(family, "base")
            if mode == "PESC":
                os.symlink(os.path.join(base, "model.safetensors"), os.path.join(peft, "base", "model.safetensors"))
                base = os.path.join(peft, "base")
            jobs.append({"folder": base, "adapter": peft, "greedy": GREEDY})
            of.append((mode, "PEFT"))
        self.tokens(self.path(family, "base"), self.path(family, "LORA-hf"))
        self.goes_on_from(family, self.path(family, "PESC-hf"))
        untrusted = {"folder": jobs[0]["folder"], "trust": False}
        half = {"folder": jobs[0]["folder"], "dtype": "bfloat16"}
        body = {"folder": jobs[0]["folder"], "body": True, "greedy": GREEDY}
        *results, refused, halved, with_body = self.theirs(*jobs, untrusted, half, body)
        ours = {mode: self.ours(family, mode) for mode in trained}
        for (mode, form), result in zip(of, results):
            self.assert_same("%s %s %s" % (family, mode, form), ours[mode], result)
        self.assert_same("%s PESC AutoModel" % family, ours["PESC"], with_body)
        self.assertIn("trust_remote_code", refused["error"])
        self.assertEqual(halved["float32"], ["model.layers.%d.mlp.moe_adapter.router.weight" % i for i in range(LAYERS)])
        # What was tuned is far from the base: the comparison would see a folder without it.
        a, b = ours["PESC"][0], ours["LORA"][0]
        self.assertGreater(max(abs(x - y) for x, y in zip(a, b)), 1e-2 * max(map(abs, a)))

    def goes_on_from(self, family, folder):
        """A run from an exported folder that learns nothing, its rate being too small to change a value, exports the same bytes."""
        settings = harness.sets(run_dir=self.path(family, "again"), train__mode="PESC", model__path=folder, train__max_steps=1,
                                train__learning_rate=1e-20)
        out = self.path(family, "again-hf")
        for verb, *words in (["train"], ["export", "--out", out, "--dtype", "F32"]):
            result = harness.pesc(0, verb, "--config", self.path(family, "e.textproto"), *settings, *words)
            self.assertEqual(result.code, 0, str(result))
        for name in ("model.safetensors", "config.json", "modeling_pesc.py", "tokenizer.json"):
            self.assertEqual(harness.digests(out)[name], harness.digests(folder)[name], "%s of %s" % (name, family))

    def tokens(self, base, *folders, count=2000):
        """The exported tokenizers give the tokens of the base's."""
        draw = random.Random(9)
        texts = ["".join(draw.choice(("the ", " ", "  ", "x", "=", "\n", "\u00e9", "e\u0301", "\u4e2d", "\U0001f600", "1", "123", "and", "It's", "<s>", "</s>",
                                              "<unk>", "<|im_end|>", "<|endoftext|>"))
                         for _ in range(draw.randrange(40))) for _ in range(count)]
        path = self.path("texts.json")
        with open(path, "w", encoding="utf-8") as file:
            json.dump(texts, file)
        code = ("import json, os, sys; from transformers import AutoTokenizer\n"
                "for folder in sys.argv[2:]:\n"
                "  asks = 'pesc_' in open(folder + '/config.json').read() if os.path.exists(folder + '/config.json') else False\n"
                "  for trust in ({'trust_remote_code': False} if asks else {}, {'trust_remote_code': True}):\n"
                "    t = AutoTokenizer.from_pretrained(folder, **trust)\n"
                "    ids = [t(x, add_special_tokens=s)['input_ids'] for x in json.load(open(sys.argv[1])) for s in (False, True)]\n"
                "    print(json.dumps({'what': [folder, trust, len(t)], 'ids': ids}))")
        theirs = subprocess.run([self.python, "-B", "-c", code, path, *folders], stdout=subprocess.PIPE, text=True, check=True,
                                env=dict(harness.environment(), HF_HUB_OFFLINE="1", HF_HOME=self.path("hf")))
        lines = "".join(json.dumps({"text": t, "added": "all", "special": s}) + "\n" for t in texts for s in (False, True))
        ours = subprocess.run([TOKENIZER_CHECK, base], input=lines, stdout=subprocess.PIPE, text=True, check=True)
        want = [json.loads(line)["ids"] for line in ours.stdout.split("\n") if line]
        found = [json.loads(line) for line in theirs.stdout.split("\n") if line]
        self.assertEqual(len(found), 2 * len(folders))
        for of in found:
            wrong = [text for text, a, b in zip(lines.split("\n"), of["ids"], want) if a != b]
            self.assertEqual((len(of["ids"]), wrong[:3]), (len(want), []), of["what"])

    def test_every_tokenizer_json_is_taken_as_it_is(self):
        """Whatever steps it has, for each type of model, of which some have a class with steps of their own."""
        for name, steps in (("own", QWEN2_STEPS), ("distilled", DISTILLED_STEPS), ("spaced", SPACED_STEPS)):
            exported = []
            for family in FAMILIES:
                folder = self.path("steps", name, family)
                base, config = os.path.join(folder, "base"), os.path.join(folder, "e.textproto")
                shutil.copytree(self.path(family, "base"), base)
                os.remove(os.path.join(base, "tokenizer.model"))
                with open(os.path.join(base, "config.json"), "r+", encoding="utf-8") as file:
                    model = json.load(file)
                    file.seek(0)
                    json.dump({**model, "eos_token_id": 256 + len(MERGES)}, file)
                more = {"<extra_%d>" % i: i for i in range(256 + len(CHATML_TOKENS), VOCAB - len(MERGES))}
                write_byte_tokenizer(base, {**CHATML_TOKENS, **more}, MERGES, **steps)
                shutil.copy(self.path(family, "rows.jsonl"), folder)
                with open(config, "w", encoding="utf-8") as file:
                    file.write(EXPERIMENT % {"folder": folder})
                for mode, form in (("LORA", "HF"), ("LORA", "PEFT"), ("PESC", "HF"))[:3 if family == "qwen2" else 1]:
                    flags = ["--config", config] + harness.sets(run_dir=os.path.join(folder, mode), train__mode=mode, train__max_steps=1)
                    out = os.path.join(folder, "%s-%s" % (mode, form))
                    for verb, words in (("train", ()), ("export", ("--format", form, "--out", out))):
                        if verb == "export" or form == "HF":
                            result = harness.pesc(0, verb, *flags, *words)
                            self.assertEqual(result.code, 0, str(result))
                    exported.append(out)
            self.tokens(base, *exported, count=300)

    def test_llama(self):
        self.family("llama")

    def test_training_goes_on_from_an_adapter_that_peft_wrote(self):
        """What it begins with computes what PEFT computes: a step whose rate is too small to change a value is saved."""
        shutil.copytree(self.path("llama", "base"), self.path("own", "base"))
        shutil.copy(self.path("llama", "rows.jsonl"), self.path("own"))
        with open(self.path("own", "e.textproto"), "w", encoding="utf-8") as file:
            file.write(EXPERIMENT % {"folder": self.path("own")})
        adapter = self.path("own", "adapter")
        theirs, plain = self.theirs({"folder": self.path("own", "base"), "own_adapter": adapter, "greedy": GREEDY},
                                    {"folder": self.path("own", "base")})
        self.pesc(1, "train", "own", "LORA", model__adapter=adapter, train__max_steps=1, train__learning_rate=1e-20)
        ours = self.ours("own", "LORA")
        self.assert_same("an adapter of PEFT's", ours, theirs)
        with open(plain["logits"], "rb") as file:
            base = array.array("f", file.read())
        self.assertGreater(max(abs(a - b) for a, b in zip(base, ours[0])), 1e-2 * max(map(abs, base)))

    def test_mistral(self):
        self.family("mistral")

    def test_qwen2(self):
        self.family("qwen2")

    def test_qwen3(self):
        self.family("qwen3")

    def test_phi3(self):
        self.family("phi3")

    def test_smollm3(self):
        self.family("smollm3")


if __name__ == "__main__":
    harness.main()
