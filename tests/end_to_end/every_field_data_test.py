"""The fields of data and of checkpoints. See fields.py."""

import json
import os
import resource
import signal
import subprocess
import time

import harness
from fields import CURVE, Fields, case
from tiny import CHATML, write_chat_base, write_rows

# (field, value, what both runs have in common)
CURVES = [
    ("data.max_seq_length", 20, {}),
    ("data.packing", "BEST_FIT", {"data.max_seq_length": 120}),
    ("data.train[].path", "FOLDER/eval.jsonl", {}),
    ("data.train[].weight", 0.5, {"train.max_steps": 4}),
]


class DataFields(Fields):
    @case(*[name for name, *_ in CURVES])
    def test_the_curve_changes(self):
        self.assert_curves_change(CURVES)

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


if __name__ == "__main__":
    harness.main()
