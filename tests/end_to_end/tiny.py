"""A random Llama of two layers and files of rows, for tests that need a model but not a good one."""

import json
import os
import random
import shutil
import struct

import harness

HIDDEN, FFN, LAYERS, HEADS, KV, VOCAB, POSITIONS = 32, 48, 2, 4, 2, 1024, 128


def write_base(folder, seed=1, head=0.3, vocab=VOCAB, begin=1, end=2, biases=False, head_norms=False, fused=False, **config):
    """With the quick start's tokenizer. The head's weights lie between -head and head. biases: of q, k and v. head_norms: q_norm and
    k_norm, as Qwen3 has them. fused: qkv_proj and gate_up_proj in place of their parts, as Phi-3 has them. Other words stand in
    config.json."""
    os.makedirs(folder)
    draw = random.Random(seed)
    size = HIDDEN // HEADS
    shapes = {"model.embed_tokens.weight": (vocab, HIDDEN), "lm_head.weight": (vocab, HIDDEN), "model.norm.weight": (HIDDEN,)}
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
        if head_norms:
            shapes.update({layer + "self_attn.%s_norm.weight" % l: (size,) for l in "qk"})
        if fused:
            rows = {"self_attn.qkv_proj": ["self_attn.%s_proj" % l for l in "qkv"], "mlp.gate_up_proj": ["mlp.gate_proj", "mlp.up_proj"]}
            for name, parts in rows.items():
                shapes[layer + name + ".weight"] = (sum(shapes.pop(layer + p + ".weight")[0] for p in parts), HIDDEN)
    header, data = {}, bytearray()
    for name, shape in shapes.items():
        count = shape[0] * (shape[1] if len(shape) > 1 else 1)
        norm = name.endswith("norm.weight")
        values = [1.0] * count if norm else [draw.uniform(-1, 1) for _ in range(count)]
        most = head if name == "lm_head.weight" else 0.3
        values = values if norm else [most * v for v in values]
        if head_norms and name.endswith(("q_norm.weight", "k_norm.weight")):
            values = [draw.uniform(0.5, 1.5) for _ in range(count)]
        header[name] = {"dtype": "F32", "shape": list(shape), "data_offsets": [len(data), len(data) + 4 * count]}
        data += struct.pack("<%df" % count, *values)
    harness.write_safetensors(os.path.join(folder, "model.safetensors"), header, bytes(data))
    with open(os.path.join(folder, "config.json"), "w", encoding="utf-8") as file:
        json.dump({"architectures": ["LlamaForCausalLM"], "model_type": "llama", "vocab_size": vocab, "hidden_size": HIDDEN,
                   "intermediate_size": FFN, "num_hidden_layers": LAYERS, "num_attention_heads": HEADS,
                   "num_key_value_heads": KV, "max_position_embeddings": POSITIONS, "hidden_act": "silu", "rms_norm_eps": 1e-5,
                   "rope_theta": 10000.0, "tie_word_embeddings": False, "bos_token_id": begin, "eos_token_id": end,
                   **config}, file)
    shutil.copy(os.path.join(harness.BASE, "tokenizer.model"), folder)


CHATML = ("{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>' + '\\n' }}"
          "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}")
CHATML_TOKENS = {"<|endoftext|>": 256, "<|im_start|>": 257, "<|im_end|>": 258}


BYTES = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": False, "use_regex": False}


def splits(*patterns):
    """A pre-tokenizer that cuts a text by these patterns, one after the other, and makes bytes of the parts."""
    cut = [{"type": "Split", "pattern": {"Regex": p}, "behavior": "Isolated", "invert": False} for p in patterns]
    return {"type": "Sequence", "pretokenizers": cut + [BYTES]}


# Steps of tokenizer.json: those of Qwen2 and Qwen3; those of models of type qwen2 that have another tokenizer (DeepSeek-R1-Distill-Qwen);
# and some that no family has.
QWEN2_STEPS = {"normalizer": {"type": "NFC"}, "decoder": BYTES, "pre_tokenizer": splits(
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+")}
DISTILLED_STEPS = {"normalizer": {"type": "Sequence", "normalizers": []}, "decoder": BYTES,
                   "pre_tokenizer": splits(r"\p{N}{1,3}", r"[^\r\n\p{L}\p{N}]?\p{L}+| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+")}
SPACED_STEPS = {"normalizer": {"type": "NFD"}, "decoder": BYTES, "pre_tokenizer": {**BYTES, "add_prefix_space": True, "use_regex": True}}
# Of digits, of a space and a letter, and of both bytes of U+00E9.
MERGES = (("1", "2"), ("12", "3"), ("\u0120", "x"), ("\u00c3", "\u00a9"))


def write_byte_tokenizer(folder, tokens, merges=(), **steps):
    """tokenizer.json, in which byte b is token b, and these special tokens, of which the first ends a text. merges: pairs, which become
    the tokens 256, 257, ..., and the special ones come so much later. steps: what stands in the place of a GPT-2 model's."""
    plain = [b for b in range(256) if 33 <= b <= 126 or 161 <= b <= 172 or b >= 174]
    others = [b for b in range(256) if b not in plain]
    letters = {**{b: chr(b) for b in plain}, **{b: chr(256 + i) for i, b in enumerate(others)}}
    with open(os.path.join(folder, "tokenizer.json"), "w", encoding="utf-8") as file:
        # Every field that the original library asks for.
        byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
        added = [{"id": i + len(merges), "content": name, "single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
                 for name, i in tokens.items()]
        made = {a + b: 256 + i for i, (a, b) in enumerate(merges)}
        json.dump({"version": "1.0", "added_tokens": added, "pre_tokenizer": byte_level, "decoder": byte_level,
                   "model": {"type": "BPE", "vocab": {**{letters[b]: b for b in range(256)}, **made},
                             "merges": [list(pair) for pair in merges]}, **steps}, file)
    with open(os.path.join(folder, "tokenizer_config.json"), "w", encoding="utf-8") as file:
        json.dump({"eos_token": next(iter(tokens))}, file)


def write_chat_base(folder, template=CHATML, tokens=CHATML_TOKENS, **options):
    """A model with a tokenizer.json and a chat template, as a current instruct model's folder has them."""
    write_base(folder, vocab=272, begin=None, end=256, **options)
    os.remove(os.path.join(folder, "tokenizer.model"))
    write_byte_tokenizer(folder, tokens)
    if template is not None:
        with open(os.path.join(folder, "chat_template.jinja"), "w", encoding="utf-8") as file:
            file.write(template)


def chatml_ids(text):
    """The tokens of a rendered text by that tokenizer."""
    ids, at = [], 0
    data = text.encode()
    while at < len(data):
        token = next((t for t in CHATML_TOKENS if data.startswith(t.encode(), at)), None)
        ids.append(CHATML_TOKENS[token] if token else data[at])
        at += len(token) if token else 1
    return ids


def write_rows(path, rows):
    with open(path, "w", encoding="utf-8") as file:
        for question, answer, tag in rows:
            file.write(json.dumps({"instruction": question, "output": answer, "dataset": tag}) + "\n")
