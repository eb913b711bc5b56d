"""model.cache_dir: weights are quantised once, a run from the cache is a run without, whoever dies or starts at the same time.

PESC_WEIGHT_CACHE_GB=G also measures: a base of so many GB, and how long a run of one step takes with the cache and without.
"""

import json
import os
import random
import resource
import signal
import struct
import time
import unittest

import harness
from harness import OK
from tiny import write_base, write_rows

EXACT = harness.CURVE + ("tokens", "supervised_tokens")
MEASURED_GB = float(os.environ.get("PESC_WEIGHT_CACHE_GB", "0"))


def write_large_base(folder, hidden, ffn, layers):
    """A Llama with weights that are no zeros, BF16, and the quick start's tokenizer. Returns its bytes."""
    os.makedirs(folder)
    shapes = {"model.embed_tokens.weight": (1024, hidden), "lm_head.weight": (1024, hidden), "model.norm.weight": (hidden,)}
    for i in range(layers):
        layer = "model.layers.%d." % i
        shapes.update({layer + "input_layernorm.weight": (hidden,), layer + "post_attention_layernorm.weight": (hidden,),
                       layer + "mlp.gate_proj.weight": (ffn, hidden), layer + "mlp.up_proj.weight": (ffn, hidden),
                       layer + "mlp.down_proj.weight": (hidden, ffn)})
        shapes.update({layer + "self_attn.%s_proj.weight" % l: (hidden, hidden) for l in "qkvo"})
    # Bits of bfloat16 values between 2^-8 and 2^-6, of both signs.
    draw = random.Random(1)
    block = b"".join(struct.pack("<H", draw.choice((0x3B80, 0xBB80)) + draw.randrange(0x100)) for _ in range(1 << 16))
    header, end = {}, 0
    for name, shape in shapes.items():
        size = 2 * shape[0] * (shape[1] if len(shape) > 1 else 1)
        header[name] = {"dtype": "BF16", "shape": list(shape), "data_offsets": [end, end + size]}
        end += size
    harness.write_safetensors(os.path.join(folder, "model.safetensors"), header, b"")
    with open(os.path.join(folder, "model.safetensors"), "ab") as file:
        for at in range(0, end, len(block)):
            file.write(block[:end - at])
    with open(os.path.join(folder, "config.json"), "w", encoding="utf-8") as file:
        json.dump({"architectures": ["LlamaForCausalLM"], "model_type": "llama", "vocab_size": 1024, "hidden_size": hidden,
                   "intermediate_size": ffn, "num_hidden_layers": layers, "num_attention_heads": hidden // 64,
                   "max_position_embeddings": 128, "hidden_act": "silu", "rms_norm_eps": 1e-5, "bos_token_id": 1, "eos_token_id": 2},
                  file)
    harness.shutil.copy(os.path.join(harness.BASE, "tokenizer.model"), folder)
    return end


def cpu_seconds():
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


