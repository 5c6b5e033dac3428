"""`dci_attention`, the drop-in counterpart of ``torch.nn.functional.scaled_dot_product_attention``."""

import math
import time
from typing import Any, Literal, overload

import torch
from torch import Tensor
from torch.nn import functional as F

from ._core import batching
from ._core.dispatch import why_exact
from ._core.validation import check_inputs, check_settings
from .options import AttentionOptions
from .report import HeadReport, Report

_DEFAULTS = AttentionOptions()
# Up to so many query-key pairs, PyTorch is called at once: even its paths that keep every score are small then.
# `python -m comparisons run --suite attention_length` has the time of small calls.
_SMALL = 1 << 22


@overload
def dci_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
    *,
    options: AttentionOptions | None = None,
    return_report: Literal[False] = False,
    return_lse: Literal[False] = False,
) -> Tensor: ...
@overload
def dci_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
    *,
    options: AttentionOptions | None = None,
    return_report: Literal[True],
    return_lse: Literal[False] = False,
) -> tuple[Tensor, Report]: ...
@overload
def dci_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
    *,
    options: AttentionOptions | None = None,
    return_report: Literal[False] = False,
    return_lse: Literal[True],
) -> tuple[Tensor, Tensor]: ...
@overload
def dci_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
    *,
    options: AttentionOptions | None = None,
    return_report: Literal[True],
    return_lse: Literal[True],
) -> tuple[Tensor, Tensor, Report]: ...
def dci_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
    *,
    options: AttentionOptions | None = None,
    return_report: bool = False,
    return_lse: bool = False,
) -> Tensor | tuple[Tensor, Report] | tuple[Tensor, Tensor] | tuple[Tensor, Tensor, Report]:
    """Attend within a tolerance of exact attention, several times faster on long sequences.

    Arguments, shapes and results are those of ``torch.nn.functional.scaled_dot_product_attention``; short sequences
    and masks without structure go through it and are exact.

    Parameters
    ----------
    query : Tensor of shape (…, L, E)
        float32, bfloat16, float16, or float64, which is always exact; on the CPU.
    key : Tensor of shape (…, S, E)
        Of the same dtype. Leading axes are batch and heads; they broadcast.
    value : Tensor of shape (…, S, Ev)
    attn_mask : Tensor, optional
        Broadcasts to (…, L, S): bool (True = attend), or float32 or the dtype of `query`, added to the scores.
        Masks of padding, prefixes, sliding windows and the future keep their speed; arbitrary ones are honoured
        exactly, at the speed of exact attention.
    dropout_p : float
        0.0; anything else is an error.
    is_causal : bool
        Query i sees no key behind key i, aligned at the top left whatever L and S are::

            L = 2, S = 4     1 0 0 0        L = 4, S = 2     1 0
                             1 1 0 0                         1 1
                                                             1 1
                                                             1 1

        Together with `attn_mask`, both hold. (PyTorch's kernels do the same or raise, depending on the shapes.)
        Directions, cells and thresholds of the approximation come from all keys of the call: no value of a later key
        enters an output, but which earlier keys are attended to exactly may depend on later ones, within the tolerance.
    scale : float, optional
        Factor of the scores; None means 1/√E.
    enable_gqa : bool
        Axis -3 are heads: Hq of queries and H of keys and values, each shared by Hq/H consecutive query heads.
    options : AttentionOptions, optional
        Tolerance and method; None means ``AttentionOptions()``.
    return_report : bool
        Return what was done for each head of keys as well. Not inside `torch.compile`.
    return_lse : bool
        Return the logarithm of each query's normaliser as well: `merge_partial` takes it. Exact attention takes up to
        twice as long then. Not inside `torch.compile`.

    Returns
    -------
    out : Tensor of shape (…, L, Ev)
        Of the dtype of `query`; zeros for queries that may attend to nothing. It never shares memory with the inputs.
    lse : Tensor of shape (…, L)
        Only with `return_lse`: log Σ exp(score) over the keys that a query sees, -inf where it sees none; float32, or
        float64 if the inputs are. Of keys that are not attended to exactly it is the estimate that `out` has.
    report : Report
        Only with `return_report`.

    Raises
    ------
    InvalidValueError
        Shapes do not fit; NaN or infinity where keys are ranked (below the crossover they spread as in PyTorch).
    InvalidTypeError
        Something other than a tensor, or dtypes that differ or are none of the above.
    UnsupportedError
        A tensor that is not on the CPU, dropout, or gradients: call it under ``torch.no_grad()``.

    Notes
    -----
    Extra memory is proportional to L + S, never to L × S. Calls from several threads do not disturb each other.
    Inside `torch.compile`, the call becomes the operator ``torch.ops.dci.attention``.

    References
    ----------
    Mao, Ester & Li 2024, IceFormer: Accelerated Inference with Long-Sequence Transformers on CPUs, arXiv 2405.02842.

    Examples
    --------
    >>> import torch
    >>> query, key, value = torch.randn(3, 1, 8, 100, 32).unbind()
    >>> out, report = dci_attention(query, key, value, is_causal=True, return_report=True)
    >>> out.shape
    torch.Size([1, 8, 100, 32])
    >>> report.heads[0].method, report.heads[0].reason
    ('exact', 'fewer than 4096 keys')
    """
    check_settings(dropout_p, scale, options)
    if torch.is_autocast_enabled("cpu"):
        query, key, value, attn_mask = _autocast(query, key, value, attn_mask)
    check_inputs(query, key, value, attn_mask, enable_gqa)
    if torch.compiler.is_compiling() and not (return_report or return_lse):
        text = "" if options is None else options.text
        out: Tensor = torch.ops.dci.attention(query, key, value, attn_mask, is_causal, scale, enable_gqa, text)
        return out
    options = options or _DEFAULTS
    begin = time.perf_counter() if return_report else 0.0
    with torch._C.DisableTorchFunction():  # or `use` around this call would take its exact parts
        reason, lse = "", None
        if not return_lse:
            reason = _why_at_once(query, key, value, attn_mask, is_causal, scale, enable_gqa, options)
        if not reason:
            out, lse, reports = batching.attend_batch(
                query, key, value, attn_mask, is_causal, scale, enable_gqa, options, return_lse
            )
        else:
            out = F.scaled_dot_product_attention(
                query, key, value, attn_mask, 0.0, is_causal, scale=scale, enable_gqa=enable_gqa
            )
            reports = _reports_at_once(query, key, value, is_causal, reason, begin) if return_report else ()
    if return_report:
        report = Report(reports, time.perf_counter() - begin)
        return (out, report) if lse is None else (out, lse, report)
    return out if lse is None else (out, lse)


