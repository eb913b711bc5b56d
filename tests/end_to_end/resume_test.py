"""Two runs of one layout are bitwise equal; a run that is stopped and started again is bitwise the one that was not,
whatever it recomputes; started again on another layout it has the same curve. SIGUSR1 and SIGTERM save and end with
75: start me again.
"""

import ctypes
import json
import os
import shutil
import signal
import struct

import harness
from harness import OK, PREEMPTED

STEPS = 16
HALF = 8
FIELDS = {"train__max_steps": STEPS, "lora__lora_dropout": 0.1, "moe__adapter_dropout": 0.1, "checkpoint__save_steps": HALF,
          "train__gradient_accumulation_steps": 8}
LAYOUT = {"tp": 2, "ep": 4}  # on four ranks


def varint(data, at):
    """(value, position after it) of protobuf's variable-length number."""
    value = shift = 0
    while True:
        byte = data[at]
        value, shift, at = value | (byte & 127) << shift, shift + 7, at + 1
        if byte < 128:
            return value, at


def without_extra(path, key):
    """Takes an entry out of a manifest's map `extra` (field 10), and makes its checksum right again."""
    with open(path, "rb") as file:
        data = file.read()[:-9]
    kept, at, taken = b"", 0, 0
    while at < len(data):
        tag, body = varint(data, at)
        value, end = varint(data, body) if tag & 7 != 1 else (0, body + 8)
        if tag & 7 == 2:
            end += value
        if tag == 10 << 3 | 2 and key in data[body:body + 4 + len(key)]:
            taken += 1
        else:
            kept += data[at:end]
        at = end
    assert taken == 1, "%d entries %s" % (taken, key)
    xxh3 = ctypes.CDLL("libxxhash.so.0").XXH3_64bits
    xxh3.restype, xxh3.argtypes = ctypes.c_uint64, [ctypes.c_char_p, ctypes.c_size_t]
    with open(path, "wb") as file:
        file.write(kept + bytes([15 << 3 | 1]) + struct.pack("<Q", xxh3(kept, len(kept))))


