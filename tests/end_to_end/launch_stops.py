"""Cases of launch_test.py: `pesc launch` is told to stop. It saves and ends with 75, or says that it could not."""

import os
import shutil
import signal
import time

import harness


class Stops:
    """For launch_test.Launch, which has the runs and the oracles."""

    def preempted(self, run, number=signal.SIGTERM, prefix=()):
        """The supervisor is told while rank 1 stands still, which goes on when it has been told too: it saves at once, and
        the next start goes on as if nothing had happened."""
        # The schedule of the learning rate ends at train.max_steps, so both launches have the same.
        process = self.start(run, "step=12 rank=1 action=stop", prefix=prefix)
        self.wait_for_step(run, 11, process)
        rank, asked = self.wait_until_stopped(run, 1), time.monotonic()
        process.send_signal(number)
        told = self.is_told(rank)
        self.go_on(rank)
        result = self.finish(process)
        self.assertTrue(told, "no SIGUSR1 has come to the rank: %s" % result)
        took, began = time.monotonic() - asked, time.monotonic()
        self.assertLess(took, 30)
        self.assertEqual(result.code, 75, str(result))
        self.assert_nothing_left(run)
        self.assertIn(len(harness.curve(self.path(run))), (12, 13))
        self.launch(run)
        self.measure("preemption", took, time.monotonic() - began, 0)
        self.assert_as_if_nothing_happened(run)

    def test_preemption(self):
        self.preempted("preempt")

    def test_preemption_without_the_help_of_mpirun(self):
        """Where a wrapper called mpirun forwards nothing, the ranks are told all the same."""
        folder, mpirun = self.path("wrapper"), shutil.which("mpirun")
        os.makedirs(folder)
        with open(os.path.join(folder, "mpirun"), "w", encoding="utf-8") as file:
            file.write("#!/bin/sh\n%s \"$@\"\ncode=$?\nexit $code\n" % mpirun)
        os.chmod(os.path.join(folder, "mpirun"), 0o755)
        self.preempted("wrapped", prefix=("env", "PATH=%s:%s" % (folder, os.environ["PATH"])))

    def test_the_terminal_goes_away(self):
        """It saves and ends; under nohup it goes on."""
        self.preempted("hangup", signal.SIGHUP, prefix=("env", "--default-signal=HUP"))
        process = self.start("nohup", "step=12 rank=1 action=stop", prefix=("nohup",))
        self.wait_for_step("nohup", 11, process)
        rank = self.wait_until_stopped("nohup", 1)
        process.send_signal(signal.SIGHUP)
        time.sleep(0.5)
        os.kill(rank, signal.SIGCONT)
        result = self.finish(process)
        self.assertEqual(result.code, 0, str(result))
        self.assert_as_if_nothing_happened("nohup")
        self.assert_nothing_left("nohup")

    # --- told to stop, and nothing is saved: 75 would promise a checkpoint that does not exist

    def assert_stopped_without_saving(self, run, result, code, before):
        """It says so, leaves nothing, starts nothing more, and the next start goes on from what was saved before."""
        self.assertEqual(result.code, code, str(result))
        self.assertIn("STOPPED WITHOUT SAVING, exit code %d" % code, result.err)
        self.assertNotIn("starting again", result.err)
        self.assert_nothing_left(run)
        (launch,) = self.launches(run)
        self.assertEqual((launch["exit_code"], launch["newest_checkpoint"]), (code, before))
        result = self.launch(run)
        self.assertIn("at step %d" % before, result.err)
        self.assert_as_if_nothing_happened(run)

    def test_the_save_fails_when_told_to_stop(self):
        """A rank throws in it, or is killed."""
        for action, code in (("throw", 70), ("kill", 137)):
            run = "unsaved-" + action
            process = self.start(run, "step=12 rank=1 action=stop, step=12 rank=0 section=checkpoint action=%s, "
                                 "step=13 rank=0 section=checkpoint action=%s" % (action, action))
            self.wait_for_step(run, 11, process)
            rank = self.wait_until_stopped(run, 1)
            process.send_signal(signal.SIGTERM)
            self.assertTrue(self.is_told(rank))
            self.go_on(rank)
            self.assert_stopped_without_saving(run, self.finish(process), code, 10)

    def end_the_ranks(self, run, code, stop_limit, impatient):
        """Told to stop, a rank stands still and cannot save, however often it is woken; after the limit, or the second signal,
        they are ended."""
        process = self.start(run, ", ".join(["step=12 rank=1 action=stop"] + [
            "step=%d rank=1 section=checkpoint action=stop" % step for step in (12, 13)]), recovery__step_limit_s=100,
            recovery__stop_limit_s=stop_limit)
        self.wait_for_step(run, 11, process)
        rank = self.wait_until_stopped(run, 1)
        process.send_signal(signal.SIGTERM)
        self.assertTrue(self.is_told(rank))
        began = time.monotonic()
        if impatient:
            process.send_signal(signal.SIGTERM)  # the same wish
            time.sleep(1.2)
            self.assertIsNone(process.poll())
            began = time.monotonic()
            process.send_signal(signal.SIGTERM)
        result = self.finish(process)
        took = time.monotonic() - began
        self.assertEqual(result.err.count("ending the ranks now"), 1, str(result))
        self.assert_stopped_without_saving(run, result, code, 10)
        return took, result

    def test_a_second_signal_ends_the_ranks(self):
        took, result = self.end_the_ranks("impatient", 130, 100, True)
        self.assertLess(took, 6)
        self.assertIn("ended by a second signal", result.err)

    def test_ranks_that_do_not_stop_are_ended(self):
        took, result = self.end_the_ranks("patient", 76, 3, False)
        self.assertTrue(2 < took < 3 + 6, took)
        self.assertIn("told to stop, the ranks have not ended within 3 s (recovery.stop_limit_s)", result.err)
