"""What a run makes of its rows: how many steps they are, where they may move to, and what is said of them."""

import gzip
import json
import os

import harness
from harness import DATA, OK, USAGE

ROWS = [json.dumps({"instruction": "say %d" % i, "output": "yes %d" % i}) for i in range(11)]


class Rows(harness.EndToEnd):
    @classmethod
    def setUpClass(cls):
        cls.folder = harness.tempfile.mkdtemp(prefix="pesc-end-to-end-")
        cls.addClassCleanup(harness.shutil.rmtree, cls.folder, ignore_errors=True)

    def write(self, name, lines):
        path = os.path.join(os.fsencode(self.folder), os.fsencode(name))
        with open(path, "w", encoding="utf-8") as file:
            file.write("".join(line + "\n" for line in lines))
        return path

    def go(self, run, verb="train", rows=b"", length="max_steps: 2", schedule="", data="", flags=(), model=harness.BASE):
        """One rank on a small layout, without mpirun; the experiment as bytes, for names that are not UTF-8."""
        text = ('name: "rows" run_dir: "%s" model { path: "%s" } train { %s %s global_batch_size: 4 }'
                ' lora { r: 2 lora_dropout: 0 } moe { num_experts: 2 num_experts_per_tok: 1 adapter_dim: 4 adapter_dropout: 0 }'
                ' parallel { num_threads: 1 } generate { max_new_tokens: 4 }' % (self.path(run), model, length, schedule))
        source = b"".join(b"\\x%02x" % byte if byte > 126 else bytes([byte]) for byte in rows)
        config = self.path(run + ".textproto")
        with open(config, "wb") as file:
            file.write(text.encode() + b' data { max_seq_length: 64 train { path: "' + source + b'" ' + data.encode() + b" } }\n")
        return harness.pesc(0, verb, "--config", config, *flags)

    def steps(self, run):
        return harness.curve(self.path(run))

    def kept(self, run):
        files = {}
        for name in ("experiment.textproto", "metrics.jsonl"):
            with open(self.path(run, name), "rb") as file:
                files[name] = file.read()
        return files, sorted(name for name in os.listdir(self.path(run)) if name.startswith("step-"))

    def test_epochs_train_no_row_more_often_than_they_say(self):
        rows = self.write("eleven.jsonl", ROWS)
        result = self.go("once", rows=rows, length="num_train_epochs: 1")
        self.assertEqual(result.code, OK, str(result))
        self.assertIn("11 rows in 3 steps; the last step has 3 rows", result.err)
        tokens = int(result.err.split(" rows, ")[1].split(" tokens")[0])
        self.assertEqual(sum(step["tokens"] for step in self.steps("once")), tokens)
        # Going on takes up where the last step ended.
        result = self.go("once", rows=rows, length="num_train_epochs: 2")
        self.assertEqual(result.code, OK, str(result))
        self.assertEqual(sum(step["tokens"] for step in self.steps("once")), 2 * tokens)
        before = self.kept("once")
        result = self.go("once", rows=rows, length="num_train_epochs: 1")
        self.assert_refused(result, USAGE, "train.num_train_epochs is 1", "has done 6 steps (22 rows)")
        self.assertEqual(self.kept("once"), before)

        result = self.go("little", rows=rows, length="num_train_epochs: 0.01")
        self.assertEqual(result.code, OK, str(result))
        self.assertIn("train.num_train_epochs asks for 0.11 rows; 1 are trained on", result.err)
        self.assertEqual(len(self.steps("little")), 1)

    def test_rows_may_move_but_a_run_does_not_go_back(self):
        rows = self.write("here.jsonl", ROWS)
        self.assertEqual(self.go("moving", rows=rows).code, OK)
        there = self.write("there.jsonl", ROWS)
        result = self.go("moving", rows=there, length="max_steps: 3", data='tag: "other"')
        self.assertEqual(result.code, OK, str(result))
        self.assertEqual(len(self.steps("moving")), 3)
        before = self.kept("moving")
        self.assert_refused(self.go("moving", rows=there, length="max_steps: 1"), USAGE, "train.max_steps is 1", "3 steps")
        self.assert_refused(self.go("moving", rows=self.write("fewer.jsonl", ROWS[1:]), length="max_steps: 4"), USAGE,
                            "10 rows instead of 11")
        self.assertEqual(self.kept("moving"), before)

    def test_compressed_rows_under_other_names_are_the_same_rows(self):
        """A run goes on with the same rows compressed, and with their fields called otherwise."""
        rows = self.write("plain.jsonl", ROWS)
        self.assertEqual(self.go("packed", rows=rows).code, OK)
        packed = self.path("packed.jsonl.gz")
        with gzip.open(packed, "wt", encoding="utf-8") as file:
            for row in map(json.loads, ROWS):
                file.write(json.dumps({"question": row["instruction"], "answer": row["output"]}) + "\n")
        names = 'columns { prompt: "question" completion: "answer" }'
        result = self.go("packed", rows=os.fsencode(packed), length="max_steps: 3", data=names)
        self.assertEqual(result.code, OK, str(result))
        self.assertEqual(len(self.steps("packed")), 3)
        result = self.go("misnamed", rows=os.fsencode(packed), data='columns { prompt: "query" completion: "answer" }')
        self.assert_refused(result, DATA, "packed.jsonl.gz:1: has no field 'query'", "data.train[0].columns.prompt",
                            'its fields are "question", "answer"')
        with open(packed, "rb") as file:
            whole = file.read()
        with open(packed, "wb") as file:
            file.write(whole[:-20])
        result = self.go("cut", rows=os.fsencode(packed), data=names)
        self.assert_refused(result, DATA, "packed.jsonl.gz", "cut off at byte %d" % (len(whole) - 20))

    def test_a_share_of_the_rows_is_set_aside(self):
        rows = self.write("shared.jsonl", ROWS)
        share = "} validation_fraction: 0.3 } #"
        result = self.go("shared", rows=rows, length="max_steps: 2 eval_steps: 1", data=share)
        self.assertEqual(result.code, OK, str(result))
        self.assertIn("training data: 8 rows", result.err)
        self.assertIn("eval data: 3 rows", result.err)
        for other in ("} validation_fraction: 0.2 } #", ""):
            result = self.go("shared", rows=rows, length="max_steps: 3", data=other)
            self.assert_refused(result, USAGE, "data.validation_fraction: 0.3 -> ")
        evaluated = self.go("shared", verb="eval", rows=rows, data="} validation_fraction: 0.9 } #")
        self.assert_refused(evaluated, USAGE, "data.validation_fraction: 0.3 -> 0.9 (rows that were trained on would be evaluated)")
        self.assert_refused(self.go("none", rows=rows, length="max_steps: 2", data="} validation_fraction: 1e-9 } #"), DATA,
                            "data.validation_fraction 1e-09 takes no row")

    def test_what_the_length_leaves_without_effect_is_said(self):
        rows = self.write("warm.jsonl", ROWS)
        self.assertIn("the warm-up (train.warmup_steps) of 10 steps does not end",
                      self.go("long", rows=rows, schedule="warmup_steps: 10").err)
        flags = harness.sets(train__global_batch_size=16, checkpoint__save_steps=50)
        said = self.go("beyond", rows=rows, flags=flags).err
        self.assertIn("train.global_batch_size is 16, more than the 11 rows of an epoch", said)
        self.assertIn("checkpoint.save_steps is 50, but the run has 2 steps: it saves at the end alone", said)
        result = self.go("short", rows=rows, length="max_steps: 4", schedule="warmup_ratio: 0.5")
        self.assertNotIn("does not end", result.err)
        rates = [step["lr"] for step in self.steps("short")]
        self.assertEqual([rate == rates[-1] for rate in rates], [False, True, True, True])

    def test_names_that_are_not_utf8(self):
        rows = self.write(b"caf\xe9.jsonl", ROWS)
        result = self.go("latin", rows=rows)
        self.assertEqual(result.code, OK, str(result))
        self.assertEqual(list(self.steps("latin")[0]["tag_tokens"]), ["caf\\xE9"])
        self.assert_refused(self.go("tagged", rows=rows, data='tag: "\\xff"'), USAGE, "data.train[0].tag is '\\xFF'")

    def test_what_is_not_learned_as_it_stands_is_said(self):
        rows = self.write("more.jsonl", ROWS + [json.dumps({"instruction": "a", "inputs": "b", "output": "c"})])
        result = self.go("fields", rows=rows, data="weight: 0.3")
        self.assertEqual(result.code, OK, str(result))
        self.assertIn('more.jsonl: fields that nothing reads: "inputs" (1 row)', result.err)
        self.assertIn("a weight of 0.3 asks for 3.6 of its 12 rows an epoch; 4 are taken", result.err)

    def test_ends_that_no_answer_is_learned_with(self):
        folder = self.path("ends")
        harness.shutil.copytree(harness.BASE, folder)
        with open(os.path.join(folder, "config.json"), encoding="utf-8") as file:
            config = json.load(file)
        rows = self.write("ends.jsonl", ROWS)

        def with_ends(config_ends, generation_ends):
            for name, value in (("config.json", dict(config, eos_token_id=config_ends)),
                                ("generation_config.json", {"eos_token_id": generation_ends})):
                with open(os.path.join(folder, name), "w", encoding="utf-8") as file:
                    json.dump(value, file)
            return self.go("ends", "generate", rows=rows, model=folder, flags=("--base", "--prompt", "a"))

        self.assertEqual(with_ends(5, [7, 2]).code, OK)
        self.assert_refused(with_ends(5, 7), DATA, "learned with token 2", "7 (eos_token_id of", "generation_config.json")
        self.assert_refused(with_ends(2, 1024), DATA, "generation_config.json: eos_token_id is 1024", "1023")


if __name__ == "__main__":
    harness.main()
