"""Model folders whose weights are quantised already: a run on one is the run on the values that they stand for, on one rank
and on two, stopped and gone on with; its checkpoints record the format; what would quantise anew, or cannot, is refused.
"""

import json
import os
import random
import shutil
import struct
import tempfile
import unittest

import harness
import tiny
from harness import DATA, OK, SOURCE, USAGE

EXPERIMENT = """
name: "quantized"
run_dir: "%(folder)s/run"
model { path: "%(folder)s/rows" }
data { train { path: "%(folder)s/rows.jsonl" } eval { path: "%(folder)s/rows.jsonl" } max_seq_length: 64 }
train { mode: PESC max_steps: 4 global_batch_size: 4 learning_rate: 1e-3 logging_steps: 1 }
lora { r: 4 } moe { num_experts: 4 adapter_dim: 4 }
parallel { device: CPU num_threads: 1 }
"""
LINEARS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
PLAIN = ("model.layers.0.self_attn.k_proj", "model.layers.1.mlp.down_proj")


def rounded(value):
    """To float32."""
    return struct.unpack("<f", struct.pack("<f", value))[0]


def e4m3(code):
    sign, exponent, mantissa = -1.0 if code & 128 else 1.0, code >> 3 & 15, code & 7
    return sign * (mantissa * 2.0 ** -9 if exponent == 0 else (8 + mantissa) * 2.0 ** (exponent - 10))


def f32(values):
    return struct.pack("<%df" % len(values), *values)


