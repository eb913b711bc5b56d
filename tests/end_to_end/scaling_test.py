"""`pesc bench --scaling` over CPU ranks with a small shape: what it counts, its efficiencies, what it leaves out, and that it
goes on from what is there."""

import json
import os
import unittest

import harness
import no_gpu_test
from no_gpu_test import built_with_cuda

HIDDEN, FFN, LAYERS, VOCAB, ROWS, TOKENS, RANK, EXPERTS = 32, 48, 2, 128, 4, 64, 8, 4
SHAPE = """family: LLAMA vocab_size: %d hidden_size: %d intermediate_size: %d num_hidden_layers: %d
num_attention_heads: 4 num_key_value_heads: 4 max_position_embeddings: 128
""" % (VOCAB, HIDDEN, FFN, LAYERS)
# Every token chooses all experts, so that what is exchanged does not depend on the routing.
EXPERIMENT = """name: "small"
model { shape { vocab_size: %d hidden_size: %d intermediate_size: %d num_hidden_layers: %d num_attention_heads: 4 num_key_value_heads: 4 } }
train { mode: PESC max_steps: 1 global_batch_size: %d }
data { max_seq_length: %d }
lora { r: %d lora_alpha: 16 }
moe { num_experts: %d num_experts_per_tok: %d adapter_dim: 8 }
parallel { num_threads: 1 }
""" % (VOCAB, HIDDEN, FFN, LAYERS, ROWS, TOKENS, RANK, EXPERTS, EXPERTS)
POINTS = {"7b-d64-1": None, "7b-d64-dp2": "7b-d64-1", "7b-d64-dp4": "7b-d64-1", "7b-d64-ep2": "7b-d64-dp2",
          "7b-d64-ep4": "7b-d64-dp4", "7b-d64-tp2": "7b-d64-1", "7b-d64-tp4": "7b-d64-1"}


