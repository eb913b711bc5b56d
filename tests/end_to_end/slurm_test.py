"""Real jobs under a real Slurm (cluster/rigs/slurm.py): munged, slurmctld and three slurmd, each on a host of its own.

Whatever happens to the job, the weights at the end are bitwise those of a run without Slurm to which nothing happened. Needs
root and namespaces; where a container may make none, this test says so and ends.
"""

import os
import re
import signal
import sys
import tempfile
import threading
import time

import harness

sys.path.insert(0, os.path.join(harness.SOURCE, "cluster", "rigs"))
import slurm  # noqa: E402

STEPS, EVERY, NODES, RANKS = 24, 5, 2, 4
SCRIPTS = os.path.join(harness.SOURCE, "cluster", "slurm")
KEEP = (harness.SOURCE, os.path.dirname(harness.PESC))
OURS = re.compile(r"(^|/)(pesc|mpirun|orted|srun|slurm_script)$")
tempfile.tempdir = "/var/tmp"  # the hosts have their own /tmp


class OneWriter(threading.Thread):
    """Watches that ranks of two launches of one run directory never run at the same time, on whatever hosts."""

    def __init__(self):
        super().__init__(daemon=True)
        self.run_dir = ""  # no rank's
        self.ended, self.seen, self.together = threading.Event(), set(), set()
        self.start()

    def run(self):
        while not self.ended.wait(0.05):
            launches = set()
            for name in os.listdir("/proc"):
                try:
                    if not name.isdigit():
                        continue
                    with open("/proc/%s/cmdline" % name, "rb") as file:
                        words = file.read().split(b"\0")
                    if words[:2] != [harness.PESC.encode(), b"train"] or b"run_dir=" + self.run_dir.encode() not in words:
                        continue
                    with open("/proc/%s/environ" % name, "rb") as file:
                        mark = re.search(rb"(?:^|\0)PESC_LAUNCH=([^\0]+)", file.read())
                    if mark:
                        launches.add(mark.group(1).decode())
                except OSError:
                    continue
            self.seen |= launches
            if len(launches) > 1:
                self.together |= launches


