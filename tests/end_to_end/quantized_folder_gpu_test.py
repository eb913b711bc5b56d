"""Model folders whose weights are quantised already, on a GPU: the first step is that of the CPU, which computes in float32 from the
same bytes. That the bounds would show scales in wrong places is seen with folders whose scales are in reverse order.
"""

import os
import shutil

import bad_input_gpu_test
import harness
import quantized_folder_test
from quantized_folder_test import QuantizedFolder

setUpModule = bad_input_gpu_test.setUpModule  # skips where there is no GPU

# What is computed, and how far the first step's loss and gradient norm may be from the CPU's. Float32 adds up in another order. In bf16 the
# some forty activations and gradients that follow one another are each rounded to 2^-9 of themselves: independent, they make 40^0.5 2^-9,
# 1.2 %, and a model of random weights may pass that on fourfold. Roundings of e4m3 are of a product's single terms, and average out.
BOUNDS = {"F32": 1e-5, "BF16": 0.05, "FP8": 0.05}


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
            if tensor.endswith((".weight_scale", ".weight_scale_inv", ".absmax")):
                begin, end = entry["data_offsets"]
                size = 1 if entry["dtype"] == "U8" else 4
                scales = [data[i:i + size] for i in range(begin, end, size)]
                data[begin:end] = b"".join(reversed(scales))
        harness.write_safetensors(path, header, bytes(data))
        return name

    def test_the_first_step_is_that_of_the_cpu(self):
        for form, computed in (("rows", ("F32", "BF16", "FP8")), ("blocks", ("F32", "BF16")), ("nf4", ("F32", "BF16")),
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


del QuantizedFolder  # or unittest would run its cases here
if __name__ == "__main__":
    harness.main()
