"""The quick start's first 20 steps, with dropout on, give one curve: on 1, 2, 4 and 8 ranks and every layout
(tp, ep) of them that this model can have (4 heads over 2 KV heads: tp up to 4; 8 experts: every ep), also with
micro-batches and with rows that do not divide over the dp ranks.

The loss of every step agrees to 1e-4 relative. Rounding may flip a first choice of experts, on some processors in the
first step already; one choice of a layer's 4000 moves the balance loss by up to 1e-4, so the balance loss and the
gradient norm are held to 1e-3. The learning rate rises slowly: at the quick start's full rate (5e-3) a flip grows to 1e-3 of
the loss within 20 steps, which is the chaos of training, not an error of a layout.
"""

import itertools

import harness

BOUND, BOUND_WITH_FLIPS = 1e-4, 1e-3
WARMUP = 120  # steps: the rate reaches 8e-4, four times the paper's
DROPOUT = {"train__steps": 20, "train__warmup_steps": WARMUP, "lora__dropout": 0.1, "moe__dropout": 0.1}


class LayoutCurves(harness.EndToEnd):
    train_rows = 500  # per domain: more than 20 steps of 64 rows

    def run_curve(self, ranks, tp, ep, **fields):
        run = "np%d-tp%d-ep%d" % (ranks, tp, ep) + "".join("-%s" % v for v in fields.values())
        self.train(ranks, run, tp=tp, ep=ep, **DROPOUT, **fields)
        return harness.curve(self.path(run))

    def check_curve(self, expected, got, what):
        self.assert_curves_agree(expected, got, BOUND, what, ["loss"])
        self.assert_curves_agree(expected, got, BOUND_WITH_FLIPS, "  and", ["balance", "grad_norm"])

    def check_layouts(self, layouts, **fields):
        expected = self.run_curve(1, 1, 1, **fields)
        self.assertEqual(len(expected), 20)
        self.assertLess(expected[-1]["loss"], 0.75 * expected[0]["loss"], "it does not learn")
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
        with_dropout = self.check_layouts(layouts)
        # Dropout must have been on, or the layouts' masks were not compared.
        self.train(1, "without", train__steps=20, train__warmup_steps=WARMUP)
        without = harness.curve(self.path("without"))
        self.assertGreater(harness.largest_difference(with_dropout, without)["loss"][0], 1e-3)

    def test_accumulation(self):
        self.check_layouts([(2, 1, 2), (4, 2, 4), (8, 4, 8)], train__micro_batch=16)

    def test_accumulation_weighs_tokens(self):
        """Without the balance loss, which is of a micro-batch, their size changes nothing: the loss is a sum over tokens
        divided by their number, not a mean of the micro-batches' means."""
        # The first step's rows, four at a time, each a step of its own that leaves the model as it is.
        self.train(1, "rows", train__steps=16, train__global_batch=4, train__micro_batch=4, train__learning_rate=1e-12)
        parts = harness.curve(self.path("rows"))
        expected = self.run_curve(1, 1, 1, train__micro_batch=64, moe__aux_coef=0)
        tokens = [part["supervised_tokens"] for part in parts]
        self.assertEqual(sum(tokens), expected[0]["supervised_tokens"])
        self.assertGreater(max(tokens), 1.2 * min(tokens), "all parts have as many tokens")
        by_token = sum(part["loss"] * part["supervised_tokens"] for part in parts) / sum(tokens)
        by_part = sum(part["loss"] for part in parts) / len(parts)
        self.assertLess(abs(by_token / expected[0]["loss"] - 1), BOUND)
        self.assertGreater(abs(by_part / expected[0]["loss"] - 1), 10 * BOUND, "a mean of means would pass")
        for micro_batch in (16, 4):
            got = self.run_curve(1, 1, 1, train__micro_batch=micro_batch, moe__aux_coef=0)
            what = "micro-batches of %d" % micro_batch
            self.assert_curves_agree(expected, got, BOUND, what, ["loss"])
            self.assert_curves_agree(expected, got, BOUND_WITH_FLIPS, "  and", ["grad_norm"])

    def test_rows_that_do_not_divide(self):
        # Batches of 60 keep the rounding of a step small. Six rows on four dp ranks are 2 + 2 + 1 + 1; on eight, two ranks have none.
        self.check_layouts([(4, 1, 4), (4, 1, 1), (8, 2, 8), (8, 1, 8)], train__global_batch=60, train__micro_batch=6)


if __name__ == "__main__":
    harness.main()
