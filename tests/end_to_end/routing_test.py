"""Recorded routing: a record without what a step needs ends all ranks before the step, with one message; a step that is
computed once more is recorded once."""

import os

import harness
from harness import DATA

SMALL = dict(tp=1, ep=2, train__steps=3, train__global_batch=8, train__micro_batch=4, train__seq_len=64, train__log_every=1)


class Routing(harness.EndToEnd):
    train_rows = 10

    def record(self, tape, **fields):
        self.train(2, "recorded-" + tape, debug__routing_record=self.path(tape), **{**SMALL, **fields})
        return harness.digests(self.path(tape))

    def test_a_step_that_was_not_recorded(self):
        self.record("short", train__steps=2)
        result = harness.pesc(2, "train", *self.experiment("replayed", debug__routing_replay=self.path("short"), **SMALL),
                              seconds=60)
        self.assert_refused(result, DATA, "recorded routing has no step 2, layer 0", "debug.routing_replay")
        steps = harness.curve(self.path("replayed"))
        self.assertEqual([r["expert_share"] for r in steps], [r["expert_share"] for r in harness.curve(self.path("recorded-short"))])

    def test_a_record_with_other_experts(self):
        self.record("eight", moe__experts=8, train__steps=1)
        result = harness.pesc(2, "train", *self.experiment("four", debug__routing_replay=self.path("eight"), moe__experts=4,
                                                           **SMALL), seconds=60)
        self.assert_refused(result, DATA, "names expert", "the model has 4 (moe.experts)")

    def test_a_step_computed_again_is_recorded_once(self):
        plain = self.record("plain")
        again = self.record("again", debug__fault="[step=2 rank=0 action=nan]")
        self.assertEqual(len(plain), 2)
        retried = [r.get("nonfinite") for r in harness.curve(self.path("recorded-again"))]
        self.assertEqual(retried, [None, "retried", None])
        self.assertEqual(plain, again)
        self.assertTrue(all(os.path.getsize(self.path("plain", name)) > 0 for name in plain))


if __name__ == "__main__":
    harness.main()
