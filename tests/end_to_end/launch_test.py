"""`pesc launch` against the faults of the matrix: whatever happens, the weights at the end are bitwise those of the run to
which nothing happened, and no process, shared memory or temporary directory is left.

Faults at a step come from debug.fault, others from kill(2). ctest runs these as lines of the matrix, tests/faults/run.py.
"""

import array
import math
import os
import re
import signal
import time

import harness
import launch_stops

STEPS, EVERY, RANKS = 24, 5, 2


def marks(run_dir):
    """The run directory's mark as in launcher/launch_mark.h."""
    lock = os.stat(os.path.join(run_dir, "pesc.lock"))
    return "%x-%x-" % (lock.st_dev, lock.st_ino)


def processes(run_dir):
    """{pid: argv} of what runs for this run directory."""
    mark, found = b"PESC_LAUNCH=" + marks(run_dir).encode(), {}
    for name in os.listdir("/proc"):
        if not name.isdigit():
            continue
        try:
            with open("/proc/%s/environ" % name, "rb") as file:
                if mark not in file.read():
                    continue
            with open("/proc/%s/cmdline" % name, "rb") as file:
                found[int(name)] = file.read().split(b"\0")
        except OSError:
            continue
    return found


def status(pid, name):
    """A line of /proc/PID/status."""
    with open("/proc/%d/status" % pid, encoding="ascii", errors="replace") as file:
        return re.search(r"^%s:\s+(.*)$" % name, file.read(), re.MULTILINE).group(1)


def directories(run_dir):
    return [os.path.join(parent, name) for parent in ("/tmp", "/dev/shm") for name in os.listdir(parent)
            if name.startswith("pesc-" + marks(run_dir))]


