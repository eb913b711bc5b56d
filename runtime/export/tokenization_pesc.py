"""A tokenizer that does what tokenizer.json says, for models whose class in transformers takes no more than its vocabulary."""

from transformers import PreTrainedTokenizerFast


class PescTokenizerFast(PreTrainedTokenizerFast):
    """transformers before 5 asks for a name that ends in Fast."""
