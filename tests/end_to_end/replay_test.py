"""The whole quick start. What it learns. And that, with dropout on as it has it, it has one curve on any layout when the
recorded choice of experts is replayed: recorded on four ranks (dp 2, tp 2, ep 4), replayed on one rank and on eight, each time
without a break from the first step to the last, the loss of every step to 1e-4 relative.
"""

import json
import os

import harness

BOUND = 1e-4
LENGTH = {"train__max_steps": 12} if harness.SAMPLE else {}


class Replay(harness.EndToEnd):
    sample = ["test_one_curve_on_any_layout"]

    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        cls.recording = cls.path("recording")
        done = harness.pesc(4, "train", *cls.experiment("recorded", tp=2, ep=4, debug__routing_record=cls.recording, **LENGTH), seconds=900)
        assert done.code == harness.OK, done
        cls.recorded = harness.curve(cls.path("recorded"))

    def exact_match(self, *words, **fields):
        """{domain: share of eval questions answered to the letter}, before or after tuning."""
        out = self.path("eval.json")
        result = harness.pesc(4, "eval", *words, *self.experiment("recorded", tp=2, ep=4, **fields), "--out", out, seconds=300)
        self.assertEqual(result.code, harness.OK, str(result))
        with open(out, encoding="utf-8") as file:
            domains = json.load(file)["datasets"]
        self.assertEqual(sorted(domains), ["arithmetic", "programs", "text"])
        for name, values in domains.items():
            self.assertEqual(values["rows"], 100, name)
        print({name: values["exact_match"] for name, values in domains.items()}, flush=True)
        return sum(values["exact_match"] for values in domains.values()) / len(domains)

    def test_what_it_learns(self):
        """From next to nothing to at least 0.8 on average, on rows that it never saw."""
        self.assertLess(self.exact_match("--base"), 0.05)
        self.assertGreaterEqual(self.exact_match(), 0.8)

    def test_one_curve_on_any_layout(self):
        # One after the other: side by side on two cores they take half as long again.
        for ranks, tp, ep, threads in ((1, 1, 1, 2), (8, 4, 8, 1)):
            run = "replayed-%d" % ranks
            result = harness.pesc(ranks if ranks > 1 else 0, "train", *self.experiment(
                run, tp=tp, ep=ep, parallel__num_threads=threads, debug__routing_replay=self.recording, **LENGTH), seconds=900)
            self.assertEqual(result.code, harness.OK, str(result))
            got = harness.curve(self.path(run))
            self.assertEqual([r["expert_share"] for r in got], [r["expert_share"] for r in self.recorded])
            # Other GEMMs round otherwise: equal digits would mean that nothing was computed again.
            self.assertNotEqual([r["loss"] for r in got], [r["loss"] for r in self.recorded])
            # One launch, and no step of another's.
            self.assertEqual({r["launch"] for r in harness.read_jsonl(self.path(run, "metrics.jsonl"))}, {1})
            what = "%d ranks, tp %d, ep %d" % (ranks, tp, ep)
            for part in (100, 300, 600):
                worst = harness.largest_difference(self.recorded[:part], got[:part], ["loss"])["loss"]
                print("%s, up to step %d: %.1e (step %d)" % ((what, part) + worst), flush=True)
            with self.subTest(ranks=ranks):
                self.assert_curves_agree(self.recorded, got, BOUND, what, ["loss"])

    def test_what_is_compared(self):
        """All steps of the experiment, with dropout on, of a run that learns."""
        steps, dropout = {}, {}
        section = ""
        with open(self.path("recorded", "experiment.textproto"), encoding="utf-8") as file:
            for line in file:
                name, _, value = line.strip().partition(":")
                if line.rstrip().endswith("{") and not line.startswith(" "):
                    section = line.split()[0]
                if name == "max_steps":
                    steps[section] = int(value)
                if name in ("lora_dropout", "adapter_dropout"):
                    dropout[section] = float(value)
        self.assertEqual(steps, {"train": len(self.recorded)})
        self.assertEqual(sorted(dropout), ["lora", "moe"])
        self.assertTrue(all(share > 0 for share in dropout.values()), dropout)
        mean = lambda records: sum(r["loss"] for r in records) / len(records)
        self.assertLess(mean(self.recorded[-25:]), 0.1, "it does not learn")


if __name__ == "__main__":
    harness.main()
