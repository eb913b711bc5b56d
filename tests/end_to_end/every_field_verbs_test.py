"""The fields of recovery, metrics and generation, and the flags of verbs. What waits for a limit is started at the beginning
and looked at in the end. See fields.py."""

import json
import os
import signal
import time

import harness
from fields import VERBS, Fields, case
from tiny import write_byte_tokenizer


class VerbFields(Fields):
    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        cls.start_those_that_wait()

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
        self.assertNotEqual(answers(self.evaluate({"generate.max_new_tokens": 2}, *many)[1]), answers(greedy))
        hot = {"generate.temperature": 3}
        result, sampled = self.evaluate(hot, *many)
        self.assertIn("the answers were sampled: temperature 3, top_p 1, seed 1", result.out)
        self.assertNotEqual(answers(sampled), answers(greedy))
        self.assertNotEqual(answers(self.evaluate({**hot, "generate.seed": 2}, *many)[1]), answers(sampled))
        self.assertNotEqual(answers(self.evaluate({**hot, "generate.top_p": 0.1}, *many)[1]), answers(sampled))

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

    @case("export --merge_into")
    def test_what_export_merges_into(self):
        frozen = {"train.frozen_dtype": "NF4", "run_dir": self.trained({"train.frozen_dtype": "NF4"})[2]}
        weights = []
        for into in ("ORIGINAL", "DEQUANTISED"):
            out = self.path("into-" + into)
            result = self.call("export", frozen, "--out", out, "--merge_into", into)
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

    @case("plan --hosts", "plan --gpus_per_host", "plan --network_gbit_per_gpu", "plan --gpu_mtbf_hours", "plan --storage_gbs")
    def test_flags_of_a_cluster(self):
        def cluster(*words):
            return self.plan({"parallel.device": "CUDA"}, *words)
        best = lambda plan: plan["layouts"][0]
        usual = cluster("--hosts", "2", "--gpus_per_host", "2")
        self.assertEqual((usual["hosts"], usual["ranks"]), (2, 4))
        self.assertEqual(cluster("--hosts", "2", "--gpus_per_host", "1")["ranks"], 2)
        slow = cluster("--hosts", "2", "--gpus_per_host", "2", "--network_gbit_per_gpu", "0.001")
        self.assertGreater(best(slow)["step_seconds"], best(usual)["step_seconds"])
        frail = cluster("--hosts", "2", "--gpus_per_host", "2", "--gpu_mtbf_hours", "1")
        self.assertAlmostEqual(best(frail)["mtbf_seconds"], 3600 / 4)
        self.assertLess(best(frail)["mtbf_seconds"], best(usual)["mtbf_seconds"])
        files = cluster("--hosts", "2", "--gpus_per_host", "2", "--storage_gbs", "0.001")
        self.assertGreater(best(files)["restart_seconds"], best(usual)["restart_seconds"])

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
                            (['"\\ud800"'], "standard input:1: is not valid JSON"),
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

    @case("bench --scaling", "bench --scaling_points")
    def test_flags_of_scaling(self):
        out = self.path("scaling.json")
        result = self.call("bench", {"data.train": "[]", "data.eval": "[]"}, "--scaling", "--scaling_points", "^7b-d64-1$", "--steps",
                           "1", "--shape", self.path("base", "config.json"), "--out", out)
        self.assertEqual(result.code, 0, str(result))
        with open(out, encoding="utf-8") as file:
            self.assertEqual([(p["name"], p["status"]) for p in json.load(file)["points"]], [("7b-d64-1", "done")])

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
        for seconds in (1, 2):
            launch("stop-%d" % seconds, {"recovery.stop_limit_s": seconds, "debug.fault": hang % "step",
                                         "recovery.step_limit_s": 1000})
        launch("restarts", {"recovery.max_restarts": 2, "recovery.longest_pause_s": 0.25, "debug.fault": "step=2 action=kill"})
        launch("no-restarts", {"debug.fault": "step=2 action=kill"})
        for name, seconds, answer in (("waits-1", 1, "false"), ("waits-2", 2, "false"), ("smaller", 1, "true")):
            hosts = cls.path("hosts-" + name)
            with open(hosts, "w", encoding="utf-8") as file:
                file.write("localhost slots=1\nno-such-host.invalid slots=1\n")
            launch(name, {"recovery.host_wait_s": seconds, "recovery.smaller_layout": answer}, "-n", 2, "--hostfile", hosts)

    @classmethod
    def end_those_that_wait(cls):
        """Where a test was not reached."""
        for _, process in cls.waiting.values():
            process.send_signal(signal.SIGTERM)
            process.communicate()

    def ended(self, name):
        run, process = self.waiting.pop(name)
        harness.COMMANDS.append(process.args[1:])
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
        for seconds in (1, 2):
            run, process = self.waiting["stop-%d" % seconds]
            harness.wait_for_step(process, run, 1)
            time.sleep(0.2)
            process.send_signal(signal.SIGTERM)
        for seconds in (1, 2):
            result, _ = self.ended("stop-%d" % seconds)
            self.assertIn("the ranks have not ended within %d s (recovery.stop_limit_s)" % seconds, result.err)

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
        for seconds in (1, 2):
            result, _ = self.ended("waits-%d" % seconds)
            self.assertEqual(result.code, harness.IO, str(result))
            self.assertIn("no-such-host.invalid", result.err)
            self.assertIn("for %d s (recovery.host_wait_s)" % seconds, result.err)
        result, _ = self.ended("smaller")
        self.assertEqual(result.code, 0, str(result))
        self.assertIn("SMALLER LAYOUT: 1 of 2 ranks", result.err)


if __name__ == "__main__":
    harness.main()