class Resume(harness.EndToEnd):
    train_rows = 250  # per domain: 16 steps go beyond the first epoch

    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        straight = harness.pesc(4, "train", *cls.experiment("straight", **LAYOUT, **FIELDS))
        assert straight.code == OK, straight

    def shards(self, run, step):
        found = {name: digest for name, digest in harness.digests(self.path(run, "step-%d" % step)).items()
                 if name.endswith(".safetensors")}
        self.assertEqual(len(found), 4, "every rank writes a shard")
        return found

    def as_text(self, run, but=()):
        """What each step computed, digit for digit; its times and rates are the machine's."""
        machine = ("seconds", "tokens_per_second", "sol_fraction", "mfu", "memory_bytes", "launch", "time", *but)
        return [json.dumps({k: v for k, v in record.items() if k not in machine}, sort_keys=True)
                for record in harness.curve(self.path(run))]

    def assert_same_run(self, run, but=(), straight="straight"):
        self.assertEqual(len(self.as_text(run)), STEPS)
        for step, (expected, got) in enumerate(zip(self.as_text(straight, but), self.as_text(run, but)), 1):
            self.assertEqual(got, expected, "step %d" % step)
        self.assertEqual(self.shards(run, STEPS), self.shards(straight, STEPS), "weights, moments or slices differ")

    def stop_at(self, run, step, stop):
        """Trains until a step is done, calls stop(mpirun), and returns the step of the checkpoint that it left."""
        process = harness.start(4, "train", *self.experiment(run, **LAYOUT, **FIELDS))
        harness.wait_for_step(process, self.path(run), step)
        stop(process)
        result = harness.finish(process, 60)
        self.assertEqual(result.code, PREEMPTED, str(result))
        self.assertEqual(result.complaints, [], "being preempted is no error")
        at = len(harness.curve(self.path(run)))
        self.assertTrue(step <= at < STEPS, "stopped at step %d" % at)
        self.assertTrue(os.path.exists(self.path(run, "step-%d" % at, "manifest.pb")), "no checkpoint of step %d" % at)
        return at

    def test_two_runs_are_bitwise_equal(self):
        self.train(4, "again", **LAYOUT, **FIELDS)
        self.assert_same_run("again")

    def test_stopped_twice_it_is_bitwise_the_same(self):
        self.stop_at("stopped", 3, lambda mpirun: mpirun.send_signal(signal.SIGUSR1))  # mpirun passes it on to all
        self.stop_at("stopped", 10, lambda mpirun: os.kill(harness.rank_pids(mpirun)[-1], signal.SIGTERM))
        self.train(4, "stopped", **LAYOUT, **FIELDS)
        self.assert_same_run("stopped")

    @harness.whole
    def test_on_quantised_weights(self):
        """Quantised anew, or read from the cache: the same bytes, so the same run, also from its middle and with other recomputation."""
        for frozen in ("FP8", "NF4"):
            with self.subTest(frozen):
                fields = {**LAYOUT, **FIELDS, "train__frozen_dtype": frozen}
                cached = {"model__cache_dir": self.path("weights-" + frozen)}
                straight, half = "straight-" + frozen, "half-" + frozen
                self.train(4, straight, **fields, **cached)
                self.assertNotEqual(self.as_text(straight), self.as_text("straight"), "nothing was quantised")
                for settings in ({}, {**cached, "train__recompute_granularity": "FULL"}):
                    shutil.copytree(self.path(straight), self.path(half))
                    shutil.rmtree(self.path(half, "step-%d" % STEPS))
                    result = self.train(4, half, **fields, **settings)
                    self.assertIn("step-%d" % HALF, result.err)
                    self.assert_same_run(half, but=("bytes_sent_rank0",), straight=straight)
                    shutil.rmtree(self.path(half))

    @harness.whole
    def test_finished_run_started_again(self):
        before = harness.digests(self.path("straight", "step-%d" % STEPS)), self.as_text("straight")
        self.train(4, "straight", **LAYOUT, **FIELDS)
        self.assertEqual((harness.digests(self.path("straight", "step-%d" % STEPS)), self.as_text("straight")), before)

    @harness.whole
    def test_a_checkpoint_that_says_nothing_of_its_rows(self):
        """Written before they were recorded: it loads, with a warning."""
        shutil.copytree(self.path("straight"), self.path("silent"))
        shutil.rmtree(self.path("silent", "step-%d" % STEPS))
        without_extra(self.path("silent", "step-%d" % HALF, "manifest.pb"), b"training_rows")
        result = self.train(4, "silent", **LAYOUT, **FIELDS)
        self.assertIn("the checkpoint of step %d says nothing of its training rows" % HALF, result.err)
        self.assertIn("step-%d at step %d" % (HALF, HALF), result.err)
        self.assert_same_run("silent")
        again = self.train(4, "silent", **LAYOUT, **FIELDS)  # its own checkpoints say it
        self.assertNotIn("says nothing", again.err)

    @harness.whole
    def test_resumed_under_another_recompute_policy(self):
        for recompute in ("SELECTIVE", "FULL"):
            with self.subTest(recompute):
                run = "half-" + recompute
                shutil.copytree(self.path("straight"), self.path(run))
                shutil.rmtree(self.path(run, "step-%d" % STEPS))
                result = self.train(4, run, train__recompute_granularity=recompute, **LAYOUT, **FIELDS)
                self.assertIn("step-%d" % HALF, result.err)
                sent = [[r["bytes_sent_rank0"] for r in harness.curve(self.path(r))] for r in ("straight", run)]
                self.assertGreater(min(sent[1][HALF:]), max(sent[0][HALF:]), "nothing was derived again")
                self.assert_same_run(run, but=("bytes_sent_rank0",))

    def test_resumed_on_another_layout(self):
        for ranks, tp, ep in ((8, 4, 8),) if harness.SAMPLE else ((1, 1, 1), (2, 1, 2), (8, 4, 8)):
            with self.subTest(ranks=ranks, tp=tp, ep=ep):
                run = "half-%d" % ranks
                shutil.copytree(self.path("straight"), self.path(run))
                shutil.rmtree(self.path(run, "step-%d" % STEPS))
                result = self.train(ranks, run, tp=tp, ep=ep, **FIELDS)
                self.assertIn("step-%d" % HALF, result.err)
                expected, got = harness.curve(self.path("straight")), harness.curve(self.path(run))
                self.assertEqual(got[:HALF], expected[:HALF])
                # Other GEMMs round otherwise, so equal digits would mean that nothing was computed again.
                self.assertNotEqual([r["loss"] for r in got], [r["loss"] for r in expected])
                self.assert_curves_agree(expected, got, 1e-4, "%d steps on 4 ranks, %d on %d" % (HALF, HALF, ranks), ["loss"])

    @harness.whole
    def test_gathered_weights(self):
        """A run that gathers the adapters' weights resumes bit for bit, and with tokens with one warning."""
        weights = {**LAYOUT, **FIELDS, "parallel__expert_exchange": "WEIGHTS"}
        self.assertIn("expert exchange: WEIGHTS", self.train(4, "weights", **weights).err)
        for run in ("weights-again", "tokens-after"):
            shutil.copytree(self.path("weights"), self.path(run))
            shutil.rmtree(self.path(run, "step-%d" % STEPS))
        again = self.train(4, "weights-again", **weights)
        self.assertIn("step-%d at step %d" % (HALF, HALF), again.err)
        self.assertNotIn("under other conditions", again.err)
        self.assertEqual(self.as_text("weights-again"), self.as_text("weights"))
        self.assertEqual(self.shards("weights-again", STEPS), self.shards("weights", STEPS))
        other = self.train(4, "tokens-after", **LAYOUT, **FIELDS)
        self.assertEqual(other.err.count("under other conditions"), 1)
        self.assertIn("expert_exchange: WEIGHTS -> TOKENS", other.err)
        for run in ("weights", "tokens-after"):
            self.assert_curves_agree(harness.curve(self.path("straight")), harness.curve(self.path(run)), 1e-4, run, ["loss"])
        self.assertNotEqual(self.as_text("weights"), self.as_text("straight"), "both exchanges sent the same")
        launches = [r["expert_exchange"] for r in harness.starts(self.path("tokens-after"))]
        self.assertEqual(launches, ["WEIGHTS", "TOKENS"])

    @harness.whole
    def test_packed_rows(self):
        """Resumed in the second epoch, they are the rows of the run that did not stop; on one rank they have its curve."""
        fields = {**FIELDS, "data__packing": "BEST_FIT", "train__max_steps": 12, "train__global_batch_size": 64,
                  "checkpoint__save_steps": 9}
        self.train(2, "packed", ep=2, **fields)
        shutil.copytree(self.path("packed"), self.path("packed-again"))
        shutil.rmtree(self.path("packed-again", "step-12"))
        self.assertIn("step-9 at step 9", self.train(2, "packed-again", ep=2, **fields).err)
        self.assertEqual(self.as_text("packed-again"), self.as_text("packed"))
        before, after = (harness.digests(self.path(run, "step-12")) for run in ("packed", "packed-again"))
        for name in ("shard-00000.safetensors", "shard-00001.safetensors"):
            self.assertEqual(after[name], before[name], name)
        fill = {run: [r["fill_rate"] for r in harness.curve(self.path(run))] for run in ("packed", "straight")}
        self.assertGreater(min(fill["packed"]), 0.9)
        self.assertLess(max(fill["straight"]), 0.6)
        self.train(1, "packed-alone", **fields)
        self.assert_curves_agree(harness.curve(self.path("packed")), harness.curve(self.path("packed-alone")), 1e-4,
                                 "packed rows on 2 ranks and on 1", ["loss"])
        refused = self.train(2, "packed-again", code=harness.USAGE, ep=2, **{**fields, "data__packing": "NONE"})
        self.assertIn("data.packing: BEST_FIT -> NONE", refused.err)


if __name__ == "__main__":
    harness.main()