def tables():
    """bitsandbytes' values of the codes of NF4 and of its nested absmaxes."""
    header, data = harness.read_safetensors(os.path.join(SOURCE, "tests", "nf4", "nf4.safetensors"))

    def of(name):
        begin, end = header[name]["data_offsets"]
        return struct.unpack("<%df" % ((end - begin) // 4), data[begin:end])
    return of("code"), of("bf16.nested_code")


def quantize(draw, form, rows, cols):
    """({end of a name: (type, shape, bytes)}, values) of random codes."""
    n = rows * cols
    if form in ("rows", "blocks"):
        side = (1, cols) if form == "rows" else (128, 128)
        codes = [c if c & 127 != 127 else 0 for c in (draw.randrange(256) for _ in range(n))]
        down, across = -(-rows // side[0]), -(-cols // side[1])
        scales = [rounded(draw.uniform(0.5, 1.5) * 2e-3) for _ in range(down * across)]
        values = [rounded(e4m3(codes[i]) * scales[i // cols // side[0] * across + i % cols // side[1]]) for i in range(n)]
        end = ".weight_scale" if form == "rows" else ".weight_scale_inv"
        return {".weight": ("F8_E4M3", [rows, cols], bytes(codes)), end: ("F32", [down, across], f32(scales))}, values
    code, dynamic = tables()
    packed = bytes(draw.randrange(256) for _ in range((n + 1) // 2))
    absmax = [draw.randrange(256) for _ in range(-(-n // 64))]
    groups = [rounded(draw.uniform(0.05, 0.1)) for _ in range(-(-n // 16384))]
    offset = rounded(0.2)
    largest = [rounded(rounded(dynamic[a] * groups[b // 256]) + offset) for b, a in enumerate(absmax)]
    values = [rounded(code[packed[i // 2] >> 4 if i % 2 == 0 else packed[i // 2] & 15] * largest[i // 64]) for i in range(n)]
    state = {"quant_type": "nf4", "blocksize": 64, "dtype": "bfloat16", "shape": [rows, cols]}
    parts = {".weight": ("U8", [len(packed), 1], packed), ".weight.quant_map": ("F32", [16], f32(code))}
    if form == "nf4":
        parts.update({".weight.absmax": ("U8", [len(absmax)], bytes(absmax)),
                      ".weight.nested_absmax": ("F32", [len(groups)], f32(groups)),
                      ".weight.nested_quant_map": ("F32", [256], f32(dynamic))})
        state.update({"nested_blocksize": 256, "nested_dtype": "float32", "nested_offset": offset})
    else:
        parts[".weight.absmax"] = ("F32", [len(largest)], f32(largest))
    text = json.dumps(state).encode()
    parts[".weight.quant_state.bitsandbytes__nf4"] = ("U8", [len(text)], text)
    return parts, values


def configuration(form, plain):
    if form == "rows":
        weights = {"dynamic": False, "num_bits": 8, "strategy": "channel", "symmetric": True, "type": "float"}
        group = {"targets": ["Linear"], "weights": weights, "output_activations": None,
                 "input_activations": {"dynamic": True, "num_bits": 8, "strategy": "token", "symmetric": True, "type": "float"}}
        return {"quant_method": "compressed-tensors", "format": "float-quantized", "config_groups": {"group_0": group},
                "ignore": ["re:.*lm_head", *plain]}
    if form == "blocks":
        return {"quant_method": "fp8", "fmt": "e4m3", "activation_scheme": "dynamic", "weight_block_size": [128, 128],
                "modules_to_not_convert": ["lm_head", *plain]}
    return {"quant_method": "bitsandbytes", "load_in_4bit": True, "bnb_4bit_quant_type": "nf4",
            "bnb_4bit_use_double_quant": form == "nf4", "llm_int8_skip_modules": ["lm_head", *plain]}


def write_pair(folder, form, plain=(), **sizes):
    """The quantised folder, and folder-values with the values that it stands for. Those of `plain` are not quantised."""
    tiny.write_base(folder + "-values", **sizes)
    path = os.path.join(folder + "-values", "model.safetensors")
    header, data = harness.read_safetensors(path)
    draw, both = random.Random(3), ({}, {})
    for name, entry in sorted(header.items()):
        begin, end = entry["data_offsets"]
        module = name[:-len(".weight")]
        parts, values = {".weight": ("F32", entry["shape"], data[begin:end])}, data[begin:end]
        if module.endswith(LINEARS) and module not in plain:
            parts, values = quantize(draw, form, *entry["shape"])
            values = f32(values)
        both[0].update({module + part: stored for part, stored in parts.items()})
        both[1][name] = ("F32", entry["shape"], values)
    shutil.copytree(folder + "-values", folder)
    for where, tensors in ((folder, both[0]), (folder + "-values", both[1])):
        header, data = {}, bytearray()
        for name, (kind, shape, stored) in sorted(tensors.items(), key=lambda t: (t[1][0] != "F32", t[0])):
            header[name] = {"dtype": kind, "shape": shape, "data_offsets": [len(data), len(data) + len(stored)]}
            data += stored
        harness.write_safetensors(os.path.join(where, "model.safetensors"), header, bytes(data))
    change_config(folder, quantization_config=configuration(form, plain))


def change_config(folder, **values):
    path = os.path.join(folder, "config.json")
    with open(path, encoding="utf-8") as file:
        config = json.load(file)
    config.update(values)
    with open(path, "w", encoding="utf-8") as file:
        json.dump(config, file)


class QuantizedFolder(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.folder = tempfile.mkdtemp(prefix="pesc-quantized-")
        cls.addClassCleanup(shutil.rmtree, cls.folder, ignore_errors=True)
        for form in ("rows", "nf4", "single"):
            write_pair(cls.path(form), form)
        write_pair(cls.path("mixed"), "rows", PLAIN)
        before = tiny.HIDDEN, tiny.FFN
        tiny.HIDDEN, tiny.FFN = 160, 200  # two ranks cut down_proj at its column 100, inside a block
        try:
            write_pair(cls.path("blocks"), "blocks")
        finally:
            tiny.HIDDEN, tiny.FFN = before
        tiny.write_rows(cls.path("rows.jsonl"), [("say %d" % i, "yes %d and more" % i, "a") for i in range(16)])
        cls.config = cls.path("e.textproto")
        with open(cls.config, "w", encoding="utf-8") as file:
            file.write(EXPERIMENT % {"folder": cls.folder})

    @classmethod
    def path(cls, *parts):
        return os.path.join(cls.folder, *parts)

    def call(self, verb, model, run, *flags, ranks=0, code=OK, **settings):
        settings = {"model.path": self.path(model), "run_dir": self.path(run),
                    **{name.replace("__", "."): value for name, value in settings.items()}}
        sets = [word for name, value in settings.items() for word in ("--set", "%s=%s" % (name, value))]
        result = harness.pesc(ranks, verb, "--config", self.config, *sets, *flags, seconds=120)
        self.assertEqual(result.code, code, str(result))
        return result

    def agree(self, expected, got, bound):
        for field, (error, step) in harness.largest_difference(harness.curve(self.path(expected)),
                                                               harness.curve(self.path(got))).items():
            self.assertLessEqual(error, bound, "%s: %s of step %d" % (got, field, step))

    def test_a_run_is_that_on_the_values(self):
        for form, count in (("rows", 14), ("blocks", 14), ("nf4", 14), ("single", 14), ("mixed", 12)):
            with self.subTest(form=form):
                self.call("train", form + "-values", form + "-run-values")
                result = self.call("train", form, form + "-run")
                self.assertIn("; %d of them stand there quantised" % count, result.err)
                self.agree(form + "-run-values", form + "-run", 1e-4)
                self.call("train", form, form + "-run-2", ranks=2, parallel__tp=2)
                self.agree(form + "-run-values", form + "-run-2", 1e-3)
                # Dequantised when it is read it is the very run on the values.
                self.call("train", form, form + "-run-f32", train__frozen_dtype="F32")
                self.agree(form + "-run-values", form + "-run-f32", 0)

    @harness.whole
    def test_a_run_goes_on_bit_for_bit_and_records_the_format(self):
        for form, name in (("rows", "FP8"), ("blocks", "FP8"), ("nf4", "NF4"), ("single", "NF4")):
            with self.subTest(form=form):
                run, whole = form + "-stopped", form + "-whole"
                self.call("train", form, whole)
                self.call("train", form, run, train__max_steps=2)
                self.call("train", form, run)
                same = [harness.digests(self.path(r, "step-4")) for r in (run, whole)]
                shards = [{n: d for n, d in one.items() if n.endswith(".safetensors")} for one in same]
                self.assertTrue(shards[0])
                self.assertEqual(*shards)
                # FP8 and NF4 by name are the folder's own.
                self.call("train", form, run, train__frozen_dtype=name)
                result = self.call("train", form, run, code=USAGE, train__frozen_dtype="F32")
                self.assertIn("train.frozen_dtype: %s -> F32" % name, result.err)

    def test_what_cannot_be_is_refused_by_field(self):
        for form, settings, words in (
                ("rows", {"train__frozen_dtype": "NF4"}, ("train.frozen_dtype is NF4", "FP8 with a scale for each row",
                                                          "not quantised a second time", "train.frozen_dtype: F32")),
                ("blocks", {"train__frozen_dtype": "NF4"}, ("FP8 with blocks of 128 x 128",)),
                ("nf4", {"train__frozen_dtype": "FP8"}, ("train.frozen_dtype is FP8", "NF4 with double quantisation")),
                ("rows", {"train__mode": "FULL"}, ("train.mode is FULL", "train.frozen_dtype: F32"))):
            with self.subTest(form=form, settings=settings):
                result = self.call("train", form, "refused", code=USAGE, **settings)
                for word in words:
                    self.assertIn(word, result.err)
        # The dequantised weights are trained.
        self.call("train", "rows", "full", train__mode="FULL", train__frozen_dtype="F32", train__max_steps=1)

    def test_bad_folders_are_refused_before_a_step(self):
        def copy(form, name):
            shutil.copytree(self.path(form), self.path(name))
            return self.path(name)
        gptq = copy("rows", "gptq")
        change_config(gptq, quantization_config={"quant_method": "gptq", "bits": 4})
        listed = copy("rows", "listed")
        change_config(listed, quantization_config=configuration("rows", PLAIN))
        silent = copy("nf4", "silent")
        change_config(silent, quantization_config=None)
        scaleless = copy("rows", "scaleless")
        path = os.path.join(scaleless, "model.safetensors")
        header, data = harness.read_safetensors(path)
        name = "model.layers.1.mlp.up_proj.weight_scale"
        header[name[:-len("weight_scale")] + "other"] = header.pop(name)
        harness.write_safetensors(path, header, data)
        for folder, words in (("gptq", ("quantization_config: quant_method: 'gptq' is not supported",)),
                              ("listed", ("k_proj.weight' is quantised", "but config.json lists its module")),
                              ("silent", ("config.json has no quantization_config",)),
                              ("scaleless", ("up_proj.weight' holds codes of FP8", "there is no '" + name))):
            for ranks in (0, 2):
                with self.subTest(folder=folder, ranks=ranks):
                    result = self.call("train", folder, "bad", ranks=ranks, code=DATA, parallel__tp=ranks or 1)
                    for word in words:
                        self.assertIn(word, result.err)

    def test_exports_have_the_values(self):
        self.call("train", "nf4", "exported", train__max_steps=1)
        for flags in (["--format", "HF"], ["--format", "HF", "--merge_into", "ORIGINAL"], ["--format", "PEFT"]):
            result = self.call("export", "nf4", "exported", *flags, "--out", self.path("no"), code=USAGE)
            self.assertIn("DEQUANTISED", result.err)
            self.assertNotIn("put train.frozen_dtype back", result.err)
        out = self.path("hf")
        self.call("export", "nf4", "exported", "--merge_into", "DEQUANTISED", "--out", out)
        with open(os.path.join(out, "README.md"), encoding="utf-8") as file:
            self.assertIn("the run computed with them as they are", file.read())
        with open(os.path.join(out, "config.json"), encoding="utf-8") as file:
            self.assertNotIn("quantization_config", json.load(file))
        self.call("eval", "hf", "of-the-export", "--base", "--out", self.path("out.json"))
        self.call("eval", "nf4", "exported", "--out", self.path("in.json"))
        with open(self.path("out.json"), encoding="utf-8") as one, open(self.path("in.json"), encoding="utf-8") as other:
            a, b = json.load(one)["total"]["eval_loss"], json.load(other)["total"]["eval_loss"]
        # LoRA is merged with one rounding of the weights to float32.
        self.assertLess(abs(a - b) / b, 1e-4)
        # Dequantised when they are read they are the same weights, which is said.
        result = self.call("eval", "nf4", "exported", "--out", self.path("f32.json"), train__frozen_dtype="F32")
        self.assertIn("the mathematics is the same, rounding is not (saved -> now): train.frozen_dtype: NF4 -> F32", result.err)
        self.assertNotIn("not those of the model that was trained", result.err)
        with open(self.path("f32.json"), encoding="utf-8") as file:
            self.assertLess(abs(json.load(file)["total"]["eval_loss"] - b) / b, 1e-4)
        # A run on the dequantised weights did not quantise, and no flag is asked for.
        self.call("train", "nf4", "exported-f32", train__max_steps=1, train__frozen_dtype="F32")
        result = self.call("export", "nf4", "exported-f32", "--out", self.path("hf-f32"))
        self.assertNotIn("train.frozen_dtype", result.err)

    @harness.whole
    def test_a_plan_counts_what_is_held(self):
        def weights(model):
            out = self.path("plan.json")
            self.call("plan", model, "plan", "--ranks", "1", "--out", out)
            with open(out, encoding="utf-8") as file:
                return json.load(file)["arenas"]["weights"]
        plain = weights("blocks-values")
        linears = 4 * 2 * (160 * 160 * 2 + 160 * 80 * 2 + 3 * 160 * 200)
        # FP8 is a quarter of float32, and each row has a scale for every block that it touches.
        self.assertAlmostEqual((plain - weights("blocks")) / linears, 0.75, delta=0.05)
        self.assertGreater(weights("mixed"), weights("rows"))

    @harness.whole
    def test_a_bench_holds_what_the_run_would_hold(self):
        random_rows = {"data__train": "[]", "data__eval": "[]", "data__max_seq_length": 8}

        def report(model, **settings):
            out, flags = self.path("bench.json"), {**random_rows, **settings}
            self.call("bench", model, "bench", "--steps", "1", "--out", out, **flags)
            self.call("plan", model, "plan", "--ranks", "1", "--out", self.path("planned.json"), **flags)
            with open(out, encoding="utf-8") as file, open(self.path("planned.json"), encoding="utf-8") as planned:
                bench, plan = json.load(file), json.load(planned)
            self.assertEqual(bench["arenas_rank0"]["weights"], plan["arenas"]["weights"])
            return bench["frozen_dtype"], bench["frozen_bytes_per_weight"]

        plain = report("rows-values")
        self.assertEqual(plain, ("F32", 4))
        self.assertEqual(report("rows", train__frozen_dtype="F32"), plain)
        held = {model: report(model) for model in ("rows", "nf4", "mixed")}
        self.assertEqual({model: name for model, (name, _) in held.items()}, {"rows": "FP8", "nf4": "NF4", "mixed": "FP8"})
        self.assertLess(held["nf4"][1], held["rows"][1])
        self.assertLess(held["rows"][1], held["mixed"][1])
        for model, words in (("blocks", ("FP8 with blocks of 128 x 128", "train.frozen_dtype: FP8")),
                             ("single", ("NF4 without double", "train.frozen_dtype: NF4"))):
            result = self.call("bench", model, "bench", "--steps", "1", code=USAGE, **random_rows)
            for word in (*words, "model.path: the folder", "random weights are not made in", "train.frozen_dtype: F32"):
                self.assertIn(word, result.message)
            self.assertEqual(report(model, train__frozen_dtype="F32")[0], "F32")


if __name__ == "__main__":
    harness.main()
