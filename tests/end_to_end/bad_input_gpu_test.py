"""What a user can get wrong about GPUs, where there is one: no GPU seen although there is one, more ranks than GPUs, too
little memory, a build without kernels for the GPU. Each ends with one line that starts with `pesc: ` and says what and
what to do, exit code 64, no rank left waiting, and nothing written.

Mismatched NCCL versions and a GPU that is too old cannot be had on one machine: tests/parallel/gpu_world_test.cc,
tests/ops/device_limits_test.cc.
"""

import os
import re
import shutil
import subprocess
import unittest

import harness
import no_gpu_test
from harness import BASE, USAGE
from no_gpu_test import BENCH, built_with_cuda

SECONDS = 60  # more is a hang; the tests beside this one use the GPU, and a rank takes seconds to open it
ONE_GPU = ("env", "CUDA_VISIBLE_DEVICES=0")
# A GPU's machine code in the program is not used, and its PTX not compiled: as if it were built for another GPU.
NO_KERNELS = ONE_GPU + ("CUDA_FORCE_PTX_JIT=1", "CUDA_DISABLE_PTX_JIT=1")
SHARED = ("--set", "debug.share_gpu=true")


def setUpModule():
    why = None
    if not built_with_cuda():
        why = "this pesc was built without CUDA"
    elif not os.path.exists("/dev/nvidiactl") and (
            shutil.which("nvidia-smi") is None or subprocess.run(["nvidia-smi", "-L"], capture_output=True).returncode != 0):
        why = "this machine has no GPU"
    if why:
        print("no GPU test: " + why, flush=True)
        raise unittest.SkipTest(why)


class HiddenGpu(no_gpu_test.NoGpu):
    """The same where a GPU is there, but not to be seen."""


class BadInputGpu(harness.EndToEnd):
    train_rows = 10

    def refused(self, ranks, words, verb, *flags, prefix=ONE_GPU):
        result = harness.pesc(ranks if ranks > 1 else 0, verb, *flags, seconds=SECONDS, prefix=prefix)
        self.assert_refused(result, USAGE)
        for word in words:
            self.assertIn(word, result.complaints[0], str(result))
        self.assertEqual(result.out, "", str(result))
        return result.complaints[0]

    def quickstart(self, run, **fields):
        return self.experiment(run, parallel__device="CUDA", **fields)

    def test_more_ranks_than_gpus(self):
        words = ["parallel.device", "ranks 0 and 1 would share one GPU", "more ranks than GPUs", "one rank per GPU",
                 "debug.share_gpu"]
        for ranks in (2, 4):
            with self.subTest(ranks=ranks):
                self.refused(ranks, words, "train", *self.quickstart("crowd"))
                self.refused(ranks, words, "bench", "--config", BENCH, "--set", "parallel.tp=%d" % ranks)
        self.assertFalse(os.path.exists(self.path("crowd")))

    def assert_figures(self, line, least_gib):
        """It needs more than there is, and at least what its weights take."""
        found = re.search(r"needs (\d+\.\d\d) GiB of GPU 0 \(.+\), which has (\d+\.\d\d) GiB free of (\d+\.\d\d) GiB", line)
        self.assertIsNotNone(found, line)
        needs, free, total = (float(figure) for figure in found.groups())
        self.assertGreater(needs, free, line)
        self.assertGreaterEqual(needs, least_gib, line)
        self.assertLess(free, total, line)  # the context of CUDA itself

    TOO_LITTLE = ["model, activations and workspaces", "train.recompute_granularity", "train.gradient_accumulation_steps",
                  "data.max_seq_length", "more ranks (tp, ep)"]

    def test_too_little_memory_to_bench(self):
        # 69e9 parameters of two bytes
        line = self.refused(1, self.TOO_LITTLE, "bench", "--config", BENCH, "--shape", "70B", "--steps", 1)
        self.assert_figures(line, 69e9 * 2 / 2**30)

    def test_too_little_memory_for_ranks_that_share(self):
        line = self.refused(2, self.TOO_LITTLE, "bench", "--config", BENCH, "--shape", "70B", "--steps", 1, "--set",
                            "parallel.tp=2", *SHARED)
        self.assert_figures(line, 69e9 / 2**30)

    def test_too_little_memory_to_train(self):
        shape = {"model__shape__" + name: value for name, value in {
            "hidden_size": 16384, "intermediate_size": 65536, "num_hidden_layers": 200, "num_attention_heads": 128,
            "num_key_value_heads": 128}.items()}
        settings = {"run_dir": self.path("giant"), "model__tokenizer": BASE, "parallel__device": "CUDA",
                    "data.train[0].path": os.path.join(self.data, "train.jsonl"), **shape}
        config = os.path.join(harness.SOURCE, "configs", "quickstart", "pretrain.textproto")
        line = self.refused(1, self.TOO_LITTLE, "train", "--config", config, *harness.sets(**settings))
        # 8.6e11 parameters, trained: weight, gradient and two moments of four bytes each
        self.assert_figures(line, 8.5e11 * 16 / 2**30)
        # The directory was made, to see that it can be written, and taken away again.
        self.assertFalse(os.path.exists(self.path("giant")))

    def test_no_kernels_for_the_gpu(self):
        for ranks, flags in ((1, ()), (2, SHARED)):
            with self.subTest(ranks=ranks):
                line = self.refused(ranks, ["parallel.device", "not built for GPU 0 (", "build again", "CPU"], "train",
                                    *self.quickstart("other-gpu"), *flags, prefix=NO_KERNELS)
                found = re.search(r"compute capability (\d+)\.(\d); configure with -DCMAKE_CUDA_ARCHITECTURES=(\d+) ", line)
                self.assertIsNotNone(found, line)
                self.assertEqual(found.group(1) + found.group(2), found.group(3))
        self.assertFalse(os.path.exists(self.path("other-gpu")))


if __name__ == "__main__":
    harness.main()
