"""`pesc export --merge_into` of runs on quantised frozen weights. DEQUANTISED is the model that was trained: imported again, it has the
evaluation loss of the run, in every mode, form and layout. ORIGINAL is another model. For the quick start's model both are measured and
printed; PESC_QUICKSTART_STEPS says how many steps it is tuned before (660 are the quick start's own).
"""

import json
import os
import random

import harness
from tiny import write_base, write_rows

EXPERIMENT = """
name: "quantised"
run_dir: "%(folder)s/run"
model { path: "%(folder)s/base" }
train { mode: PESC max_steps: 4 global_batch_size: 8 learning_rate: 2e-2 }
lora { r: 3 lora_alpha: 7 target_modules: ["q_proj", "v_proj", "gate_proj", "down_proj"] }
moe { num_experts: 4 num_experts_per_tok: 2 adapter_dim: 4 adapter_scaling: 0.5 }
parallel { num_threads: 1 }
data { max_seq_length: 48 train { path: "%(folder)s/rows.jsonl" } eval { path: "%(folder)s/eval.jsonl" tag: "same" } }
"""
# The losses of the model and of its folder differ by the rounding of the merge and of other GEMMs.
SAME = 2e-6
K_PROJ = "model.layers.0.self_attn.k_proj.weight"  # has no LoRA