def trained(name, tp, ep, d=64):
    """The elements of a rank's gradients by the ranks that hold the same, and how many these are: parallel/README.md."""
    wide = {"q": HIDDEN, "k": HIDDEN, "v": HIDDEN, "o": HIDDEN, "gate": FFN, "up": FFN, "down": HIDDEN}  # outputs
    deep = {l: FFN if l == "down" else HIDDEN for l in wide}                                            # inputs
    ranks = int(name[-1])
    whole = sum(RANK * (deep[l] if l not in ("o", "down") else wide[l]) for l in wide) + EXPERTS * HIDDEN
    cut = sum(RANK * (wide[l] if l not in ("o", "down") else deep[l]) for l in wide) // tp
    adapters = EXPERTS // ep * 2 * HIDDEN * d
    return [(LAYERS * whole, ranks), (LAYERS * cut, ranks // tp), (LAYERS * adapters, ranks // ep)]


class ScalingTest(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.folder = harness.tempfile.mkdtemp(prefix="pesc-scaling-test-")
        cls.addClassCleanup(harness.shutil.rmtree, cls.folder, ignore_errors=True)
        for name, text in (("small.textproto", EXPERIMENT), ("shape.textproto", SHAPE)):
            with open(os.path.join(cls.folder, name), "w", encoding="utf-8") as file:
                file.write(text)

    def scaling(self, *flags, ranks=0, seconds=600, prefix=()):
        return harness.pesc(ranks, "bench", "--config", os.path.join(self.folder, "small.textproto"), "--shape",
                            os.path.join(self.folder, "shape.textproto"), "--steps", 2, *flags, seconds=seconds, prefix=prefix)

    def points(self, out):
        with open(out, encoding="utf-8") as file:
            return {p["name"]: p for p in json.load(file)["points"]}

    def test_1_2_and_4_ranks(self):
        out = os.path.join(self.folder, "scaling.json")
        wanted = ("--scaling", "--scaling_points", "^7b-d64-(1|[dte]p[24])$", "--out", out)
        result = self.scaling(*wanted)
        self.assertEqual(result.code, 0, str(result))
        points = self.points(out)
        self.assertEqual(list(points), list(POINTS))
        for name, against in POINTS.items():
            with self.subTest(name):
                self.check_point(points[name], points.get(against))
                self.assertIn("| %s | %d | " % (name, points[name]["ranks"]), result.out)
                self.assertIn("%s: %.1f ms a step" % (name, 1e3 * points[name]["report"]["step_seconds_median"]), result.err)
        # Nothing is left of the points' own reports, and a second call runs none again.
        result = self.scaling(*wanted, seconds=60)
        self.assertEqual(result.code, 0, str(result))
        self.assertEqual(result.err.count(", of an earlier call"), len(POINTS), str(result))
        self.assertEqual(self.points(out), points)
        # A file of other settings is not mixed up with these.
        result = self.scaling(*wanted, "--set", "data.max_seq_length=32", seconds=60)
        self.assertEqual(result.code, 64, str(result))
        self.assertIn("has results of other settings", result.err)

    def check_point(self, point, base):
        report, ranks, tp, ep = point["report"], point["ranks"], point["tp"], point["ep"]
        self.assertEqual((point["status"], report["ranks"], report["tp"], report["ep"]), ("done", ranks, tp, ep))
        self.assertEqual(point["tokens_per_step"], ranks * ROWS * TOKENS)
        self.assertAlmostEqual(point["tokens_per_second"], point["tokens_per_step"] / report["step_seconds_median"], places=6)
        if base:
            self.assertAlmostEqual(point["efficiency"], point["tokens_per_second"] / ranks / (base["tokens_per_second"] /
                                                                                             base["ranks"]), places=9)
        else:
            self.assertNotIn("efficiency", point)
        if ranks == 1:
            self.assertNotIn("collectives", report)
            self.assertEqual(report["bytes_sent_rank0_median"], 0)
            return
        # All that is counted is all that was sent, and the sums are those of their parts.
        collectives, sums = report["collectives"], {c["name"]: c for c in report["communication"]}
        self.assertEqual(sum(c["sent_bytes"] for c in collectives), report["bytes_sent_rank0_median"])
        for figure in ("sent_bytes", "seconds", "library_seconds"):
            self.assertAlmostEqual(sum(c[figure] for c in collectives), sum(c[figure] for c in sums.values()), places=9)
        for c in collectives:
            self.assertGreater(c["seconds"], 0, c)
            self.assertGreater(c["library_seconds"], 0, c)

        # Tensor parallelism, in float32: each token of a slice goes to tp - 1 others.
        slice_tokens = ROWS * TOKENS
        sent = lambda group, *operations: sum(c["sent_bytes"] for c in collectives
                                              if c["group"] == group and c["operation"] in operations)
        lora = 7 * RANK  # the columns of A x of all linears
        columns = LAYERS * (8 * HIDDEN + 2 * lora) + 3 * HIDDEN
        tensor_parallel = sums["tensor-parallel gathers"]
        self.assertEqual(sent("tp", "all_gather", "reduce_scatter"), (tp - 1) * slice_tokens * columns * 4)
        self.assertEqual(tensor_parallel["least_bytes"], (tp - 1) * slice_tokens * (8 * LAYERS + 3) * HIDDEN * 4)
        # The planned bytes are those, and the cross entropy's sums of three numbers for each token over tp ranks.
        self.assertEqual(tensor_parallel["planned_bytes"],
                         sent("tp", "all_gather", "reduce_scatter") + (tp - 1) * slice_tokens * 2 * 3 * 4)
        # Tokens: there, back, and the same in the backward, with weights there and their gradients back.
        exchange = sums["token exchange"]
        self.assertEqual(exchange["sent_bytes"], (ep - 1) * slice_tokens * LAYERS * (4 * HIDDEN + 2 * EXPERTS) * 4)
        for figure in ("planned_bytes", "least_bytes"):
            self.assertEqual(exchange[figure], exchange["sent_bytes"])
        # Gradients in float32; small all-reduces over MPI are sent to all ranks at once.
        gradients = sums["gradient reduction"]
        least = sum(4 * n * 2 * (held - 1) / held for n, held in trained(point["name"], tp, ep))
        for figure in ("planned_bytes", "least_bytes"):
            self.assertAlmostEqual(gradients[figure], least, places=6)
        self.assertGreaterEqual(gradients["sent_bytes"], least)
        self.assertLessEqual(gradients["sent_bytes"], least * (1 if ranks == 2 else 1.25))

    def test_points_without_their_gpus_are_said_not_to_be_run(self):
        out = os.path.join(self.folder, "none.json")
        result = self.scaling("--scaling", "--scaling_points", "dp8", "--out", out, "--set", "parallel.device=CUDA", prefix=no_gpu_test.HIDDEN)
        if built_with_cuda():
            self.assertEqual(result.code, 0, str(result))
            points = self.points(out)
            self.assertEqual(set(points), {"7b-d64-dp8", "7b-d512-dp8", "7b-d64-strong-dp8"})
            for name, point in points.items():
                self.assertEqual((point["status"], point["why"]), ("not run", "needs 8 GPUs; this machine has 0"))
                self.assertIn("| %s | not run | needs 8 GPUs; this machine has 0 |" % name, result.out)
        else:
            self.assertEqual(result.code, 64, str(result))
            self.assertIn("was built without CUDA", result.err)

    @harness.whole
    def test_a_point_that_fails_is_said_and_the_rest_goes_on(self):
        out = os.path.join(self.folder, "failed.json")
        # Three heads' worth of tp would not divide: 4 heads over tp 8.
        result = self.scaling("--scaling", "--scaling_points", "^7b-d64-(tp8|1)$", "--out", out)
        self.assertEqual(result.code, 64, str(result))
        points = self.points(out)
        self.assertEqual((points["7b-d64-1"]["status"], points["7b-d64-tp8"]["status"]), ("done", "failed"))
        self.assertRegex(points["7b-d64-tp8"]["why"], "exit code 64: pesc: .*tp")
        self.assertIn("| 7b-d64-tp8 | failed | exit code 64", result.out)

    def test_bad_usage(self):
        for flags, words, ranks in (
                (("--scaling", "--scaling_points", "9b"), "is in the name of no point; there are 7b-d64-1, ", 0),
                (("--scaling", "--scaling_points", "("), "is no regular expression", 0),
                (("--scaling_points", "dp"), "--scaling_points has no effect without --scaling", 0),
                (("--scaling", "--set", "parallel.ep=2"), "--set parallel.ep: each point of --scaling has its own", 0),
                (("--scaling", "--shortest", "5"), "--scaling and --shortest exclude each other", 0),
                (("--scaling",), "start it without mpirun", 2)):
            with self.subTest(flags=flags):
                result = self.scaling(*flags, ranks=ranks, seconds=60)
                self.assertEqual(result.code, 64, str(result))
                self.assertIn(words, result.err)


if __name__ == "__main__":
    harness.main()
