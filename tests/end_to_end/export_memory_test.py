"""The memory of `pesc export` does not grow with the model: a base of 15 GB with tensors of 5 GB (sparse files of zeros) is exported
with less than 1 GB of memory of its own, its pages of files not counted. Before that it is killed while it writes: nothing stands in
the target's place, and the next export removes what is left. Needs 16 GB of disk for the export.
"""

import json
import os
import shutil
import signal
import subprocess
import tempfile
import time
import unittest

import harness

HIDDEN, HEADS, VOCAB = 1024, 16, 1024
LARGEST = 5 * 10 ** 9  # bytes of a tensor
FFN = LARGEST // (2 * HIDDEN)
MOST = 10 ** 9
MAKE_CHECKPOINT = os.environ.get("PESC_MAKE_CHECKPOINT", os.path.join(os.path.dirname(harness.PESC), "tests", "make_checkpoint"))
EXPERIMENT = """
name: "large"
run_dir: "%(folder)s/run"
model { path: "%(folder)s/base" }
train { mode: PESC max_steps: 1 global_batch_size: 1 }
lora { r: 2 lora_alpha: 2 }
moe { num_experts: 4 num_experts_per_tok: 2 adapter_dim: 16 }
parallel { num_threads: 2 }
data { max_seq_length: 48 train { path: "%(folder)s/rows.jsonl" } }
"""


def write_sparse_base(folder):
    os.makedirs(folder)
    layer = "model.layers.0."
    shapes = {"model.embed_tokens.weight": (VOCAB, HIDDEN), "lm_head.weight": (VOCAB, HIDDEN), "model.norm.weight": (HIDDEN,),
              layer + "input_layernorm.weight": (HIDDEN,), layer + "post_attention_layernorm.weight": (HIDDEN,),
              layer + "mlp.gate_proj.weight": (FFN, HIDDEN), layer + "mlp.up_proj.weight": (FFN, HIDDEN),
              layer + "mlp.down_proj.weight": (HIDDEN, FFN)}
    shapes.update({layer + "self_attn.%s_proj.weight" % l: (HIDDEN, HIDDEN) for l in "qkvo"})
    header, end = {}, 0
    for name, shape in shapes.items():
        size = 2 * shape[0] * (shape[1] if len(shape) > 1 else 1)
        header[name] = {"dtype": "BF16", "shape": list(shape), "data_offsets": [end, end + size]}
        end += size
    path = os.path.join(folder, "model.safetensors")
    harness.write_safetensors(path, header, b"")
    os.truncate(path, os.path.getsize(path) + end)
    with open(os.path.join(folder, "config.json"), "w", encoding="utf-8") as file:
        json.dump({"architectures": ["LlamaForCausalLM"], "model_type": "llama", "vocab_size": VOCAB, "hidden_size": HIDDEN,
                   "intermediate_size": FFN, "num_hidden_layers": 1, "num_attention_heads": HEADS, "max_position_embeddings": 128,
                   "hidden_act": "silu", "rms_norm_eps": 1e-5, "bos_token_id": 1, "eos_token_id": 2}, file)
    shutil.copy(os.path.join(harness.BASE, "tokenizer.model"), folder)
    return end


def own_memory(pid):
    """Bytes of RssAnon."""
    with open("/proc/%d/status" % pid) as status:
        found = [line for line in status if line.startswith("RssAnon:")]
    return int(found[0].split()[1]) * 1024 if found else 0


def written(folder, name):
    """Bytes of the weights in the temporary folders of folder/name, and these folders."""
    left = [os.path.join(folder, n) for n in os.listdir(folder) if n.startswith(name + ".tmp.")]
    try:
        files = [os.path.join(f, n) for f in left for n in os.listdir(f) if n.endswith(".safetensors")]
        return sum(os.path.getsize(f) for f in files), left
    except FileNotFoundError:  # it is being removed
        return 0, left


class ExportMemory(unittest.TestCase):
    def kill_while_it_writes(self, config, folder, least):
        """After so many bytes of weights."""
        before = set(written(folder, "out")[1])
        process = harness.start(0, "export", "--config", config, "--out", os.path.join(folder, "out"))
        end, seen = time.monotonic() + 600, set()
        while process.poll() is None and time.monotonic() < end:
            size, left = written(folder, "out")
            seen = set(left) - before
            if seen and size >= least:
                break
            time.sleep(0.01)
        self.assertIsNone(process.poll(), "it ended before it was killed")
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
        size, left = written(folder, "out")
        self.assertFalse(os.path.exists(os.path.join(folder, "out")))
        # Only what this one has left: it has removed what the one before left.
        self.assertEqual(set(left), seen)
        self.assertEqual(len(left), 1)
        self.assertTrue(os.path.exists(os.path.join(left[0], ".exporting")))
        self.assertGreaterEqual(size, least)

    def test_memory_does_not_grow_with_the_model(self):
        folder = tempfile.mkdtemp(prefix="pesc-export-memory-", dir=os.environ.get("PESC_LARGE_FILES"))
        self.addCleanup(shutil.rmtree, folder, ignore_errors=True)
        weights = write_sparse_base(os.path.join(folder, "base"))
        self.assertGreater(weights, 3 * LARGEST * 0.999)
        self.assertGreater(shutil.disk_usage(folder).free, weights + 10 ** 9, "too little room in " + folder)
        config = os.path.join(folder, "e.textproto")
        with open(config, "w", encoding="utf-8") as file:
            file.write(EXPERIMENT % {"folder": folder})
        subprocess.run([MAKE_CHECKPOINT, "--config", config], check=True, env=harness.environment(), cwd=harness.SOURCE,
                       stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        for least in (1, LARGEST // 16, LARGEST + LARGEST // 50):  # the last one in a later file
            self.kill_while_it_writes(config, folder, least)
        out, most, samples = os.path.join(folder, "out"), 0, 0
        process = harness.start(0, "export", "--config", config, "--out", out)
        while process.poll() is None:
            try:
                most = max(most, own_memory(process.pid))
                samples += 1
            except (FileNotFoundError, ProcessLookupError):
                break
            time.sleep(0.02)
        result = harness.finish(process, 60)
        self.assertEqual(result.code, 0, str(result))
        print("RssAnon: at most %.0f MB in %d looks" % (most / 1e6, samples), flush=True)
        self.assertFalse(written(folder, "out")[1])
        self.assertGreater(samples, 20)
        self.assertLess(most, MOST)
        shards = [name for name in os.listdir(out) if name.endswith(".safetensors")]
        self.assertGreater(len(shards), 2)
        size = sum(os.path.getsize(os.path.join(out, name)) for name in shards)
        self.assertGreater(size, weights)


if __name__ == "__main__":
    harness.main()
