"""An experiment for a GPU where none can be seen, or with a pesc that was built without CUDA: on one rank and on four, for
every verb that computes, one line that says which of the two it is and what to do, exit code 64, no rank left waiting, and
nothing written.

It runs anywhere: on a machine with GPUs they are hidden.
"""

import os

import harness
from harness import USAGE

SECONDS = 20  # more is a hang
HIDDEN = ("env", "CUDA_VISIBLE_DEVICES=")
BENCH = os.path.join(harness.SOURCE, "configs", "experiments", "bench-7b.textproto")
BUILT_WITHOUT = ("parallel.device", "built without CUDA", "nvcc", "CPU")
NONE_SEEN = ("parallel.device", "no GPU that CUDA can use", "nvidia-smi", "CUDA_VISIBLE_DEVICES", "CPU")


def built_with_cuda():
    """CMakeLists.txt says it; by hand, what the program links does."""
    said = os.environ.get("PESC_BUILT_WITH_CUDA")
    if said is None:
        with open(harness.PESC, "rb") as file:
            return b"libcudart" in file.read()
    return said == "ON"


class NoGpu(harness.EndToEnd):
    train_rows = 10

    def refused(self, verb, *flags):
        for ranks in (1, 4):
            with self.subTest(ranks=ranks):
                result = harness.pesc(ranks if ranks > 1 else 0, verb, *flags, seconds=SECONDS, prefix=HIDDEN)
                self.assert_refused(result, USAGE)
                for word in NONE_SEEN if built_with_cuda() else BUILT_WITHOUT:
                    self.assertIn(word, result.complaints[0], str(result))
                self.assertEqual(result.out, "", str(result))

    def test_train(self):
        self.refused("train", *self.experiment("no-gpu", parallel__device="CUDA"))
        self.assertFalse(os.path.exists(self.path("no-gpu")))

    def test_eval(self):
        self.refused("eval", *self.experiment("no-gpu", parallel__device="CUDA"), "--base")

    def test_generate(self):
        self.refused("generate", *self.experiment("no-gpu", parallel__device="CUDA"), "--base", "--prompt", "Hello")

    def test_bench(self):
        self.refused("bench", "--config", BENCH, "--steps", 1)


if __name__ == "__main__":
    harness.main()
