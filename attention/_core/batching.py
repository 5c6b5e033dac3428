"""From tensors with any leading axes and any mask to batches of heads.

The leading axes are of three kinds. Along some the mask differs: these are taken apart, one batch for each index.
Of the others, those along which keys and values differ become H, and those along which only queries differ (grouped
heads, broadcasting) become G: no key or value is copied to be shared.
"""

import itertools
import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from .. import masks
from ..masks import Visible
from ..options import AttentionOptions
from ..report import HeadReport
from . import dispatch
from .validation import lead_shape

Index = tuple[int | slice, ...]


def attend_batch(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None,
    is_causal: bool,
    scale: float | None,
    enable_gqa: bool,
    options: AttentionOptions,
    with_lse: bool = False,
) -> tuple[Tensor, Tensor | None, tuple[HeadReport, ...]]:
    """Attend as `attention.dci_attention` does, from arguments that were checked.

    Returns
    -------
    out : Tensor of shape (…, L, Ev)
    lse : Tensor of shape (…, L), or None
        The logarithm of every query's normaliser, if it is wanted.
    reports : tuple of HeadReport
        One for each distinct head of keys and values, in row-major order.
    """
    lead = lead_shape(query.shape, key.shape, value.shape, enable_gqa)
    out = query.new_empty((*lead, query.shape[-2], value.shape[-1]))
    lse = None
    if with_lse:  # with an axis of one, so that it has those of `out`
        lse = out.new_empty((*out.shape[:-1], 1), dtype=torch.promote_types(out.dtype, torch.float32))
    if out.numel() == 0 or key.shape[-2] == 0:
        return out.zero_(), None if lse is None else lse.fill_(-math.inf).squeeze(-1), ()
    if scale is None:
        scale = 1 / math.sqrt(max(query.shape[-1], 1))
    elif scale <= 0:  # the exact kernel hides keys behind -inf before it scales
        query, scale = query * scale, 1.0
    target, target_lse = out, lse
    if enable_gqa:
        query, key, value, target, attn_mask = _grouped(query, key, value, target, attn_mask)
        target_lse = None if lse is None else lse.unflatten(-3, target.shape[-4:-2])

    lead = target.shape[:-2]
    query = query.expand(*lead, -1, -1)
    key, value = _distinct(key, value, len(lead))
    parts = _parts(attn_mask, is_causal, lead, query.shape[-2], key.shape[-2])
    apart = [n if isinstance(i, int) else -1 for i, n in zip(parts[0][0], lead, strict=True)]
    key, value = (x.expand(*apart, -1, -1) for x in (key, value))
    reports = np.empty(key.shape[:-2], dtype=object)
    for index, visible in parts:
        # With the ellipsis the cells are filled; without, a single one would hold an array.
        reports[(*index, ...)] = _attend_lead_axes(
            query[index], key[index], value[index], target[index], visible, scale, options,
            None if target_lse is None else target_lse[index],
        )  # fmt: skip
    return out, None if lse is None else lse.squeeze(-1), tuple(reports.flat)


def _grouped(
    query: Tensor, key: Tensor, value: Tensor, out: Tensor, mask: Tensor | None
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor | None]:
    """Split the query's heads into (H, G), so that grouped heads become an axis that broadcasts."""
    heads = (key.shape[-3], -1)
    if mask is not None and mask.dim() > 2:
        mask = mask.unflatten(-3, heads) if mask.shape[-3] > 1 else mask.unsqueeze(-3)
    return query.unflatten(-3, heads), key.unsqueeze(-3), value.unsqueeze(-3), out.unflatten(-3, heads), mask


def _distinct(key: Tensor, value: Tensor, n_lead: int) -> tuple[Tensor, Tensor]:
    """Give keys and values the same leading axes, of size 1 where they only repeat."""
    key, value = (x[(None,) * (n_lead + 2 - x.dim())] for x in (key, value))
    for axis in range(n_lead):
        if all(x.shape[axis] == 1 or x.stride(axis) == 0 for x in (key, value)):
            key, value = key.narrow(axis, 0, 1), value.narrow(axis, 0, 1)
    shape = torch.broadcast_shapes(key.shape[:-2], value.shape[:-2])
    return key.expand(*shape, -1, -1), value.expand(*shape, -1, -1)


def _parts(
    mask: Tensor | None, is_causal: bool, lead: Sequence[int], length: int, n_keys: int
) -> list[tuple[Index, Visible]]:
    """Tell what is visible, for each index into the leading axes along which that differs."""
    together: Index = (slice(None),) * len(lead)
    if mask is None:
        visible = Visible()
        return [(together, visible.before(length, n_keys) if is_causal else visible)]
    mask = mask[(None,) * (len(lead) + 2 - mask.dim())]
    mask = mask.expand(*mask.shape[:-2], length, n_keys)
    places = [range(n) if n > 1 and mask.stride(axis) != 0 else together[:1] for axis, n in enumerate(mask.shape[:-2])]
    parts: list[tuple[Index, Visible]] = []
    for index in itertools.product(*places):
        visible = masks.read(mask[tuple(0 if isinstance(i, slice) else i for i in index)])
        parts.append((index, visible.before(length, n_keys) if is_causal else visible))
    if all(visible.same(parts[0][1]) for _, visible in parts[1:]):
        return [(together, parts[0][1])]
    return parts


def _attend_lead_axes(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    out: Tensor,
    visible: Visible,
    scale: float,
    options: AttentionOptions,
    lse: Tensor | None,
) -> npt.NDArray[np.object_]:
    """Attend for all leading axes that are left, into `out` and `lse`.

    Returns reports of the shape of the keys' leading axes.
    """
    lead = key.shape[:-2]
    n_heads = math.prod(lead)
    try:
        flat_key, flat_value = (x.view(n_heads, *x.shape[-2:]) for x in (key, value))
    except RuntimeError:  # strides that no single axis has: one index at a time rather than a copy
        axis = next(axis for axis, n in enumerate(lead) if n > 1)
        slices = zip(*(x.unbind(axis) for x in (query, key, value, out)), strict=True)
        parts = (None,) * lead[axis] if lse is None else lse.unbind(axis)
        done = [
            _attend_lead_axes(q, k, v, o, visible, scale, options, part)
            for (q, k, v, o), part in zip(slices, parts, strict=True)
        ]
        return np.stack(done, axis)
    # First the axes along which keys differ, then those along which only queries do.
    order = sorted(range(len(lead)), key=lambda axis: lead[axis] != query.shape[axis])
    query, out = (x.permute(*order, -2, -1) for x in (query, out))
    flat_query = query.reshape(n_heads, math.prod(query.shape[:-2]) // n_heads, *query.shape[-2:])
    flat_lse = None if lse is None else lse.new_empty(flat_query.shape[:-1])
    result, reports = dispatch.attend_visible(flat_query, flat_key, flat_value, visible, scale, options, flat_lse)
    out.copy_(result.view(out.shape))
    if lse is not None and flat_lse is not None:
        lse = lse.permute(*order, -2, -1)
        lse.copy_(flat_lse.view(lse.shape))
    shaped = np.empty(n_heads, dtype=object)
    shaped[:] = reports
    return shaped.reshape(lead)
