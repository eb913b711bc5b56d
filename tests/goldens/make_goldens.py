#!/usr/bin/env python3
"""Makes the reference cases of this folder, and makes the numbers of those that are here once more.

    make_goldens.py make CASE...      new random weights, and what follows from them, into the folder CASE
    make_goldens.py check [CASE...]   from a case's weights, parameters and tokens: its expected numbers again, which must
                                      agree with those that are here within the bounds of golden_check; all cases by default

The dense models are transformers' own classes in float32 on the CPU, attention "eager"; what PESC adds is written down here
as in model/README.md, and the gradients are autograd's. README.md says what the files are. Needs transformers 5.24.0 and
torch 2.15.0 (for the CPU alone: pip install --no-deps torch==2.15.0, the four nvidia wheels that it then misses, and
LD_LIBRARY_PATH).
"""

import argparse
import json
import math
import os
import sys

import torch
from safetensors.torch import load_file, save_file
from torch import nn
from torch.nn import functional
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.utils import logging

HERE = os.path.dirname(os.path.abspath(__file__))
SIZES = {"vocab_size": 96, "hidden_size": 64, "intermediate_size": 112, "num_hidden_layers": 2, "num_attention_heads": 4,
         "num_key_value_heads": 2, "global_batch_size": 3, "max_seq_length": 24, "num_experts": 4, "num_experts_per_tok": 2,
         "adapter_dim": 8, "adapter_scaling": 1.0, "r": 4, "lora_alpha": 8, "learning_rate": 0.003, "weight_decay": 0.0,
         "max_grad_norm": 0.3, "router_aux_loss_coef": 0.01, "max_steps": 20}
# Those that this script made. `extra` goes into config.json.
CASES = {
    # Heads of another size than hidden_size / num_attention_heads, fewer KV heads than heads, tied embeddings.
    "qwen3-qk-norm-tied": {**SIZES, "family": "qwen3", "seed": 31, "tie": True, "vocab_size": 128, "num_experts": 8,
                           "adapter_dim": 4, "extra": {"head_dim": 32}},
    # q, k, v and gate, up fused in the file.
    "phi3-fused": {**SIZES, "family": "phi3", "seed": 32, "weight_decay": 0.1, "adapter_scaling": 0.25,
                   "extra": {"pad_token_id": None, "bos_token_id": 1, "eos_token_id": 2}},
    # The second layer has no rotary embedding.
    "smollm3-no-rope": {**SIZES, "family": "smollm3", "seed": 33, "tie": True,
                        "extra": {"no_rope_layer_interval": 2, "pad_token_id": None, "bos_token_id": 1, "eos_token_id": 2}},
}
# Linears of a module of the model, from its first output row to the last.
PARTS = {"q_proj": ["q_proj"], "k_proj": ["k_proj"], "v_proj": ["v_proj"], "o_proj": ["o_proj"], "gate_proj": ["gate_proj"],
         "up_proj": ["up_proj"], "down_proj": ["down_proj"], "qkv_proj": ["q_proj", "k_proj", "v_proj"],
         "gate_up_proj": ["gate_proj", "up_proj"]}
# Those of golden_check in float32 (tests/golden_bounds.h), by the beginning of a tensor's name.
BOUNDS = {"dense.": 1e-5, "pesc.": 1e-5, "grad.": 1e-4, "curve.": 1e-4, "final.": 1e-3}


class LoraLinear(nn.Module):
    """y = W x + (alpha / r) B A x, with an A and a B for each of the linears whose outputs stand side by side in y."""

    def __init__(self, base, scale):
        super().__init__()
        self.base, self.scale, self.pairs = base, scale, []

    def forward(self, x):
        beside = [functional.linear(functional.linear(x, a), b) for a, b in self.pairs]
        return self.base(x) + self.scale * torch.cat(beside, -1)


class PescFfn(nn.Module):
    """y = f(x) + sum over the chosen experts e of w_e A_e(f(x)); the router reads x, the adapters read f(x)."""

    def __init__(self, ffn, router, experts, case):
        super().__init__()
        self.ffn, self.router, self.experts = ffn, router, experts
        self.k, self.scale = case["num_experts_per_tok"], case["adapter_scaling"]

    def forward(self, x):
        f = self.ffn(x)
        tokens, outputs = x.reshape(-1, x.shape[-1]), f.reshape(-1, f.shape[-1])
        logits = functional.linear(tokens, self.router)
        best, self.chosen = logits.topk(self.k, dim=-1)
        self.weights = best.softmax(-1)
        following = logits.detach().topk(min(self.k + 1, logits.shape[-1]), dim=-1).values
        self.gap = (following[:, self.k - 1] - following[:, -1]).min().item() if following.shape[-1] > self.k else math.inf
        added = torch.zeros_like(outputs)
        share = torch.zeros(len(self.experts))
        for e, (down, up) in enumerate(self.experts):
            token, slot = (self.chosen == e).nonzero(as_tuple=True)
            share[e] = len(token) / self.chosen.numel()
            adapted = functional.linear(functional.gelu(functional.linear(outputs[token], down)), up)
            added = added.index_add(0, token, self.weights[token, slot].unsqueeze(-1) * adapted)
        self.aux = len(self.experts) * (share * logits.softmax(-1).mean(0)).sum()
        return (outputs + self.scale * added).view(f.shape)


