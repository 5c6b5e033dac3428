"""MGM, a causal model of microbiome samples (Zhang et al. 2024): 8 layers, 8 heads of 32, GPT-2's architecture.

Its tokens are genera, in the order of how unusually frequent they are in a sample; it knows 512 positions. Its weights
and its list of genera are in the package ``microformer-mgm``, samples are not: here the model makes them itself, from a
seed. A sequence is many samples, one after the other, each with positions from 0 on: samples are packed like this to
train on, and here a sample can see those before it. Exact attention sees the same.
"""

from __future__ import annotations

import importlib.util
import json
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from comparisons.data.datasets import MissingPackageError, optional

INSTALL = "pip install --no-deps microformer-mgm"
PAD, MASK, BEGIN, END = range(4)  # as the model's configuration has them; genera follow
SIDE_BY_SIDE = 64  # samples that are made at once


@lru_cache(maxsize=1)
def load() -> Any:
    """Return the model, or say in one line what to install."""
    transformers = optional("transformers", "MGM")
    found = importlib.util.find_spec("mgm")
    folder = Path(found.origin).parent / "resources" / "general_model" if found and found.origin else None
    if folder is None or not folder.is_dir():
        raise MissingPackageError(f"MGM needs the package 'microformer-mgm': {INSTALL}")
    config = transformers.GPT2Config(**json.loads((folder / "config.json").read_text()))
    model = transformers.GPT2LMHeadModel(config)
    weights = torch.load(folder / "pytorch_model.bin", map_location="cpu", weights_only=True)
    model.load_state_dict(weights, strict=False)
    model.tie_weights()
    model.set_attn_implementation("sdpa")
    return model.eval()


def genera() -> list[str]:
    """Return what the tokens stand for; the package's own tokenizer is a pickle, which is not loaded."""
    found = importlib.util.find_spec("mgm")
    table = Path(found.origin).parent / "resources" / "phylogeny.csv"  # type: ignore[union-attr, arg-type]
    names = [line.split(",")[0] for line in table.read_text().splitlines()[1:]]
    return ["<pad>", "<mask>", "<bos>", "<eos>", *names]


@torch.no_grad()
def samples(model: Any, count: int, seed: int = 0) -> list[Tensor]:
    """Draw samples from the model, each from <bos> to <eos>, or to its last position."""
    generator = torch.Generator().manual_seed(seed)
    transformers = optional("transformers", "MGM")
    found = []
    for _ in range(-(-count // SIDE_BY_SIDE)):
        drawn = torch.full((SIDE_BY_SIDE, 1), BEGIN)
        cache = transformers.DynamicCache()
        while drawn.shape[1] < model.config.n_positions:
            place = torch.full((SIDE_BY_SIDE, 1), drawn.shape[1] - 1)
            logits = model(drawn[:, -1:], position_ids=place, **{_cache_name(model): cache}).logits[:, -1]
            logits[:, [PAD, MASK, BEGIN]] = -torch.inf
            token = torch.multinomial(logits.softmax(-1), 1, generator=generator)
            drawn = torch.cat([drawn, token], 1)
        for row in drawn:
            ends = (row == END).nonzero()
            found.append(row[: int(ends[0]) + 1] if len(ends) else row)
    return found[:count]


def _cache_name(model: Any) -> str:
    from inspect import signature

    return "cache" if "cache" in signature(model.forward).parameters else "past_key_values"


def packed(some: list[Tensor], length: int) -> tuple[Tensor, Tensor]:
    """Return samples one after the other, and their places, (1, length) each."""
    tokens = torch.cat(some)[None, :length]
    places = torch.cat([torch.arange(len(sample)) for sample in some])[None, :length]
    return tokens, places
