"""No accepted setting is without effect: every field of configs/schema/experiment.proto and every flag of launcher/flags.cc,
with each verb that reads it, has a case here, which shows that another value changes something beyond the resolved
configuration: a number, a file, a line of output, a refusal. A field that acts only in a fault is shown with its fault, one that
acts only on a GPU by the plan for one. A new field, flag or reader of a flag without a case fails.

The model is a random one of two layers; most cases are one short run compared with one that all share. What waits for a limit
is started at the beginning and looked at in the end.
"""

import json
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import unittest

import harness
from tiny import CHATML, write_base, write_byte_tokenizer, write_chat_base, write_rows

CURVE = ("loss", "aux_loss", "grad_norm", "lr", "tokens", "supervised_tokens")
PLANNED = ("arenas", "phases", "step_seconds", "connection_bytes", "fits", "would_fit")  # the rest of a plan repeats the request
VERBS = ("train", "eval", "generate", "export", "bench", "plan")  # those that read an experiment
CASES = {}


def case(*names):
    """Says which fields ("train.max_steps") or flags of verbs ("eval --samples") the test shows."""
    def register(test):
        for name in names:
            CASES.setdefault(name, []).append(test.__name__)
        return test
    return register


def schema_fields():
    """Every path to a value: "train.max_steps", "data.train[].weight"."""
    with open(os.path.join(harness.SOURCE, "configs", "schema", "experiment.proto"), encoding="utf-8") as file:
        text = re.sub(r"//[^\n]*", "", file.read())
    messages, stack = {}, []
    for opened, name, closed, label, kind, field in re.findall(
            r"\b(message|enum|oneof) (\w+) \{|(\})|(?:(optional|repeated) )?([\w.]+) (\w+) = \d+[^;]*;", text):
        if opened:
            stack.append((opened, name))
            if opened == "message":
                messages[name] = []
        elif closed:
            stack.pop()
        elif kind and stack[-1][0] != "enum":
            message = [n for what, n in stack if what == "message"][-1]
            messages[message].append((field, kind, label == "repeated"))
    found = []

    def walk(message, prefix):
        for field, kind, repeated in messages[message]:
            path = prefix + field + ("[]" if repeated and kind in messages else "")
            if kind in messages:
                walk(kind, path + ".")
            else:
                found.append(path)
    walk("Experiment", "")
    return found


def flags():
    """Every flag with every verb that reads it: "eval --samples"."""
    with open(os.path.join(harness.SOURCE, "launcher", "flags.cc"), encoding="utf-8") as file:
        return ["%s --%s" % (verb, name) for name, verbs in re.findall(r'\bFlag\{"(\w+)",\s*"([\w ]+)"', file.read())
                for verb in verbs.split()]


EXPERIMENT = """
name: "fields"
run_dir: "%(folder)s/run"
model { path: "%(folder)s/base" }
train { mode: PESC max_steps: 3 global_batch_size: 4 learning_rate: 1e-2 }
lora { r: 4 lora_alpha: 4 lora_dropout: 0.1 }
moe { num_experts: 4 num_experts_per_tok: 2 adapter_dim: 4 adapter_dropout: 0.1 }
parallel { num_threads: 1 }
data { max_seq_length: 48 train { path: "%(folder)s/rows.jsonl" } eval {
       path: "%(folder)s/eval.jsonl" } eval { path: "%(folder)s/more.jsonl" } }
recovery { max_restarts: 0 longest_pause_s: 1 }
generate { max_new_tokens: 6 }
"""
SHAPE = ("{vocab_size: 1024 hidden_size: 32 intermediate_size: 48 num_hidden_layers: 2 num_attention_heads: 4 "
         "num_key_value_heads: 2 max_position_embeddings: 128 initializer_range: 0.2}")


