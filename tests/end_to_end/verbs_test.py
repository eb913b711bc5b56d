"""The other verbs and modes: `pesc generate` and `pesc eval` give the same on every layout, `pesc export` writes a model
that loads again, LoRA alone trains, bad rows can be skipped.
"""

import json
import os
import subprocess
import sys

import harness

DOMAINS = {"text", "programs", "arithmetic"}
LAYERS = 4  # of the quick start's base
LAYOUTS = ((1, 1, 1), (2, 2, 2), (4, 2, 4))
QUESTION = "Mia has 10 shells and Ann has 5. How many more shells does Mia have?"

# Every parameter of a small random Llama: heads of 16, more query than KV heads, one matrix for embedding and head.
FULL = """
name: "small"
run_dir: "%(run)s"
model {
  tokenizer: "%(base)s"
  shape { family: LLAMA vocab_size: 1024 hidden_size: 64 intermediate_size: 96
          num_hidden_layers: 2 num_attention_heads: 4 num_key_value_heads: 2 max_position_embeddings: 128
          tie_word_embeddings: %(tied)s }
}
train { mode: FULL max_steps: 12 global_batch_size: 16 learning_rate: 1e-2 eval_steps: 12 }
parallel { tp: %(tp)d num_threads: 1 }
data { max_seq_length: 96 train { path: "%(data)s/train.jsonl" } eval { path: "%(data)s/eval-text.jsonl" } }
"""