class WeightCache(harness.EndToEnd):
    @classmethod
    def setUpClass(cls):
        cls.folder = harness.tempfile.mkdtemp(prefix="pesc-weight-cache-")
        cls.addClassCleanup(harness.shutil.rmtree, cls.folder, ignore_errors=True)
        write_base(cls.path("base"))
        write_base(cls.path("other"), seed=2)
        words = "one two three four five six seven eight".split()
        write_rows(cls.path("rows.jsonl"), [("say " + w, w + " and " + v, "t") for w, v in zip(words, words[1:] + words[:1])])

    def flags(self, run, cache, **fields):
        settings = {"run_dir": self.path(run), "model.path": self.path("base"), "train.frozen_dtype": "NF4",
                    "model.cache_dir": self.path(cache) if cache else ""}
        settings.update({name.replace("__", "."): value for name, value in fields.items()})
        text = ('name: "weights" train { max_steps: 3 global_batch_size: 8 learning_rate: 1e-2 } lora { r: 2 }'
                ' moe { num_experts: 4 num_experts_per_tok: 2 adapter_dim: 4 } parallel { num_threads: 1 }'
                ' data { max_seq_length: 48 train { path: "%s" } }' % self.path("rows.jsonl"))
        config = self.path("e.textproto")
        with open(config, "w", encoding="utf-8") as file:
            file.write(text)
        return ["--config", config] + [w for name, value in settings.items() for w in ("--set", "%s=%s" % (name, value))]

    def start(self, run, cache, ranks=0, **fields):
        return harness.start(ranks, "train", *self.flags(run, cache, **fields))

    def run_once(self, run, cache, ranks=0, **fields):
        result = harness.finish(self.start(run, cache, ranks, **fields), 120)
        self.assertEqual(result.code, OK, str(result))
        return result

    def outcome(self, run):
        return [{k: r[k] for k in EXACT if k in r} for r in harness.curve(self.path(run))]

    def reference(self, name="plain", ranks=0, **fields):
        if not os.path.exists(self.path(name)):
            self.assertNotIn("weight cache", self.run_once(name, "", ranks, **fields).err)
        return self.outcome(name)

    def files(self, cache):
        return sorted(os.path.join(w, n) for w, _, names in os.walk(self.path(cache)) for n in names)

    def test_a_run_from_the_cache_is_a_run_without(self):
        for frozen in ("NF4", "FP8"):
            for ranks, layout in ((0, {}), (4, {"parallel__tp": 2, "parallel__ep": 2})):
                with self.subTest(frozen=frozen, ranks=ranks):
                    fields = {"train__frozen_dtype": frozen, **layout}
                    name = "%s-%d-" % (frozen, ranks)
                    reference = self.reference(name + "plain", ranks, **fields)
                    made = self.run_once(name + "made", name + "cache", ranks, **fields)
                    # Of several ranks another may have begun before the first looks.
                    self.assertRegex(made.err, r"1?\d of 14 weights are quantised to %s into" % frozen)
                    self.assertEqual(self.outcome(name + "made"), reference)
                    before = {f: os.stat(f).st_mtime_ns for f in self.files(name + "cache")}
                    self.assertEqual(len(before), 14)
                    read = self.run_once(name + "read", name + "cache", ranks, **fields)
                    self.assertIn("14 weights in %s are read from" % frozen, read.err)
                    self.assertEqual(self.outcome(name + "read"), reference)
                    self.assertEqual({f: os.stat(f).st_mtime_ns for f in self.files(name + "cache")}, before)
        # The files of one layout are those of another.
        self.assertEqual(harness.digests(self.path("NF4-0-cache")), harness.digests(self.path("NF4-4-cache")))
        # Another base has files of its own, and random weights have none.
        other = self.run_once("other-run", "NF4-0-cache", model__path=self.path("other"))
        self.assertIn("14 of 14 weights are quantised", other.err)
        self.assertNotEqual(self.outcome("other-run"), self.reference("NF4-0-plain"))
        bench = harness.pesc(0, "bench", *self.flags("none", "bench-cache"), "--steps", "1")
        self.assertEqual(bench.code, OK, str(bench))
        self.assertFalse(os.path.exists(self.path("bench-cache")))

    @harness.whole
    def test_runs_at_once_share_the_work(self):
        layout = {"parallel__tp": 2, "parallel__ep": 2}
        processes = [self.start(run, "shared", 2, **layout) for run in ("first", "second")]
        for process in processes:
            result = harness.finish(process, 120)
            self.assertEqual(result.code, OK, str(result))
        reference = self.reference("plain-2", 2, **layout)
        self.assertEqual([self.outcome("first"), self.outcome("second")], [reference] * 2)
        self.assertEqual(len(self.files("shared")), 14, self.files("shared"))

    def test_a_damaged_cache_is_made_anew(self):
        self.run_once("whole", "damaged")
        files = self.files("damaged")
        os.truncate(files[3], os.path.getsize(files[3]) // 2)
        with open(files[8], "r+b") as file:  # codes, which are compared when they are read
            file.seek(40)
            byte = file.read(1)
            file.seek(40)
            file.write(bytes([byte[0] ^ 1]))
        result = self.run_once("anew", "damaged", ranks=2, parallel__tp=2)
        self.assertEqual(result.err.count("it is put aside, and the weight is quantised anew"), 2, str(result))
        self.assertEqual(len(self.files("damaged")), 16)
        self.assertEqual(self.outcome("anew"), self.reference("plain-tp2", 2, parallel__tp=2))

    @harness.whole
    @unittest.skipUnless(os.path.exists("/proc/self/task"), "needs /proc")
    def test_after_a_kill_the_next_start_is_right(self):
        write_large_base(self.path("large"), 512, 8192, 8)
        fields = {"model__path": self.path("large"), "train__max_steps": 1}
        process = self.start("killed", "kill", 2, **fields)
        end = time.monotonic() + 120
        pids = []
        while len(pids) < 2:  # found before: to look for them takes longer than some weights
            self.assertTrue(time.monotonic() < end and process.poll() is None, "no rank begins")
            pids = harness.rank_pids(process)
        while not any(f.endswith(".weight") for f in self.files("kill")):  # the first, a small one
            self.assertTrue(time.monotonic() < end and process.poll() is None, "nobody quantises")
            time.sleep(0.001)
        for pid in pids:  # both: one alone would soon have made the rest
            os.kill(pid, signal.SIGKILL)
        self.assertNotEqual(harness.finish(process, 120).code, OK)
        self.assertLess(len([f for f in self.files("kill") if f.endswith(".weight")]), 56)
        self.run_once("after", "kill", 2, **fields)
        # The lock of a weight that was whole already may be left; the dead do not hold it.
        kept = [f for f in self.files("kill") if not f.endswith(".lock")]
        self.assertEqual(len(kept), 56, kept)
        self.assertEqual(self.outcome("after"), self.reference("plain-large", 2, **fields))

    def measure_loading(self):
        """PESC_WEIGHT_CACHE_GB says how large a base to measure with."""
        layers = max(1, round(MEASURED_GB * 1e9 / (2 * (4 * 2048 ** 2 + 3 * 2048 * 5504))))
        size = write_large_base(self.path("measured"), 2048, 5504, layers)
        for frozen in ("NF4", "FP8"):
            fields = {"model__path": self.path("measured"), "train__max_steps": 1, "train__frozen_dtype": frozen,
                      "train__mode": "LORA", "train__global_batch_size": 1}
            for name, cache in (("without", ""), ("making", "measured-cache"), ("reading", "measured-cache")):
                before, began = cpu_seconds(), time.monotonic()
                self.run_once("%s-%s" % (name, frozen), cache, **fields)
                print("%.2f GB in BF16, held in %s, %s the cache: %.2f s, %.2f s of CPU" % (
                    size / 1e9, frozen, name, time.monotonic() - began, cpu_seconds() - before))

    if MEASURED_GB > 0:
        test_how_long_loading_takes = measure_loading


if __name__ == "__main__":
    harness.main()
