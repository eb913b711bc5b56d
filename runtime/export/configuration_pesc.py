"""The configuration of a dense model with a mixture of adapters behind every FFN (PESC, arXiv 2401.02731)."""

from transformers.models.llama.configuration_llama import LlamaConfig


class PescLlamaConfig(LlamaConfig):
    """The dense model's configuration, and the size of the adapters.

    adapter_experts: adapters of a layer; adapter_topk: adapters that a token is sent to; adapter_dim: inner size of an
    adapter; adapter_scaling: factor of an adapter's output.
    """

    model_type = "pesc_llama"

    def __init__(self, adapter_experts=8, adapter_topk=2, adapter_dim=512, adapter_scaling=1.0, **kwargs):
        super().__init__(**kwargs)
        self.adapter_experts = adapter_experts
        self.adapter_topk = adapter_topk
        self.adapter_dim = adapter_dim
        self.adapter_scaling = adapter_scaling
