"""A dense model with a mixture of adapters behind every FFN (PESC, arXiv 2401.02731).

The dense model is that of transformers. Of each layer, x is the input of the FFN and f its output; then the layer's output is

    f + sum over the chosen experts e of w_e * adapter_scaling * up_e(gelu(down_e(f)))

The router reads x in float32. It chooses the adapter_topk experts of the largest logits, at equal logits the lower expert; the
weights w are the softmax of the chosen logits.
"""

import torch
from torch import nn
from torch.nn import functional
from transformers.models.llama.modeling_llama import LlamaForCausalLM, LlamaMLP, LlamaModel

from .configuration_pesc import PescLlamaConfig


class PescAdapterUp(nn.Linear):
    """Begins at zero, so that an adapter without weights of its own changes nothing."""


class PescExpert(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.scaling = config.adapter_scaling
        self.adapter_down = nn.Linear(config.hidden_size, config.adapter_dim, bias=False)
        self.adapter_up = PescAdapterUp(config.adapter_dim, config.hidden_size, bias=False)

    def forward(self, f):
        return self.scaling * self.adapter_up(functional.gelu(self.adapter_down(f)))


class PescMoeAdapter(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.topk = config.adapter_topk
        self.router = nn.Linear(config.hidden_size, config.adapter_experts, bias=False)
        self.experts = nn.ModuleDict({f"expert_{e}": PescExpert(config) for e in range(config.adapter_experts)})

    def forward(self, x, f):
        logits = functional.linear(x.float(), self.router.weight.float())
        ordered, experts = torch.sort(logits, dim=-1, descending=True, stable=True)
        weights = torch.softmax(ordered[..., : self.topk], dim=-1)
        # [..., experts]; 0 where an expert is not chosen.
        weights = torch.zeros_like(logits).scatter(-1, experts[..., : self.topk], weights)
        y = f.float()
        for e, expert in enumerate(self.experts.values()):
            y = y + weights[..., e, None] * expert(f).float()
        return y.to(f.dtype)


class PescLlamaMLP(LlamaMLP):
    def __init__(self, config):
        super().__init__(config)
        self.moe_adapter = PescMoeAdapter(config)

    def forward(self, x):
        return self.moe_adapter(x, super().forward(x))


class PescLlamaModel(LlamaModel):
    config_class = PescLlamaConfig

    def __init__(self, config):
        super().__init__(config)
        for layer in self.layers:
            layer.mlp = PescLlamaMLP(config)
        keep_routers_in_float32(self)
        self.post_init()

    def _init_weights(self, module):
        init_weights(super()._init_weights, module)


class PescLlamaForCausalLM(LlamaForCausalLM):
    config_class = PescLlamaConfig

    def __init__(self, config):
        super().__init__(config)
        self.model = PescLlamaModel(config)
        keep_routers_in_float32(self)
        self.post_init()

    def _init_weights(self, module):
        init_weights(super()._init_weights, module)


def keep_routers_in_float32(model):
    # Not of the class: transformers 4 asks in the dense model's __init__, before there is a router. The first is for float16, the
    # second for bfloat16 too.
    model._keep_in_fp32_modules = ["router"]
    model._keep_in_fp32_modules_strict = ["router"]


def init_weights(usual, module):
    if not isinstance(module, PescAdapterUp):
        usual(module)
    elif not getattr(module.weight, "_is_hf_initialized", False):
        module.weight.data.zero_()
