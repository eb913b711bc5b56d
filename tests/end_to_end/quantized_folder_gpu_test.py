"""Model folders whose weights are quantised already, on a GPU: the curve is that of the CPU, which computes in float32 from the same
bytes. That the bounds would show scales in wrong places is seen with a folder whose scales are in reverse order.
"""

import json
import os
import shutil

import bad_input_gpu_test
import harness
import quantized_folder_test
from quantized_folder_test import QuantizedFolder

setUpModule = bad_input_gpu_test.setUpModule  # skips where there is no GPU

# What is computed, and how far loss and gradient norm may be from float32. Float32 adds up in another order. A bf16 product rounds its
# operands to 2^-9 of them, an e4m3 one to 2^-4, and the errors of the 14 products and of their sums' many terms are independent: the
# model's loss and gradient norm, of 4 x 64 tokens, move by about these roundings themselves, and no more than three times.
BOUNDS = {"F32": 1e-3, "BF16": 3 * 2 ** -9, "FP8": 3 * 2 ** -4}


class QuantizedFolderOnAGpu(QuantizedFolder):
    # Of the base class its folders, not its cases.
    for name in [n for n in vars(QuantizedFolder) if n.startswith("test_")]:
        locals()[name] = None

    def difference(self, expected, got):
        return max(error for error, _ in harness.largest_difference(
            harness.curve(self.path(expected))[:1], harness.curve(self.path(got))[:1], ("loss", "grad_norm")).values())

    def reverse_scales(self, form):
        name = form + "-reversed"
        shutil.copytree(self.path(form), self.path(name))
        path = os.path.join(self.path(name), "model.safetensors")
        header, data = harness.read_safetensors(path)
        data = bytearray(data)
        for tensor, entry in header.items():
            if tensor.endswith((".weight_scale", ".weight_scale_inv", ".nested_absmax")):
                begin, end = entry["data_offsets"]
                scales = [data[i:i + 4] for i in range(begin, end, 4)]
                data[begin:end] = b"".join(reversed(scales))
        harness.write_safetensors(path, header, bytes(data))
        return name

    def test_the_curve_is_that_of_the_cpu(self):
        for form, computed in (("rows", ("F32", "BF16", "FP8")), ("blocks", ("F32", "BF16", "FP8")), ("nf4", ("F32", "BF16")),
                               ("single", ("F32", "BF16"))):
            self.call("train", form, form + "-cpu")
            for dtype in computed:
                with self.subTest(form=form, computed=dtype):
                    run = "%s-%s" % (form, dtype)
                    self.call("train", form, run, parallel__device="CUDA", train__compute_dtype=dtype)
                    error = self.difference(form + "-cpu", run)
                    print("%s computed in %s: %.2e of the CPU's loss and gradient norm, at most %.2e" % (form, dtype, error, BOUNDS[dtype]),
                          flush=True)
                    self.assertLessEqual(error, BOUNDS[dtype])
            if form in ("rows", "blocks"):
                self.call("train", self.reverse_scales(form), form + "-wrong")
                error = self.difference(form + "-cpu", form + "-wrong")
                print("%s with its scales in reverse order: %.2e" % (form, error), flush=True)
                self.assertGreater(error, max(BOUNDS[dtype] for dtype in computed), "the bounds would not show it")

    def test_the_same_bytes_give_the_same_bits_again(self):
        for form in ("rows", "nf4"):
            with self.subTest(form=form):
                for run in ("first", "again"):
                    self.call("train", form, form + "-" + run, parallel__device="CUDA")
                self.assertEqual(*[[(r["loss"], r["grad_norm"]) for r in harness.curve(self.path(form + "-" + run))]
                                   for run in ("first", "again")])
                with open(self.path(form + "-again", "metrics.jsonl"), encoding="utf-8") as file:
                    start = json.loads(file.readline())
                self.assertEqual(start["frozen_dtype"], {"rows": "FP8", "nf4": "NF4"}[form])


del QuantizedFolder  # or unittest would run its cases here
if __name__ == "__main__":
    harness.main()
