"""What nn.MultiheadAttention computes, around another attention function."""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor


def multi_head_attention(
    attend: Callable[..., Tensor],
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    num_heads: int,
    in_proj_weight: Tensor | None,
    q_proj_weight: Tensor | None,
    k_proj_weight: Tensor | None,
    v_proj_weight: Tensor | None,
    in_proj_bias: Tensor | None,
    out_proj_weight: Tensor,
    out_proj_bias: Tensor | None,
    bias_k: Tensor | None,
    bias_v: Tensor | None,
    add_zero_attn: bool,
    key_padding_mask: Tensor | None,
    attn_mask: Tensor | None,
    is_causal: bool,
    dropout_p: float,
    training: bool,
    **unused: Any,
) -> Tensor:
    """Project, attend and project, as ``torch.nn.functional.multi_head_attention_forward`` without its weights.

    Torch merges masks into batch × heads × queries × keys; here those of padding and of the future stay small.

    Parameters
    ----------
    attend : callable
        Called like scaled_dot_product_attention, but perhaps with a mask and ``is_causal`` at once: both hold.
    query : Tensor of shape (L, N, E) or (L, E)
    key, value : Tensor of shape (S, N, …) or (S, …)
    is_causal : bool
        `attn_mask` is the causal mask, so that it needs neither be read nor given.
    num_heads, …
        As torch names them; what else it passes is ignored.

    Returns
    -------
    Tensor of the shape of `query`
    """
    single = query.dim() == 2
    if single:
        query, key, value = query.unsqueeze(1), key.unsqueeze(1), value.unsqueeze(1)
    weights = (q_proj_weight, k_proj_weight, v_proj_weight) if in_proj_weight is None else in_proj_weight.chunk(3)
    biases = (None, None, None) if in_proj_bias is None else in_proj_bias.chunk(3)
    projections = zip((query, key, value), weights, biases, strict=True)
    q, k, v = (F.linear(x, weight, bias) for x, weight, bias in projections if weight is not None)

    n_keys, n_batch, _ = k.shape
    if bias_k is not None and bias_v is not None:
        k, v = torch.cat([k, bias_k.expand(-1, n_batch, -1)]), torch.cat([v, bias_v.expand(-1, n_batch, -1)])
    if add_zero_attn:
        k, v = F.pad(k, (0, 0, 0, 0, 0, 1)), F.pad(v, (0, 0, 0, 0, 0, 1))
    added = len(k) - n_keys  # all queries see these, which is_causal would hide from them
    if is_causal and added and attn_mask is None:
        attn_mask = torch.ones(len(q), n_keys, dtype=torch.bool, device=q.device).triu(1)
    is_causal = is_causal and not added
    mask = None
    if attn_mask is not None and not is_causal:
        mask = _shown_mask(attn_mask, added)
        mask = mask.view(n_batch, num_heads, *mask.shape[1:]) if mask.dim() == 3 else mask[None, None]
    if key_padding_mask is not None:
        padding = _shown_mask(key_padding_mask, added).view(n_batch, 1, 1, n_keys + added)
        mask = padding if mask is None else _both(mask, padding)

    heads = (x.reshape(*x.shape[:2], num_heads, -1).permute(1, 2, 0, 3) for x in (q, k, v))
    output = attend(*heads, mask, dropout_p if training else 0.0, is_causal)
    output = F.linear(output.permute(2, 0, 1, 3).flatten(2), out_proj_weight, out_proj_bias)
    return output.squeeze(1) if single else output


def _shown_mask(mask: Tensor, added: int) -> Tensor:
    """From the masks of modules (True = hidden) to those of scaled_dot_product_attention, with `added` more keys."""
    if mask.dtype == torch.bool:
        return F.pad(~mask, (0, added), value=True)
    return F.pad(mask, (0, added))


def _both(mask: Tensor, padding: Tensor) -> Tensor:
    if mask.dtype == padding.dtype == torch.bool:
        return mask & padding
    mask, padding = (
        torch.zeros_like(x, dtype=torch.float32).masked_fill(~x, -torch.inf) if x.dtype == torch.bool else x
        for x in (mask, padding)
    )
    return mask + padding
