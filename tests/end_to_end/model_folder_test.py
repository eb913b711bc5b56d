"""Model folders that are not what they seem, through the program: what every verb that loads one refuses, warns of or
takes, on one rank and where only one rank of several reads what is wrong.
"""

import json
import os
import shutil
import struct

import harness
from harness import BASE, DATA, OK, USAGE

SECONDS = 60


class ModelFolder(harness.EndToEnd):
    train_rows = 20

    def copy_of_base(self, name, **config):
        folder = self.path(name)
        shutil.copytree(BASE, folder)
        path = os.path.join(folder, "config.json")
        with open(path, encoding="utf-8") as file:
            text = json.load(file)
        text.update(config)
        with open(path, "w", encoding="utf-8") as file:
            json.dump(text, file)
        return folder

    def poke(self, folder, name, index, value):
        path = os.path.join(folder, "model.safetensors")
        header, data = harness.read_safetensors(path)
        at = header[name]["data_offsets"][0] + 4 * index
        harness.write_safetensors(path, header, data[:at] + struct.pack("<f", value) + data[at + 4:])

    def add(self, folder, name, kind, shape, data):
        path = os.path.join(folder, "model.safetensors")
        header, old = harness.read_safetensors(path)
        header[name] = {"dtype": kind, "shape": shape, "data_offsets": [len(old), len(old) + len(data)]}
        harness.write_safetensors(path, header, old + data)

    def run_verb(self, verb, folder, *flags, ranks=0, run="run", **fields):
        fields = {"train__max_steps": 1, "train__global_batch_size": 4, "model__path": folder,
                  "train__eval_steps": 0, **fields}
        flags = {"eval": ("--base",), "generate": ("--base", "--prompt", "x")}.get(verb, ()) + flags
        return harness.pesc(ranks, verb, *self.experiment(run, **fields), *flags, seconds=SECONDS)

    def test_values_that_are_not_finite(self):
        folder = self.copy_of_base("not-finite")
        self.poke(folder, "model.layers.3.mlp.up_proj.weight", 351 * 128 + 7, float("nan"))
        words = ["model.safetensors", "model.layers.3.mlp.up_proj.weight", "[351, 7]"]
        for verb in ("train", "eval", "generate"):
            with self.subTest(verb=verb):
                self.assert_refused(self.run_verb(verb, folder), DATA, *words)
        # Row 351 is read by the second rank alone.
        self.assert_refused(self.run_verb("train", folder, ranks=2, tp=2), DATA, *words)
        # Nothing was started that a later run would have to go on with.
        self.assertFalse([n for n in os.listdir(self.path("run")) if n.startswith("step-")]
                         if os.path.isdir(self.path("run")) else [])

    def test_tensors_that_are_left_over(self):
        folder = self.copy_of_base("biases")
        name = "model.layers.0.self_attn.q_proj.bias"
        self.add(folder, name, "F32", [128], b"\0" * 512)
        self.assert_refused(self.run_verb("eval", folder), DATA, name, "1 tensor")
        self.assert_refused(self.run_verb("train", folder, ranks=2, tp=2), DATA, name)
        folder = self.copy_of_base("mask")
        self.add(folder, "extra.mask", "BOOL", [4], b"\0" * 4)
        result = self.run_verb("eval", folder, ranks=2, tp=2)
        self.assertEqual(result.code, OK, str(result))
        self.assertEqual(result.err.count("extra.mask"), 1, str(result))  # by one rank

    def test_a_second_head(self):
        folder = self.copy_of_base("second-head", tie_word_embeddings=True)
        # Only the first rank compares the two matrices.
        for ranks in (0, 2):
            self.assert_refused(self.run_verb("eval", folder, ranks=ranks), DATA, "lm_head.weight", "tie_word_embeddings")

    def test_links(self):
        folder = self.path("links")
        os.makedirs(folder)
        for name in os.listdir(BASE):
            os.symlink(os.path.join(BASE, name), os.path.join(folder, name))
        for verb in ("train", "eval", "generate", "plan"):
            with self.subTest(verb=verb):
                self.assert_refused(self.run_verb(verb, folder), DATA, "symbolic link out of", "model.follow_links")
        result = self.run_verb("eval", folder, model__follow_links="true")
        self.assertEqual(result.code, OK, str(result))
        self.assertIn("untied", result.err)
        os.symlink("nowhere", self.path("gone"))
        self.assert_refused(self.run_verb("eval", self.path("gone")), USAGE, "model.path", "dangling symbolic link")


if __name__ == "__main__":
    harness.main()
