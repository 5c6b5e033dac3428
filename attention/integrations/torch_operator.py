"""The operator ``torch.ops.dci.attention``: what `torch.compile` sees of `dci_attention`."""

import torch
from torch import Tensor

from .._core.validation import lead_shape
from ..functional import dci_attention
from ..options import from_text


@torch.library.custom_op("dci::attention", mutates_args=())
def attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None,
    is_causal: bool,
    scale: float | None,
    enable_gqa: bool,
    options: str,
) -> Tensor:
    """Run `dci_attention`, with options as text, into contiguous memory, as the fake kernel promises."""
    parsed = from_text(options)
    out = dci_attention(query, key, value, attn_mask, 0.0, is_causal, scale, enable_gqa, options=parsed)
    return out.contiguous()


@attention.register_fake
def _fake(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None,
    is_causal: bool,
    scale: float | None,
    enable_gqa: bool,
    options: str,
) -> Tensor:
    lead = lead_shape(query.shape, key.shape, value.shape, enable_gqa)
    return query.new_empty((*lead, query.shape[-2], value.shape[-1]))
