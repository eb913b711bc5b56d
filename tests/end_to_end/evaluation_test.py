"""Evaluation and answers: the total beside tags of any name, numbers that are not finite, answers that are cut, a request to
stop in the middle; and checkpoints of another model, which no verb takes.
"""

import json
import os
import shutil
import signal
import tempfile
import time
import unittest

import harness
import tiny

EXPERIMENT = """
name: "evaluation"
run_dir: "%(folder)s/run"
model { path: "%(folder)s/base" }
train { mode: PESC max_steps: 2 global_batch_size: 4 learning_rate: 1e-2 }
lora { r: 4 lora_alpha: 4 lora_dropout: 0 }
moe { num_experts: 4 num_experts_per_tok: 2 adapter_dim: 4 adapter_dropout: 0 }
parallel { num_threads: 1 }
data { max_seq_length: 48 train { path: "%(folder)s/rows.jsonl" } eval { path: "%(folder)s/eval.jsonl" } }
generate { max_new_tokens: 6 }
"""


def read_if_there(path):
    try:
        with open(path, encoding="utf-8") as file:
            return file.read()
    except FileNotFoundError:
        return ""


class Evaluation(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.folder = tempfile.mkdtemp(prefix="pesc-evaluation-")
        cls.addClassCleanup(shutil.rmtree, cls.folder, ignore_errors=True)
        tiny.write_base(cls.path("base"))
        tiny.write_rows(cls.path("rows.jsonl"), [("say %d" % i, "yes %d" % i, "a") for i in range(8)])
        tiny.write_rows(cls.path("eval.jsonl"), [("tell %d" % i, "no %d" % i, "h") for i in range(4)])
        cls.config = cls.path("e.textproto")
        with open(cls.config, "w", encoding="utf-8") as file:
            file.write(EXPERIMENT % {"folder": cls.folder})
        trained = harness.pesc(0, *cls.words("train"))
        assert trained.code == 0, trained

    @classmethod
    def path(cls, *parts):
        return os.path.join(cls.folder, *parts)

    @classmethod
    def words(cls, verb, settings=(), *flags):
        sets = [word for name, value in dict(settings).items() for word in ("--set", "%s=%s" % (name, value))]
        return [verb, "--config", cls.config, *sets, *flags]

    def call(self, verb, settings=(), *flags, ranks=0, code=0):
        result = harness.pesc(ranks, *self.words(verb, settings, *flags), seconds=60)
        self.assertEqual(result.code, code, str(result))
        return result

    def report(self, settings, *flags):
        out = self.path("report.json")
        result = self.call("eval", settings, "--out", out, *flags)
        with open(out, encoding="utf-8") as file:
            return result, json.load(file)

    # --- the total and the tags

    def test_a_tag_of_any_name_leaves_the_total_alone(self):
        for tag in ("all", "total", "rows", ""):
            with self.subTest(tag=tag):
                path = self.path("tagged.jsonl")
                tiny.write_rows(path, [("tell 1", "no", tag), ("tell 2", "yes and no", tag), ("tell 3", "no", "other")])
                settings = {"data.eval[0].path": path, "train.eval_steps": 2, "run_dir": self.path("tagged-" + tag)}
                result, report = self.report({"data.eval[0].path": path})
                name = tag or "tagged"  # a row without a tag gets the file's name
                self.assertEqual(set(report["datasets"]), {name, "other"})
                self.assertEqual(report["total"]["rows"], 3)
                self.assertEqual(report["datasets"][name]["rows"], 2)
                tokens = [d["supervised_tokens"] for d in report["datasets"].values()]
                self.assertEqual(report["total"]["supervised_tokens"], sum(tokens))
                self.assertTrue(result.out.splitlines()[-1].startswith("all "))
                self.call("train", settings)
                (record,) = [r for r in harness.read_jsonl(os.path.join(settings["run_dir"], "metrics.jsonl"))
                             if "eval_loss" in r]
                self.assertEqual(set(record["eval_loss"]), {name, "other"})
                losses = record["eval_loss"].values()
                self.assertTrue(min(losses) < record["eval_loss_total"] < max(losses), record)

    def test_nothing_in_a_row_drives_the_terminal(self):
        path = self.path("colours.jsonl")
        tiny.write_rows(path, [("a\x1b[31mb", "c\x9bd\x07", "fine")])
        result, report = self.report({"data.eval[0].path": path}, "--samples", "1")
        for character in "\x1b\x9b\x07":
            self.assertNotIn(character, result.out)
        self.assertIn("a\\x1B[31mb", result.out)
        self.assertEqual(report["samples"][0]["question"], "a\x1b[31mb")

    # --- numbers and lengths

    def test_what_is_not_finite_is_an_error(self):
        """Weights that are finite, and a head whose products are not."""
        tiny.write_base(self.path("huge"), head=3e38)
        huge = {"model.path": self.path("huge")}
        for temperature in (0, 1):
            result = self.call("generate", {**huge, "generate.temperature": temperature}, "--base", "--prompt", "say", code=70)
            self.assertIn("the logits of prompt 0 at token 1 of its answer are not all finite", result.message)
        result = self.call("eval", huge, "--base", code=70)
        self.assertIn("eval loss of dataset 'h' is", result.message)
        self.assertEqual(len(self.call("eval", huge, "--base", ranks=2, code=70).complaints), 1)
        # A run that goes on after batches without a finite loss still does not evaluate to nothing.
        settings = {**huge, "run_dir": self.path("huge-run"), "train.on_nonfinite": "SKIP", "train.eval_steps": 1}
        self.call("train", settings, code=70)

    def test_an_answer_that_the_positions_cut_says_so(self):
        # As many words as leave room for some tokens of the answer.
        for words in range(tiny.POSITIONS, 0, -1):
            result = harness.pesc(0, *self.words("generate", {"generate.max_new_tokens": 40}, "--prompt", " ".join(["a"] * words)))
            if result.code == 0:
                break
            self.assertEqual(result.code, harness.DATA, str(result))
        self.assertIn("1 of 1 answers is cut", result.err)
        self.assertIn("limit of the model's positions of %d tokens" % tiny.POSITIONS, result.err)
        whole = self.call("generate", {"generate.max_new_tokens": 4}, "--prompt", "a b")
        self.assertNotIn("cut", whole.err)
        cut = self.call("eval", {"generate.max_new_tokens": 60, "data.max_seq_length": 36})
        self.assertRegex(cut.err, "[1-4] answers are cut .* of data.max_seq_length")

    # --- a request to stop

    def test_a_signal_in_an_evaluation_saves_the_step_soon(self):
        path = self.path("long.jsonl")
        tiny.write_rows(path, [("tell %d" % i, "no %d" % i, "h") for i in range(20000)])
        for ranks in (0, 2):
            with self.subTest(ranks=ranks):
                run = self.path("stopped-%d" % ranks)
                settings = {"run_dir": run, "data.eval[0].path": path, "train.eval_steps": 1, "train.max_steps": 9 if ranks else 1}
                process = harness.start(ranks, *self.words("train", settings))
                beat, until = os.path.join(run, "heartbeats", "rank-0"), time.monotonic() + 60
                while time.monotonic() < until and process.poll() is None:
                    if "section 3" in read_if_there(beat):
                        break
                    time.sleep(0.02)
                asked = time.monotonic()
                process.send_signal(signal.SIGUSR1)
                process.send_signal(signal.SIGTERM if ranks == 0 else signal.SIGUSR1)  # within one second: one request
                result = harness.finish(process, 60)
                self.assertEqual(result.code, harness.PREEMPTED, str(result))
                self.assertLess(time.monotonic() - asked, 10)
                self.assertIn("the evaluation at step 1 is left out", result.err)
                self.assertEqual([n for n in os.listdir(run) if n.startswith("step-")], ["step-1"])
                if ranks > 0:
                    continue
                # It was the last step: started again, the run evaluates, once.
                again = self.call("train", {**settings, "train.max_eval_samples": 8})
                self.assertIn("eval loss at step 1", again.err)
                self.assertIn("done: the evaluation at step 1 has been made up for", again.err)
                self.assertIn("nothing to do", self.call("train", {**settings, "train.max_eval_samples": 8}).err)
                evaluated = [r["step"] for r in harness.read_jsonl(os.path.join(run, "metrics.jsonl")) if "eval_loss" in r]
                self.assertEqual(evaluated, [1])

    def test_eval_and_generate_end_at_a_signal(self):
        path = self.path("long.jsonl")
        tiny.write_rows(path, [("tell %d" % i, "no %d" % i, "h") for i in range(20000)])
        for verb, flags in (("eval", ()), ("generate", ("--prompts", path))):
            process = harness.start(0, *self.words(verb, {"data.eval[0].path": path}, *flags))
            time.sleep(1.5)
            asked = time.monotonic()
            process.send_signal(signal.SIGTERM)
            result = harness.finish(process, 60)
            self.assertEqual(result.code, -signal.SIGTERM, verb)
            self.assertLess(time.monotonic() - asked, 5)

    # --- the best checkpoint, and the end of a run that gets no better

    def steps(self, run):
        return sorted(int(n[5:]) for n in os.listdir(run) if n.startswith("step-"))

    def losses(self, run):
        return {r["step"]: r["eval_loss_total"] for r in harness.measured(run) if "eval_loss_total" in r}

    @harness.whole
    def test_the_best_checkpoint_is_kept_and_taken(self):
        run = self.path("best")
        settings = {"run_dir": run, "train.max_steps": 8, "train.eval_steps": 2, "train.learning_rate": 0.1,
                    "checkpoint.keep_best": "true", "checkpoint.save_steps": 3}
        self.call("train", settings)
        losses = self.losses(run)
        self.assertEqual(sorted(losses), [2, 4, 6, 8])
        best = min(losses, key=lambda step: (losses[step], step))
        # Saved are 3 and 6, 8 at the end, and each that is better than all before; kept are the last two, and the best.
        saved = {3, 6, 8} | {s for s in losses if all(losses[s] < losses[t] for t in losses if t < s)}
        self.assertEqual(self.steps(run), sorted({best, *sorted(saved)[-2:]}))
        with open(os.path.join(run, "pesc.best"), encoding="utf-8") as file:
            self.assertEqual(file.readline(), "step %d\n" % best)
        listed = self.inspect(run)
        self.assertRegex(listed, r"step-%d +verified .*best: eval loss" % best)
        self.assertAlmostEqual(float(listed.split("best: eval loss ")[1].split()[0]), losses[best], places=3)
        self.assertEqual(listed.count("best: "), 1)
        self.assertIn("best        step %d, eval loss" % best, self.inspect(os.path.join(run, "step-8")))

        def evaluated(*flags):
            out = self.path("best.json")
            self.call("eval", settings, "--out", out, *flags)
            with open(out, encoding="utf-8") as file:
                return json.load(file)["total"]["eval_loss"]
        self.assertAlmostEqual(evaluated("--checkpoint", "best"), losses[best], places=5)
        self.assertAlmostEqual(evaluated("--checkpoint", os.path.join(run, "step-8")), losses[8], places=5)
        answers = [self.call("generate", settings, "--prompt", "say 1", "--checkpoint", name).out
                   for name in ("best", os.path.join(run, "step-%d" % best))]
        self.assertEqual(*answers)

    def inspect(self, folder):
        result = harness.pesc(0, "inspect", "--checkpoint", folder)
        self.assertEqual(result.code, 0, str(result))
        return result.out

    @harness.whole
    def test_a_best_checkpoint_outlives_restarts(self):
        """At a learning rate of 0 the first evaluation is never bettered."""
        run = self.path("still")
        settings = {"run_dir": run, "train.eval_steps": 2, "train.learning_rate": 0, "checkpoint.keep_best": "true",
                    "checkpoint.save_steps": 3}
        self.call("train", {**settings, "train.max_steps": 7})
        self.assertEqual(self.steps(run), [2, 6, 7])
        self.call("train", {**settings, "train.max_steps": 12})
        self.assertEqual(self.steps(run), [2, 9, 12])
        # Other rows to evaluate: no loss before can be compared with.
        result = self.call("train", {**settings, "train.max_steps": 14, "data.eval[0].path": self.path("rows.jsonl")})
        self.assertIn("the lowest eval loss is found anew", result.err)
        self.assertEqual(self.steps(run), [12, 14])
        with open(os.path.join(run, "pesc.best"), encoding="utf-8") as file:
            self.assertEqual(file.readline(), "step 14\n")
        shutil.rmtree(os.path.join(run, "step-14"))
        result = self.call("eval", settings, "--checkpoint", "best", code=harness.DATA)
        self.assertIn("names step 14 as the best checkpoint", result.message)

    def test_where_none_is_marked_best_is_refused(self):
        for verb, flags in (("eval", ()), ("generate", ("--prompt", "say 1"))):
            result = self.call(verb, {}, "--checkpoint", "best", *flags, code=harness.DATA)
            self.assertIn("has no best checkpoint", result.message)
            self.assertIn("checkpoint.keep_best", result.message)

    def test_a_run_that_gets_no_better_ends(self):
        run = self.path("patient")
        settings = {"run_dir": run, "train.eval_steps": 2, "train.learning_rate": 0, "train.early_stopping_patience": 2}
        self.call("train", {**settings, "train.max_steps": 4})  # evaluations at 2 and 4: one without improvement
        result = self.call("train", {**settings, "train.max_steps": 20})
        self.assertIn("the run ends at step 6 of 20", result.err)
        self.assertIn("ended early (train.early_stopping_patience) after step 6", result.err)
        self.assertEqual(max(self.steps(run)), 6)
        self.assertEqual(len(harness.curve(run)), 6)
        result = self.call("train", {**settings, "train.max_steps": 20})
        self.assertIn("has ended early at step 6", result.err)
        self.assertEqual(len(harness.curve(run)), 6)
        self.call("train", {**settings, "train.max_steps": 20, "train.early_stopping_patience": 3})
        self.assertEqual(len(harness.curve(run)), 8)
        result = self.call("train", {**settings, "train.max_steps": 9, "train.early_stopping_patience": 0})
        self.assertIn("done after step 9", result.err)

    @harness.whole
    def test_ranks_end_together(self):
        run = self.path("together")
        result = self.call("train", {"run_dir": run, "train.eval_steps": 1, "train.learning_rate": 0, "train.max_steps": 20,
                                     "train.early_stopping_patience": 2, "checkpoint.keep_best": "true"}, ranks=2)
        self.assertIn("the run ends at step 3 of 20", result.err)
        self.assertEqual(self.steps(run), [1, 3])

    # --- checkpoints and experiments

    def test_a_checkpoint_of_another_model_is_refused_by_every_verb(self):
        for name, value, before in (("moe.adapter_scaling", 3, 1), ("moe.num_experts_per_tok", 1, 2), ("moe.num_experts", 8, 4),
                                    ("lora.lora_alpha", 8, 4),
                                    ("train.mode", "LORA", "PESC")):
            for verb, flags in (("eval", ()), ("generate", ("--prompt", "say")), ("train", ())):
                result = self.call(verb, {name: value}, *flags, code=harness.USAGE)
                self.assertEqual(len(result.complaints), 1, str(result))
                self.assertIn("\n  %s: %s -> %s" % (name, before, value), result.message)
        # Of another folder with other content; the same content may have moved.
        tiny.write_base(self.path("second"), seed=2)
        self.assertIn("digest", self.call("eval", {"model.path": self.path("second")}, code=harness.DATA).message)
        shutil.copytree(self.path("base"), self.path("moved"))
        self.assertIn("has the same content", self.call("eval", {"model.path": self.path("moved")}).err)
        # The same tokenizer but for bytes behind its end, which change no piece: other content all the same.
        shutil.copytree(self.path("base"), self.path("tokens"))
        with open(self.path("tokens", "tokenizer.model"), "ab") as file:
            file.write(b"\xa2\x06\x01x")  # an unknown field 100
        result = self.call("eval", {"model.tokenizer": self.path("tokens")}, code=harness.USAGE)
        self.assertIn("model.tokenizer: the tokenizer of '%s' is not the one" % self.path("tokens"), result.message)

    def test_what_a_verb_does_not_read_it_does_not_compare(self):
        self.call("eval", {"train.learning_rate": 1, "moe.adapter_dropout": 0.5, "moe.router_aux_loss_coef": 1, "train.seed": 5,
                           "train.max_steps": 9})
        result = self.call("train", {"moe.router_aux_loss_coef": 1}, code=harness.USAGE)
        self.assertIn("moe.router_aux_loss_coef: 0.01 -> 1", result.message)

    def test_what_changes_rounding_is_one_warning(self):
        """At the same step: nothing is left to do."""
        quiet = self.call("train")
        self.assertNotIn("rounding", quiet.err)
        result = self.call("train", {"parallel.tp": 2, "parallel.num_threads": 2}, ranks=2)
        (line,) = [line for line in result.err.splitlines() if "rounding" in line]
        self.assertIn("layout: 1 rank (tp 1, ep 1) -> 2 ranks (tp 2, ep 1)", line)
        self.assertIn("threads: 1 -> 2", line)

    def test_settings_and_flags_without_effect(self):
        result = self.call("eval", {"train.mode": "LORA"}, "--base")
        (line,) = [line for line in result.err.splitlines() if "no effect" in line]
        self.assertRegex(line,
                         r"e.textproto:\d+: moe.num_experts, moe.adapter_dim, moe.adapter_dropout have no effect in train.mode LORA")
        result = self.call("train", {}, "--samples", "3", code=harness.USAGE)
        self.assertIn("pesc train does not read --samples; eval does", result.message)


if __name__ == "__main__":
    harness.main()