def linears(model):
    """Every linear that LoRA sits on, as (owner, attribute, names of its parts, rows of each part)."""
    config = model.config
    head = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    rows = {"q_proj": config.num_attention_heads * head, "k_proj": config.num_key_value_heads * head,
            "v_proj": config.num_key_value_heads * head, "gate_proj": config.intermediate_size,
            "up_proj": config.intermediate_size, "o_proj": config.hidden_size, "down_proj": config.hidden_size}
    for i, layer in enumerate(model.model.layers):
        for module in ("self_attn", "mlp"):
            owner = getattr(layer, module)
            for attribute, parts in PARTS.items():
                if hasattr(owner, attribute):
                    yield (owner, attribute, ["model.layers.%d.%s.%s" % (i, module, part) for part in parts],
                           [rows[part] for part in parts])


def random_parameters(model, case, generator):
    """What is trained, at step 0, by the names of the parameters' file."""

    def normal(*shape, deviation):
        return deviation * torch.randn(*shape, generator=generator)

    out, hidden, size = {}, case["hidden_size"], case["adapter_dim"]
    for owner, attribute, names, rows in linears(model):
        columns = getattr(owner, attribute).in_features
        for name, n in zip(names, rows):
            out[name + ".lora_A.weight"] = normal(case["r"], columns, deviation=1 / math.sqrt(columns))
            out[name + ".lora_B.weight"] = normal(n, case["r"], deviation=0.05)
    for i in range(case["num_hidden_layers"]):
        adapter = "model.layers.%d.mlp.moe_adapter." % i
        out[adapter + "router.weight"] = normal(case["num_experts"], hidden, deviation=1 / math.sqrt(hidden))
        for e in range(case["num_experts"]):
            expert = adapter + "experts.expert_%d." % e
            out[expert + "adapter_down.weight"] = normal(size, hidden, deviation=1 / math.sqrt(hidden))
            out[expert + "adapter_up.weight"] = normal(hidden, size, deviation=0.1)
    return out


def add_pesc(model, trained, case):
    """Puts LoRA, router and adapters with the parameters `trained` into the model, whose own are frozen."""
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    for owner, attribute, names, _ in list(linears(model)):
        linear = LoraLinear(getattr(owner, attribute), case["lora_alpha"] / case["r"])
        linear.pairs = [(trained[name + ".lora_A.weight"], trained[name + ".lora_B.weight"]) for name in names]
        setattr(owner, attribute, linear)
    for i, layer in enumerate(model.model.layers):
        adapter = "model.layers.%d.mlp.moe_adapter." % i
        experts = [tuple(trained["%sexperts.expert_%d.adapter_%s.weight" % (adapter, e, way)] for way in ("down", "up"))
                   for e in range(case["num_experts"])]
        layer.mlp = PescFfn(layer.mlp, trained[adapter + "router.weight"], experts, case)


def cross_entropy(logits, labels):
    return functional.cross_entropy(logits[:, :-1].reshape(-1, logits.shape[-1]), labels[:, 1:].reshape(-1), ignore_index=-100)


