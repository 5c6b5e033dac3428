"""Decoding: one token after the other attends to many cached keys, which grow by one each time.

Ours is `KeyValueIndex`: every token appends its key and value and attends, so what folding keys into cells takes is in
the mean; the longest token is shown beside the median. What it takes to begin with, from the cached keys and the
queries of the prompt's last tokens, is shown apart (``build``), as prefilling is. Exact attention reads preallocated
keys and appends nothing.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from attention import AttentionOptions
from attention.demo import head_errors
from comparisons.data.datasets import MissingPackageError
from comparisons.data.heads import Heads
from comparisons.harness.results import Row

GROUP = 4  # query heads that share a head of keys
OBSERVED = 256  # of the prompt's queries
CHECKED = 25  # every so many tokens the output's error is computed
EXACT_TOKENS = 100


def rows(heads: Heads, cached: int, tolerances: tuple[float, ...]) -> list[Row]:
    """Decode the tokens after the first `cached`: exact attention in two forms, ours at each tolerance."""
    key, value = (torch.from_numpy(part)[None] for part in (heads.key, heads.value))
    n_heads, length, width = heads.key.shape
    tokens = length - cached
    rng = np.random.default_rng(0)
    picked = rng.integers(length, size=(n_heads, GROUP, OBSERVED + tokens))  # queries that follow no order
    drawn = np.stack([heads.query[head][picked[head]] for head in range(n_heads)])
    query = torch.from_numpy(drawn).flatten(0, 1)[None]
    of_tokens = query[:, :, OBSERVED:]

    def exact(token: int) -> Tensor:
        end = cached + token + 1
        return F.scaled_dot_product_attention(
            of_tokens[:, :, token : token + 1], key[:, :, :end], value[:, :, :end], enable_gqa=True
        )

    def exact_grouped(token: int) -> Tensor:
        end = cached + token + 1
        rows_of = of_tokens[:, :, token].unflatten(1, (n_heads, GROUP))
        return F.scaled_dot_product_attention(rows_of, key[:, :, :end], value[:, :, :end])

    few = min(tokens, EXACT_TOKENS)
    context = {"heads": n_heads * GROUP, "dim": width, "build": 0.0}
    found = []
    for method, attend in (("torch exact", exact), ("torch exact, heads as rows", exact_grouped)):
        seconds = _tokens(attend, few)
        numbers = {"error": 0.0, "worst": 0.0, "errors": [], "keys": 1.0, "notes": {"tokens": few}}
        found.append(context | {"method": method, "options": {}, "seconds": [float(np.median(seconds))], **numbers})
    return found + [context | _ours(key, value, query, exact, cached, t) for t in tolerances]


def _tokens(attend: Callable[[int], Tensor], count: int) -> np.ndarray:
    """Return the seconds of each token, the first one left out."""
    seconds = np.empty(count)
    for token in range(count):
        start = time.perf_counter()
        attend(token)
        seconds[token] = time.perf_counter() - start
    return seconds[1:]


def _ours(
    key: Tensor, value: Tensor, query: Tensor, exact: Callable[[int], Tensor], cached: int, tolerance: float
) -> Row:
    try:
        from attention.decoding.key_value_index import KeyValueIndex
    except ImportError as error:
        raise MissingPackageError(f"the suite 'attention_decoding' needs attention.growing ({error})") from error
    tokens = key.shape[2] - cached
    start = time.perf_counter()
    index = KeyValueIndex(AttentionOptions(tolerance=tolerance))
    index.append(key[:, :, :cached], value[:, :, :cached])
    index.observe(query[:, :, :OBSERVED])
    shares, outs, wanted = [], [], []

    def attend(token: int) -> Tensor:
        at = slice(cached + token, cached + token + 1)
        index.append(key[:, :, at], value[:, :, at])
        return index.attend(query[:, :, OBSERVED + token : OBSERVED + token + 1])

    attend(0)  # the cells are made
    build = time.perf_counter() - start
    seconds = np.empty(tokens - 1)
    for token in range(1, tokens):
        start = time.perf_counter()
        out = attend(token)
        seconds[token - 1] = time.perf_counter() - start
        if token % CHECKED == 0 or token == tokens - 1:
            outs.append(out[0]), wanted.append(exact(token)[0])
            shares.append(index.report().share)
    errors = head_errors(torch.cat(outs, 1), torch.cat(wanted, 1)).tolist()
    return {
        "method": f"dci_attention {tolerance:g}",
        "options": {"tolerance": tolerance},
        "build": build,
        "seconds": [float(seconds.mean())],
        "error": float(np.median(errors)),
        "worst": max(errors),
        "errors": errors,
        "keys": float(np.mean(shares)),
        "notes": {
            "tokens": tokens,
            "median": float(np.median(seconds)),
            "slowest": float(seconds.max()),
            "estimated": [index.report().error],
        },
    }