class Launch(launch_stops.Stops, harness.EndToEnd):
    train_rows = 300

    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        result = cls.finish(cls.start("plain"))
        assert result.code == 0, str(result)
        cls.expected = cls.weights("plain")

    @classmethod
    def flags(cls, run, fault=None, **fields):
        settings = dict(tp=2, ep=2, train__max_steps=STEPS, train__global_batch_size=16,
                        checkpoint__save_steps=EVERY, train__logging_steps=1)
        settings.update(fields)
        if fault:
            settings["debug__fault"] = "[%s]" % fault
        return cls.experiment(run, **settings)

    @classmethod
    def start(cls, run, fault=None, prefix=(), ranks=RANKS, **fields):
        return harness.start(0, "launch", "-n", ranks, "--", "train", *cls.flags(run, fault, **fields), prefix=prefix)

    @staticmethod
    def finish(process, seconds=120):
        return harness.finish(process, seconds)

    @classmethod
    def weights(cls, run, step=STEPS):
        """Digests of the safetensors of a step: weights and optimizer state."""
        folder = cls.path(run, "step-%d" % step)
        return {name: digest for name, digest in harness.digests(folder).items() if name.endswith(".safetensors")}

    def launch(self, run, fault=None, code=0, **fields):
        result = self.finish(self.start(run, fault, **fields))
        self.assertEqual(result.code, code, str(result))
        self.assert_nothing_left(run)
        return result

    def assert_nothing_left(self, run):
        self.assertEqual(processes(self.path(run)), {})
        self.assertEqual(directories(self.path(run)), [])

    def assert_as_if_nothing_happened(self, run):
        self.assertEqual(self.weights(run), self.expected)
        harness.curve(self.path(run))  # every step once

    def launches(self, run):
        return harness.read_jsonl(self.path(run, "launches.jsonl"))

    def wait_for_step(self, run, step, process):
        """Until the ranks have come to it."""
        path, until = self.path(run, "heartbeats", "rank-0"), time.monotonic() + 60
        while time.monotonic() < until and process.poll() is None:
            try:
                with open(path) as file:
                    found = re.search(r"section [123] step (\d+)", file.read())
                if found and int(found.group(1)) >= step:
                    return
            except OSError:
                pass
            time.sleep(0.01)
        self.fail("step %d was not reached: %s" % (step, self.finish(process, 5)))

    def slow(self):
        """Enough steps that a signal surely comes before the end."""
        return {"train__max_steps": 100000}

    def test_too_few_slots(self):
        hostfile = self.path("small-hosts")
        with open(hostfile, "w", encoding="utf-8") as file:
            file.write("localhost slots=1\n")
        result = harness.pesc(0, "launch", "-n", RANKS, "--hostfile", hostfile, "--", "train", *self.flags("slots"))
        self.assertEqual(result.code, 64, str(result))
        self.assertIn("small-hosts:1: the hostfile has 1 slots on 1 hosts, too few for -n %d" % RANKS, result.err)
        self.assertFalse(os.path.exists(self.path("slots")))

    # --- what mpirun would refuse, or misunderstand

    def refused(self, run, hostfile=None, words=(), code=64, prefix=(), **fields):
        """It ends at once, before anything is started."""
        if hostfile is not None:
            with open(self.path("hosts-" + run), "w", encoding="utf-8") as file:
                file.write(hostfile)
            words = (*words, "--hostfile", self.path("hosts-" + run))
        result = self.finish(harness.start(0, "launch", "-n", RANKS, *words, "--", "train", *self.flags(run, **fields),
                                           prefix=prefix))
        self.assertEqual(result.code, code, str(result))
        self.assertFalse(os.path.exists(self.path(run, "launches.jsonl")))
        return result

    def test_a_hostfile_is_understood_or_refused(self):
        """One host under two names; names of this host that mpirun would look for in the network."""
        result = self.refused("two-names", "%s slots=1\nlocalhost slots=1\n" % os.uname().nodename)
        self.assertIn("hosts-two-names:2: 'localhost' is the same host", result.err)
        with open(self.path("hosts-loopback"), "w", encoding="utf-8") as file:
            file.write("127.0.1.1 slots = %d\n" % RANKS)
        result = self.finish(harness.start(0, "launch", "-n", RANKS, "--hostfile", self.path("hosts-loopback"), "--", "train",
                                           *self.flags("loopback", train__max_steps=2)))
        self.assertEqual(result.code, 0, str(result))
        (launch,) = self.launches("loopback")
        self.assertEqual((launch["ranks"], launch["hosts"]), (RANKS, ["localhost"]))
        self.assert_nothing_left("loopback")

    def test_what_mpirun_refuses_is_not_repeated(self):
        """No slots are given, and this host has fewer cores than ranks: mpirun says so before any rank begins."""
        ranks = (os.cpu_count() or 1) * 4
        with open(self.path("hosts-cores"), "w", encoding="utf-8") as file:
            file.write("localhost\n")
        result = self.finish(harness.start(0, "launch", "-n", ranks, "--hostfile", self.path("hosts-cores"), "--", "train",
                                           *self.flags("cores")))
        self.assertEqual(result.code, 64, str(result))
        self.assertIn("not enough slots", result.err)
        self.assertIn("mpirun has ended before any rank began", result.err)
        self.assertNotIn("starting again", result.err)
        self.assertEqual(len(self.launches("cores")), 1)
        self.assert_nothing_left("cores")

    def test_variables_of_slurm_that_are_left_over(self):
        result = self.finish(self.start("left-over", prefix=("env", "SLURM_JOB_ID=1", "SLURM_JOBID=1", "SLURM_NTASKS=7"),
                                        train__max_steps=2))
        self.assertEqual(result.code, 0, str(result))
        self.assertEqual(result.err.count("Slurm's variables are ignored"), 1, str(result))
        result = harness.pesc(0, "launch", "--", "train", *self.flags("left-over-tasks"), prefix=("env", "SLURM_JOB_ID=1",
                                                                                               "SLURM_NTASKS=2"))
        self.assert_refused(result, 64, "needs -n N", "SLURM_JOB_ID=1")
        result = self.finish(self.start("left-over-sge", prefix=("env", "SGE_ROOT=/sge", "ARC=lx", "JOB_ID=1",
                                                                 "PE_HOSTFILE=" + self.path("no-such-file")),
                                        train__max_steps=2))
        self.assertEqual(result.code, 0, str(result))
        self.assertEqual(result.err.count("no job of Grid Engine: PE_HOSTFILE="), 1, str(result))

    def test_a_launch_inside_mpirun_or_a_launch(self):
        result = harness.pesc(1, "launch", "-n", "1", "--", "train", *self.flags("inside"))
        self.assertEqual(result.code, 64, str(result))
        self.assertIn("was started inside mpirun", result.err)
        self.refused("inside", prefix=("env", "PESC_LAUNCH=1-2-3"))

    def test_copies_that_are_no_ranks(self):
        for variable in ("SLURM_STEP_NUM_TASKS", "PMI_SIZE"):
            result = harness.pesc(0, "train", *self.flags("copies"), prefix=("env", variable + "=2"))
            self.assert_refused(result, 64, variable + "=2", "mpirun")
            self.assertFalse(os.path.exists(self.path("copies")))

    def test_another_mpi(self):
        """Open MPI 5 has no settings of these names, and others no such command line."""
        for name, version in (("five", "mpirun (Open MPI) 5.0.3"), ("hydra", "HYDRA build details:")):
            folder = self.path("mpi-" + name)
            os.makedirs(folder)
            with open(os.path.join(folder, "mpirun"), "w", encoding="utf-8") as file:
                file.write("#!/bin/sh\necho '%s'\n" % version)
            os.chmod(os.path.join(folder, "mpirun"), 0o755)
            result = self.refused(name, prefix=("env", "PATH=%s:%s" % (folder, os.environ["PATH"])))
            self.assertIn("supports Open MPI 4", result.err)
            self.assertIn(version.partition(") ")[2] or version, result.err)

    def test_the_folder_for_session_files(self):
        """TMPDIR, where the launch's files come to be and go again; one that is not there is an error before anything starts."""
        folder = self.path("temporary")
        result = self.refused("no-tmpdir", code=74, prefix=("env", "TMPDIR=" + folder))
        self.assertIn(folder, result.err)
        os.makedirs(folder)
        process = self.start("tmpdir", "step=3 rank=1 action=stop", prefix=("env", "TMPDIR=" + folder), train__max_steps=4)
        rank = self.wait_until_stopped("tmpdir", 1)
        self.assertEqual([name.startswith("pesc-" + marks(self.path("tmpdir"))) for name in os.listdir(folder)], [True])
        self.go_on(rank)
        self.assertEqual(self.finish(process).code, 0)
        self.assertEqual(os.listdir(folder), [])
        self.assert_nothing_left("tmpdir")

    # --- descriptors, pipes and cores of the start

    def test_closed_descriptors_do_not_become_files(self):
        for run, closed in (("closed-2", "2>&-"), ("closed", "<&- >&- 2>&-")):
            flags = self.flags(run, train__max_steps=4)
            process = harness.start(0, "launch", "-n", RANKS, "--", "train", *flags,
                                    prefix=("sh", "-c", 'exec "$@" ' + closed, "sh"))
            self.assertEqual(self.finish(process).code, 0, run)
            with open(self.path(run, "pesc.lock"), encoding="utf-8") as file:
                self.assertRegex(file.read(), r"^pid \d+")
            self.assertEqual(len(harness.curve(self.path(run))), 4)

    def test_a_reader_that_goes_away_costs_no_step(self):
        flags = self.flags("reader", train__max_steps=30)
        process = harness.start(0, "launch", "-n", RANKS, "--", "train", *flags,
                                prefix=("bash", "-c", '"$@" 2>&1 | head -1; exit ${PIPESTATUS[0]}', "bash"))
        self.assertEqual(self.finish(process).code, 0)
        self.assertEqual(len(harness.curve(self.path("reader"))), 30)

    def test_ranks_stay_on_the_cores_of_the_start(self):
        core = max(os.sched_getaffinity(0))
        if len(os.sched_getaffinity(0)) < 2:
            self.skipTest("one core")
        process = self.start("cores-of-start", "step=3 rank=0 action=stop, step=3 rank=1 action=stop",
                             prefix=("taskset", "-c", str(core)), train__max_steps=4, parallel__num_threads=0)
        ranks = [self.wait_until_stopped("cores-of-start", rank) for rank in range(RANKS)]
        self.assertEqual([status(rank, "Cpus_allowed_list") for rank in ranks], [str(core)] * RANKS)
        for rank in ranks:
            self.go_on(rank)
        result = self.finish(process)
        self.assertEqual(result.code, 0, str(result))
        self.assertIn("1 threads each", result.err)
        self.assertIn("given 1 of the", result.err)

    # --- what ranks do

    def test_a_killed_rank(self):
        """Before the first save, during a save, after one, in the last step, before the first step."""
        cases = ["step=3 rank=1", "step=5 rank=0 section=checkpoint", "step=10 rank=1 section=checkpoint",
                 "step=13 rank=0", "step=24 rank=1", "rank=1 section=setup"]
        for i, case in enumerate(cases):
            with self.subTest(case):
                run = "kill-%d" % i
                result = self.launch(run, case + " action=kill")
                self.assert_as_if_nothing_happened(run)
                first, second = self.launches(run)
                self.assertEqual(first["exit_code"], 137)
                self.assertEqual(second["exit_code"], 0)
                self.assertIn("process rank %s" % re.search(r"rank=(\d)", case).group(1), result.err)
                self.assertEqual(second["restarts"], 1)
                self.assertLess(second["restart_seconds"][0], 15)
                self.assertTrue(0 < second["goodput"] < 1, second["goodput"])
                self.assertNotIn("goodput", first)
                # What the first launch has measured stands there under its number, also where it was done again.
                starts = harness.starts(self.path(run))
                self.assertEqual([(r["launch"], r["step"]) for r in starts],
                                 [(1, 0), (2, second["from_step"])][-len(starts):])
                steps = [r for r in harness.read_jsonl(self.path(run, "metrics.jsonl")) if r.get("kind") == "step"]
                self.assertEqual(len(steps), STEPS + max(0, sum(r["launch"] == 1 for r in steps) - second["from_step"]))

    def test_a_rank_that_throws_says_why(self):
        result = self.launch("throw", "step=7 rank=1 action=throw")
        self.assert_as_if_nothing_happened("throw")
        (death,) = self.launches("throw")[0]["deaths"]
        self.assertEqual((death["rank"], death["section"], death["step"], death["exit_code"]), (1, "step", 6, 70))
        self.assertRegex(result.err, r"rank 1 on \S+, pid \d+, section step after step 6, exit code 70: debug.fault")
        self.assertRegex(result.err, r"last lines of rank 1:\n    \| pesc: rank 1: debug.fault")
        self.assertNotIn("<stderr>", result.err)
        self.assertNotIn("<stdout>", result.out)

    def test_without_a_supervisor_a_collective_ends_the_wait(self):
        result = harness.pesc(RANKS, "train", *self.flags("alone", "step=8 rank=1 action=stop", recovery__step_limit_s=1))
        self.assertEqual(result.code, 76, str(result))
        self.assertIn("did not finish within 2 s", result.err)

    def poisons(self, always=""):
        """Each in a step of its own: {step: fault}."""
        return {5: "step=5 rank=1 action=nan" + always, 9: "step=9 rank=0 action=inf" + always,
                13: "step=13 rank=1 action=nan_loss" + always, 17: "step=17 rank=0 action=inf_loss" + always}

    def test_not_a_number_once(self):
        """The step is computed again and the curve is as ever."""
        poisons = self.poisons()
        result = self.launch("nan", ", ".join(poisons.values()))
        self.assert_as_if_nothing_happened("nan")
        self.assertEqual([r["step"] for r in harness.curve(self.path("nan")) if "nonfinite" in r], sorted(poisons))
        self.assertEqual(len(self.launches("nan")), 1)
        for step, what in ((5, "gradient norm -?nan"), (9, "gradient norm inf"), (13, "loss is -?nan"), (17, "loss is inf")):
            self.assertRegex(result.err, r"step %d: .*%s.*once more" % (step, what))
            self.measure("NaN or Inf", lost=0)

    def test_not_a_number_again_is_skipped(self):
        poisons = self.poisons(" always")
        self.launch("skip", ", ".join(poisons.values()), train__on_nonfinite="SKIP")
        steps = harness.read_jsonl(self.path("skip", "metrics.jsonl"))
        self.assertEqual([(r["step"], r["nonfinite"]) for r in steps if "nonfinite" in r],
                         [(step, "skipped") for step in sorted(poisons)])
        self.assertNotEqual(self.weights("skip"), self.expected)
        self.assertEqual(len([r for r in steps if "loss" in r]), STEPS)
        self.assert_finite(self.path("skip", "step-%d" % STEPS))
        for _ in poisons:
            self.measure("NaN or Inf", lost=0)

    def assert_finite(self, checkpoint):
        """Every weight and every moment of the optimizer."""
        checked = 0
        for name in self.weights(os.path.basename(os.path.dirname(checkpoint))):
            header, data = harness.read_safetensors(os.path.join(checkpoint, name))
            for tensor, entry in header.items():
                if entry["dtype"] != "F32":
                    continue
                values = array.array("f", data[slice(*entry["data_offsets"])])
                self.assertTrue(all(map(math.isfinite, values)), "%s of %s" % (tensor, name))
                checked += len(values)
        self.assertGreater(checked, 100000)

    def test_not_a_number_again_ends_the_run(self):
        for action in ("nan", "inf_loss"):
            run = "end-" + action
            result = self.launch(run, "step=9 rank=1 action=%s always" % action, code=70)
            self.assertIn("no rank has updated its weights", result.err)
            # The same step in the same way: not as often as recovery.max_restarts allows.
            self.assertIn("after step 8 ended with exit code 70 in two launches in a row", result.err)
            self.assertEqual([r["newest_checkpoint"] for r in self.launches(run)], [5, 5])

    def test_a_crash_loop_ends(self):
        result = self.launch("loop", "rank=0 section=setup action=kill always", code=137)
        self.assertEqual(len(self.launches("loop")), 4)
        for pause in ("in 1 s (1 of 3", "in 2 s (2 of 3", "in 4 s (3 of 3"):
            self.assertIn(pause, result.err)
        self.assertIn("giving up", result.err)

    def test_pauses_have_a_limit(self):
        result = self.launch("limited", "rank=0 section=setup action=kill always", code=137, recovery__max_restarts=4,
                             recovery__longest_pause_s=1.5)
        self.assertEqual(re.findall(r"starting again in ([\d.]+) s", result.err), ["1", "1.5", "1.5", "1.5"])
        launches = self.launches("limited")
        for one, two in zip(launches, launches[1:]):
            pause = two["ended_unix"] - two["seconds"] - one["ended_unix"]
            self.assertTrue(0.9 <= pause < 4, "%.2f s between two launches" % pause)

    def test_what_does_not_go_away_is_not_tried_again(self):
        result = self.launch("impossible", code=64, tp=8, ep=1)
        self.assertEqual(len(self.launches("impossible")), 1)
        self.assertIn("not started again", result.err)

    # --- what is done from outside

    def test_mpirun_killed(self):
        process = self.start("mpirun", "step=14 rank=0 action=stop")
        self.wait_for_step("mpirun", 13, process)  # rank 0 stands still, and does not see that mpirun is gone
        (mpirun,) = [pid for pid, argv in processes(self.path("mpirun")).items() if argv[0] == b"mpirun"]
        os.kill(mpirun, signal.SIGKILL)
        result = self.finish(process)
        self.assertEqual(result.code, 0, str(result))
        self.assertIn("mpirun was killed by signal 9", result.err)
        self.assert_as_if_nothing_happened("mpirun")
        self.assert_nothing_left("mpirun")

    def test_supervisor_killed(self):
        process = self.start("orphan", "step=14 rank=0 action=stop")
        self.wait_for_step("orphan", 13, process)  # rank 0 stands still; only another can end it
        process.kill()
        process.communicate()
        began = time.monotonic()
        result = self.launch("orphan")
        self.measure("supervisor killed", recovered=time.monotonic() - began)
        self.assert_as_if_nothing_happened("orphan")
        self.assertIn("resumed from", result.err)

    def pid_of_rank(self, run, rank):
        with open(self.path(run, "heartbeats", "rank-%d" % rank)) as file:
            return int(re.search(r"pid (\d+)", file.read()).group(1))

    def wait_until_stopped(self, run, rank):
        """Until the rank stands still by SIGSTOP; its pid."""
        until = time.monotonic() + 60
        while time.monotonic() < until:
            try:
                pid = self.pid_of_rank(run, rank)
                if status(pid, "State").startswith("T"):
                    return pid
            except (OSError, AttributeError):  # not there yet, or being written
                pass
            time.sleep(0.002)
        raise AssertionError("rank %d of %s does not stand still" % (rank, run))

    @staticmethod
    def go_on(pid):
        try:
            os.kill(pid, signal.SIGCONT)
        except ProcessLookupError:
            pass

    def is_told(self, pid, seconds=5):
        """Whether SIGUSR1 comes to a rank that stands still; until then. How quick it is does not matter so."""
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            try:
                if int(status(pid, "ShdPnd"), 16) >> signal.SIGUSR1 - 1 & 1:
                    return True
            except OSError:  # it has been killed
                return False
            time.sleep(0.002)
        return False

    def test_a_second_supervisor(self):
        process = self.start("twice", **self.slow())
        self.wait_for_step("twice", 2, process)
        began = time.monotonic()
        second = self.finish(self.start("twice"))
        took = time.monotonic() - began
        self.assertLess(took, 2)
        self.measure("two supervisors", detected=took)
        self.assert_refused(second, 64, "is in use by pid %d" % process.pid)
        self.assertIsNone(process.poll())
        process.send_signal(signal.SIGINT)
        result = self.finish(process)
        self.assertEqual(result.code, 75, str(result))
        self.assert_nothing_left("twice")

    def test_usage(self):
        absent = self.path("absent")
        for words, complaint in ((("-n", "two"), "no number of ranks"), (("--", "train"), "-n N"),
                                 (("-n", "2"), "-- train"), (("-n", "2", "--", "eval"), "-- train"),
                                 (("-n", "2", "--hostfile", absent, "--", "train"), absent + " cannot be read: No such file"),
                                 (("-n", "2", "--", "train", "--config", absent), absent)):
            result = harness.pesc(0, "launch", *words)
            self.assertEqual(result.code, 64, str(result))
            self.assertIn(complaint, result.err)


if __name__ == "__main__":
    harness.main()
