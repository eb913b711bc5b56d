"""Recorded routing: a record without what a step needs ends all ranks before the step, with one message; a step that is
computed once more is recorded once; a folder holds the record of one run."""

import os

import harness
from harness import DATA, USAGE

SMALL = dict(tp=1, ep=2, train__max_steps=3, train__global_batch_size=8, train__gradient_accumulation_steps=2,
             data__max_seq_length=64, train__logging_steps=1, train__lr_scheduler_type="CONSTANT_WITH_WARMUP", train__warmup_ratio=0)


class Routing(harness.EndToEnd):
    train_rows = 10

    def record(self, recording, **fields):
        self.train(2, "recorded-" + recording, debug__routing_record=self.path(recording), **{**SMALL, **fields})
        return self.records(recording)

    def records(self, recording):
        """{name: bytes behind the first line, which says whose they are}"""
        found = {}
        for name in os.listdir(self.path(recording)):
            with open(self.path(recording, name), "rb") as file:
                self.assertRegex(file.readline(), rb"^pesc routing 1 run [0-9a-f]{32} launch \d+ rank [01] of 2 top_k \d+\n$")
                found[name] = file.read()
        return found

    def test_a_step_that_was_not_recorded(self):
        self.record("short", train__max_steps=2)
        result = harness.pesc(2, "train", *self.experiment("replayed", debug__routing_replay=self.path("short"), **SMALL),
                              seconds=60)
        self.assert_refused(result, DATA, "recorded routing has no step 2, layer 0", "debug.routing_replay")
        steps = harness.curve(self.path("replayed"))
        self.assertEqual([r["expert_share"] for r in steps], [r["expert_share"] for r in harness.curve(self.path("recorded-short"))])

    def test_a_record_with_other_experts(self):
        self.record("eight", moe__num_experts=8, train__max_steps=1)
        result = harness.pesc(2, "train", *self.experiment("four", debug__routing_replay=self.path("eight"), moe__num_experts=4,
                                                           **SMALL), seconds=60)
        self.assert_refused(result, DATA, "names expert", "the model has 4 (moe.num_experts)")

    def test_a_step_computed_again_is_recorded_once(self):
        plain = self.record("plain")
        again = self.record("again", debug__fault="[step=2 rank=0 action=nan]")
        self.assertEqual(len(plain), 2)
        retried = [r.get("nonfinite") for r in harness.curve(self.path("recorded-again"))]
        self.assertEqual(retried, [None, "retried", None])
        self.assertEqual(plain, again)
        self.assertTrue(all(plain.values()))
        # Another run does not write into that folder; the run itself goes on with its record.
        result = harness.pesc(2, "train", *self.experiment("stranger", debug__routing_record=self.path("plain"), **SMALL), seconds=60)
        self.assert_refused(result, USAGE, "'%s' holds the record of run" % self.path("plain"), "and this is run")
        self.assertFalse(os.path.exists(self.path("stranger")))
        self.assertEqual(self.records("plain"), plain)
        self.train(2, "recorded-plain", debug__routing_record=self.path("plain"), **{**SMALL, "train__max_steps": 4})
        self.assertEqual(len(self.records("plain")), 4)


if __name__ == "__main__":
    harness.main()
