"""pesc inspect on the checkpoints of real runs, and saves that happen behind the steps: what is in a checkpoint, every
byte verified, two of them compared on the same layout (bit for bit) and across layouts, damage named, and a save that
cannot be written answered as checkpoint.on_save_error says.

The runs are three steps of the quick start's experiment with a constant learning rate, so that a run of one step is the
beginning of a run of three, and a large epsilon of AdamW, which would else turn the sign of a gradient of nearly nothing
into a step.
"""

import os
import re
import shutil

import harness
from harness import DATA, IO, OK, USAGE, pesc

DIFFERENT = 1
FOUR = {"ranks": 4, "tp": 2, "ep": 4}
ONE = {"ranks": 1, "tp": 1, "ep": 1}


class Inspect(harness.EndToEnd):
    train_rows = 100

    def steps(self, run, steps=3, layout=FOUR, **fields):
        """Trains up to so many steps, saving each."""
        options = {"train__max_steps": steps, "train__lr_scheduler_type": "CONSTANT_WITH_WARMUP", "train__warmup_steps": 0,
                   "train__adam_epsilon": 1e-4, "checkpoint__save_steps": 1}
        options.update(layout)
        options.update(fields)
        return self.train(run=run, **options)

    def run_once(self, run, **options):
        """The run directory of a run that several tests look at and none changes."""
        if not os.path.exists(self.path(run)):
            self.steps(run, **options)
        return self.path(run)

    def four(self):
        return self.run_once("four")

    def copy(self, folder, name):
        shutil.copytree(folder, self.path(name))
        return self.path(name)

    def inspect(self, folder, *flags, code=OK):
        result = pesc(0, "inspect", "--checkpoint", folder, *flags, seconds=60)
        self.assertEqual(result.code, code, str(result))
        return result

    def compare(self, first, second, code):
        out = self.inspect(first, "--against", second, code=code).out
        self.assertEqual(out.splitlines()[-1], "EQUAL" if code == OK else "DIFFERENT")
        return out

    def damage(self, path, offset):
        with open(path, "r+b") as file:
            file.seek(offset, os.SEEK_END if offset < 0 else os.SEEK_SET)
            byte = file.read(1)
            file.seek(-1, os.SEEK_CUR)
            file.write(bytes([byte[0] ^ 1]))

    def test_what_is_in_it(self):
        folder = os.path.join(self.four(), "step-3")
        out = self.inspect(folder, "--verify").out
        for pattern in (r"^bytes +every one verified$", r"^step +3$", r"^launch id +1$",
                        r"^saved by +4 ranks: dp 2, tp 2, ep 4$", r"^data +768 rows consumed, seed 1$",
                        r"^base +configs/quickstart/base, digest \w+", r"^ +global_batch_size: 256$"):
            self.assertRegex(out, re.compile(pattern, re.MULTILINE))
        sizes = {name: os.path.getsize(os.path.join(folder, name)) for name in os.listdir(folder)
                 if name.endswith(".safetensors")}
        self.assertEqual(len(sizes), 4)
        for name, size in sizes.items():
            self.assertRegex(out, re.compile(r"^ +%s  %d$" % (re.escape(name), size), re.MULTILINE))
        self.assertRegex(out, r"size +%d bytes" % sum(sizes.values()))
        # [16, 352] is cut by columns over tp; values and moments stand together.
        self.assertRegex(out, r"layers\.0\.mlp\.down_proj\.lora_A\.weight +\[16, 352\] +67584 +param\+exp_avg\+exp_avg_sq"
                              r" +shard-0000\d cols (0-175|176-351); shard-0000\d cols (0-175|176-351)\n")
        # The shards themselves agree: every tensor's bytes are in one of them.
        stored = 0
        for name in sizes:
            stored += len(harness.read_safetensors(os.path.join(folder, name))[1])
        elements = [int(n) for n in re.findall(r"(\d+) elements", out)]
        self.assertEqual(len(elements), 3)
        self.assertEqual(stored, 4 * sum(elements))
        self.assertIn("not verified", self.inspect(folder).out)

    def test_a_run_directory(self):
        out = self.inspect(self.four()).out.splitlines()
        self.assertEqual([line.split()[:2] for line in out[:2]], [["step-3", "verified"], ["step-2", "verified"]])
        self.assertEqual(out[-1], "a restart resumes from step-3")

    def test_another_layout(self):
        one = self.run_once("one", layout=ONE)
        out = self.compare(self.four(), one, DIFFERENT)
        self.assertIn("saved by: 4 ranks: dp 2, tp 2, ep 4 -> 1 rank: dp 1, tp 1, ep 1", out)
        self.assertIn("config parallel.tp: 2 -> 1", out)
        worst = {kind: (float(absolute), float(relative)) for kind, absolute, relative in re.findall(
            r"^(\w+) +\d+ of 124 tensors equal bit for bit; max abs (\S+), max rel (\S+)$", out, re.MULTILINE)}
        self.assertEqual(set(worst), {"param", "exp_avg", "exp_avg_sq"}, out)
        for kind, (absolute, relative) in worst.items():
            print("%-10s max abs %.1e, max rel %.1e" % (kind, absolute, relative), flush=True)
            self.assertLess(relative, 1e-3, kind)
            self.assertGreater(absolute, 0, kind)

    @harness.whole
    def test_resuming_on_another_layout_loses_nothing(self):
        # A run that is already done is loaded on the new layout and saved by nobody; one step more from the same state
        # differs by rounding only, as the same step on the old layout would.
        run = self.copy(self.four(), "other-layouts")
        before = harness.digests(os.path.join(run, "step-3"))
        for layout in (ONE, {"ranks": 2, "tp": 2, "ep": 1}, {"ranks": 8, "tp": 4, "ep": 8}):
            with self.subTest(layout=layout):
                self.assertIn("at step 3", self.steps("other-layouts", layout=layout).err)
                self.assertEqual(harness.digests(os.path.join(run, "step-3")), before)
        expected = self.steps("four-more", steps=4) and harness.curve(self.path("four-more"))
        self.steps("other-layouts", steps=4, layout={"ranks": 2, "tp": 1, "ep": 2})
        got = harness.curve(run)
        self.assert_curves_agree(expected, got, 1e-4, "resumed on 2 ranks", ["loss"])

    def test_the_same_layout_is_the_same_bits(self):
        self.steps("synchronous", checkpoint__async_save="false")
        out = self.compare(self.four(), self.path("synchronous"), OK)
        self.assertIn("config checkpoint.async_save: true -> false", out)
        self.assertEqual(len(re.findall(r"124 of 124 tensors equal bit for bit", out)), 3)
        # Step 2 was being written while step 3 changed the tensors.
        self.compare(os.path.join(self.four(), "step-2"), os.path.join(self.path("synchronous"), "step-2"), OK)
        self.compare(os.path.join(self.four(), "step-2"), os.path.join(self.four(), "step-3"), DIFFERENT)

    def test_stop_and_resume_is_the_same_bits(self):
        self.steps("resumed", steps=1)
        self.assertIn("resumed from", self.steps("resumed").err)
        self.compare(self.four(), self.path("resumed"), OK)

    def test_damage_is_named(self):
        run = self.copy(self.four(), "damaged")
        folder = os.path.join(run, "step-3")
        shard = os.path.join(folder, "shard-00002.safetensors")
        self.damage(shard, -1)
        self.inspect(folder)  # says that it has not looked
        for flags in (["--verify"], ["--against", self.four()]):
            self.assert_refused(self.inspect(folder, *flags, code=DATA), DATA, "step-3", "shard-00002.safetensors",
                                "checksum")
        self.assert_refused(self.inspect(self.four(), "--against", folder, code=DATA), DATA, run)
        listing = self.inspect(run, code=DATA)
        self.assertRegex(listing.out, r"step-3 +DAMAGED .*shard-00002\.safetensors: bytes 0 to ")
        self.assertRegex(listing.out, r"step-2 +verified")
        self.assertIn("a restart resumes from step-2", listing.out)
        self.assertEqual(len(listing.complaints), 1)
        # The run directory stands for its newest good checkpoint, and says what it passed over.
        passed = self.inspect(run, "--against", os.path.join(self.four(), "step-2"))
        self.assertIn("passed over", passed.err)

        os.truncate(shard, os.path.getsize(shard) - 1)
        self.assert_refused(self.inspect(folder, code=DATA), DATA, "shard-00002.safetensors has ", " bytes instead of ")
        os.remove(shard)
        self.assert_refused(self.inspect(folder, code=DATA), DATA, "shard-00002.safetensors")
        self.damage(os.path.join(folder, "manifest.pb"), 100)
        self.assert_refused(self.inspect(folder, code=DATA), DATA, "manifest.pb")
        os.remove(os.path.join(folder, "manifest.pb"))
        self.assert_refused(self.inspect(folder, code=DATA), DATA, "manifest.pb")

    def test_bad_usage(self):
        self.assert_refused(pesc(0, "inspect"), USAGE, "--checkpoint")
        self.assert_refused(pesc(2, "inspect", "--checkpoint", self.four()), USAGE, "one rank")
        self.assert_refused(self.inspect(self.path("nothing"), code=DATA), DATA, "nothing")
        self.assert_refused(self.inspect(self.data, code=DATA), DATA, "holds no checkpoint")

    def blocked(self, run, step, **fields):
        """A run whose save of `step` finds a file where its directory should be, after a launch that left step-1."""
        self.steps(run, steps=1)
        with open(os.path.join(self.path(run), "step-%d.tmp.2" % step), "w", encoding="utf-8"):
            pass
        return self.steps(run, **fields)

    def test_a_failed_save_ends_the_run(self):
        result = self.blocked("stops", 2, code=IO)
        self.assert_refused(result, IO, "checkpoint of step 2 not saved", "step-2.tmp.2")
        out = self.inspect(self.path("stops")).out
        self.assertIn("a restart resumes from step-1", out)
        # What stood in the way is gone; the run goes on as if nothing had been.
        self.steps("stops")
        self.compare(self.four(), self.path("stops"), OK)

    @harness.whole
    def test_a_failed_save_may_be_passed_over(self):
        for kind in ("true", "false"):
            with self.subTest(asynchronous=kind):
                run = "continues-" + kind
                result = self.blocked(run, 2, checkpoint__on_save_error="CONTINUE", checkpoint__async_save=kind)
                self.assertIn("checkpoint of step 2 not saved", result.err)
                self.assertIn("TRAINING GOES ON WITHOUT THIS CHECKPOINT", result.err)
                self.assertIn("begin again at step 1", result.err)
                self.compare(self.four(), self.path(run), OK)
                failed = [r for r in harness.read_jsonl(self.path(run, "metrics.jsonl")) if "save_failed" in r]
                self.assertEqual(len(failed), 1)
                self.assertEqual(len(harness.curve(self.path(run))), 3)

    def test_the_last_save_must_succeed(self):
        result = self.blocked("last", 3, checkpoint__on_save_error="CONTINUE", code=IO)
        self.assert_refused(result, IO, "checkpoint of step 3 not saved")
        self.assertIn("a restart resumes from step-2", self.inspect(self.path("last")).out)


if __name__ == "__main__":
    harness.main()
