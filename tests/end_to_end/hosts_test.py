"""`pesc launch` over two hosts (cluster/rigs/two_hosts.py): what several hosts compute, and what happens when one is gone.

Needs root and namespaces. Where a container may make none, this test says so and ends.
"""

import os
import sys
import tempfile
import time

import harness

sys.path.insert(0, os.path.join(harness.SOURCE, "cluster", "rigs"))
import two_hosts  # noqa: E402

STEPS, EVERY, RANKS = 40, 5, 4
KEEP = (harness.SOURCE, os.path.dirname(harness.PESC))
tempfile.tempdir = "/var/tmp"  # the hosts have their own /tmp


class TwoHosts(harness.EndToEnd):
    train_rows = 300

    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        result = harness.pesc(0, "launch", "-n", RANKS, "--", "train", *cls.flags("one-host"))
        assert result.code == 0, str(result)
        cls.expected = cls.weights("one-host")

    def setUp(self):
        self.rig = two_hosts.Hosts(self.path("rig-" + self.id().rpartition(".")[2]), keep=KEEP).up()
        self.addCleanup(self.rig.down)

    @classmethod
    def flags(cls, run, **fields):
        settings = dict(tp=2, ep=4, train__max_steps=STEPS, train__global_batch_size=16,
                        checkpoint__save_steps=EVERY, train__logging_steps=1)
        settings.update(fields)
        return cls.experiment(run, **settings)

    def start(self, run, variables=(), **fields):
        """The supervisor on host left; -n 4 over both. It reaches host right by the agent, as it would by ssh."""
        prefix = self.rig.command("left", "env", "OMPI_MCA_plm_rsh_agent=" + self.rig.agent, *variables)
        return harness.start(0, "launch", "-n", RANKS, "--hostfile", self.rig.hostfile, "--", "train",
                             *self.flags(run, **fields), prefix=prefix)

    def finish(self, process, seconds=120):
        result = harness.finish(process, seconds)
        self.assertEqual(result.code, 0, str(result))
        return result

    @classmethod
    def weights(cls, run):
        folder = cls.path(run, "step-%d" % STEPS)
        return {name: digest for name, digest in harness.digests(folder).items() if name.endswith(".safetensors")}

    def launches(self, run):
        return harness.read_jsonl(self.path(run, "launches.jsonl"))

    def wait_until(self, what, condition, seconds):
        began = time.monotonic()
        while not condition():
            self.assertLess(time.monotonic() - began, seconds, what)
            time.sleep(0.02)
        return time.monotonic() - began

    def ranks_on(self, host):
        return [pid for pid, words in self.rig.processes_of(host).items() if words[:2] == [harness.PESC, "train"]]

    def assert_nothing_left(self, hosts=("left", "right")):
        for host in hosts:
            self.wait_until("everything on %s has ended" % host, lambda: not self.rig.processes_of(host), 2)
            self.assertEqual(self.rig.files_of(host), [], host)

    def test_two_hosts_compute_what_one_does(self):
        """Bit for bit: reductions go in the order of ranks, wherever they are. And an operator's settings reach mpirun."""
        process = self.start("both", variables=["OMPI_MCA_btl_tcp_if_include=10.77.0.0/24"])
        harness.wait_for_step(process, self.path("both"), 3)
        self.assertEqual((len(self.ranks_on("left")), len(self.ranks_on("right"))), (2, 2))
        with open("/proc/%d/environ" % self.ranks_on("right")[0], "rb") as file:
            environment = file.read().split(b"\0")
        self.assertIn(b"OMPI_MCA_btl_tcp_if_include=10.77.0.0/24", environment)
        self.assertTrue(any(v.startswith(b"PESC_LAUNCH=") for v in environment))
        result = self.finish(process)
        self.assertEqual(self.weights("both"), self.expected)
        (launch,) = self.launches("both")
        self.assertEqual((launch["ranks"], launch["hosts"], launch["left_out"]), (4, ["left", "right"], []))
        self.assertNotIn("<stderr>", result.err)
        self.assertNotIn("<stdout>", result.out)
        self.assert_nothing_left()

    def cut_at(self, run, process, step):
        """Cuts host right off, and waits until the launch has ended and the host's ranks are gone by themselves."""
        harness.wait_for_step(process, self.path(run), step)
        self.rig.cut("right")
        began = time.monotonic()
        noticed = self.wait_until("the supervisor notices", lambda: not self.ranks_on("left"), 10)
        self.wait_until("the ranks that are cut off end", lambda: not self.ranks_on("right"), 20)
        print("cut off: noticed after %.1f s; its ranks were gone after %.1f s" %
              (noticed, time.monotonic() - began), flush=True)

    def test_a_host_is_cut_off_and_comes_back(self):
        """No smaller layout: it waits, and ends with the same bits."""
        process = self.start("wait")
        self.cut_at("wait", process, 13)
        self.wait_until("the cause is told", lambda: os.path.exists(self.path("wait", "launches.jsonl")), 15)
        time.sleep(2)
        self.rig.heal("right")
        result = self.finish(process)
        self.assertRegex(result.err, r"NO ANSWER from host right \(")
        self.assertEqual(self.weights("wait"), self.expected)
        first = self.launches("wait")[0]
        self.assertEqual(list(first["unreachable_hosts"]), ["right"])
        self.assertEqual(self.launches("wait")[-1]["hosts"], ["left", "right"])
        self.measure_launches("node cut off", "wait")
        self.assert_nothing_left()

    def test_a_host_is_cut_off_and_the_other_goes_on(self):
        """A smaller layout; the host is taken back at the next restart."""
        process = self.start("smaller", recovery__smaller_layout="true", train__max_steps=120)
        self.cut_at("smaller", process, 13)
        self.wait_until("the smaller launch trains", lambda: len(self.ranks_on("left")) == 2, 30)
        harness.wait_for_step(process, self.path("smaller"), 30)
        self.rig.heal("right")
        os.kill(self.ranks_on("left")[0], 9)
        result = self.finish(process)
        first, second, third = self.launches("smaller")
        self.assertEqual((first["ranks"], list(first["unreachable_hosts"])), (4, ["right"]))
        self.assertEqual((second["ranks"], second["hosts"], second["left_out"]), (2, ["left"], ["right"]))
        self.assertEqual((third["ranks"], third["hosts"], third["left_out"]), (4, ["left", "right"], []))
        self.assertRegex(result.err, r"SMALLER LAYOUT: 2 of 4 ranks on left, tp 2, ep 2, dp 1; left out: right \(")
        self.measure("node cut off", *harness.failures(self.path("smaller"))[0])
        # The same in the file of the ranks, the first launch too; each record says who measured it.
        starts = harness.starts(self.path("smaller"))
        self.assertEqual([(r["launch"], r["ranks"]) for r in starts], [(1, 4), (2, 2), (3, 4)])
        self.assertEqual([l["from_step"] for l in (first, second, third)], [r["step"] for r in starts])
        self.assertEqual({r["launch"] for r in harness.curve(self.path("smaller"))}, {1, 2, 3})
        harness.curve(self.path("smaller"))  # every step once
        self.assert_nothing_left()

    def test_mpirun_killed(self):
        """Ranks end when it is gone, and leave shared memory behind on both hosts."""
        process = self.start("mpirun")
        harness.wait_for_step(process, self.path("mpirun"), 8)
        (mpirun,) = [pid for pid, words in self.rig.processes_of("left").items() if words[0] == "mpirun" and "train" in words]
        os.kill(mpirun, 9)
        result = self.finish(process)
        self.assertIn("mpirun was killed by signal 9", result.err)
        self.assertEqual(self.weights("mpirun"), self.expected)
        self.assert_nothing_left()
        self.measure_launches("mpirun of two hosts killed", "mpirun")

    def test_a_host_on_which_ranks_die_is_left_out(self):
        """It answers, but every launch dies there."""
        process = self.start("failing", recovery__smaller_layout="true", debug__fault="[rank=3 action=kill always]")
        result = self.finish(process)
        launches = self.launches("failing")
        self.assertEqual([(l["ranks"], l["left_out"]) for l in launches], [(4, []), (4, []), (2, ["right"])])
        self.assertEqual(list(launches[1]["suspect_hosts"]), ["right"])
        self.assertEqual([list(l["unreachable_hosts"]) for l in launches], [[], [], []])
        self.assertRegex(result.err, r"SMALLER LAYOUT: 2 of 4 ranks on left.*left out: right \(2 launches in a row died there")
        curve = harness.curve(self.path("failing"))
        self.assertEqual(len(curve), STEPS)
        # The same run in another layout: the losses agree until rounding has turned a choice of experts.
        self.assert_curves_agree(harness.curve(self.path("one-host"))[:20], curve[:20], 1e-4, "half the ranks", ["loss"])
        self.assert_nothing_left()
        self.measure_launches("a host on which ranks die in every launch", "failing")

    def test_a_repository_below_tmp(self):
        """Hosts have their own /tmp, in which the repository can be seen where it lies there."""
        with tempfile.TemporaryDirectory(dir="/tmp", prefix="pesc-kept-") as kept:
            with open(os.path.join(kept, "file"), "w", encoding="utf-8") as file:
                file.write("seen")
            with two_hosts.Hosts(self.path("rig-kept"), keep=[kept]) as rig:
                for command, out in ((["cat", os.path.join(kept, "file")], "seen"),
                                     (["ls", "/tmp"], os.path.basename(kept) + "\n")):
                    told = harness.subprocess.run(rig.command("right", *command), capture_output=True, text=True, check=False)
                    self.assertEqual(told.stdout, out, told.stderr)
                self.assertEqual(rig.files_of("right"), [])
        with self.assertRaisesRegex(OSError, "below /tmp"):
            two_hosts.Hosts("/tmp/rig")


if __name__ == "__main__":
    try:
        with two_hosts.Hosts("/var/tmp/pesc-rig-%d" % os.getpid()):
            pass
    except (OSError, harness.subprocess.CalledProcessError) as error:
        print("NOT TESTED: several hosts. This machine lets nobody make namespaces: %s" % error, flush=True)
        sys.exit(harness.NOT_TESTED)
    harness.main()
