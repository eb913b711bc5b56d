"""What a run saves and says, and what it does where that cannot be: output to a full disk, a limit on file sizes, a pipe
that nobody reads, weights that are not finite, batches that are left out one after the other, and strangers in the run
directory. One rank, a few small steps of the quick start's experiment.
"""

import os
import shutil
import subprocess

import harness
from harness import DATA, IO, OK, USAGE, pesc

INTERNAL = 70
SMALL = {"train__global_batch_size": 8, "data__max_seq_length": 64, "train__lr_scheduler_type": "CONSTANT_WITH_WARMUP",
         "train__warmup_steps": 0, "generate__max_new_tokens": 4}
LIMITED = ["bash", "-c", 'ulimit -f 200; exec "$@"', "bash"]  # KiB; below mpirun, which needs larger files itself
ALWAYS_NAN = "[rank=0 action=nan always]"


class Saving(harness.EndToEnd):
    train_rows = 20

    def flags(self, run, **fields):
        return self.experiment(run, **{**SMALL, **fields})

    def trained(self, run, code=OK, **fields):
        result = pesc(0, "train", *self.flags(run, **fields), seconds=60)
        self.assertEqual(result.code, code, str(result))
        return result

    def steps_of(self, run):
        folder = self.path(run)
        return sorted(int(n[5:]) for n in os.listdir(folder) if n.startswith("step-") and n[5:].isdigit())

    def test_output_that_cannot_be_written(self):
        self.trained("shown", train__max_steps=1)
        run = self.flags("shown")
        for words in (["plan", *run], ["generate", *run, "--prompt", "a"], ["eval", *run], ["help"],
                      ["inspect", "--checkpoint", self.path("shown")]):
            with self.subTest(verb=words[0]), open("/dev/full", "w", encoding="utf-8") as full:
                done = subprocess.run(harness.command(0, *words), stdout=full, stderr=subprocess.PIPE, text=True,
                                      timeout=60, stdin=subprocess.DEVNULL, env=harness.environment(), check=False)
                self.assertEqual(done.returncode, IO, done.stderr)
                self.assertIn("standard output cannot be written: No space left on device", done.stderr)

    def test_a_reader_that_goes_away_ends_what_only_prints(self):
        """Lines without end come in, and nobody reads what comes out."""
        self.trained("shown", train__max_steps=1)
        for line, words in (('"a"', ["tokenize", "--model", harness.BASE]), ("hi", ["generate", *self.flags("shown"), "--chat"])):
            with self.subTest(verb=words[0]):
                done = subprocess.run(["bash", "-c", 'line=$1; shift; yes "$line" | "$@" | head -1; exit ${PIPESTATUS[1]}', "bash",
                                       line, *harness.command(0, *words)], text=True, capture_output=True, timeout=120,
                                      env=harness.environment(), check=False, cwd=harness.SOURCE)
                self.assertEqual(done.returncode, IO, done.stderr)
                self.assertIn("standard output cannot be written", done.stderr)

    def test_an_output_file_is_looked_at_before_the_work(self):
        for out, code in ((self.path("none", "x.json"), IO), (self.folder, USAGE), ("/dev/null", USAGE)):
            with self.subTest(out=out):
                result = pesc(0, "eval", *self.flags("no-run"), "--base", "--out", out, seconds=60)
                self.assert_refused(result, code, "--out " + out)
                self.assertNotIn("eval data", result.err)

    def test_a_limit_on_file_sizes(self):
        for policy in ("STOP", "CONTINUE"):
            with self.subTest(policy=policy):
                run = self.flags("limit-" + policy, train__max_steps=2, checkpoint__save_steps=1,
                                 checkpoint__on_save_error=policy, lora__r=64)
                done = subprocess.run([*harness.MPIRUN, "-np", "1", *LIMITED, harness.PESC, "train", *run], text=True,
                                      capture_output=True, timeout=60, env=harness.environment(), check=False)
                result = harness.Result(done.returncode, done.stdout, done.stderr)
                self.assert_refused(result, IO, "checkpoint of step 1 not saved", "File too large")

    def test_a_closed_pipe_costs_no_step(self):
        process = harness.start(0, "train", *self.flags("piped", train__max_steps=12, train__logging_steps=1))
        process.stdout.close()
        process.stderr.close()
        self.assertEqual(process.wait(timeout=60), OK)
        self.assertEqual(len(harness.curve(self.path("piped"))), 12)

    def test_a_run_that_left_out_every_batch_is_no_success(self):
        result = self.trained("nothing", INTERNAL, train__max_steps=5, train__on_nonfinite="SKIP",
                              checkpoint__save_steps=2, debug__fault=ALWAYS_NAN)
        self.assert_refused(result, INTERNAL, "all 5 batches of the run were left out", "the base '")
        self.assertEqual(self.steps_of("nothing"), [])

    def test_batches_left_out_one_after_the_other_end_the_run(self):
        self.trained("streak", train__max_steps=4, checkpoint__save_steps=2)
        fields = {"train__on_nonfinite": "SKIP", "checkpoint__save_steps": 2, "debug__fault": ALWAYS_NAN}
        result = self.trained("streak", INTERNAL, train__max_steps=60, **fields)
        self.assert_refused(result, INTERNAL, "steps 5 to 24: all 20 batches in a row were left out",
                            "the last good checkpoint is that of step 4")
        self.assertEqual(self.steps_of("streak"), [2, 4])  # none that came after took their place
        self.assertEqual(len(harness.curve(self.path("streak"))), 24)
        # Fewer end no run, and what it ends with is saved.
        self.trained("streak", train__max_steps=9, **fields)
        self.assertEqual(self.steps_of("streak"), [4, 9])

    def test_a_save_waits_for_a_batch_that_is_not_left_out(self):
        self.trained("waits", train__max_steps=6, train__on_nonfinite="SKIP", checkpoint__save_steps=2,
                     checkpoint__save_total_limit=10, debug__fault="[step=4 rank=0 action=nan always]")
        self.assertEqual(self.steps_of("waits"), [2, 5, 6])

    def test_what_is_not_finite_before_any_update_points_at_the_base(self):
        result = self.trained("first", INTERNAL, train__max_steps=2, debug__fault=ALWAYS_NAN)
        self.assert_refused(result, INTERNAL, "the base '" + "configs/quickstart/base")
        self.assertNotIn("learning_rate", result.message)

    def test_weights_that_are_not_finite_are_not_saved(self):
        for asynchronous in ("true", "false"):
            for policy in ("STOP", "CONTINUE"):
                with self.subTest(asynchronous=asynchronous, policy=policy):
                    run = "burst-%s-%s" % (asynchronous, policy)
                    result = self.trained(run, INTERNAL, train__max_steps=1, train__learning_rate=1e38,
                                          train__max_grad_norm=0, checkpoint__async_save=asynchronous,
                                          checkpoint__on_save_error=policy)
                    self.assert_refused(result, INTERNAL, "checkpoint of step 1 not saved", "tensor 'model.layers.",
                                        "there is no checkpoint to go back to")
                    self.assertEqual(self.steps_of(run), [])

    def test_strangers_in_the_run_directory(self):
        self.trained("other", train__max_steps=4, checkpoint__save_steps=2)
        self.trained("mine", train__max_steps=2, checkpoint__save_steps=1)
        os.makedirs(self.path("mine", "step-1000"))
        shutil.copytree(self.path("other", "step-4"), self.path("mine", "step-4"))
        shutil.copytree(self.path("other", "step-4"), self.path("mine", "step-0"))
        result = pesc(0, "eval", *self.flags("mine"), seconds=60)
        self.assertEqual(result.code, OK, str(result))
        listing = pesc(0, "inspect", "--checkpoint", self.path("mine"), seconds=60)
        self.assertIn("a restart resumes from step-2", listing.out)
        self.assertRegex(listing.out, r"step-4 .*of another run")
        result = self.trained("mine", train__max_steps=3, checkpoint__save_steps=1)
        self.assertIn("at step 2", result.err)
        self.assertIn("step-4' is of another run", result.err)
        self.assertIn("step-1000' is no checkpoint", result.err)
        self.assertEqual(self.steps_of("mine"), [0, 2, 3, 4, 1000])
        self.assertIn("at step 3", self.trained("mine", train__max_steps=3).err)

    def test_only_checkpoints_of_others_are_refused(self):
        self.trained("lender", train__max_steps=2)
        self.trained("borrower", train__max_steps=1)
        shutil.rmtree(self.path("borrower", "step-1"))
        shutil.copytree(self.path("lender", "step-2"), self.path("borrower", "step-2"))
        result = pesc(0, "train", *self.flags("borrower", train__max_steps=3), seconds=60)
        self.assert_refused(result, DATA, "holds checkpoints of other runs alone", "step-2")

    def test_a_record_carries_the_step_that_it_is_about(self):
        self.trained("records", train__max_steps=9, checkpoint__save_steps=3, train__eval_steps=3)
        records = harness.read_jsonl(self.path("records", "metrics.jsonl"))
        for r in records:
            if "saved_step" in r:
                self.assertEqual(r["step"], r["saved_step"])
        of = lambda field: [r["step"] for r in records if field in r]  # noqa: E731
        self.assertEqual(of("saved_step"), [3, 6, 9])
        self.assertEqual(of("save_stall_seconds"), [3, 6, 9])
        self.assertEqual(of("eval_loss"), [3, 6, 9])
        self.assertEqual(of("loss"), list(range(1, 10)))
        self.assertIn(4, of("save_copy_wait_seconds"))
        self.assertNotIn(3, of("save_copy_wait_seconds"))


if __name__ == "__main__":
    harness.main()