class QuantizedExport(harness.EndToEnd):
    @classmethod
    def setUpClass(cls):
        cls.folder = harness.tempfile.mkdtemp(prefix="pesc-quantised-export-")
        cls.addClassCleanup(harness.shutil.rmtree, cls.folder, ignore_errors=True)
        write_base(cls.path("base"))
        draw = random.Random(5)
        words = ["".join(draw.choices("abcdefghijkl", k=draw.randint(2, 6))) for _ in range(60)]
        rows = [(" ".join(draw.choices(words, k=3)), " ".join(draw.choices(words, k=4)), "t") for _ in range(48)]
        write_rows(cls.path("rows.jsonl"), rows)
        write_rows(cls.path("eval.jsonl"), rows[:24])
        cls.config = cls.path("e.textproto")
        with open(cls.config, "w", encoding="utf-8") as file:
            file.write(EXPERIMENT % {"folder": cls.folder})

    def call(self, verb, settings, *words, ranks=0, config=None, seconds=120):
        flags = [w for name, value in settings.items() for w in ("--set", "%s=%s" % (name, value))]
        return harness.pesc(ranks, verb, "--config", config or self.config, *flags, *words, seconds=seconds)

    def done(self, *arguments, **options):
        result = self.call(*arguments, **options)
        self.assertEqual(result.code, harness.OK, str(result))
        return result

    def loss(self, settings, *words, **options):
        out = self.path("eval.json")
        self.done("eval", settings, "--out", out, *words, **options)
        with open(out, encoding="utf-8") as file:
            return json.load(file)["total"]["eval_loss"]

    def refused(self, result, *parts):
        self.assertEqual(result.code, harness.USAGE, str(result))
        for part in parts:
            self.assertIn(part, result.message)

    def tensors(self, folder):
        """{name: bytes}; all are F32."""
        header, data = harness.read_safetensors(self.path(folder, "model.safetensors"))
        self.assertEqual({entry["dtype"] for entry in header.values()}, {"F32"})
        return {name: data[slice(*entry["data_offsets"])] for name, entry in header.items()}

    def export(self, settings, name, *words, **options):
        out = self.path(name)
        self.done("export", settings, "--out", out, *words, **options)
        with open(os.path.join(out, "README.md"), encoding="utf-8") as file:
            return out, file.read()

    def test_dequantised_has_the_loss_of_the_run_and_original_another(self):
        for mode, frozen, form, layout, ranks in (("PESC", "NF4", "HF", {"parallel.tp": 2, "parallel.ep": 4}, 4),
                                                  ("PESC", "FP8", "CAMELIDAE", {}, 0),
                                                  ("LORA", "NF4", "HF", {}, 0),
                                                  ("LORA", "FP8", "HF", {"parallel.tp": 2}, 2)):
            with self.subTest(mode=mode, frozen=frozen):
                run = "%s-%s" % (mode, frozen)
                settings = {"run_dir": self.path(run), "train.mode": mode, "train.frozen_dtype": frozen}
                self.done("train", {**settings, **layout}, ranks=ranks)
                trained = self.loss(settings)
                losses = {}
                for into in ("DEQUANTISED", "ORIGINAL"):
                    out, card = self.export(settings, "%s-%s" % (run, into), "--format", form, "--dtype", "F32", "--merge_into", into)
                    self.assertIn("quantised to " + frozen, card)
                    self.assertIn("--merge_into " + into, card)
                    losses[into] = self.loss({"train.mode": mode, "model.path": out}, "--base")
                self.assertLess(abs(losses["DEQUANTISED"] / trained - 1), SAME, losses)
                self.assertGreater(abs(losses["ORIGINAL"] / trained - 1), 20 * SAME, losses)
                # What has no LoRA: the base's own bits, or those that the codes stand for.
                base = self.tensors("base")
                for into, same in (("DEQUANTISED", False), ("ORIGINAL", True)):
                    found = self.tensors("%s-%s" % (run, into))
                    self.assertEqual(found["model.embed_tokens.weight"], base["model.embed_tokens.weight"])
                    self.assertEqual(found[K_PROJ] == base[K_PROJ], same, into)

    def test_the_flag_is_asked_for_where_it_has_a_meaning_and_nowhere_else(self):
        quantised = {"run_dir": self.path("asked"), "train.mode": "LORA", "train.frozen_dtype": "NF4", "train.max_steps": 1}
        plain = {"run_dir": self.path("plain"), "train.mode": "LORA", "train.max_steps": 1}
        self.done("train", quantised)
        self.done("train", plain)
        out = ("--out", self.path("none"))
        both = ("--merge_into DEQUANTISED (what the quantised weights stand for", "--merge_into ORIGINAL (the base's own weights")
        self.refused(self.call("export", quantised, *out), "--format HF", "quantised to NF4", *both)
        # What counts is the run, whatever the command's experiment says.
        self.refused(self.call("export", {**quantised, "train.frozen_dtype": "AUTO"}, *out), "quantised to NF4", *both)
        self.refused(self.call("export", plain, *out, "--merge_into", "ORIGINAL"), "--merge_into ORIGINAL", "did not quantise")
        self.refused(self.call("export", {**plain, "train.frozen_dtype": "FP8"}, *out, "--merge_into", "DEQUANTISED"),
                     "--merge_into DEQUANTISED", "did not quantise")
        self.refused(self.call("export", quantised, *out, "--merge_into", "BASE"), "--merge_into 'BASE'", *both)
        self.refused(self.call("export", quantised, *out, "--format", "PEFT", "--merge_into", "ORIGINAL"), "--format PEFT merges LoRA into nothing")
        self.assertFalse(os.path.exists(self.path("none")))
        _, card = self.export(quantised, "adapter", "--format", "PEFT")
        self.assertIn("quantised to NF4", card)
        self.assertIn("The adapter was trained on weights quantised so", card)
        # The format of the run is taken, not the experiment's.
        one, _ = self.export(quantised, "as-said", "--merge_into", "DEQUANTISED")
        other, _ = self.export({**quantised, "train.frozen_dtype": "FP8"}, "as-recorded", "--merge_into", "DEQUANTISED")
        self.assertEqual(harness.digests(one), harness.digests(other))

    def test_another_type_than_the_runs_is_said_once_with_both(self):
        run = {"run_dir": self.path("said"), "train.mode": "LORA", "train.frozen_dtype": "NF4", "train.max_steps": 1}
        plain = {"run_dir": self.path("said-plain"), "train.mode": "LORA", "train.max_steps": 1}
        self.done("train", run)
        self.done("train", plain)
        export = ("--merge_into", "DEQUANTISED", "--format", "HF")
        for verb, words in (("export", export), ("export", ("--format", "PEFT")), ("eval", ())):
            for now, said in (("FP8", "train.frozen_dtype: NF4 -> FP8"), ("AUTO", "train.frozen_dtype: NF4 -> AUTO"), ("NF4", None)):
                with self.subTest(verb=verb, words=words, now=now):
                    out = self.path("said-%s-%d-%s" % (verb, len(words), now))
                    result = self.done(verb, {**run, "train.frozen_dtype": now}, "--out", out, *words)
                    self.assertEqual(result.err.count("train.frozen_dtype"), 1 if said else 0, result.err)
                    self.assertNotIn("the mathematics is the same", result.err)
                    if said:
                        self.assertIn(said, result.err)
                        self.assertEqual("the export takes that of the run" in result.err, verb == "export")
        # A run that did not quantise: the way out is said, and leads out.
        self.refused(self.call("export", {**plain, "train.frozen_dtype": "FP8"}, "--out", self.path("said-none")),
                     "or put train.frozen_dtype back to that of the run")
        self.done("export", plain, "--out", self.path("said-back"))

    @harness.whole
    def test_the_quick_starts_model(self):
        steps = int(os.environ.get("PESC_QUICKSTART_STEPS", "12"))
        harness.generate_data(self.path("data"), train=1000 if steps < 660 else 5000, eval_rows=40 if steps < 660 else 100)
        files = {"data.train[0].path": self.path("data", "train.jsonl")}
        for i, part in enumerate(("text", "programs", "arithmetic")):
            files["data.eval[%d].path" % i] = self.path("data", "eval-%s.jsonl" % part)
        alone = {"parallel.tp": 1, "parallel.ep": 1}
        for frozen in ("NF4", "FP8"):
            settings = {**files, **alone, "run_dir": self.path("quickstart-" + frozen), "train.frozen_dtype": frozen,
                        "train.max_steps": steps, "checkpoint.save_steps": 0}
            options = {"config": harness.QUICKSTART, "seconds": 3600}
            self.done("train", settings, **options)
            trained = self.loss(settings, **options)
            losses = {}
            for into in ("DEQUANTISED", "ORIGINAL"):
                out, _ = self.export(settings, "quickstart-%s-%s" % (frozen, into), "--dtype", "F32", "--merge_into", into, **options)
                losses[into] = self.loss({**files, **alone, "model.path": out}, "--base", **options)
            print("quick start, %d steps on %s: eval loss of the run %.6f, of the export DEQUANTISED %.6f, ORIGINAL %.6f"
                  % (steps, frozen, trained, losses["DEQUANTISED"], losses["ORIGINAL"]))
            self.assertLess(abs(losses["DEQUANTISED"] / trained - 1), SAME, losses)
            self.assertNotEqual(losses["ORIGINAL"], trained)


if __name__ == "__main__":
    harness.main()
