"""Real jobs under a real Slurm (cluster/rigs/slurm.py): munged, slurmctld and three slurmd, each on a host of its own.

Whatever happens to the job, the weights at the end are bitwise those of a run without Slurm to which nothing happened. Needs
root and namespaces; where a container may make none, this test says so and ends.
"""

import os
import re
import signal
import sys
import tempfile
import time

import harness

sys.path.insert(0, os.path.join(harness.SOURCE, "cluster", "rigs"))
import slurm  # noqa: E402

STEPS, EVERY, NODES, RANKS = 24, 5, 2, 4
SCRIPT = os.path.join(harness.SOURCE, "cluster", "slurm", "many-nodes.sbatch")
OURS = re.compile(r"(^|/)(pesc|mpirun|orted|srun|slurm_script)$")
tempfile.tempdir = "/var/tmp"  # the hosts have their own /tmp


class UnderSlurm(harness.EndToEnd):
    train_rows = 300

    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        result = harness.pesc(0, "launch", "-n", RANKS, "--", "train", *cls.flags("plain"))
        assert result.code == 0, str(result)
        cls.expected = cls.weights("plain")

    def setUp(self):
        self.slurm = slurm.Slurm(self.path("rig-" + self.id().rpartition(".")[2]), nodes=NODES + 1).up()
        self.addCleanup(self.slurm.down)

    @classmethod
    def flags(cls, run, fault=None, **fields):
        settings = dict(tp=2, ep=4, train__steps=STEPS, train__global_batch=16, train__micro_batch=16,
                        checkpoint__every_steps=EVERY, train__log_every=1)
        settings.update(fields)
        if fault:
            settings["debug__fault"] = "[%s]" % fault
        return cls.experiment(run, **settings)

    @classmethod
    def weights(cls, run):
        folder = cls.path(run, "step-%d" % STEPS)
        return {name: digest for name, digest in harness.digests(folder).items() if name.endswith(".safetensors")}

    def submit(self, run, *options, fault=None, **fields):
        words = self.flags(run, fault, **fields)
        self.run_name = run
        text = self.slurm.client("env", "PESC=" + harness.PESC, "sbatch", "--nodes=%d" % NODES,
                                 "--ntasks-per-node=%d" % (RANKS // NODES), "--output=" + self.log, *options, SCRIPT,
                                 *words[1:], check=True).stdout
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

    def assert_as_if_nothing_happened(self):
        self.assertEqual(self.weights(self.run_name), self.expected)
        harness.curve(self.path(self.run_name))  # every step once
        numbers = [r["launch"] for r in harness.read_jsonl(self.path(self.run_name, "launches.jsonl"))]
        self.assertEqual(numbers, sorted(set(numbers)))  # each launch after the other, one at a time
        return numbers

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
        self.assertEqual(harness.read_jsonl(self.path("limit", "launches.jsonl"))[0]["exit_code"], 75)
        self.assert_nothing_left(["n1", "n2", "n3"])

    def test_preemption(self):
        """A job of a partition that goes before takes its nodes: it saves in the time of grace, and starts again after."""
        job = self.submit("preempted", fault="step=12 rank=3 action=stop", recovery__step_limit_s=100)
        self.wait_for_step(11)
        self.slurm.client("sbatch", "--partition=urgent", "--nodes=%d" % (NODES + 1), "--exclusive", "--output=/dev/null",
                          "--wrap=sleep 2", check=True)
        # With SIGTERM Slurm sends SIGCONT, which wakes the rank that stood still.
        self.wait_until("it starts again", lambda: "start 2," in self.story(), 60)
        self.wait_for_end(job, "COMPLETED")
        self.assertEqual(self.assert_as_if_nothing_happened()[:2], [1, 2])
        self.assertEqual(harness.read_jsonl(self.path("preempted", "launches.jsonl"))[0]["exit_code"], 75)
        self.assert_nothing_left(["n1", "n2", "n3"])

    def stopped_ranks(self):
        return [pid for host in ("n1", "n2") for pid in self.ours_on(host) if self.is_stopped(pid)]

    @staticmethod
    def is_stopped(pid):
        with open("/proc/%d/stat" % pid, encoding="ascii", errors="replace") as file:
            return file.read().rpartition(")")[2].split()[0] == "T"

    def test_a_node_dies(self):
        """Slurm puts the job back into the queue, and it goes on on other nodes."""
        job = self.submit("node", fault="step=13 rank=0 action=stop", recovery__step_limit_s=100)
        self.wait_for_step(12)
        self.slurm.kill_node("n2")
        self.wait_until("it is requeued", lambda: "start 2," in self.story(), 90)
        self.wait_for_end(job, "COMPLETED")
        self.assertIn("nodes n[1,3]", self.story())
        self.assert_as_if_nothing_happened()
        self.assert_nothing_left(["n1", "n3"])

    def test_scancel(self):
        """Saves, within Slurm's 30 s, and is not requeued. One rank takes 6 s for it, in which nobody may lose patience."""
        job = self.submit("cancel", train__steps=100000, checkpoint__every_steps=0,
                          fault="rank=3 section=checkpoint action=stop")
        self.wait_for_step(3)
        self.slurm.client("scancel", job, check=True)
        self.wait_until("rank 3 stands still", self.stopped_ranks, 10)
        time.sleep(6)
        for pid in self.stopped_ranks():
            os.kill(pid, signal.SIGCONT)
        took = self.wait_until("a checkpoint", lambda: any(
            re.fullmatch(r"step-\d+", name) for name in os.listdir(self.path("cancel"))), 30)
        print("scancel: a checkpoint after %.1f s" % took, flush=True)
        self.wait_for_end(job, "CANCELLED", 40)
        self.assert_nothing_left(["n1", "n2", "n3"])
        result = harness.pesc(0, "inspect", "--checkpoint", self.path("cancel"), "--verify")
        self.assertEqual(result.code, 0, str(result))


if __name__ == "__main__":
    try:
        with slurm.Hosts("/var/tmp/pesc-rig-%d" % os.getpid()):
            pass
    except (OSError, slurm.subprocess.CalledProcessError) as error:
        print("NOT TESTED: Slurm. This machine lets nobody make namespaces: %s" % error, flush=True)
        sys.exit(harness.NOT_TESTED)
    harness.main(tries=2)
