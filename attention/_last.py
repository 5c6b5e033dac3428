"""Exact attention of the last tokens of sequences, for which no mask or index need exist."""

import torch
from torch import Tensor
from torch.nn import functional as F


def attend_last(query: Tensor, keys: Tensor, values: Tensor, starts: list[int], scale: float) -> Tensor:
    """Attend with the last L tokens, each to the keys up to its own, by PyTorch's kernel.

    Parameters
    ----------
    query, keys, values : Tensor of shape (B, Hq, L, E), (B, H, n, E) and (B, H, n, Ev)
    starts : list of B int
        The keys before these are not seen.
    scale : float

    Notes
    -----
    The query heads that share keys are rows of one head: half the time of ``enable_gqa=True``.
    """
    batch, heads, length, _ = query.shape
    n_heads, n_keys = keys.shape[1:3]
    seen = None
    if length > 1 or any(starts):
        key_id = torch.arange(n_keys)
        seen = key_id <= torch.arange(n_keys - length, n_keys)[:, None]
        seen = seen & (key_id >= torch.tensor(starts)[:, None, None])
        seen = seen.repeat(1, heads // n_heads, 1)[:, None]
    grouped = query.reshape(batch, n_heads, -1, query.shape[3])
    out = F.scaled_dot_product_attention(grouped, keys, values, seen, scale=scale)
    return out.reshape(batch, heads, length, -1)