def _why_at_once(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None,
    is_causal: bool,
    scale: float | None,
    enable_gqa: bool,
    options: AttentionOptions,
) -> str:
    """Return why to call PyTorch at once, or "": where there is little to do, and where it does what is asked for."""
    length, n_keys = query.shape[-2], key.shape[-2]
    # PyTorch's shapes are wrong where empty tensors broadcast, and its masks where the scale is not positive.
    if (
        length * n_keys <= _SMALL
        and (attn_mask is None or not is_causal)
        and (scale is None or scale > 0)
        and query.numel()
        and value.numel()
    ):
        group = query.shape[-3] // key.shape[-3] if enable_gqa else 1
        return why_exact(1, group * length, n_keys, n_keys, query.shape[-1], query.dtype, options)
    return ""


def _reports_at_once(
    query: Tensor, key: Tensor, value: Tensor, is_causal: bool, reason: str, begin: float
) -> tuple[HeadReport, ...]:
    length, n_keys = query.shape[-2], key.shape[-2]
    corner = min(length, n_keys)  # above it, causal queries see fewer keys than the last one does
    seen = n_keys - is_causal * (corner * (n_keys - (corner + 1) / 2) / length)
    n_heads: int = math.prod(torch.broadcast_shapes(key.shape[:-2], value.shape[:-2]))
    seconds = (time.perf_counter() - begin) / n_heads
    return (HeadReport("exact", seen, 1.0, 0.0, seconds, reason),) * n_heads


def _autocast(*tensors: Tensor | None) -> list[Any]:
    """Cast as PyTorch does to the arguments of its own function."""
    dtype = torch.get_autocast_dtype("cpu")
    return [
        x.to(dtype) if isinstance(x, Tensor) and x.is_floating_point() and x.dtype != torch.float64 else x
        for x in tensors
    ]