class Verbs(harness.EndToEnd):
    train_rows = 500

    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        harness.generate_data(cls.data, train=cls.train_rows, eval_rows=20)
        done = harness.pesc(4, "train", *cls.experiment("tuned", tp=2, ep=4, train__max_steps=40,
                                                        train__gradient_accumulation_steps=8))
        assert done.code == 0, done

    def on(self, verb, layout, *flags, **fields):
        ranks, tp, ep = layout
        result = harness.pesc(ranks, verb, *self.experiment("tuned", tp=tp, ep=ep, **fields), *flags, seconds=60)
        self.assertEqual(result.code, 0, str(result))
        return result.out

    def test_shares_in_the_metrics(self):
        """metrics.jsonl says of every step which experts and which datasets its tokens went to; the counts agree."""
        self.train(1, "alone", train__max_steps=1, train__gradient_accumulation_steps=8)
        (alone,), steps = harness.curve(self.path("alone")), harness.curve(self.path("tuned"))
        self.assertEqual(alone["tag_tokens"], steps[0]["tag_tokens"])
        self.assertEqual(len(steps), 40)
        for step in steps + [alone]:
            tags = step["tag_tokens"]
            self.assertEqual(set(tags), DOMAINS)  # of a step's rows each domain has some
            self.assertEqual(sum(tags.values()), step["tokens"])
            self.assertGreater(step["tokens"], step["supervised_tokens"])
            self.assertEqual(set(step["tag_token_share"]), DOMAINS)
            for tag, share in step["tag_token_share"].items():
                self.assertAlmostEqual(share, tags[tag] / step["tokens"], places=12)
            layers = step["expert_share"]
            self.assertEqual([len(layer) for layer in layers], [8] * LAYERS)
            for layer in layers:
                self.assertAlmostEqual(sum(layer), 1, places=9)
                self.assertLessEqual(max(layer), 0.5 + 1e-9)  # of two experts a token each is another
                # Two choices a token: every share is a whole number of them.
                for share in layer:
                    choices = share * 2 * step["tokens"]
                    self.assertAlmostEqual(choices, round(choices), places=4)
            self.assertEqual(set(step["tag_expert_share"]), DOMAINS)
            for share in step["tag_expert_share"].values():
                self.assertEqual(len(share), 8)
                self.assertAlmostEqual(sum(share), 1, places=9)
            # The same choices counted by layer and by tag.
            for e in range(8):
                by_tag = sum(step["tag_token_share"][tag] * step["tag_expert_share"][tag][e] for tag in tags)
                self.assertAlmostEqual(by_tag, sum(layer[e] for layer in layers) / LAYERS, places=9)
        self.assertGreater(max(max(layer) for layer in steps[-1]["expert_share"]), 0.13, "no expert is preferred")
        self.assertGreater(len({step["tokens"] for step in steps}), 1, "all steps have the same rows")

    def test_generate_on_every_layout(self):
        layouts = LAYOUTS[::2] if harness.SAMPLE else LAYOUTS
        greedy = [self.on("generate", layout, "--prompt", QUESTION) for layout in layouts]
        self.assertTrue(greedy[0].strip(), "an empty answer")
        self.assertEqual(greedy, greedy[:1] * len(layouts))
        sampling = {"generate__temperature": 1.5, "generate__top_p": 0.95, "generate__max_new_tokens": 30}
        sampled = [self.on("generate", layout, "--prompt", QUESTION, generate__seed=7, **sampling) for layout in layouts]
        self.assertEqual(sampled, sampled[:1] * len(layouts))
        other = self.on("generate", LAYOUTS[0], "--prompt", QUESTION, generate__seed=8, **sampling)
        self.assertNotEqual(other, sampled[0], "the seed changes nothing")
        base = self.on("generate", LAYOUTS[0], "--prompt", QUESTION, "--base")
        self.assertNotEqual(base, greedy[0], "what was tuned changes nothing")

    def test_generate_for_a_file(self):
        with open(os.path.join(self.data, "eval-arithmetic.jsonl"), encoding="utf-8") as file:
            rows = file.readlines()[:11]  # more than the slots of a rank
        # What is to be answered needs no answer.
        rows.insert(3, json.dumps({"instruction": "Spell the word dog.", "dataset": "alpaca"}) + "\n")
        rows.insert(5, json.dumps({"conversation": [{"input": "Spell the word cow.", "output": "c o w"},
                                                    {"input": "Spell the word pig."}]}) + "\n")
        rows.insert(7, json.dumps({"messages": [{"role": "user", "content": "Spell the word cat."}]}) + "\n")
        path = self.path("prompts.jsonl")
        with open(path, "w", encoding="utf-8") as file:
            file.writelines(rows)
        answers = [self.on("generate", layout, "--prompts", path) for layout in LAYOUTS]
        self.assertEqual(answers, answers[:1] * 3)
        lines = [json.loads(line) for line in answers[0].splitlines()]
        self.assertEqual(len(lines), len(rows))
        self.assertEqual([line["dataset"] for line in lines].count("arithmetic"), 11)
        self.assertEqual([lines[i]["input"] for i in (3, 5, 7)], ["Spell the word %s." % w for w in ("dog", "pig", "cat")])
        for line in lines:
            self.assertEqual(set(line), {"dataset", "input", "output"})

    def test_generate_streams(self):
        # A pipe in packet mode keeps the program's writes apart: one read returns one of them.
        read, write = os.pipe2(os.O_DIRECT)
        process = subprocess.Popen(harness.command(0, "generate", *self.experiment("tuned"), "--prompt", QUESTION),
                                   cwd=harness.SOURCE, env=harness.environment(), stdout=write)
        os.close(write)
        packets = []
        while chunk := os.read(read, 4096):
            packets.append(chunk)
        os.close(read)
        self.assertEqual(process.wait(60), 0)
        self.assertGreater(len(packets), 2, "the answer came in one piece: %r" % packets)

    @harness.whole
    def test_eval_on_every_layout(self):
        reports = []
        for ranks, tp, ep in ((1, 1, 1), (4, 2, 4)):
            out = self.path("eval-%d.json" % ranks)
            table = self.on("eval", (ranks, tp, ep), "--samples", "3", "--out", out)
            with open(out, encoding="utf-8") as file:
                reports.append(json.load(file))
            for domain in DOMAINS:
                self.assertIn(domain, table)
        one, four = reports
        self.assertEqual(DOMAINS, set(one["datasets"]))
        self.assertEqual(len(one["samples"]), 3)
        self.assertEqual(one["samples"], four["samples"])
        for got, expected in [(four["total"], one["total"])] + [(four["datasets"][d], one["datasets"][d]) for d in DOMAINS]:
            self.assertEqual(got["supervised_tokens"], expected["supervised_tokens"])
            self.assertEqual((got.get("rows"), got.get("exact_match")), (expected.get("rows"), expected.get("exact_match")))
            self.assertLess(abs(got["eval_loss"] / expected["eval_loss"] - 1), 1e-5)
            for a, b in zip(got.get("expert_share", []), expected.get("expert_share", [])):
                self.assertLess(abs(a - b), 1e-3)
        for domain in DOMAINS:
            self.assertEqual(one["datasets"][domain]["rows"], 20)
            self.assertLess(abs(sum(one["datasets"][domain]["expert_share"]) - 1), 1e-6)
        base = self.path("eval-base.json")
        self.on("eval", (1, 1, 1), "--base", "--out", base)
        with open(base, encoding="utf-8") as file:
            dense = json.load(file)
        self.assertGreater(dense["total"]["eval_loss"], one["total"]["eval_loss"] + 0.5)
        self.check_report(base, dense, self.path("eval-1.json"), one)

    def check_report(self, before_path, before, after_path, after):
        """What the quick start ends with."""
        report = subprocess.run([sys.executable, os.path.join(os.path.dirname(harness.QUICKSTART), "report.py"), before_path,
                                 after_path], check=True, text=True, capture_output=True).stdout
        for name in sorted(DOMAINS) + ["total"]:
            b, a = (r["total"] if name == "total" else r["datasets"][name] for r in (before, after))
            self.assertRegex(report, r"(?m)^%s +%.3f +%.3f +%.3f +%.3f +%d$" % (
                name, b["eval_loss"], a["eval_loss"], b["exact_match"], a["exact_match"], a["rows"]))
        for name in DOMAINS:
            self.assertRegex(report, r"(?m)^%s +%s$" % (name, " +".join("%.3f" % s for s in after["datasets"][name]["expert_share"])))
        for sample in after["samples"]:
            self.assertIn("[%s] %s\n  answer:   %s\n  expected: %s\n" % tuple(
                sample[key] for key in ("dataset", "question", "answer", "expected")), report)

    def eval_loss_of(self, run):
        losses = [r["eval_loss_total"] for r in harness.read_jsonl(self.path(run, "metrics.jsonl"))
                  if "eval_loss_total" in r]
        self.assertEqual(len(losses), 1)
        return losses[0]

    @harness.whole
    def test_export_loads_again(self):
        for tied, ranks, tp in (("false", 2, 2), ("true", 4, 2)):
            with self.subTest(tied=tied):
                run, folder, config = "full-" + tied, self.path("model-" + tied), self.path(tied + ".textproto")
                with open(config, "w", encoding="utf-8") as file:
                    file.write(FULL % {"run": self.path(run), "base": harness.BASE, "data": self.data, "tied": tied, "tp": tp})
                trained = harness.pesc(ranks, "train", "--config", config)
                self.assertEqual(trained.code, 0, str(trained))
                curve = harness.curve(self.path(run))
                self.assertLess(curve[-1]["loss"], 0.9 * curve[0]["loss"], "it does not learn")
                exported = harness.pesc(0, "export", "--config", config, "--out", folder)
                self.assertEqual(exported.code, 0, str(exported))
                header, _ = harness.read_safetensors(os.path.join(folder, "model.safetensors"))
                self.assertEqual("lm_head.weight" in header, tied == "false")
                out = self.path("exported-%s.json" % tied)
                domain = os.path.join(self.data, "eval-text.jsonl")
                again = harness.pesc(0, "eval", "--base", "--config", harness.QUICKSTART, "--out", out, *harness.sets(
                    run_dir=self.path("none"), model__path=folder, train__mode="LORA", parallel__tp=1, parallel__ep=1,
                    data__train='[{path: "%s/train.jsonl"}]' % self.data, data__eval='[{path: "%s"}]' % domain))
                self.assertEqual(again.code, 0, str(again))
                with open(out, encoding="utf-8") as file:
                    loss = json.load(file)["total"]["eval_loss"]
                self.assertLess(abs(loss / self.eval_loss_of(run) - 1), 1e-5)

    @harness.whole
    def test_lora_alone_trains(self):
        fields = {"train__mode": "LORA", "train__max_steps": 12, "train__gradient_accumulation_steps": 8,
                  "train__learning_rate": 5e-3}
        self.train(1, "lora-1", **fields)
        self.train(4, "lora-4", tp=2, **fields)
        one, four = harness.curve(self.path("lora-1")), harness.curve(self.path("lora-4"))
        self.assertLess(one[-1]["loss"], 0.6 * one[0]["loss"], "it does not learn")
        self.assertNotIn("expert_share", one[0])
        self.assert_curves_agree(one, four, 1e-4, "LoRA alone, 4 ranks, tp 2", ["loss", "grad_norm"])
        header, _ = harness.read_safetensors(self.path("lora-1", "step-12", "shard-00000.safetensors"))
        self.assertTrue(all("lora_" in name for name in header), sorted(header))

    @harness.whole
    def test_bad_rows_can_be_skipped(self):
        with open(os.path.join(self.data, "train.jsonl"), "rb") as file:
            good = file.readlines()[:32]
        path = self.path("some-bad.jsonl")
        with open(path, "wb") as file:
            file.writelines(good[:3] + [b'{"conversation": 7}\n'] + good[3:9] + [b"\xff\n"] + good[9:])
        fields = {"train__max_steps": 2, "train__global_batch_size": 8, "data.train[0].path": path}
        result = self.train(2, "skipping", data__on_bad_row="SKIP", **fields)
        for word in ("32 rows", "2 malformed rows skipped", path + ":4", path + ":11"):
            self.assertIn(word, result.err)
        refused = harness.pesc(2, "train", *self.experiment("not-skipping", **fields))
        self.assert_refused(refused, harness.DATA, path + ":4")

    def test_answers_need_no_data(self):
        fields = dict.fromkeys(("data.train[0].path", "data.eval[0].path"), self.path("absent"))
        result = harness.pesc(1, "generate", *self.experiment("tuned", **fields), "--prompt", QUESTION)
        self.assertEqual(result.code, 0, str(result))
        fields.pop("data.eval[0].path")
        result = harness.pesc(1, "eval", *self.experiment("tuned", generate__max_new_tokens=2, **fields))
        self.assertEqual(result.code, 0, str(result))

    def test_loss_spikes(self):
        """One row among many alike has an answer that fits nothing; it comes once in 40 steps of one row."""
        def row(text, answer):
            return json.dumps({"instruction": "", "conversation": [{"input": text, "output": answer}], "dataset": "d"})
        path = self.path("one-odd.jsonl")
        with open(path, "w", encoding="utf-8") as file:
            rows = [row("Say it.", "a b c d e f g")] * 39 + [row("Say it.", "zq 9x!7 Qk@3 vW")]
            file.write("\n".join(rows) + "\n")
        fields = {"train__max_steps": 120, "train__global_batch_size": 1, "data.train[0].path": path,
                  "train__eval_steps": 0, "checkpoint__save_steps": 10}
        runs = {}
        for answer, code in (("WARN", 0), ("SKIP", 0), ("END", 70)):
            result = self.train(1, answer, code=code, train__on_loss_spike=answer, **fields)
            steps = [r for r in harness.read_jsonl(self.path(answer, "metrics.jsonl")) if "loss" in r]
            runs[answer] = (result, steps, [(r["step"], r["loss_spike"]) for r in steps if "loss_spike" in r])
        result, steps, warned = runs["WARN"]
        self.assertIn("a spike: the usual is", result.err)
        self.assertTrue(warned and all(what == "updated" for _, what in warned), warned)
        at = warned[0][0]
        _, steps, skipped = runs["SKIP"]
        self.assertEqual(skipped[0], (at, "skipped"))
        self.assertLess(steps[at]["loss"], steps[at - 1]["loss"] / 2, "the step after it is as before")
        result, steps, _ = runs["END"]
        self.assertEqual(len(steps), at - 1)
        self.assert_refused(result, 70, "step %d: " % at, "no rank has updated its weights", "SKIP")
        # Resumed, the window is that of the uninterrupted run: the same end.
        again = self.train(1, "END", code=70, train__on_loss_spike="END", **fields)
        self.assertIn("resumed from", again.err)
        self.assertIn("step %d: " % at, again.err)


if __name__ == "__main__":
    harness.main()
