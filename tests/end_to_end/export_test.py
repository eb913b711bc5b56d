"""`pesc export`: what was trained on several ranks comes out of one as folders for transformers, PEFT and the published code; the
values are looked at here, without these programs (transformers_test.py loads them there). A folder is there whole or not at all.
"""

import base64
import json
import math
import os
import random
import re
import shutil
import signal
import struct
import subprocess
import tempfile
import time
import unittest

import harness
from tiny import (CHATML, CHATML_TOKENS, DISTILLED_STEPS, HIDDEN, LAYERS, MERGES, QWEN2_STEPS, SPACED_STEPS, write_base,
                  write_byte_tokenizer, write_chat_base, write_rows)

EXPERIMENT = """
name: "export"
run_dir: "%(folder)s/run"
model { path: "%(folder)s/base" }
train { mode: PESC max_steps: 4 global_batch_size: 4 learning_rate: 5e-2 eval_steps: 2 }
lora { r: 3 lora_alpha: 7 target_modules: ["q_proj", "v_proj", "gate_proj", "down_proj"] }
moe { num_experts: 4 num_experts_per_tok: 2 adapter_dim: 4 adapter_scaling: 0.5 }
parallel { num_threads: 1 }
data { max_seq_length: 48 train { path: "%(folder)s/rows.jsonl" } eval { path: "%(folder)s/rows.jsonl" tag: "same" } }
generate { max_new_tokens: 6 }
"""
R, SCALE = 3, 7 / 3
RUN_LOGITS = os.environ.get("PESC_RUN_LOGITS", os.path.join(os.path.dirname(harness.PESC), "tests", "run_logits"))
WITH_LORA = ("q_proj", "v_proj", "gate_proj", "down_proj")
FLOAT = {"F32": ("f", 4), "BF16": ("H", 2)}


