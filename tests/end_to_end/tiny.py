"""A random Llama of two layers and files of rows, for tests that need a model but not a good one."""

import json
import os
import random
import shutil
import struct

import harness

HIDDEN, FFN, LAYERS, HEADS, KV, VOCAB, POSITIONS = 32, 48, 2, 4, 2, 1024, 128


def write_base(folder, seed=1, head=0.3, biases=False, **config):
    """With the quick start's tokenizer. The head's weights lie between -head and head. biases: of q, k and v. Other words stand in
    config.json."""
    os.makedirs(folder)
    draw = random.Random(seed)
    size = HIDDEN // HEADS
    shapes = {"model.embed_tokens.weight": (VOCAB, HIDDEN), "lm_head.weight": (VOCAB, HIDDEN), "model.norm.weight": (HIDDEN,)}
    if config.get("tie_word_embeddings"):
        shapes.pop("lm_head.weight")
    for i in range(LAYERS):
        layer = "model.layers.%d." % i
        shapes.update({layer + "input_layernorm.weight": (HIDDEN,), layer + "post_attention_layernorm.weight": (HIDDEN,),
                       layer + "self_attn.q_proj.weight": (HIDDEN, HIDDEN), layer + "self_attn.k_proj.weight": (KV * size, HIDDEN),
                       layer + "self_attn.v_proj.weight": (KV * size, HIDDEN), layer + "self_attn.o_proj.weight": (HIDDEN, HIDDEN),
                       layer + "mlp.gate_proj.weight": (FFN, HIDDEN), layer + "mlp.up_proj.weight": (FFN, HIDDEN),
                       layer + "mlp.down_proj.weight": (HIDDEN, FFN)})
        if biases:
            shapes.update({layer + "self_attn.%s_proj.bias" % l: ((HEADS if l == "q" else KV) * size,) for l in "qkv"})
    header, data = {}, bytearray()
    for name, shape in shapes.items():
        count = shape[0] * (shape[1] if len(shape) > 1 else 1)
        norm = name.endswith("norm.weight")
        values = [1.0] * count if norm else [draw.uniform(-1, 1) for _ in range(count)]
        most = head if name == "lm_head.weight" else 0.3
        values = values if norm else [most * v for v in values]
        header[name] = {"dtype": "F32", "shape": list(shape), "data_offsets": [len(data), len(data) + 4 * count]}
        data += struct.pack("<%df" % count, *values)
    harness.write_safetensors(os.path.join(folder, "model.safetensors"), header, bytes(data))
    with open(os.path.join(folder, "config.json"), "w", encoding="utf-8") as file:
        json.dump({"architectures": ["LlamaForCausalLM"], "model_type": "llama", "vocab_size": VOCAB, "hidden_size": HIDDEN,
                   "intermediate_size": FFN, "num_hidden_layers": LAYERS, "num_attention_heads": HEADS,
                   "num_key_value_heads": KV, "max_position_embeddings": POSITIONS, "hidden_act": "silu", "rms_norm_eps": 1e-5,
                   "rope_theta": 10000.0, "tie_word_embeddings": False, "bos_token_id": 1, "eos_token_id": 2,
                   **config}, file)
    shutil.copy(os.path.join(harness.BASE, "tokenizer.model"), folder)


def write_rows(path, rows):
    with open(path, "w", encoding="utf-8") as file:
        for question, answer, tag in rows:
            file.write(json.dumps({"instruction": question, "output": answer, "dataset": tag}) + "\n")
