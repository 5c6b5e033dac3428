"""MGM, a causal model of microbiome samples (Zhang et al. 2024): 8 layers, 8 heads of 32, GPT-2's architecture.

Its tokens are genera, in the order of how unusually frequent they are in a sample; it knows 512 positions. Its weights
and its list of genera are in the package ``microformer-mgm``, samples are not: here the model makes them itself, from a
seed. A sequence is many samples, one after the other, each with positions from 0 on.

As ``mgm``, a sample sees itself alone, which is what the model was made for: a mask of (n, n) for PyTorch, a narrow
band for `dci_attention`, which computes nothing else and is exact. As ``mgm-across``, it sees those before it too:
long attention, but not what the model knows. It expects no genus twice, and is surprised by all of them (its perplexity
rises from some 60 to thousands): what can be compared there is one attention with another, not with the truth.
"""

from __future__ import annotations

import importlib.util
import json
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from comparisons.data.datasets import MissingPackageError, cached, optional

INSTALL = "pip install --no-deps microformer-mgm"
PAD, MASK, BEGIN, END = range(4)  # as the model's configuration has them; genera follow


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


def samples(count: int, seed: int = 0) -> list[Tensor]:
    """Return samples that the model has drawn, each from <bos> to <eos>, or to its last position; made once."""
    name = f"mgm-samples-{count}-{seed}"
    flat = torch.from_numpy(cached(name, lambda: torch.cat(drawn(load(), count, seed)).numpy(), np.int64).copy())
    return list(flat.tensor_split((flat == BEGIN).nonzero()[1:, 0]))


@torch.no_grad()
def drawn(model: Any, count: int, seed: int) -> list[Tensor]:
    """Draw samples from a model, all of them side by side as long as they last."""
    generator = torch.Generator().manual_seed(seed)
    cache = optional("transformers", "MGM").DynamicCache()
    positions = model.config.n_positions
    tokens = torch.full((count, positions), END)
    tokens[:, 0] = BEGIN
    lengths = torch.full((count,), positions)
    going = torch.arange(count)  # samples that have not ended
    for at in range(1, positions):
        place = torch.full((len(going), 1), at - 1)
        named = {"position_ids": place, _cache_name(model): cache, "use_cache": True}
        logits = model(tokens[going, at - 1, None], **named).logits[:, -1]
        logits[:, [PAD, MASK, BEGIN]] = -torch.inf
        tokens[going, at] = torch.multinomial(logits.softmax(-1), 1, generator=generator)[:, 0]
        on = tokens[going, at] != END
        lengths[going[~on]] = at + 1
        going = going[on]
        if not len(going):
            break
        cache.batch_select_indices(on.nonzero()[:, 0])
    return [row[:length] for row, length in zip(tokens, lengths.tolist(), strict=True)]


def _cache_name(model: Any) -> str:
    from inspect import signature

    return "cache" if "cache" in signature(model.forward).parameters else "past_key_values"


def packed(some: list[Tensor], length: int) -> tuple[Tensor, Tensor]:
    """Return samples one after the other, and their places, (1, length) each."""
    tokens = torch.cat(some)[None, :length]
    places = torch.cat([torch.arange(len(sample)) for sample in some])[None, :length]
    return tokens, places