def expected_of(folder, parameters, tokens, labels, case):
    """All that golden_check compares. Also returns how far apart the last chosen and the first other logit ever came."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager").eval()
    out = {"input_ids": tokens.to(torch.int32), "labels": labels.to(torch.int32)}
    with torch.no_grad():
        out["dense.logits"] = model(tokens).logits
        out["dense.loss"] = cross_entropy(out["dense.logits"], labels).reshape(1)
    trained = {name: nn.Parameter(value.clone()) for name, value in parameters.items()}
    add_pesc(model, trained, case)
    ffns = [layer.mlp for layer in model.model.layers]
    optimizer = torch.optim.AdamW(trained.values(), lr=case["learning_rate"], betas=(0.9, 0.999), eps=1e-8,
                                  weight_decay=case["weight_decay"])
    curve, gap = [], math.inf
    for step in range(case["max_steps"]):
        logits = model(tokens).logits
        aux = sum(ffn.aux for ffn in ffns) / len(ffns)
        loss = cross_entropy(logits, labels)
        optimizer.zero_grad()
        (loss + case["router_aux_loss_coef"] * aux).backward()
        gap = min([gap] + [ffn.gap for ffn in ffns])
        norm = torch.sqrt(sum(p.grad.double().square().sum() for p in trained.values())).item()
        curve.append([loss.item(), aux.item(), norm])
        if step == 0:
            out["pesc.logits"] = logits.detach()
            out["pesc.top_experts"] = torch.stack([ffn.chosen for ffn in ffns]).to(torch.int32)
            out["pesc.top_weights"] = torch.stack([ffn.weights for ffn in ffns]).detach()
            out.update({"grad." + name: p.grad.clone() for name, p in trained.items()})
        factor = min(1.0, case["max_grad_norm"] / (norm + 1e-6))
        for parameter in trained.values():
            parameter.grad *= factor
        optimizer.step()
    out["curve.ce_aux_gradnorm"] = torch.tensor(curve)
    out.update({"final." + name: p.detach().clone() for name, p in trained.items()})
    return {name: value.contiguous() for name, value in out.items()}, gap


def make(name):
    case, folder = CASES[name], os.path.join(HERE, name)
    torch.manual_seed(case["seed"])
    generator = torch.Generator().manual_seed(case["seed"] + 1)
    sizes = {key: case[key] for key in ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers",
                                        "num_attention_heads", "num_key_value_heads")}
    config = AutoConfig.for_model(case["family"], **sizes, max_position_embeddings=256, rms_norm_eps=1e-5,
                                  tie_word_embeddings=case.get("tie", False), initializer_range=0.08, **case.get("extra", {}))
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32, attn_implementation="eager")
    with torch.no_grad():
        for parameter_name, parameter in model.named_parameters():
            if "norm" in parameter_name:
                parameter.copy_(1 + 0.1 * torch.randn(parameter.shape, generator=generator))
    model.save_pretrained(folder)
    generation = os.path.join(folder, "generation_config.json")
    if os.path.exists(generation):
        os.remove(generation)  # no case is generated from
    parameters = random_parameters(model, case, generator)
    tokens = torch.randint(0, case["vocab_size"], (case["global_batch_size"], case["max_seq_length"]), generator=generator)
    labels = tokens.clone()
    labels[:, : case["max_seq_length"] // 4] = -100
    labels[-1, -3:] = -100
    save_file(parameters, os.path.join(folder, "pesc_params.safetensors"))
    expected, gap = expected_of(folder, parameters, tokens, labels, case)
    save_file(expected, os.path.join(folder, "expected.safetensors"))
    with open(os.path.join(folder, "case.json"), "w", encoding="utf-8") as file:
        json.dump(case, file, indent=1)
        file.write("\n")
    size = sum(os.path.getsize(os.path.join(folder, file)) for file in os.listdir(folder))
    curve = expected["curve.ce_aux_gradnorm"]
    print("%s: loss %.4f to %.4f, logits of the router at least %.1e apart, %d KiB"
          % (name, curve[0, 0], curve[-1, 0], gap, size // 1024))


def error(a, b):
    """max |a - b| / max |b|, the bounds' measure; absolute where b is 0."""
    largest = b.abs().max().item()
    difference = (a.double() - b.double()).abs().max().item()
    return difference / largest if largest > 0 else difference


def check(name):
    """Whether all numbers of the case come out again; prints the worst of each quantity."""
    folder = os.path.join(HERE, name)
    with open(os.path.join(folder, "case.json"), encoding="utf-8") as file:
        case = json.load(file)
    want = load_file(os.path.join(folder, "expected.safetensors"))
    got, gap = expected_of(folder, load_file(os.path.join(folder, "pesc_params.safetensors")), want["input_ids"].long(),
                           want["labels"].long(), case)
    right = sorted(got) == sorted(want)
    if not right:
        print("%s: other tensors: %s" % (name, sorted(set(got) ^ set(want))))
    for prefix, bound in BOUNDS.items():
        worst = 0.0
        for tensor in sorted(set(got) & set(want)):
            if not tensor.startswith(prefix):
                continue
            a, b = got[tensor], want[tensor]
            if a.shape != b.shape:
                worst = math.inf
            elif a.dtype == torch.int32:
                worst = max(worst, 0.0 if torch.equal(a, b) else math.inf)
            elif prefix == "curve.":  # a scalar each
                worst = max([worst] + [error(x, y) for x, y in zip(a.flatten(), b.flatten())])
            else:
                worst = max(worst, error(a, b))
        right = right and worst <= bound
        print("%-20s %-7s worst %.1e, bound %.0e%s" % (name, prefix, worst, bound, "" if worst <= bound else "  WRONG"))
    print("%-20s logits of the router at least %.1e apart" % (name, gap))
    return right


def main():
    there = sorted(entry for entry in os.listdir(HERE) if os.path.exists(os.path.join(HERE, entry, "case.json")))
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("make", "check"))
    parser.add_argument("case", nargs="*", help="make: one of " + ", ".join(CASES))
    arguments = parser.parse_args()
    known = CASES if arguments.what == "make" else there
    for name in arguments.case:
        if name not in known:
            parser.error("no case %r; there are %s" % (name, ", ".join(known)))
    if arguments.what == "make" and not arguments.case:
        parser.error("make needs the name of a case: " + ", ".join(CASES))
    logging.disable_progress_bar()
    torch.set_default_dtype(torch.float32)
    torch.use_deterministic_algorithms(True)
    torch.set_num_threads(1)
    if arguments.what == "check":
        return 0 if all([check(name) for name in arguments.case or there]) else 1
    for name in arguments.case:
        make(name)
    return 0


if __name__ == "__main__":
    sys.exit(main())
