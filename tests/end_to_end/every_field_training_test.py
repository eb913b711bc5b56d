"""The fields of the model, of training, of the layout and of faults. See fields.py."""

import json
import os
import shutil

import harness
from fields import Fields, case
from tiny import write_rows

SHAPE = ("{vocab_size: 1024 hidden_size: 32 intermediate_size: 48 num_hidden_layers: 2 num_attention_heads: 4 "
         "num_key_value_heads: 2 max_position_embeddings: 128 initializer_range: 0.2}")
# (field, value, what both runs have in common)
LINEAR = {"train.lr_scheduler_type": "LINEAR"}
FULL = {"train.mode": "FULL", "model.shape": SHAPE, "model.tokenizer": harness.BASE}
CURVES = [
    ("model.path", "FOLDER/other", {}),
    ("train.mode", "LORA", {}),
    ("train.max_steps", 4, {}),
    ("train.num_train_epochs", 2, {}),
    ("train.global_batch_size", 2, {}),
    ("train.gradient_accumulation_steps", 2, {}),
    ("train.learning_rate", 2e-2, {}),
    ("train.lr_scheduler_type", "COSINE", {}),
    ("train.warmup_steps", 2, {}),
    ("train.warmup_ratio", 0.9, {}),
    ("train.min_lr_ratio", 0.5, LINEAR),
    ("train.weight_decay", 0.5, {}),
    ("train.adam_beta1", 0.5, {}),
    ("train.adam_beta2", 0.5, {}),
    ("train.adam_epsilon", 1e-2, {}),
    ("train.max_grad_norm", 1e-3, {}),
    ("train.seed", 2, {}),
    ("train.frozen_dtype", "NF4", {}),
    ("lora.r", 2, {}),
    ("lora.lora_alpha", 8, {}),
    ("lora.lora_dropout", 0.5, {}),
    ("lora.target_modules", "q_proj", {}),
    ("moe.num_experts", 2, {}),
    ("moe.num_experts_per_tok", 1, {}),
    ("moe.adapter_dim", 2, {}),
    ("moe.adapter_scaling", 2, {}),
    ("moe.adapter_dropout", 0.5, {}),
    ("moe.router_aux_loss_coef", 1, {}),
    ("model.shape.rms_norm_eps", 1e-1, FULL),
    ("model.shape.rope_theta", 10, FULL),
    ("model.shape.initializer_range", 0.1, FULL),
]
CUDA = {"parallel.device": "CUDA"}
# The same, the number of ranks, and other flags of `plan`.
PLANS = [
    ("model.shape.family", "QWEN2", FULL, 1),
    ("model.shape.vocab_size", 1030, FULL, 1),
    ("model.shape.hidden_size", 40, FULL, 1),
    ("model.shape.intermediate_size", 64, FULL, 1),
    ("model.shape.num_hidden_layers", 3, FULL, 1),
    ("model.shape.num_attention_heads", 8, FULL, 1),
    ("model.shape.num_key_value_heads", 1, FULL, 1),
    ("model.shape.head_dim", 4, FULL, 1),
    ("model.shape.tie_word_embeddings", "true", FULL, 1),
    ("train.recompute_granularity", "FULL", {}, 1),
    ("train.compute_dtype", "F32", {**CUDA, "train.compute_dtype": "BF16"}, 1),
    ("parallel.tp", 2, {}, 2),
    ("parallel.ep", 2, {}, 2),
    ("parallel.buffer_factor", 0.4, {"parallel.ep": 2}, 2),
    ("parallel.dispatch_chunks", 2, {"parallel.ep": 2, "train.global_batch_size": 8}, 2),
    ("parallel.overlap_comm", "true", {**CUDA, "parallel.ep": 2}, 2),
    ("parallel.expert_exchange", "WEIGHTS", {"parallel.ep": 2}, 2),
    ("debug.share_gpu", "true", CUDA, 2),
    # Room to time kernels in, which stands out where a weight's gradient is large.
    ("parallel.gemm_autotune", "false", {**CUDA, "train.mode": "FULL"}, 1, "--shape", "7B"),
]
# The same, the exit code and what is said.
REFUSALS = [
    ("model.shape.max_position_embeddings", 32, FULL, harness.USAGE, ("data.max_seq_length is 48", "32 positions")),
    ("model.tokenizer", "FOLDER", {}, harness.DATA, ("tokenizer.model",)),
    ("train.compute_dtype", "BF16", {}, harness.USAGE, ("train.compute_dtype is BF16",)),
    ("train.compute_dtype", "FP8", {}, harness.USAGE, ("train.compute_dtype is FP8",)),
    ("train.frozen_dtype", "BF16", {}, harness.USAGE, ("train.frozen_dtype is BF16", "train.compute_dtype is F32")),
]