class EveryField(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.folder = tempfile.mkdtemp(prefix="pesc-fields-")
        cls.addClassCleanup(shutil.rmtree, cls.folder, ignore_errors=True)
        write_base(cls.path("base"))
        write_base(cls.path("other"), seed=2)
        words = "one two three four five six seven eight".split()
        write_rows(cls.path("rows.jsonl"), [("say " + w, w + " and " + v, "a" if i % 2 else "b")
                                            for i, (w, v) in enumerate(zip(words, words[1:] + words[:1]))])
        write_rows(cls.path("eval.jsonl"), [("tell " + w, w, "h") for w in words[:6]])
        write_rows(cls.path("more.jsonl"), [("count to " + w, "no", "m") for w in words[:2]])
        cls.config = cls.path("e.textproto")
        with open(cls.config, "w", encoding="utf-8") as file:
            file.write(EXPERIMENT % {"folder": cls.folder})
        cls.numbered = 0
        cls.known = {}
        cls.start_those_that_wait()

    @classmethod
    def path(cls, *parts):
        return os.path.join(cls.folder, *parts)

    @classmethod
    def sets(cls, settings):
        return [word for name, value in settings.items() for word in ("--set", "%s=%s" % (name, value))]

    @classmethod
    def call(cls, verb, settings, *words, **options):
        return harness.pesc(0, verb, "--config", cls.config, *cls.sets(settings), *words, seconds=60, **options)

    def train(self, settings, run=None, code=0, words=(), **options):
        """(result, records of metrics.jsonl, run directory)"""
        if run is None:
            type(self).numbered += 1
            run = self.path("run-%d" % self.numbered)
        result = self.call("train", {"run_dir": run, **settings}, *words, **options)
        self.assertEqual(result.code, code, str(result))
        path = os.path.join(run, "metrics.jsonl")
        return result, harness.read_jsonl(path) if os.path.exists(path) else [], run

    def trained(self, settings):
        """The same, once for each setting."""
        key = json.dumps(settings, sort_keys=True)
        if key not in self.known:
            self.known[key] = self.train(settings)
        return self.known[key]

    @staticmethod
    def curve(outcome):
        return [[r[k] for k in CURVE] for r in outcome[1] if "loss" in r]

    def plan(self, settings, *words):
        self.known["plans"] = self.known.get("plans", 0) + 1
        out = self.path("plan-%d.json" % self.known["plans"])
        result = self.call("plan", settings, "--out", out, *words)
        self.assertEqual(result.code, 0, str(result))
        with open(out, encoding="utf-8") as file:
            return json.load(file)

    @staticmethod
    def planned(plan):
        return {k: plan.get(k) for k in PLANNED}

    def evaluate(self, settings, *words):
        self.known["evals"] = self.known.get("evals", 0) + 1
        out = self.path("eval-%d.json" % self.known["evals"])
        result = self.call("eval", {"run_dir": self.trained({})[2], **settings}, "--out", out, *words)
        self.assertEqual(result.code, 0, str(result))
        with open(out, encoding="utf-8") as file:
            return result, json.load(file)

    def generate(self, settings, *words):
        result = self.call("generate", {"run_dir": self.trained({})[2], **settings}, *(words or ("--prompt", "say one")))
        self.assertEqual(result.code, 0, str(result))
        return result.out

    # --- completeness

    def test_every_field_and_flag_has_a_case(self):
        fields, every_flag = schema_fields(), flags()
        self.assertGreater(len(fields), 80, "the schema was not read")
        self.assertGreater(len(every_flag), 35, "the table of flags was not read")
        self.assertEqual(sorted(set(fields + every_flag) - set(CASES)), [], "these have no case")
        self.assertEqual(sorted(set(CASES) - set(fields + every_flag)), [], "these are no fields or flags")

    def test_nothing_changed_changes_nothing(self):
        self.assertEqual(self.curve(self.trained({})), self.curve(self.train({})))
        self.assertEqual(self.plan({}), self.plan({}))
        self.assertEqual(self.evaluate({})[1], self.evaluate({})[1])

    # --- what the curve shows

    def test_the_curve_changes(self):
        for name, value, common in CURVES:
            with self.subTest(field=name):
                changed = self.train({**common, name.replace("[]", "[0]"): self.value(value)})
                self.assertNotEqual(self.curve(self.trained(common)), self.curve(changed))

    def value(self, value):
        return value.replace("FOLDER", self.folder) if isinstance(value, str) else value

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

    @case("model.adapter")
    def test_the_adapter(self):
        """Training begins with its values."""
        out = self.path("adapter")
        result = self.call("export", {"run_dir": self.trained({})[2]}, "--format", "PEFT", "--out", out)
        self.assertEqual(result.code, 0, str(result))
        self.assertNotEqual(self.curve(self.trained({})), self.curve(self.train({"model.adapter": out})))

    def test_what_cannot_be_is_refused(self):
        for name, value, common, code, words in REFUSALS:
            with self.subTest(field=name):
                result = self.call("train", {**common, name: self.value(value)})
                self.assertEqual(result.code, code, str(result))
                for word in words:
                    self.assertIn(word, result.err)

    # --- what files, lines and records show

    @case("run_dir", "name")
    def test_names(self):
        run = self.trained({})[2]
        self.assertTrue(os.path.isdir(os.path.join(run, "step-3")))
        self.assertEqual(self.plan({"name": "another"})["name"], "another")

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

    @case("metrics.tensorboard")
    def test_event_files(self):
        for value, there in (("true", True), ("false", False)):
            run = self.train({"train.max_steps": 1, "metrics.tensorboard": value})[2]
            self.assertEqual(os.path.isdir(os.path.join(run, "tensorboard", "train")), there)

    @case("report --run", "report --out")
    def test_the_report(self):
        run, page = self.trained({})[2], self.path("page.html")
        result = harness.pesc(0, "report", "--run", run, "--out", page, seconds=60)
        self.assertEqual(result.code, 0, str(result))
        with open(page, encoding="utf-8") as file:
            self.assertIn('"path":"%s"' % run, file.read())

    @case("train.max_eval_samples")
    def test_eval_rows(self):
        def record(rows):
            (found,) = [r for r in self.train({"train.max_steps": 1, "train.eval_steps": 1, "train.max_eval_samples": rows})[1]
                        if "eval_loss" in r]
            return found
        every, two = record(0), record(2)
        self.assertEqual(set(two["eval_loss"]), {"h", "m"}, "a file is left out")
        self.assertNotEqual(every["eval_loss_total"], two["eval_loss_total"])

    @case("data.eval[].path", "data.on_bad_row")
    def test_eval_files(self):
        usual = self.evaluate({})[1]
        other = self.evaluate({"data.eval[0].path": self.path("more.jsonl")})[1]
        self.assertNotEqual(usual["total"]["rows"], other["total"]["rows"])
        bad = self.path("bad.jsonl")
        with open(self.path("eval.jsonl"), encoding="utf-8") as good, open(bad, "w", encoding="utf-8") as file:
            file.write(good.read() + "{}\n")
        refused = self.call("eval", {"data.eval[0].path": bad}, "--base")
        self.assertEqual(refused.code, harness.DATA, str(refused))
        self.assertEqual(self.evaluate({"data.eval[0].path": bad, "data.on_bad_row": "SKIP"})[1]["total"]["rows"], 8)

    @case("data.on_long_row")
    def test_rows_that_are_too_long(self):
        long = self.path("long.jsonl")
        write_rows(long, [("say one", "one", "a"), ("say two", "two " * 60, "a")])
        said = {answer: self.train({"data.train[0].path": long, "data.on_long_row": answer})[0].err for answer in ("CUT", "DROP")}
        self.assertIn("2 rows, ", said["CUT"])
        self.assertIn("1 of them within an answer or a text", said["CUT"])
        self.assertIn("1 rows cut to the sequence length", said["CUT"])
        self.assertIn("1 rows dropped, being longer than the sequence length", said["DROP"])

    @case("data.validation_fraction")
    def test_a_share_of_the_rows_is_evaluated(self):
        split = {"data.eval": "[]", "data.validation_fraction": 0.35}
        result, records, _ = self.train({**split, "train.eval_steps": 3})
        self.assertIn("training data: 5 rows", result.err)
        self.assertIn("eval data: 3 rows", result.err)
        self.assertEqual([set(r["eval_loss"]) for r in records if "eval_loss" in r], [{"a", "b"}])
        self.assertEqual(self.evaluate({**split, "run_dir": self.path("none")}, "--base")[1]["total"]["rows"], 3)

    def write_forms(self):
        """Rows of every form, by our names of the fields and by others: [(our fields, file, file by other names)]."""
        chat = lambda role, text, a, b: [{role: "user", text: a}, {role: "assistant", text: b}]
        forms = [[{"messages": chat("role", "content", "say " + w, w)} for w in ("one", "two")],
                 [{"conversations": [{"from": "human", "value": "say " + w}, {"from": "gpt", "value": w}]}
                  for w in ("three", "four")],
                 [{"conversation": [{"input": "say " + w, "output": w}], "instruction": "be " + w} for w in ("five", "six")],
                 [{"prompt": "say " + w, "completion": w} for w in ("seven", "eight")],
                 [{"query": "tell " + w, "response": w} for w in ("one", "two")],
                 [{"instruction": "tell " + w, "input": "now", "output": w, "history": [["who", "me"]], "system": "be quick",
                   "dataset": w} for w in ("three", "four")],
                 [{"corpus": "a text of " + w} for w in ("five", "six")]]
        written = []
        for i, rows in enumerate(forms):
            paths = [self.path("form-%d-%s.jsonl" % (i, names)) for names in ("ours", "theirs")]
            for path, prefix in zip(paths, ("", "their_")):
                with open(path, "w", encoding="utf-8") as file:
                    file.writelines(json.dumps({prefix + name: value for name, value in row.items()}) + "\n" for row in rows)
            written.append((list(rows[0]), *paths))
        return written

    @case(*["data.%s[].columns.%s" % (files, name) for files in ("train", "eval") for name in (
        "messages", "conversations", "conversation", "prompt", "completion", "query", "response", "instruction", "input", "output",
        "corpus", "history", "system", "dataset")])
    def test_columns(self):
        """With all names given the rows are those of the files by our names; without any one of them they are not."""
        forms = self.write_forms()

        def sources(which, left_out=None):
            """Files of ours (1) or theirs (2), tagged alike where the rows are not."""
            found = []
            for i, form in enumerate(forms):
                tag = "" if "dataset" in form[0] else ' tag: "%d"' % i
                named = [n for n in form[0] if which == 2 and (i, n) != left_out]
                columns = " ".join('%s: "their_%s"' % (n, n) for n in named)
                found.append('{path: "%s"%s columns { %s }}' % (form[which], tag, columns))
            return "[%s]" % ", ".join(found)

        def outcome(verb, files):
            common = {"data.max_seq_length": 96, "train.max_steps": 1, "train.global_batch_size": 14}
            if verb == "train":
                type(self).numbered += 1
                run = self.path("run-%d" % self.numbered)
                result = self.call("train", {**common, "run_dir": run, "data.train": files})
                records = harness.read_jsonl(os.path.join(run, "metrics.jsonl")) if result.code == 0 else []
                return result.code, [[r[k] for k in CURVE + ("tag_tokens",)] for r in records if "loss" in r]
            out = self.path("eval-columns.json")
            result = self.call("eval", {**common, "data.eval": files}, "--base", "--out", out)
            if result.code != 0:
                return result.code, None
            with open(out, encoding="utf-8") as file:
                return 0, json.load(file)

        for verb in ("train", "eval"):
            ours = outcome(verb, sources(1))
            self.assertEqual(ours[0], 0)
            self.assertEqual(outcome(verb, sources(2)), ours, verb)
            for i, (names, _, _) in enumerate(forms):
                for name in names:
                    with self.subTest(verb=verb, column=name, form=i):
                        self.assertNotEqual(outcome(verb, sources(2, left_out=(i, name))), ours)

    @case("checkpoint.keep_best", "train.early_stopping_patience")
    def test_the_best_and_the_end(self):
        """At a learning rate of 0 the first evaluation is never bettered."""
        still = {"train.learning_rate": 0, "train.max_steps": 6, "train.eval_steps": 1, "checkpoint.save_steps": 1}
        steps = lambda run: sorted(n for n in os.listdir(run) if n.startswith("step-"))
        self.assertEqual(steps(self.train(still)[2]), ["step-5", "step-6"])
        run = self.train({**still, "checkpoint.keep_best": "true"})[2]
        self.assertEqual(steps(run), ["step-1", "step-5", "step-6"])
        result, _, run = self.train({**still, "train.early_stopping_patience": 2})
        self.assertEqual(steps(run), ["step-2", "step-3"])
        self.assertIn("ended early (train.early_stopping_patience) after step 3", result.err)

    @case("checkpoint.save_steps", "checkpoint.save_total_limit", "checkpoint.keep_every_steps", "checkpoint.async_save")
    def test_checkpoints(self):
        def steps(settings):
            outcome = self.train({"train.max_steps": 6, **settings})
            return sorted(n for n in os.listdir(outcome[2]) if n.startswith("step-")), outcome[1]
        polled = lambda records: any("save_poll_seconds" in r for r in records)
        names, records = steps({"checkpoint.save_steps": 1})
        self.assertEqual(self.trained({})[0].err.count("saved "), 1)
        self.assertEqual(names, ["step-5", "step-6"])
        self.assertTrue(polled(records), "nothing was saved behind the steps")
        names, _ = steps({"checkpoint.save_steps": 1, "checkpoint.save_total_limit": 3})
        self.assertEqual(names, ["step-4", "step-5", "step-6"])
        names, records = steps({"checkpoint.save_steps": 1, "checkpoint.keep_every_steps": 2, "checkpoint.async_save": "false"})
        self.assertEqual(names, ["step-2", "step-4", "step-5", "step-6"])
        self.assertFalse(polled(records), "a step was made while a checkpoint was being saved")

    @case("checkpoint.on_save_error")
    def test_a_checkpoint_that_cannot_be_written(self):
        def save(run, answer):
            """From the first checkpoint on the files of this process may have 20000 bytes, too few for the next one."""
            words = harness.command(0, "train", "--config", self.config, *self.sets({
                "run_dir": run, "train.max_steps": 600, "checkpoint.save_steps": 20, "checkpoint.on_save_error": answer}))
            process = subprocess.Popen(words, cwd=harness.SOURCE, env=harness.environment(), text=True, stdout=subprocess.PIPE,
                                       stderr=subprocess.PIPE, preexec_fn=lambda: signal.signal(signal.SIGXFSZ, signal.SIG_IGN))
            until = time.monotonic() + 60
            while not os.path.isdir(os.path.join(run, "step-20")) and process.poll() is None and time.monotonic() < until:
                time.sleep(0.002)
            resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (20000, 20000))
            result = harness.finish(process, 60)
            self.assertEqual(result.code, harness.IO, str(result))
            return "GOES ON WITHOUT" in result.err
        self.assertFalse(save(self.path("stops"), "STOP"))
        self.assertTrue(save(self.path("continues"), "CONTINUE"))

    @case("train.on_nonfinite", "debug.fault")
    def test_numbers_that_are_not_finite(self):
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

    @case("generate.max_new_tokens", "generate.temperature", "generate.top_p", "generate.seed", "generate --prompt",
          "generate --system", "generate --prompts", "generate --base", "generate --chat")
    def test_generation(self):
        greedy = self.generate({})
        self.assertNotEqual(self.generate({"generate.max_new_tokens": 2}), greedy)
        hot = {"generate.temperature": 3}
        sampled = self.generate(hot)
        self.assertNotEqual(sampled, greedy)
        self.assertNotEqual(self.generate({**hot, "generate.seed": 2}), sampled)
        self.assertNotEqual(self.generate({**hot, "generate.top_p": 0.1}), sampled)
        self.assertNotEqual(self.generate({}, "--prompt", "tell three"), greedy)
        self.assertNotEqual(self.generate({}, "--prompt", "say one", "--system", "Be very loud."), greedy)
        self.assertEqual(len(self.generate({}, "--prompts", self.path("eval.jsonl")).splitlines()), 6)
        self.assertNotEqual(self.generate({}, "--prompt", "say one", "--base"), greedy)
        with open(self.path("asked.txt"), "w", encoding="utf-8") as file:
            file.write("say one\n/reset\ntell three\n")
        with open(self.path("asked.txt"), encoding="utf-8") as file:
            chat = self.call("generate", {"run_dir": self.trained({})[2]}, "--chat", stdin=file)
        self.assertEqual(chat.out, greedy + self.generate({}, "--prompt", "tell three"), str(chat))

    @case("generate.temperature", "generate.top_p", "generate.seed", "generate.max_new_tokens", "eval --samples", "eval --out")
    def test_sampling_in_eval(self):
        """The answers are sampled as `generate` would, and that is said."""
        answers = lambda report: [s["answer"] for s in report.get("samples", [])]
        many = ("--samples", "100")
        result, greedy = self.evaluate({}, *many)
        self.assertEqual(len(answers(greedy)), 8, "an answer comes twice or not at all")
        self.assertEqual(len({s["question"] for s in greedy["samples"]}), 8)
        self.assertNotIn("sampled", result.out)
        self.assertEqual(answers(self.evaluate({})[1]), [])
        self.assertEqual(len(answers(self.evaluate({}, "--samples", "3")[1])), 3)
        hot = {"generate.temperature": 3}
        result, sampled = self.evaluate(hot, *many)
        self.assertIn("the answers were sampled: temperature 3, top_p 1, seed 1", result.out)
        self.assertNotEqual(answers(sampled), answers(greedy))
        self.assertNotEqual(answers(self.evaluate({**hot, "generate.seed": 2}, *many)[1]), answers(sampled))
        self.assertNotEqual(answers(self.evaluate({**hot, "generate.top_p": 0.1}, *many)[1]), answers(sampled))

    # --- flags

    @case(*["%s --%s" % (verb, flag) for verb in VERBS for flag in ("config", "set")])
    def test_flags_of_experiments(self):
        for verb in VERBS:
            with self.subTest(verb=verb):
                words = {"generate": ("--prompt", "x"), "export": ("--out", self.path("nowhere"))}.get(verb, ())
                missing = harness.pesc(0, verb, "--config", self.path("none.textproto"), *words)
                self.assertEqual(missing.code, harness.USAGE, str(missing))
                self.assertIn("none.textproto", missing.err)
                refused = self.call(verb, {"train.max_steps": 0}, *words)
                self.assertEqual(refused.code, harness.USAGE, str(refused))
                self.assertIn("--set train.max_steps=0: train.max_steps is 0", refused.err)

    @case("train --launch_id")
    def test_flags_of_training(self):
        refused = self.call("train", {"run_dir": self.path("not-launched")}, "--launch_id", "5")
        self.assertEqual(refused.code, harness.USAGE, str(refused))
        self.assertIn("launch 5", refused.err)

    @case("eval --checkpoint", "eval --base", "generate --checkpoint", "inspect --checkpoint", "inspect --verify",
          "inspect --against")
    def test_flags_of_checkpoints(self):
        _, _, run = self.train({"train.max_steps": 2, "checkpoint.save_steps": 1, "train.learning_rate": 0.3})
        one, two = os.path.join(run, "step-1"), os.path.join(run, "step-2")
        newest = self.evaluate({"run_dir": run})[1]
        self.assertEqual(self.evaluate({"run_dir": run}, "--checkpoint", two)[1], newest)
        self.assertNotEqual(self.evaluate({"run_dir": run}, "--checkpoint", one)[1], newest)
        self.assertNotEqual(self.evaluate({"run_dir": run}, "--base")[1], newest)
        answer = lambda step: self.generate({"run_dir": run}, "--prompt", "say one", "--checkpoint", step)
        self.assertNotEqual(answer(one), answer(two))
        inspect = lambda *words: harness.pesc(0, "inspect", "--checkpoint", *words)
        self.assertIn("not verified", inspect(one).out)
        self.assertIn("every one verified", inspect(one, "--verify").out)
        self.assertIn("step: 1 -> 2", inspect(one, "--against", two).out)

    @case("export --checkpoint", "export --out")
    def test_flags_of_export(self):
        full = {"train.mode": "FULL", "train.max_steps": 2, "checkpoint.save_steps": 1}
        _, _, run = self.train(full)
        weights = []
        for name, words in (("newest", ()), ("first", ("--checkpoint", os.path.join(run, "step-1")))):
            out = self.path("exported-" + name)
            result = self.call("export", {"run_dir": run, **full}, "--out", out, *words)
            self.assertEqual(result.code, 0, str(result))
            weights.append(harness.digests(out)["model.safetensors"])
        self.assertNotEqual(*weights)

    @case("export --format", "export --dtype")
    def test_forms_of_export(self):
        _, _, run = self.trained({})
        names = set()
        for form, words in (("hf", ()), ("bf16", ("--dtype", "BF16")), ("peft", ("--format", "PEFT")),
                            ("camelidae", ("--format", "CAMELIDAE"))):
            out = self.path("form-" + form)
            result = self.call("export", {"run_dir": run}, "--out", out, *words)
            self.assertEqual(result.code, 0, str(result))
            names.add(tuple(sorted(os.listdir(out))))
        self.assertEqual(len(names), 3)
        size = lambda form: os.path.getsize(self.path("form-" + form, "model.safetensors"))
        self.assertLess(size("bf16"), 0.6 * size("hf"))

    @case("plan --ranks", "plan --shape", "plan --out", "plan --gpu", "plan --gemm_tflops", "plan --memory_gbs", "plan --link_gbs",
          "plan --device_gib")
    def test_flags_of_plan(self):
        usual = self.plan({}, "--ranks", "2")
        self.assertNotEqual(self.planned(self.plan({})), self.planned(usual))
        self.assertNotEqual(self.planned(self.plan({}, "--ranks", "2", "--shape", "7B")), self.planned(usual))
        for flag in ("--gemm_tflops", "--memory_gbs", "--link_gbs"):
            self.assertNotEqual(self.plan({}, "--ranks", "2", flag, "0.5")["step_seconds"], usual["step_seconds"], flag)
        fits = [self.plan({}, "--ranks", "2", "--device_gib", gib)["fits"] for gib in ("0.01", "10")]
        self.assertEqual(fits, [False, True])
        slow, fast = (self.plan({"parallel.device": "CUDA"}, "--gpu", gpu)["step_seconds"] for gpu in ("A100-40", "B200-180"))
        self.assertGreater(slow, fast)

    @case("doctor --dir", "doctor --json")
    def test_flags_of_doctor(self):
        here = harness.pesc(0, "doctor", "--dir", self.path(), seconds=60)
        self.assertEqual(here.code, 0, str(here))
        self.assertIn(self.path(), here.out)
        as_json = harness.pesc(0, "doctor", "--dir", self.path(), "--json", seconds=60)
        self.assertEqual(as_json.code, 0, str(as_json))
        self.assertIn(self.path(), json.dumps(json.loads(as_json.out)))
        self.assertNotIn(self.path(), harness.pesc(0, "doctor", seconds=60).out)

    @case("tokenize --model", "tokenize --special")
    def test_flags_of_tokenize(self):
        def tokenize(folder, lines, *words):
            with open(self.path("texts.jsonl"), "w", encoding="utf-8") as file:
                file.write("".join(line + "\n" for line in lines))
            with open(self.path("texts.jsonl"), encoding="utf-8") as file:
                return harness.pesc(0, "tokenize", "--model", folder, *words, stdin=file, seconds=60)
        texts = ["one two", "", "na\u00efve \u65e5\u672c <s>", " x\n\ty"]
        lines = [json.dumps(text) for text in texts]
        ids = lambda result: [json.loads(line)["ids"] for line in result.out.splitlines()]
        plain = tokenize(harness.BASE, lines)
        self.assertEqual(plain.code, 0, str(plain))
        self.assertEqual([len(i) > 0 for i in ids(plain)], [True, False, True, True])
        self.assertEqual(ids(tokenize(harness.BASE, lines, "--special")), [[1] + i for i in ids(plain)])
        folder = self.path("bytes")
        os.makedirs(folder, exist_ok=True)
        write_byte_tokenizer(folder, {"<s>": 256})
        expected = [list(t.replace("<s>", "\0").encode()) for t in texts]
        expected = [[256 if b == 0 else b for b in row] for row in expected]
        self.assertEqual(ids(tokenize(folder, lines)), expected)
        for lines, what in ((["3"], "standard input:1: is number"), (['"a"', "{"], "standard input:2: is not valid JSON"),
                            (['"\\ud800"'], "standard input:1: is no JSON"),
                            (['"a"', '"%s"' % ("x" * (17 << 20))], "standard input:2: a line of standard input has more than")):
            refused = tokenize(folder, lines)
            self.assertEqual(refused.code, harness.DATA, str(refused))
            self.assertIn(what, refused.err)
        missing = tokenize(self.path("nowhere"), ['"a"'])
        self.assertEqual(missing.code, harness.DATA, str(missing))
        self.assertIn("tokenizer.json", missing.err)

    @case("tokenize --show")
    def test_shown_tokens(self):
        with open(self.path("row.jsonl"), "w", encoding="utf-8") as file:
            file.write(json.dumps({"query": "one", "response": "two"}) + "\n")
        for words, shown in (((), False), (("--show",), True)):
            with open(self.path("row.jsonl"), encoding="utf-8") as file:
                result = harness.pesc(0, "tokenize", "--model", harness.BASE, *words, stdin=file, seconds=60)
            self.assertEqual(result.code, 0, str(result))
            self.assertEqual("two⟦</s>⟧<<<" in result.out, shown, result.out)

    @case("data.chat_template", "data.template_date", "data.train_on", "train --show_rows")
    def test_chat_templates(self):
        base = self.path("chat-base")
        write_chat_base(base, template=CHATML.replace("{% for", "{{ strftime_now('%Y') }}{% for", 1))
        rows = self.path("chat.jsonl")
        with open(rows, "w", encoding="utf-8") as file:
            for word in "one two three four".split():
                file.write(json.dumps({"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"},
                                                    {"role": "user", "content": "c"}, {"role": "assistant", "content": word}]}) + "\n")
        common = {"model.path": base, "data.train[0].path": rows, "data.max_seq_length": 128}
        date = {"data.template_date": "2025-01-31"}
        undated, _, _ = self.train(common, code=harness.DATA)
        self.assertIn("data.template_date", undated.err)
        dated, records, _ = self.train({**common, **date}, words=("--show_rows", 1))
        self.assertIn("2025⟦<|im_start|>⟧user\na⟦<|im_end|>⟧\n⟦<|im_start|>⟧assistant\n>>>b⟦<|im_end|>⟧<<<", dated.err)
        learned = lambda steps: [r["supervised_tokens"] for r in steps if "loss" in r]
        last = self.train({**common, **date, "data.train_on": "LAST"})[1]
        self.assertEqual([n - 8 for n in learned(records)], learned(last))  # "b" and its end, of four rows
        self.assertNotIn("has no effect", dated.err)
        published, other, _ = self.train({**common, **date, "data.chat_template": "published"}, words=("--show_rows", 1))
        self.assertIn("data.template_date has no effect: the published prompt", published.err)
        self.assertIn("### Human:\na\n### Assistant:\n>>>b⟦<|endoftext|>⟧<<<", published.err)
        self.assertNotEqual([r["loss"] for r in records if "loss" in r], [r["loss"] for r in other if "loss" in r])

    @case("data.cache_dir")
    def test_cache_of_tokens(self):
        cache = self.path("tokens")
        plain = self.trained({})
        for said in ("is tokenised into '%s/rows-", "are read from '%s/rows-"):
            cached = self.train({"data.cache_dir": cache})
            self.assertIn(said % cache, cached[0].err)
            self.assertEqual(self.curve(cached), self.curve(plain))
        self.assertEqual(len([name for name in os.listdir(cache) if name.endswith(".tokens")]), 3)  # a source each

    @case("bench --steps", "bench --shortest", "bench --shape", "bench --out")
    def test_flags_of_bench(self):
        def bench(*words):
            out = self.path("bench.json")
            result = self.call("bench", {"data.train": "[]", "data.eval": "[]"}, "--out", out, *words)
            self.assertEqual(result.code, 0, str(result))
            with open(out, encoding="utf-8") as file:
                return json.load(file)
        usual = bench("--steps", "2")
        self.assertEqual(usual["steps"], 2)
        rate = lambda report: report["tokens_per_second_median"] * report["step_seconds_median"]  # tokens of a step
        self.assertLess(round(rate(bench("--steps", "1", "--shortest", "1"))), 4 * 48)
        with open(self.path("base", "config.json"), encoding="utf-8") as file:
            shape = {**json.load(file), "num_hidden_layers": 1}
        with open(self.path("config.json"), "w", encoding="utf-8") as file:
            json.dump(shape, file)
        flatter = bench("--steps", "1", "--shape", self.path("config.json"))
        self.assertLess(flatter["arena_bytes_rank0"], usual["arena_bytes_rank0"])

    # --- what waits: started by setUpClass, looked at here

    @classmethod
    def start_those_that_wait(cls):
        cls.waiting = {}
        cls.addClassCleanup(cls.end_those_that_wait)

        def launch(name, settings, *words):
            run = cls.path("launched-" + name)
            cls.waiting[name] = (run, harness.start(0, "launch", *(words or ("-n", 1)), "--", "train", "--config", cls.config,
                                                    *cls.sets({"run_dir": run, **settings})))
        hang = "step=2 section=%s action=stop"
        launch("step", {"recovery.step_limit_s": 1, "debug.fault": hang % "step"})
        launch("setup", {"recovery.setup_limit_s": 8, "debug.fault": "section=setup action=stop"})
        launch("checkpoint", {"recovery.checkpoint_limit_s": 1, "debug.fault": hang % "checkpoint", "checkpoint.save_steps": 1})
        launch("eval", {"recovery.eval_limit_s": 1, "debug.fault": hang % "eval", "train.eval_steps": 1})
        launch("stop", {"recovery.stop_limit_s": 1, "debug.fault": hang % "step", "recovery.step_limit_s": 1000})
        launch("restarts", {"recovery.max_restarts": 2, "recovery.longest_pause_s": 0.25, "debug.fault": "step=2 action=kill"})
        launch("no-restarts", {"debug.fault": "step=2 action=kill"})
        for name, answer in (("waits", "false"), ("smaller", "true")):
            hosts = cls.path("hosts-" + name)
            with open(hosts, "w", encoding="utf-8") as file:
                file.write("localhost slots=1\nno-such-host.invalid slots=1\n")
            launch(name, {"recovery.host_wait_s": 1, "recovery.smaller_layout": answer}, "-n", 2, "--hostfile", hosts)

    @classmethod
    def end_those_that_wait(cls):
        """Where a test was not reached."""
        for _, process in cls.waiting.values():
            process.send_signal(signal.SIGTERM)
            process.communicate()

    def ended(self, name):
        run, process = self.waiting.pop(name)
        return harness.finish(process, 60), run

    @case("recovery.step_limit_s", "recovery.setup_limit_s", "recovery.checkpoint_limit_s", "recovery.eval_limit_s")
    def test_z_limits(self):
        for name, seconds in (("step", 1), ("setup", 8), ("checkpoint", 1), ("eval", 1)):
            with self.subTest(section=name):
                result, _ = self.ended(name)
                self.assertEqual(result.code, 76, str(result))
                self.assertRegex(result.err, "no progress in section %s .*for %d s" % (name, seconds))

    @case("recovery.stop_limit_s")
    def test_z_stop_limit(self):
        run, process = self.waiting["stop"]
        harness.wait_for_step(process, run, 1)
        time.sleep(0.2)
        process.send_signal(signal.SIGTERM)
        result, _ = self.ended("stop")
        self.assertIn("the ranks have not ended within 1 s (recovery.stop_limit_s)", result.err)

    @case("recovery.max_restarts", "recovery.longest_pause_s")
    def test_z_restarts(self):
        result, run = self.ended("restarts")
        self.assertEqual(result.code, 0, str(result))
        self.assertEqual(len(harness.read_jsonl(os.path.join(run, "launches.jsonl"))), 2)
        self.assertIn("starting again in 0.25 s", result.err)
        result, run = self.ended("no-restarts")
        self.assertNotEqual(result.code, 0)
        self.assertEqual(len(harness.read_jsonl(os.path.join(run, "launches.jsonl"))), 1)

    @case("recovery.host_wait_s", "recovery.smaller_layout", "launch --hostfile", "launch --n")
    def test_z_hosts(self):
        result, _ = self.ended("waits")
        self.assertEqual(result.code, harness.IO, str(result))
        self.assertIn("no-such-host.invalid", result.err)
        self.assertIn("for 1 s (recovery.host_wait_s)", result.err)
        result, _ = self.ended("smaller")
        self.assertEqual(result.code, 0, str(result))
        self.assertIn("SMALLER LAYOUT: 1 of 2 ranks", result.err)


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
    ("data.max_seq_length", 20, {}),
    ("data.packing", "BEST_FIT", {"data.max_seq_length": 120}),
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
    ("data.train[].path", "FOLDER/eval.jsonl", {}),
    ("data.train[].weight", 0.5, {"train.max_steps": 4}),
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
    ("parallel.tp", 2, {}, 2),
    ("parallel.ep", 2, {}, 2),
    ("parallel.buffer_factor", 0.4, {"parallel.ep": 2}, 2),
    ("parallel.dispatch_chunks", 2, {"parallel.ep": 2, "train.global_batch_size": 8}, 2),
    ("parallel.overlap_comm", "true", {**CUDA, "parallel.ep": 2}, 2),
    ("debug.share_gpu", "true", CUDA, 2),
    # Room to time kernels in, which stands out where a weight's gradient is large.
    ("parallel.gemm_autotune", "false", {**CUDA, "train.mode": "FULL"}, 1, "--shape", "7B"),
]
REFUSALS = [
    ("model.shape.max_position_embeddings", 32, FULL, harness.USAGE, ("data.max_seq_length is 48", "32 positions")),
    ("model.tokenizer", "FOLDER", {}, harness.DATA, ("tokenizer.model",)),
    ("train.compute_dtype", "BF16", {}, harness.USAGE, ("train.compute_dtype is BF16",)),
    ("train.compute_dtype", "FP8", {}, harness.USAGE, ("train.compute_dtype is FP8",)),
    ("train.frozen_dtype", "BF16", {}, harness.USAGE, ("train.frozen_dtype is BF16", "train.compute_dtype is F32")),
]
case(*[c[0] for c in CURVES])(EveryField.test_the_curve_changes)
case(*[c[0] for c in PLANS])(EveryField.test_the_plan_changes)
case(*[c[0] for c in REFUSALS])(EveryField.test_what_cannot_be_is_refused)


if __name__ == "__main__":
    harness.main()
