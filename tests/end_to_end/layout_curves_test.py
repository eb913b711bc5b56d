"""20 steps of the quick start, with dropout on, give one curve: on 1, 2, 4 and 8 ranks and every layout
(tp, ep) of them that this model can have (4 heads over 2 KV heads: tp up to 4; 8 experts: every ep), also with
micro-batches and with rows that do not divide over the dp ranks.

The loss of every step agrees to 1e-4 relative. Rounding may flip a first choice of experts, on some processors in the
first step already; one choice of a layer's 4000 moves the aux loss by up to 1e-4, so the aux loss and the
gradient norm are held to 1e-3.

Twenty steps are either the experiment with train.max_steps=20, whose rate is at its full height after the first, with 64 rows a
step, which amplify rounding more and take less time than its 256; or the first twenty of its whole schedule with all its
rows, in which the rate still rises.
"""

import itertools
import math
import re

import harness

BOUND, BOUND_WITH_FLIPS = 1e-4, 1e-3
STEPS = {"train__max_steps": 20}
FEWER = {"train__global_batch_size": 64}


class LayoutCurves(harness.EndToEnd):
    train_rows = 2000  # per domain: more than 20 steps of 256 rows
    sample = ["test_every_layout", "test_rows_that_do_not_divide"]

    def run_curve(self, ranks, tp, ep, **fields):
        run = "np%d-tp%d-ep%d" % (ranks, tp, ep) + "".join("-%s" % v for v in fields.values())
        self.train(ranks, run, tp=tp, ep=ep, **STEPS, **fields)
        return harness.curve(self.path(run))

    def check_curve(self, expected, got, what):
        self.assert_curves_agree(expected, got, BOUND, what, ["loss"])
        self.assert_curves_agree(expected, got, BOUND_WITH_FLIPS, "  and", ["aux_loss", "grad_norm"])

    def check_layouts(self, layouts, learns=0.75, **fields):
        expected = self.run_curve(1, 1, 1, **fields)
        self.assertEqual(len(expected), 20)
        self.assertLess(expected[-1]["loss"], learns * expected[0]["loss"], "it does not learn")
        for ranks, tp, ep in layouts:
            with self.subTest(ranks=ranks, tp=tp, ep=ep):
                self.check_curve(expected, self.run_curve(ranks, tp, ep, **fields),
                                 "%d ranks, tp %d, ep %d %s" % (ranks, tp, ep, fields or ""))
        return expected

    def test_every_layout(self):
        powers = (1, 2, 4, 8)
        layouts = [(ranks, tp, ep) for ranks, tp, ep in itertools.product(powers[1:], powers[:3], powers)
                   if tp <= ranks and ep <= ranks]
        self.assertEqual(len(layouts), 4 + 9 + 12)
        if harness.SAMPLE:  # each value of tp, and three of dp and of ep
            layouts = [(2, 2, 2), (4, 1, 4), (8, 4, 2)]
        with_dropout = self.check_layouts(layouts, **FEWER)
        # Dropout must have been on, or the layouts' masks were not compared.
        self.train(1, "without", lora__lora_dropout=0, moe__adapter_dropout=0, **STEPS, **FEWER)
        without = harness.curve(self.path("without"))
        self.assertGreater(harness.largest_difference(with_dropout, without)["loss"][0], 1e-3)

    def test_gathered_weights(self):
        """Instead of tokens; also where a step has several micro-batches, whose gradients are added up at their owners."""
        layouts = [(2, 1, 2), (2, 2, 2), (4, 2, 4), (4, 1, 2), (8, 1, 8), (8, 4, 4)]
        self.check_layouts(layouts, parallel__expert_exchange="WEIGHTS", **FEWER)
        self.check_layouts([(4, 2, 4), (8, 1, 4)], parallel__expert_exchange="WEIGHTS", train__gradient_accumulation_steps=4, **FEWER)

    @harness.whole
    def test_first_steps_of_the_whole_schedule(self):
        with open(harness.QUICKSTART, encoding="utf-8") as file:
            text = file.read()
        steps, share = (float(re.search(r"^  %s: (\S+)$" % name, text, re.M).group(1)) for name in ("max_steps", "warmup_ratio"))
        warmup = math.ceil(steps * share)
        self.assertGreaterEqual(warmup, 20)  # or the rate would have to fall as in the whole schedule
        expected = self.check_layouts([(2, 2, 1), (2, 1, 2), (4, 2, 4), (8, 1, 8), (8, 4, 8)], learns=0.9, train__warmup_steps=warmup)
        rate = float(re.search(r"^  learning_rate: (\S+)$", text, re.M).group(1))
        self.assertAlmostEqual(expected[-1]["lr"], rate * 20 / warmup, places=9)

    def test_accumulation(self):
        self.check_layouts([(2, 1, 2), (4, 2, 4), (8, 4, 8)], train__global_batch_size=64, train__gradient_accumulation_steps=4)

    def test_accumulation_weighs_tokens(self):
        """Without the aux loss, which is of a micro-batch, their size changes nothing: the loss is a sum over tokens
        divided by their number, not a mean of the micro-batches' means."""
        # The first step's rows, four at a time, each a step of its own that leaves the model as it is.
        self.train(1, "rows", train__max_steps=16, train__global_batch_size=4, train__learning_rate=1e-12)
        parts = harness.curve(self.path("rows"))
        expected = self.run_curve(1, 1, 1, moe__router_aux_loss_coef=0, **FEWER)
        tokens = [part["supervised_tokens"] for part in parts]
        self.assertEqual(sum(tokens), expected[0]["supervised_tokens"])
        self.assertGreater(max(tokens), 1.2 * min(tokens), "all parts have as many tokens")
        by_token = sum(part["loss"] * part["supervised_tokens"] for part in parts) / sum(tokens)
        by_part = sum(part["loss"] for part in parts) / len(parts)
        self.assertLess(abs(by_token / expected[0]["loss"] - 1), BOUND)
        self.assertGreater(abs(by_part / expected[0]["loss"] - 1), 10 * BOUND, "a mean of means would pass")
        for micro_batches in (4, 16):
            got = self.run_curve(1, 1, 1, train__global_batch_size=64, train__gradient_accumulation_steps=micro_batches,
                                 moe__router_aux_loss_coef=0)
            what = "%d micro-batches" % micro_batches
            self.assert_curves_agree(expected, got, BOUND, what, ["loss"])
            self.assert_curves_agree(expected, got, BOUND_WITH_FLIPS, "  and", ["grad_norm"])

    def test_rows_that_do_not_divide(self):
        # Batches of 60 keep the rounding of a step small. Six rows on four dp ranks are 2 + 2 + 1 + 1; on eight, two ranks have none.
        layouts = [(4, 1, 4), (4, 1, 1), (8, 2, 8), (8, 1, 8)]
        self.check_layouts(layouts[-1:] if harness.SAMPLE else layouts, train__global_batch_size=60,
                           train__gradient_accumulation_steps=10)


if __name__ == "__main__":
    harness.main()