class TrainingFields(Fields):
    def test_nothing_changed_changes_nothing(self):
        self.assertEqual(self.curve(self.trained({})), self.curve(self.train({})))
        self.assertEqual(self.plan({}), self.plan({}))
        self.assertEqual(self.evaluate({})[1], self.evaluate({})[1])

    @case(*[name for name, *_ in CURVES])
    def test_the_curve_changes(self):
        self.assert_curves_change(CURVES)

    @case(*[name for name, *_ in PLANS])
    def test_the_plan_changes(self):
        for name, value, common, ranks, *words in PLANS:
            with self.subTest(field=name):
                key = "plan " + json.dumps([common, ranks, words])
                if key not in self.known:
                    self.known[key] = self.plan(common, "--ranks", ranks, *words)
                changed = self.plan({**common, name: value}, "--ranks", ranks, *words)
                self.assertNotEqual(self.planned(self.known[key]), self.planned(changed))

    @case("parallel.device")
    def test_the_device(self):
        """A plan for a GPU keeps bfloat16 weights; no GPU is needed for it."""
        self.assertNotEqual(self.plan({"parallel.device": "CUDA"})["arenas"], self.plan({})["arenas"])

    @case(*[name for name, *_ in REFUSALS])
    def test_what_cannot_be_is_refused(self):
        for name, value, common, code, words in REFUSALS:
            with self.subTest(field=name):
                result = self.call("train", {**common, name: self.value(value)})
                self.assertEqual(result.code, code, str(result))
                for word in words:
                    self.assertIn(word, result.err)

    @case("model.follow_links")
    def test_links(self):
        linked, beside = self.path("linked"), self.path("beside")
        shutil.copytree(self.path("base"), linked)
        os.makedirs(beside)
        os.rename(os.path.join(linked, "model.safetensors"), os.path.join(beside, "model.safetensors"))
        os.symlink(os.path.join(beside, "model.safetensors"), os.path.join(linked, "model.safetensors"))
        for settings, code in (({}, harness.DATA), ({"model.follow_links": "true"}, 0)):
            result = self.call("generate", {"model.path": linked, **settings}, "--base", "--prompt", "say one")
            self.assertEqual(result.code, code, str(result))

    @case("name")
    def test_the_name(self):
        """It is the title of the exported model's card."""
        for name in ("first model", "second model"):
            out = self.path("named-" + name[:5])
            run = self.train({"name": name})[2]
            result = self.call("export", {"run_dir": run, "name": name}, "--format", "PEFT", "--out", out)
            self.assertEqual(result.code, 0, str(result))
            with open(os.path.join(out, "README.md"), encoding="utf-8") as file:
                self.assertIn("\n# %s\n" % name, "\n" + file.read())

    @case("model.adapter")
    def test_the_adapter(self):
        """Training begins with its values."""
        out = self.path("adapter")
        result = self.call("export", {"run_dir": self.trained({})[2]}, "--format", "PEFT", "--out", out)
        self.assertEqual(result.code, 0, str(result))
        self.assertNotEqual(self.curve(self.trained({})), self.curve(self.train({"model.adapter": out})))

    @case("model.cache_dir")
    def test_cache_of_weights(self):
        cache, frozen = self.path("weights"), {"train.frozen_dtype": "NF4"}
        plain = self.trained(frozen)
        for said in ("weights are quantised to NF4 into '%s/NF4-", "in NF4 are read from '%s/NF4-"):
            cached = self.train({**frozen, "model.cache_dir": cache})
            self.assertIn(said % cache, cached[0].err)
            self.assertEqual(self.curve(cached), self.curve(plain))
        unused = self.train({"model.cache_dir": cache})[0]
        self.assertIn("model.cache_dir has no effect with train.frozen_dtype AUTO", unused.err)

    @case("run_dir")
    def test_the_folder_of_the_run(self):
        runs = [self.train({})[2] for _ in range(2)]
        self.assertNotEqual(*runs)
        for run in runs:
            self.assertTrue(os.path.isdir(os.path.join(run, "step-3")))

    @case("train.logging_steps", "train.eval_steps", "data.train[].tag", "data.eval[].tag", "parallel.num_threads")
    def test_lines_and_records(self):
        usual, records, _ = self.trained({})
        result, changed, _ = self.train({"train.logging_steps": 2, "train.eval_steps": 2, "data.train[0].tag": "mine",
                                         "data.eval[0].tag": "yours", "parallel.num_threads": 2})
        self.assertNotIn("step 2/3", usual.err)
        self.assertIn("step 2/3", result.err)
        self.assertNotIn("eval loss", usual.err)
        self.assertEqual([r["step"] for r in changed if "eval_loss" in r], [2])
        self.assertEqual([set(r["eval_loss"]) for r in changed if "eval_loss" in r], [{"yours", "m"}])
        self.assertEqual({tag for r in records for tag in r.get("tag_tokens", ())}, {"a", "b"})
        self.assertEqual({tag for r in changed for tag in r.get("tag_tokens", ())}, {"mine"})
        self.assertIn("1 threads each", usual.err)
        self.assertIn("2 threads each", result.err)

    @case("train.on_nonfinite", "debug.fault")
    def test_numbers_that_are_not_finite(self):
        self.assertEqual([r.get("nonfinite") for r in self.trained({})[1] if "loss" in r], [None, None, None])
        fault = {"debug.fault": "step=2 action=nan_loss always"}
        ended, _, _ = self.train(fault, code=70)
        self.assertIn("step 2: the loss is nan", ended.err)
        _, records, _ = self.train({**fault, "train.on_nonfinite": "SKIP"})
        self.assertEqual([r.get("nonfinite") for r in records if "loss" in r], [None, "skipped", None])

    @case("train.loss_spike_ratio", "train.on_loss_spike")
    def test_loss_spikes(self):
        path = self.path("odd.jsonl")
        write_rows(path, [("say it", "a b c d e f g", "x")] * 39 + [("say it", "zq 9x!7 Qk@3 vW", "x")])
        common = {"train.global_batch_size": 1, "train.max_steps": 60, "train.learning_rate": 2e-2, "data.train[0].path": path,
                  "lora.lora_dropout": 0, "moe.adapter_dropout": 0}
        spikes = lambda settings: [r["loss_spike"] for r in self.train({**common, **settings})[1] if "loss_spike" in r]
        self.assertIn("updated", spikes({}))
        self.assertEqual(spikes({"train.loss_spike_ratio": 0}), [])
        self.assertIn("skipped", spikes({"train.on_loss_spike": "SKIP"}))

    @case("debug.routing_record", "debug.routing_replay")
    def test_routing(self):
        recording = self.path("recording")
        self.train({"debug.routing_record": recording, "train.learning_rate": 0.3})
        self.assertTrue(os.listdir(recording))
        self.assertNotEqual(self.curve(self.train({"debug.routing_replay": recording})), self.curve(self.trained({})))


if __name__ == "__main__":
    harness.main()