def tensors(path):
    """{name: (dtype, shape, values)}; of BF16 the bits."""
    header, data = harness.read_safetensors(path)
    found = {}
    for name, entry in header.items():
        letter, size = FLOAT[entry["dtype"]]
        begin, end = entry["data_offsets"]
        found[name] = entry["dtype"], entry["shape"], struct.unpack("<%d%s" % ((end - begin) // size, letter), data[begin:end])
    return found


def trained(step):
    """{name: (rows, columns, {(row, column): value})} of a checkpoint, from the pieces of all its shards."""
    found = {}
    for name in sorted(os.listdir(step)):
        if not name.endswith(".safetensors"):
            continue
        for key, (_, (rows, cols), values) in tensors(os.path.join(step, name)).items():
            match = re.fullmatch(r"param:(.*)@(\d+),(\d+)", key)
            if not match:
                continue
            row, col = int(match.group(2)), int(match.group(3))
            places = found.setdefault(match.group(1), {})
            for i, value in enumerate(values):
                places[row + i // cols, col + i % cols] = value
    return {name: (max(r for r, _ in p) + 1, max(c for _, c in p) + 1, p) for name, p in found.items()}


def bf16(value):
    """Bits of the nearest bfloat16, ties to even."""
    (bits,) = struct.unpack("<I", struct.pack("<f", value))
    return (bits + 0x7FFF + (bits >> 16 & 1)) >> 16


class Export(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.folder = tempfile.mkdtemp(prefix="pesc-export-")
        cls.addClassCleanup(shutil.rmtree, cls.folder, ignore_errors=True)
        write_base(cls.path("base"))
        write_base(cls.path("theta"), rope_theta=5e5)
        write_base(cls.path("other"), seed=2)
        words = "one two three four five six seven eight".split()
        write_rows(cls.path("rows.jsonl"), [("say " + w, w + " and " + v, "t") for w, v in zip(words, words[1:] + words[:1])])
        cls.config = cls.path("e.textproto")
        with open(cls.config, "w", encoding="utf-8") as file:
            file.write(EXPERIMENT % {"folder": cls.folder})
        cls.train(4, "run", **{"parallel.tp": 2, "parallel.ep": 4})
        cls.train(2, "lora", **{"parallel.tp": 2, "train.mode": "LORA"})

    @classmethod
    def path(cls, *parts):
        return os.path.join(cls.folder, *parts)

    @classmethod
    def call(cls, verb, *words, ranks=0, run="run", settings=None, **options):
        sets = {"run_dir": cls.path(run), **(settings or {})}
        flags = [word for name, value in sets.items() for word in ("--set", "%s=%s" % (name, value))]
        return harness.pesc(ranks, verb, "--config", cls.config, *flags, *words, seconds=120, **options)

    @classmethod
    def train(cls, ranks, run, **settings):
        result = cls.call("train", ranks=ranks, run=run, settings=settings)
        assert result.code == 0, result

    def export(self, out, *words, run="run", code=0, settings=None, **options):
        if run == "lora":
            settings = {"train.mode": "LORA", **(settings or {})}
        result = self.call("export", "--out", self.path(out), *words, run=run, settings=settings, **options)
        self.assertEqual(result.code, code, str(result))
        return self.path(out)

    def refused(self, result, code, *words):
        self.assertEqual(result.code, code, str(result))
        self.assertEqual(len(result.complaints), 1, str(result))
        for word in words:
            self.assertIn(word, result.message, str(result))

    def json(self, *parts):
        with open(self.path(*parts), encoding="utf-8") as file:
            return json.load(file)

    def assert_merged(self, got, run):
        """got[W] = W + (alpha / r) B A of the checkpoint, in float32, but for the rounding of as many terms."""
        base, tuned = tensors(self.path("base", "model.safetensors")), trained(self.path(run, "step-4"))
        for name, (_, shape, values) in base.items():
            self.assertEqual(got[name][:2], ("F32", shape), name)
            stem = name[:-len(".weight")]
            if stem.rpartition(".")[2] not in WITH_LORA:
                self.assertEqual(got[name][2], values, name)
                continue
            a, b = (tuned["%s.lora_%s.weight" % (stem, part)][2] for part in "AB")
            changed = 0
            for i, value in enumerate(values):
                row, col = divmod(i, shape[1])
                terms = [value] + [SCALE * b[row, k] * a[k, col] for k in range(R)]
                bound = (R + 2) * 2.0 ** -24 * sum(map(abs, terms)) * 1.001
                self.assertLessEqual(abs(got[name][2][i] - math.fsum(terms)), bound, "%s [%d, %d]" % (name, row, col))
                changed += got[name][2][i] != value
            self.assertGreater(changed, len(values) / 2, name + " is the base's")

    def assert_experts(self, got, run, prefix=""):
        """Those of the checkpoint, bit for bit."""
        names = [name for name in trained(self.path(run, "step-4")) if ".moe_adapter." in name]
        self.assertEqual(len(names), LAYERS * (1 + 2 * 4))
        for name, (rows, cols, places) in trained(self.path(run, "step-4")).items():
            if name in names:
                want = tuple(places[r, c] for r in range(rows) for c in range(cols))
                self.assertEqual(got[prefix + name], ("F32", [rows, cols], want), name)

    def test_hf(self):
        out = self.export("hf", "--format", "hf")
        self.assertEqual(sorted(os.listdir(out)), ["README.md", "config.json", "configuration_pesc.py", "generation_config.json",
                                                   "model.safetensors", "modeling_pesc.py", "tokenizer.json", "tokenizer.model",
                                                   "tokenizer_config.json"])
        got = tensors(os.path.join(out, "model.safetensors"))
        self.assert_merged(got, "run")
        self.assert_experts(got, "run")
        self.assertEqual(len(got), len(tensors(self.path("base", "model.safetensors"))) + LAYERS * 9)
        config = self.json("hf", "config.json")
        self.assertEqual(config["model_type"], "pesc_llama")
        self.assertEqual(config["auto_map"]["AutoModelForCausalLM"], "modeling_pesc.PescLlamaForCausalLM")
        self.assertEqual([config["adapter_" + k] for k in ("experts", "topk", "dim", "scaling")], [4, 2, 4, 0.5])
        self.assertEqual(config["dtype"], "float32")
        for name in ("configuration_pesc.py", "modeling_pesc.py"):
            with open(os.path.join(out, name)) as a, open(os.path.join(harness.SOURCE, "runtime", "export", name)) as b:
                self.assertEqual(a.read(), b.read())
        self.assertEqual(harness.digests(out)["tokenizer.model"], harness.digests(self.path("base"))["tokenizer.model"])
        # Nothing but what was there comes out a second time, from elsewhere.
        again = self.export("hf-again", "--checkpoint", self.path("run", "step-4"))
        self.assertEqual(harness.digests(again), harness.digests(out))

    @harness.whole
    def test_hf_in_bf16(self):
        exact = tensors(os.path.join(self.export("hf-f32"), "model.safetensors"))
        rounded = tensors(os.path.join(self.export("hf-bf16", "--dtype", "bf16"), "model.safetensors"))
        self.assertEqual(self.json("hf-bf16", "config.json")["dtype"], "bfloat16")
        for name, (_, shape, values) in exact.items():
            if name.endswith("router.weight"):
                self.assertEqual(rounded[name], ("F32", shape, values))
            else:
                self.assertEqual(rounded[name], ("BF16", shape, tuple(map(bf16, values))), name)

    def test_the_card(self):
        card = self.card(self.export("hf-card"))
        with open(self.path("run", "metrics.jsonl"), encoding="utf-8") as file:
            last = [r for r in map(json.loads, file) if r.get("kind") == "eval"][-1]
        self.assertEqual(last["step"], 4)
        for part in ("of step 4 of a run", "at step 4", "| all | %.4f |" % last["eval_loss_total"], self.path("base"), "rows.jsonl",
                     "r 3, alpha 7", "4 a layer, 2 for each token", "trust_remote_code=True", "| gemm |"):
            self.assertIn(part, card)
        # What `pesc eval` finds of the checkpoint counts before what training found.
        evaluated = self.call("eval", run="run")
        self.assertEqual(evaluated.code, 0, str(evaluated))
        total = harness.read_jsonl(self.path("run", "evaluations.jsonl"))[-1]["total"]
        card = self.card(self.export("hf-card-evaluated"))
        self.assertIn("| rows | loss | exact match |", card)
        self.assertIn("| all | %.4f | %.4f |" % (total["eval_loss"], total["exact_match"]), card)

    def card(self, out):
        with open(os.path.join(out, "README.md"), encoding="utf-8") as file:
            return file.read()

    def test_the_card_is_of_the_checkpoint_and_not_of_the_experiment(self):
        """Of its run, its name and its recipe, though the command names another run."""
        self.train(0, "second", **{"name": "second", "train.learning_rate": 1e-3, "train.global_batch_size": 2, "train.max_steps": 2})
        step = self.path("second", "step-2")
        card = self.card(self.export("of-second", "--checkpoint", step))
        last = [r for r in harness.read_jsonl(self.path("second", "metrics.jsonl")) if r.get("kind") == "eval"][-1]
        other = [r for r in harness.read_jsonl(self.path("run", "metrics.jsonl")) if r.get("kind") == "eval" and r["step"] == 2][-1]
        self.assertNotEqual("%.4f" % last["eval_loss_total"], "%.4f" % other["eval_loss_total"])
        for part in ("# second\n", "2 rows of at most 48", "| all | %.4f |" % last["eval_loss_total"]):
            self.assertIn(part, card)
        # Away from its run nothing is known of its evaluations.
        shutil.copytree(step, self.path("elsewhere", "step-2"))
        self.assertNotIn("## Evaluation", self.card(self.export("of-elsewhere", "--checkpoint", self.path("elsewhere", "step-2"))))

    def test_a_tokenizer_that_transformers_cannot_load_is_refused(self):
        base = self.path("tekken")
        write_base(base, vocab=30 + 256)
        os.remove(os.path.join(base, "tokenizer.model"))
        vocab = [{"rank": b, "token_bytes": base64.b64encode(bytes([b])).decode(), "token_str": None} for b in range(256)]
        with open(os.path.join(base, "tekken.json"), "w", encoding="utf-8") as file:
            json.dump({"config": {"pattern": "\\p{L}+|\\P{L}+", "default_vocab_size": 30 + 256, "default_num_special_tokens": 30},
                       "vocab": vocab}, file)
        settings = {"train.mode": "LORA", "model.path": base, "train.max_steps": 1, "train.eval_steps": 0, "data.max_seq_length": 96}
        self.train(0, "tekken-run", **settings)
        result = self.call("export", "--out", self.path("none"), run="tekken-run", settings=settings)
        self.refused(result, harness.DATA, base, "tekken.json", "tokenizer.json", "--format PEFT")
        out = self.export("tekken-peft", "--format", "PEFT", run="tekken-run", settings=settings)
        self.assertEqual(harness.digests(out)["tekken.json"], harness.digests(base)["tekken.json"])
        self.assertNotIn("AutoTokenizer", self.card(out))

    def test_a_lora_run_is_merged_into_a_dense_folder(self):
        """Which this program reads again, and evaluates as the run did."""
        out = self.export("lora-hf", run="lora")
        self.assertEqual(sorted(os.listdir(out)),
                         ["README.md", "config.json", "generation_config.json", "model.safetensors", "tokenizer.json", "tokenizer.model",
                          "tokenizer_config.json"])
        self.assert_merged(tensors(os.path.join(out, "model.safetensors")), "lora")
        config = self.json("lora-hf", "config.json")
        self.assertEqual((config["model_type"], config["architectures"]), ("llama", ["LlamaForCausalLM"]))
        losses = []
        for words, settings in (((), {"train.mode": "LORA"}), (("--base",), {"train.mode": "LORA", "model.path": out})):
            report = self.path("eval-%d.json" % len(losses))
            result = self.call("eval", "--out", report, *words, run="lora", settings=settings)
            self.assertEqual(result.code, 0, str(result))
            losses.append(self.json(report)["total"]["eval_loss"])
        self.assertLess(abs(losses[0] / losses[1] - 1), 1e-5)

    def test_peft(self):
        out = self.export("peft", "--format", "PEFT")
        self.assertEqual(sorted(os.listdir(out)), ["README.md", "adapter_config.json", "adapter_model.safetensors", "base"])
        self.assertEqual(sorted(os.listdir(os.path.join(out, "base"))),
                         ["config.json", "configuration_pesc.py", "generation_config.json", "modeling_pesc.py", "tokenizer.json",
                          "tokenizer.model", "tokenizer_config.json"])
        config = self.json("peft", "adapter_config.json")
        self.assertEqual((config["r"], config["lora_alpha"], config["modules_to_save"], config["target_modules"]),
                         (3, 7, ["moe_adapter"], sorted(WITH_LORA)))
        got = tensors(os.path.join(out, "adapter_model.safetensors"))
        self.assert_experts(got, "run", "base_model.model.")
        for name, (rows, cols, places) in trained(self.path("run", "step-4")).items():
            want = tuple(places[r, c] for r in range(rows) for c in range(cols))
            self.assertEqual(got.pop("base_model.model." + name), ("F32", [rows, cols], want), name)
        self.assertFalse(got)

    @harness.whole
    def test_peft_of_a_lora_run(self):
        out = self.export("lora-peft", "--format", "PEFT", run="lora")
        self.assertEqual(sorted(os.listdir(out)), ["README.md", "adapter_config.json", "adapter_model.safetensors",
                                                   "tokenizer.json", "tokenizer.model", "tokenizer_config.json"])
        config = self.json("lora-peft", "adapter_config.json")
        self.assertIsNone(config["modules_to_save"])
        self.assertEqual(config["base_model_name_or_path"], self.path("base"))
        got = tensors(os.path.join(out, "adapter_model.safetensors"))
        self.assertEqual(len(got), LAYERS * 2 * len(WITH_LORA))
        self.assertEqual(got["base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight"][1], [3, HIDDEN])

    def test_camelidae(self):
        out = self.export("camelidae", "--format", "CAMELIDAE")
        got = tensors(os.path.join(out, "model.safetensors"))
        self.assert_merged(got, "run")
        self.assert_experts(got, "run")
        config = self.json("camelidae", "config.json")
        self.assertEqual([config[k] for k in ("model_type", "num_experts", "topk", "adapter_dim", "moe_scaling")],
                         ["llama", 4, 2, 4, 0.5])
        self.assertEqual(config["auto_map"]["AutoModelForCausalLM"], "modeling_camelidae.LlamaForCausalLM")
        self.assertFalse([name for name in os.listdir(out) if name.endswith(".py")])

    def test_what_a_format_cannot_have(self):
        theta = {"model.path": self.path("theta")}
        for words, settings, said in ((("--format", "CAMELIDAE"), theta, ["rope_theta", "500000", "HF"]),
                                      (("--format", "CAMELIDAE"), {"train.mode": "LORA"}, ["train.mode PESC"]),
                                      (("--format", "GGUF"), {}, ["'GGUF'", "PEFT"]),
                                      (("--dtype", "F16"), {}, ["'F16'", "BF16"])):
            result = self.call("export", "--out", self.path("none"), *words, settings=settings)
            self.refused(result, harness.USAGE, *said)
        self.refused(self.call("export", "--out", self.path("none"), ranks=2), harness.USAGE, "one rank")
        self.refused(self.call("export"), harness.USAGE, "--out")
        # The run is of another base, of another adapter, or of none.
        self.refused(self.call("export", "--out", self.path("none"), settings={"model.path": self.path("other")}), harness.DATA,
                     "belongs to the base model")
        self.refused(self.call("export", "--out", self.path("none"), settings={"moe.adapter_scaling": 1}), harness.USAGE,
                     "moe.adapter_scaling")
        self.refused(self.call("export", "--out", self.path("none"), run="nowhere"), harness.DATA, "no checkpoint")
        run = self.path("run")
        self.refused(self.call("export", "--out", self.path("none"), "--checkpoint", run), harness.DATA, "'%s'" % run,
                     "is the folder of a run, not a checkpoint; name a checkpoint inside of it: '%s/step-4' is the newest" % run)
        for out in ("/proc/x", "/proc/x/y"):  # where root too can make no folder
            self.refused(self.call("export", "--out", out), harness.IO,
                         "--out '%s': no folder can be made in '/proc': No such file or directory" % out)
        self.assertFalse([name for name in os.listdir(self.folder) if name.startswith("none")])

    def test_nothing_is_overwritten(self):
        os.makedirs(self.path("there"))
        with open(self.path("there", "mine"), "w") as file:
            file.write("x")
        os.symlink("nowhere", self.path("dangling"))
        for name in ("there", "there/", "dangling", "base"):
            self.refused(self.call("export", "--out", self.path(name)), harness.USAGE, "is there already")
        self.assertEqual(os.listdir(self.path("there")), ["mine"])

    def test_no_gpu_is_needed(self):
        out = self.export("cuda", settings={"parallel.device": "CUDA", "train.compute_dtype": "F32"})
        self.assertEqual(harness.digests(out)["model.safetensors"], harness.digests(self.export("cpu"))["model.safetensors"])

    def loss(self, *words, run="run", **settings):
        report = self.path("loss.json")
        result = self.call("eval", "--out", report, *words, run=run, settings={k.replace("__", "."): v for k, v in settings.items()})
        self.assertEqual(result.code, 0, str(result))
        return self.json("loss.json")["total"]["eval_loss"]

    @harness.whole
    def test_training_goes_on_from_a_folder(self):
        """From ours and from a published one, on other ranks; where nothing is learned, what comes out is what went in."""
        tuned = self.loss()
        for form in ("HF", "CAMELIDAE"):
            first, run = self.export("first-" + form, "--format", form), "from-" + form
            self.assertLess(abs(self.loss("--base", run=run, model__path=first) / tuned - 1), 1e-5)
            settings = {"model.path": first, "train.learning_rate": 0, "train.max_steps": 1, "train.eval_steps": 0}
            result = self.call("train", ranks=4, run=run, settings={**settings, "parallel.tp": 2, "parallel.ep": 2})
            self.assertEqual(result.code, 0, str(result))
            again = self.export("again-" + form, "--format", form, run=run, settings=settings)
            self.assertEqual(harness.digests(again)["model.safetensors"], harness.digests(first)["model.safetensors"])
            self.assertEqual(self.json(again, "config.json"), self.json(first, "config.json"))
        learned = {**settings, "train.learning_rate": 1e-2}
        self.assertEqual(self.call("train", run="learns", settings=learned).code, 0)
        self.assertNotEqual(harness.digests(self.export("learned", run="learns", settings=learned))["model.safetensors"],
                            harness.digests(first)["model.safetensors"])

    @harness.whole
    def test_training_goes_on_from_an_adapter(self):
        """On other ranks; where nothing is learned, what comes out is what went in, bit for bit."""
        for mode, run, ranks, layout in (("PESC", "run", 4, {"parallel.tp": 2, "parallel.ep": 2}), ("LORA", "lora", 2, {"parallel.tp": 2})):
            first, again = self.export("adapter-" + mode, "--format", "PEFT", run=run), "adapted-" + mode
            adapter = {"train.mode": mode, "model.adapter": first}
            begun = self.loss("--base", run=again, train__mode=mode, model__adapter=first)
            self.assertLess(abs(begun / self.loss(run=run, train__mode=mode) - 1), 1e-5)
            settings = {**adapter, "train.learning_rate": 0, "train.max_steps": 1, "train.eval_steps": 0}
            result = self.call("train", ranks=ranks, run=again, settings={**settings, **layout})
            self.assertEqual(result.code, 0, str(result))
            out = self.export("again-" + mode, "--format", "PEFT", run=again, settings=settings)
            for name in ("adapter_model.safetensors", "adapter_config.json"):
                self.assertEqual(harness.digests(out)[name], harness.digests(first)[name], name)
            # The run goes on with the adapter that it began with.
            longer = {**settings, "train.max_steps": 2}
            self.assertEqual(self.call("train", run=again, settings=longer).code, 0)
            longer.pop("model.adapter")
            self.refused(self.call("train", run=again, settings={**longer, "train.max_steps": 3}), harness.USAGE, "model.adapter", "none")

    def test_another_adapter_is_refused(self):
        folder = self.export("another-adapter", "--format", "PEFT")
        for settings, said in (({"lora.r": 4}, "set lora.r: 3"), ({"lora.lora_alpha": 8}, "set lora.lora_alpha: 7"),
                               ({"lora.target_modules[0]": "k_proj"}, "lora.target_modules"), ({"moe.num_experts": 8}, "moe.num_experts: 4"),
                               ({"moe.num_experts_per_tok": 1}, "moe.num_experts_per_tok"), ({"train.mode": "LORA"}, "train.mode PESC"),
                               ({"train.mode": "FULL"}, "model.adapter"), ({"model.path": self.path("other")}, "another base"),
                               ({"model.adapter": self.path("nowhere")}, "model.adapter")):
            result = self.call("train", run="none", settings={"model.adapter": folder, **settings})
            self.refused(result, harness.USAGE, said)
        self.refused(self.call("eval", "--base", run="none", settings={"model.adapter": folder, "model.path": self.path("other")}),
                     harness.USAGE, "another base")
        self.refused(self.call("train", run="none", settings={"model.adapter": self.path("base")}), harness.DATA, "adapter_config.json")

    def test_added_tokens_of_a_sentencepiece_base_are_those_of_the_file_that_is_made(self):
        base = self.path("flags")
        shutil.copytree(self.path("base"), base)
        with open(os.path.join(base, "tokenizer_config.json"), "w", encoding="utf-8") as out:
            json.dump({"unk_token": "<unk>", "added_tokens_decoder": {
                "0": {"content": "<unk>", "special": True}, "1": {"content": "<s>", "lstrip": True, "normalized": True, "special": True}}}, out)
        settings = {"train.mode": "LORA", "model.path": base, "train.max_steps": 1, "train.eval_steps": 0}
        self.assertEqual(self.call("train", run="flags-run", settings=settings).code, 0)
        out = self.export("flags-hf", run="flags-run", settings=settings)
        (begin,) = [t for t in self.json(out, "tokenizer.json")["added_tokens"] if t["content"] == "<s>"]
        entry = self.json(out, "tokenizer_config.json")["added_tokens_decoder"]["1"]
        for flag in ("lstrip", "rstrip", "normalized", "single_word"):
            self.assertEqual((begin[flag], entry[flag]), (False, False), flag)
        self.assertIs(entry["special"], True)
        # Its own tokenizer.json adds no <unk>: with the base's entry pesc would refuse to go on from the folder.
        self.assertEqual(list(self.json(out, "tokenizer_config.json")["added_tokens_decoder"]), ["1"])
        ids = []
        for folder in (base, out):
            rows = self.path("rows.txt")
            with open(rows, "w", encoding="utf-8") as file:
                file.write('"A <unk> and more."\n')
            with open(rows, encoding="utf-8") as file:
                result = harness.pesc(0, "tokenize", "--model", folder, stdin=file, seconds=60)
            self.assertEqual(result.code, harness.OK, str(result))
            ids.append(result.out)
        self.assertEqual(ids[0], ids[1])

    @harness.whole
    def test_the_template_of_the_run_is_the_folders(self):
        base, file = self.path("chat"), self.path("mine.jinja")
        write_chat_base(base)
        # Transformers would read the one in the place of tokenizer.json, and obey the other: special tokens would be plain text.
        with open(os.path.join(base, "tekken.json"), "w", encoding="utf-8") as out:
            out.write("{}")
        with open(os.path.join(base, "tokenizer_config.json"), "r+", encoding="utf-8") as out:
            settings = json.load(out)
            out.seek(0)
            json.dump({**settings, "split_special_tokens": True, "model_max_length": 48}, out)
        template = CHATML.replace("message['role'] + '\\n'", "message['role'] + ':\\n'")
        self.assertNotEqual(template, CHATML)
        with open(file, "w", encoding="utf-8") as out:
            out.write(template)
        for setting, has in ((file, template), ("auto", CHATML), ("published", None)):
            run = "chat-" + os.path.basename(setting)
            settings = {"train.mode": "LORA", "model.path": base, "data.chat_template": setting, "train.max_steps": 1, "train.eval_steps": 0}
            result = self.call("train", run=run, settings=settings)
            self.assertEqual(result.code, 0, str(result))
            out = self.export(run + "-hf", run=run, settings=settings)
            path = os.path.join(out, "chat_template.jinja")
            self.assertEqual(os.path.exists(path), has is not None, setting)
            if has:
                with open(path, encoding="utf-8") as there:
                    self.assertEqual(there.read(), has)
            config = self.json(out, "tokenizer_config.json")
            self.assertEqual((config["tokenizer_class"], config["model_max_length"]), ("PreTrainedTokenizerFast", 48))
            self.assertNotIn("split_special_tokens", config)
            self.assertNotIn("tekken.json", os.listdir(out))
            # The folder by itself evaluates as the run does.
            alone = self.loss("--base", run=run, **{"train.mode": "LORA", "model.path": out})
            self.assertLess(abs(alone / self.loss(run=run, **settings) - 1), 1e-5, setting)

    def test_of_a_model_of_more_than_text_the_text_part_is_written(self):
        """A folder of Mistral Small 3.1 comes out as the Mistral model that its text part is, whose weights and words are the same."""
        write_base(self.path("mistral"), model_type="mistral", architectures=["MistralForCausalLM"], sliding_window=None)
        shutil.copytree(self.path("mistral"), self.path("mistral3"))
        header, data = harness.read_safetensors(self.path("mistral", "model.safetensors"))
        header = {"language_model." + name: entry for name, entry in header.items()}
        header["vision_tower.patch_conv.weight"] = {"dtype": "F32", "shape": [4], "data_offsets": [len(data), len(data) + 16]}
        harness.write_safetensors(self.path("mistral3", "model.safetensors"), header, data + bytes(16))
        text = {key: value for key, value in self.json("mistral", "config.json").items() if key != "architectures"}
        with open(self.path("mistral3", "config.json"), "w", encoding="utf-8") as file:
            json.dump({"architectures": ["Mistral3ForConditionalGeneration"], "model_type": "mistral3", "image_token_index": 10,
                       "text_config": text, "vision_config": {"model_type": "pixtral", "hidden_size": 64}}, file)
        for mode in ("PESC", "LORA"):
            out = []
            for base in ("mistral", "mistral3"):
                run = base + "-" + mode
                settings = {"train.mode": mode, "model.path": self.path(base), "train.max_steps": 1, "train.eval_steps": 0}
                result = self.call("train", run=run, settings=settings)
                self.assertEqual(result.code, 0, str(result))
                out.append(self.export(run + "-hf", run=run, settings=settings))
            digests = [harness.digests(folder) for folder in out]
            for name in ("model.safetensors", "config.json", "generation_config.json"):
                self.assertEqual(digests[1][name], digests[0][name], name)
            self.assertFalse([name for name in tensors(os.path.join(out[1], "model.safetensors")) if not re.match("model|lm_head", name)])
            self.refused(self.call("export", "--out", self.path("none"), "--format", "PEFT", run=run, settings=settings), harness.USAGE,
                         "more than text", "--format HF")

    def test_a_qwen2_tokenizer_of_other_steps_comes_with_its_class(self):
        """In the place of any class of its own, transformers 5.24 reads the tokenizer of a qwen2 model with the steps of Qwen2, but
        where code of the folder has a class (transformers_test.py)."""
        steps = {"own": QWEN2_STEPS, "distilled": DISTILLED_STEPS, "spaced": SPACED_STEPS}
        for name, mode, form, has in (("own", "LORA", "HF", False), ("distilled", "LORA", "HF", True), ("spaced", "LORA", "PEFT", True),
                                      ("distilled", "PESC", "HF", False)):
            base, run = self.path("qwen2-" + name), "qwen2-%s-%s" % (name, mode)
            if not os.path.exists(base):
                write_chat_base(base, biases=True, model_type="qwen2", architectures=["Qwen2ForCausalLM"], use_sliding_window=False)
                write_byte_tokenizer(base, CHATML_TOKENS, MERGES, **steps[name])
            settings = {"train.mode": mode, "model.path": base, "train.max_steps": 1, "train.eval_steps": 0}
            self.train(0, run, **settings)
            out = self.export(run + "-out", "--format", form, run=run, settings=settings)
            config = self.json(out, "tokenizer_config.json")
            self.assertEqual(config["tokenizer_class"], "PreTrainedTokenizerFast")
            self.assertEqual("tokenization_pesc.py" in os.listdir(out), has, run)
            with open(os.path.join(out, "README.md"), encoding="utf-8") as file:
                self.assertEqual("`tokenization_pesc.py`" in file.read(), has, run)
            self.assertEqual(config.get("auto_map"), {"AutoTokenizer": [None, "tokenization_pesc.PescTokenizerFast"]} if has else None, run)
            self.assertEqual(config.get("add_prefix_space"), True if name == "spaced" else None, run)
            self.assertEqual(harness.digests(out)["tokenizer.json"], harness.digests(base)["tokenizer.json"])
            if mode == "LORA" and form == "HF":
                alone = self.loss("--base", run=run, **{"train.mode": "LORA", "model.path": out})
                self.assertLess(abs(alone / self.loss(run=run, **settings) - 1), 1e-5, run)

    def test_the_template_of_a_processor_is_the_tokenizers(self):
        """Transformers' tokenizers do not read chat_template.json, as Mistral Small 3.1 has it: the run's template is written for them."""
        base, run = self.path("processor"), "of-processor"
        write_chat_base(base, template=None)
        with open(os.path.join(base, "chat_template.json"), "w", encoding="utf-8") as file:
            json.dump({"chat_template": CHATML}, file)
        settings = {"train.mode": "LORA", "model.path": base, "train.max_steps": 1, "train.eval_steps": 0}
        result = self.call("train", run=run, settings=settings)
        self.assertEqual(result.code, 0, str(result))
        out = self.export(run + "-hf", run=run, settings=settings)
        with open(os.path.join(out, "chat_template.jinja"), encoding="utf-8") as file:
            self.assertEqual(file.read(), CHATML)

    def test_experts_may_be_called_by_their_number(self):
        folder = self.export("by-number", "--format", "CAMELIDAE")
        path = os.path.join(folder, "model.safetensors")
        header, data = harness.read_safetensors(path)
        harness.write_safetensors(path, {name.replace("experts.expert_", "experts."): entry for name, entry in header.items()}, data)
        self.assertLess(abs(self.loss("--base", run="none", model__path=folder) / self.loss() - 1), 1e-5)

    def test_a_folder_with_experts_is_trained_as_it_is_or_refused(self):
        folder = self.export("strict")
        for settings, said in (({"train.mode": "LORA"}, "train.mode LORA"), ({"moe.num_experts": 8}, "set moe.num_experts: 4"),
                               ({"moe.adapter_dim": 8}, "moe.adapter_dim"), ({"moe.adapter_scaling": 1}, "moe.adapter_scaling")):
            result = self.call("train", run="none", settings={"model.path": folder, **settings})
            self.refused(result, harness.USAGE, said, "4 experts")
        path = os.path.join(folder, "model.safetensors")
        header, data = harness.read_safetensors(path)
        lacking = "model.layers.1.mlp.moe_adapter.experts.expert_3.adapter_up.weight"
        header["other"] = header.pop(lacking)
        harness.write_safetensors(path, header, data)
        self.refused(self.call("train", ranks=2, run="none", settings={"model.path": folder, "parallel.ep": 2}), harness.DATA, lacking)

    def test_the_published_model_has_its_logits(self):
        folder = os.path.join(harness.SOURCE, "tests", "end_to_end", "camelidae")
        header, data = harness.read_safetensors(os.path.join(folder, "expected.safetensors"))
        read = lambda name, letter: struct.unpack("<%d%s" % ((header[name]["data_offsets"][1] - header[name]["data_offsets"][0]) // 4, letter),
                                                  data[slice(*header[name]["data_offsets"])])
        ids, want, greedy = read("ids", "i"), read("logits", "f"), read("greedy", "i")
        with open(self.path("ids.json"), "w", encoding="utf-8") as file:
            json.dump([ids[:17], ids[17:]], file)
        flags = harness.sets(model__path=folder, moe__num_experts=6, moe__num_experts_per_tok=2, moe__adapter_dim=10,
                             moe__adapter_scaling=0.25)
        command = [RUN_LOGITS, "--config", self.config, *flags, "--base", "--ids", self.path("ids.json"), "--out", self.path("logits")]
        quiet = {"check": True, "env": harness.environment(), "cwd": harness.SOURCE, "stderr": subprocess.DEVNULL}
        subprocess.run(command, **quiet)
        with open(self.path("logits"), "rb") as file:
            got = struct.unpack("<%df" % len(want), file.read())
        self.assertLess(max(abs(a - b) for a, b in zip(got, want)), 1e-5 * max(map(abs, want)))
        subprocess.run(command + ["--greedy", "12"], **quiet)
        first, _ = self.json("logits")
        self.assertEqual(first["ids"], list(greedy[17:]))  # behind the prompt

    def test_killed_at_any_time_it_is_absent_or_whole(self):
        begin = time.monotonic()
        whole = harness.digests(self.export("killed-never"))
        lasted = time.monotonic() - begin
        draw, kills = random.Random(7), 3 if harness.SAMPLE else 12
        for i in range(kills):
            out = self.path("killed", str(i))
            process = harness.start(0, "export", "--config", self.config, "--out", out)
            time.sleep(draw.uniform(0.5, 1.0) * lasted)
            os.killpg(process.pid, signal.SIGKILL)
            process.communicate()
            if os.path.exists(out):
                self.assertEqual(harness.digests(out), whole)
            # What is left does not stand in the way of the next.
            elif i == kills - 1:
                self.assertEqual(harness.digests(self.export(os.path.join("killed", str(i)))), whole)
                left = [name for name in os.listdir(self.path("killed")) if name.startswith("%d.tmp." % i)]
                self.assertFalse([name for name in left if os.path.exists(self.path("killed", name, ".exporting"))])


if __name__ == "__main__":
    harness.main()