class UnderSlurm(harness.EndToEnd):
    train_rows = 300

    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        cls.expected = {}
        for ranks in (2, RANKS):
            run = "plain-%d" % ranks
            result = harness.pesc(0, "launch", "-n", ranks, "--", "train", *cls.flags(run, ep=ranks))
            assert result.code == 0, str(result)
            cls.expected[ranks] = cls.weights(run)

    def setUp(self):
        self.slurm = slurm.Slurm(self.path("rig-" + self.id().rpartition(".")[2]), nodes=NODES + 1, keep=KEEP).up()
        self.addCleanup(self.slurm.down)
        self.writers = OneWriter()
        self.addCleanup(self.writers.ended.set)

    @classmethod
    def flags(cls, run, fault=None, **fields):
        settings = dict(tp=2, ep=4, train__max_steps=STEPS, train__global_batch_size=16,
                        checkpoint__save_steps=EVERY, train__logging_steps=1)
        settings.update(fields)
        if fault:
            settings["debug__fault"] = "[%s]" % fault
        return cls.experiment(run, **settings)

    @classmethod
    def weights(cls, run):
        folder = cls.path(run, "step-%d" % STEPS)
        return {name: digest for name, digest in harness.digests(folder).items() if name.endswith(".safetensors")}

    def submit(self, run, *options, fault=None, nodes=NODES, **fields):
        """With the script for so many nodes, two ranks on each."""
        words = self.flags(run, fault, **fields)
        self.run_name, self.writers.run_dir = run, self.path(run)
        script = os.path.join(SCRIPTS, "one-node.sbatch" if nodes == 1 else "many-nodes.sbatch")
        tasks = "--ntasks=2" if nodes == 1 else "--ntasks-per-node=2"
        text = self.slurm.client("env", "PESC=" + harness.PESC, "sbatch", "--nodes=%d" % nodes, tasks,
                                 "--output=" + self.log, *options, script, *words[1:], check=True).stdout
        return re.search(r"Submitted batch job (\d+)", text).group(1)

    @property
    def log(self):
        return self.path(self.run_name + ".log")

    def story(self):
        try:
            with open(self.log, encoding="utf-8", errors="replace") as file:
                return file.read()
        except FileNotFoundError:
            return ""

    def job(self, job):
        """Slurm's word on a job: {"JobState": "RUNNING", "Restarts": "0", ...}."""
        return dict(word.split("=", 1) for word in self.slurm.client("scontrol", "show", "job", job).stdout.split()
                    if "=" in word)

    def wait_until(self, what, condition, seconds):
        began = time.monotonic()
        while not condition():
            self.assertLess(time.monotonic() - began, seconds, "%s:\n%s" % (what, self.story()[-6000:]))
            time.sleep(0.1)
        return time.monotonic() - began

    def wait_for_end(self, job, state, seconds=90):
        ended = ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL")
        self.wait_until("job ends", lambda: self.job(job)["JobState"] in ended, seconds)
        self.assertEqual(self.job(job)["JobState"], state, self.story()[-6000:])

    def wait_for_step(self, step, seconds=60):
        def reached():
            try:
                return any(r["step"] >= step for r in harness.read_jsonl(self.path(self.run_name, "metrics.jsonl"))
                           if "loss" in r)
            except (FileNotFoundError, ValueError):
                return False
        self.wait_until("step %d" % step, reached, seconds)

    def ours_on(self, host):
        return {pid: words for pid, words in self.slurm.processes_of(host).items()
                if any(OURS.search(word) for word in words[:2])}

    def assert_nothing_left(self, hosts):
        for host in hosts:
            self.wait_until("all has ended on " + host, lambda: not self.ours_on(host), 5)
            self.assertEqual(self.slurm.files_of(host), [], host)

    def launches(self):
        return harness.read_jsonl(self.path(self.run_name, "launches.jsonl"))

    def assert_as_if_nothing_happened(self, ranks=RANKS):
        """O1, every step once, and one launch after the other: by the numbers and times that they wrote down and by what ran."""
        self.assertEqual(self.weights(self.run_name), self.expected[ranks])
        harness.curve(self.path(self.run_name))
        launches = self.launches()
        numbers = [l["launch"] for l in launches]
        self.assertEqual(numbers, sorted(set(numbers)))
        for one, two in zip(launches, launches[1:]):
            self.assertLessEqual(one["ended_unix"], two["ended_unix"] - two["seconds"])
        self.assertEqual(self.writers.together, set())
        self.assertGreaterEqual(len(self.writers.seen), len(launches) - 1)  # a short one may end between two looks
        return numbers

    def measure_saved(self, fault):
        """Of a run that saved and ended with 75 and was started again: from its end to the next launch's first step."""
        first, second = self.launches()[:2]
        self.assertEqual(first["exit_code"], 75)
        self.measure(fault, recovered=second["ended_unix"] - second["seconds"] + second["first_step_after_seconds"] -
                     first["ended_unix"], lost=first["last_step"] - first["newest_checkpoint"])

    def test_a_job_on_two_nodes(self):
        job = self.submit("whole")
        self.wait_for_end(job, "COMPLETED")
        self.assertEqual(self.assert_as_if_nothing_happened(), [1])
        self.assertIn("4 ranks: dp 2, tp 2, ep 4", self.story())
        self.assert_nothing_left(["n1", "n2", "n3"])

    def test_the_time_limit(self):
        """Slurm warns before it; the job saves, goes back into the queue, and ends."""
        job = self.submit("limit", "--time=1", "--signal=B:USR1@30", fault="step=12 rank=3 action=stop",
                          recovery__step_limit_s=100)
        self.wait_until("the warning comes", lambda: "told to stop" in self.story(), 60)
        (stopped,) = self.stopped_ranks()
        os.kill(stopped, signal.SIGCONT)
        self.wait_until("it is requeued", lambda: "start 2," in self.story(), 45)
        self.wait_for_end(job, "COMPLETED")
        self.assertEqual(self.assert_as_if_nothing_happened()[:2], [1, 2])
        self.measure_saved("Slurm: time limit")
        self.assert_nothing_left(["n1", "n2", "n3"])

    def test_the_time_limit_and_no_save(self):
        """A rank is killed in it: that is said, and the job goes back into the queue all the same."""
        job = self.submit("unsaved", fault=", ".join(["step=12 rank=3 action=stop"] + [
            "step=%d rank=3 section=checkpoint action=kill" % step for step in (12, 13)]), recovery__step_limit_s=100)
        self.wait_for_step(11)
        self.wait_until("rank 3 stands still", self.stopped_ranks, 10)
        (stopped,) = self.stopped_ranks()
        self.slurm.client("scancel", "--batch", "--signal=USR1", job, check=True)  # as --signal=B:USR1@300 does
        self.wait_until("it is told", lambda: "told to stop" in self.story(), 10)
        os.kill(stopped, signal.SIGCONT)
        self.wait_until("it is requeued", lambda: "start 2," in self.story(), 45)
        self.wait_for_end(job, "COMPLETED")
        self.assertIn("STOPPED WITHOUT SAVING, exit code 137", self.story())
        self.assertEqual(self.assert_as_if_nothing_happened(), [1, 2])
        self.assertEqual([(l["exit_code"], l["newest_checkpoint"]) for l in self.launches()], [(137, 10), (0, STEPS)])
        first, second = self.launches()
        self.measure("Slurm: time limit", recovered=second["ended_unix"] - second["seconds"] +
                     second["first_step_after_seconds"] - first["ended_unix"], lost=first["last_step"] - 10)
        self.assert_nothing_left(["n1", "n2", "n3"])

    def preempt(self, ranks, **options):
        """A job of a partition that goes before takes its nodes: it saves in the time of grace, and starts again after."""
        job = self.submit("preempted-%d" % ranks, fault="step=12 rank=%d action=stop" % (ranks - 1), recovery__step_limit_s=100,
                          ep=ranks, **options)
        self.wait_for_step(11)
        self.slurm.client("sbatch", "--partition=urgent", "--nodes=%d" % (NODES + 1), "--exclusive", "--output=/dev/null",
                          "--wrap=sleep 2", check=True)
        # With SIGTERM Slurm sends SIGCONT, which wakes the rank that stood still.
        self.wait_until("it starts again", lambda: "start 2," in self.story(), 60)
        self.wait_for_end(job, "COMPLETED")
        self.assertEqual(self.assert_as_if_nothing_happened(ranks)[:2], [1, 2])
        self.measure_saved("Slurm: preemption")
        self.assert_nothing_left(["n1", "n2", "n3"])

    def test_preemption(self):
        self.preempt(RANKS)

    def test_preemption_on_one_node(self):
        self.preempt(2, nodes=1)
        self.assertIn("2 ranks: dp 1, tp 2, ep 2", self.story())

    def stopped_ranks(self):
        return [pid for host in ("n1", "n2") for pid in self.ours_on(host) if self.is_stopped(pid)]

    @staticmethod
    def is_stopped(pid):
        with open("/proc/%d/stat" % pid, encoding="ascii", errors="replace") as file:
            return file.read().rpartition(")")[2].split()[0] == "T"

    def lose_node(self, node, left):
        """Slurm puts the job back into the queue, and it goes on on other nodes."""
        job = self.submit("without-" + node, fault="step=13 rank=%d action=stop" % (0 if node == "n2" else 3), recovery__step_limit_s=100)
        self.wait_for_step(12)
        began = time.time()
        self.slurm.kill_node(node)
        took = self.wait_until("it is requeued", lambda: "start 2," in self.story(), 90)
        self.wait_for_end(job, "COMPLETED")
        self.assertIn("nodes " + left, self.story())
        self.assert_as_if_nothing_happened()
        last = self.launches()[-1]
        resumed = int(re.findall(r"resumed from \S+ at step (\d+)", self.story())[-1])
        self.measure("Slurm: node death", took, last["ended_unix"] - last["seconds"] + last["first_step_after_seconds"] - began,
                     12 - resumed)
        self.assert_nothing_left([n for n in ("n1", "n2", "n3") if n != node])

    def test_a_node_dies(self):
        self.lose_node("n2", "n[1,3]")

    def test_the_node_with_the_batch_script_dies(self):
        """And with it the supervisor and mpirun."""
        self.lose_node("n1", "n[2-3]")

    def wait_for_checkpoint(self):
        self.wait_until("a checkpoint", lambda: any(
            re.fullmatch(r"step-\d+", name) for name in os.listdir(self.path(self.run_name))), 40)

    def test_scancel(self):
        """Saves, ends with 75, is not requeued, and goes on when it is submitted again."""
        job = self.submit("cancel", fault="step=12 rank=3 action=stop", recovery__step_limit_s=100)
        self.wait_for_step(11)
        began = time.monotonic()
        self.slurm.client("scancel", job, check=True)
        # With SIGTERM Slurm sends SIGCONT, which wakes the rank that stood still.
        # The ranks agree on it at the beginning of a step: of this one, or of the next.
        self.wait_until("it is saved", lambda: any(os.path.exists(self.path("cancel", "step-%d" % n)) for n in (12, 13)), 40)
        took = time.monotonic() - began
        print("scancel: saved after %.1f s" % took, flush=True)
        self.assertLessEqual(took, 30)
        self.wait_for_end(job, "CANCELLED", 40)
        self.assert_nothing_left(["n1", "n2", "n3"])
        self.assertEqual([l["exit_code"] for l in self.launches()], [75])
        again = self.submit("cancel")
        self.wait_for_end(again, "COMPLETED")
        self.assertEqual(self.assert_as_if_nothing_happened(), [1, 2])
        first, second = self.launches()
        self.measure("Slurm: scancel", took, second["first_step_after_seconds"], first["last_step"] - first["newest_checkpoint"])
        self.assert_nothing_left(["n1", "n2", "n3"])

    def test_scancel_of_a_slow_save(self):
        """One rank takes 6 s for it, in which nobody may lose patience."""
        job = self.submit("slow", train__max_steps=100000, checkpoint__save_steps=0,
                          fault="rank=3 section=checkpoint action=stop")
        self.wait_for_step(3)
        began = time.monotonic()
        self.slurm.client("scancel", job, check=True)
        self.wait_until("rank 3 stands still", self.stopped_ranks, 10)
        time.sleep(6)
        for pid in self.stopped_ranks():
            os.kill(pid, signal.SIGCONT)
        self.wait_for_checkpoint()
        took = time.monotonic() - began
        self.assertLessEqual(took, 30)
        self.measure("Slurm: scancel", took, lost=0)
        self.wait_for_end(job, "CANCELLED", 40)
        self.assertEqual([l["exit_code"] for l in self.launches()], [75])
        self.assert_nothing_left(["n1", "n2", "n3"])
        result = harness.pesc(0, "inspect", "--checkpoint", self.path("slow"), "--verify")
        self.assertEqual(result.code, 0, str(result))


if __name__ == "__main__":
    try:
        with slurm.Hosts("/var/tmp/pesc-rig-%d" % os.getpid()):
            pass
    except (OSError, slurm.subprocess.CalledProcessError) as error:
        print("NOT TESTED: Slurm. This machine lets nobody make namespaces: %s" % error, flush=True)
        sys.exit(harness.NOT_TESTED)
    harness.main()
