"""Input validation: the only place where the arguments of attention are checked.

The checks run on every call, the smallest too, so they only compare a few shapes and flags.
"""

import math
import numbers
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ..errors import InvalidTypeError, InvalidValueError, UnsupportedError
from ..options import AttentionOptions

DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)


def check_inputs(query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None, enable_gqa: bool) -> None:
    """Raise one of the package's errors unless attention is defined for these tensors.

    Parameters
    ----------
    query, key, value, attn_mask, enable_gqa
        As `attention.dci_attention` takes them.
    """
    for name, tensor in (("query", query), ("key", key), ("value", value)):
        if not isinstance(tensor, Tensor):
            raise InvalidTypeError(f"{name}: expected a torch.Tensor, received {type(tensor).__name__}")
        if not tensor.is_cpu:
            raise UnsupportedError(f"{name}: expected a tensor on the CPU, received one on {tensor.device}")
    dtype = query.dtype
    if dtype not in DTYPES or key.dtype != dtype or value.dtype != dtype:
        raise InvalidTypeError(
            "query, key and value: expected one of float32, bfloat16, float16 or float64, the same for all, "
            f"received {dtype}, {key.dtype} and {value.dtype}"
        )
    lead = _check_shapes(query.shape, key.shape, value.shape, enable_gqa)
    if attn_mask is not None:
        _check_mask(attn_mask, dtype, (*lead, query.shape[-2], key.shape[-2]))
        if torch.is_grad_enabled() and attn_mask.requires_grad:
            _refuse_gradients("attn_mask")
    if torch.is_grad_enabled() and (query.requires_grad or key.requires_grad or value.requires_grad):
        _refuse_gradients("query, key or value")


def check_settings(dropout_p: Any, scale: Any, options: Any) -> None:
    """Raise one of the package's errors unless the settings of a call can be used."""
    if dropout_p != 0:
        raise UnsupportedError(f"dropout_p: expected 0.0, this attention is for inference, received {dropout_p}")
    if scale is not None:
        if isinstance(scale, bool) or not isinstance(scale, numbers.Real):
            raise InvalidTypeError(f"scale: expected None or a number, received {type(scale).__name__} {scale!r:.60}")
        if not math.isfinite(scale):
            raise InvalidValueError(f"scale: expected a finite number, received {scale}")
    if options is not None and not isinstance(options, AttentionOptions):
        raise InvalidTypeError(f"options: expected None or AttentionOptions, received {type(options).__name__}")


def lead_shape(query: Sequence[int], key: Sequence[int], value: Sequence[int], enable_gqa: bool) -> tuple[int, ...]:
    """Return the output's shape without its last two axes, from checked shapes."""
    same = -3 if enable_gqa else -2  # grouped heads are the query's
    if query[:same] == key[:same] == value[:same]:  # broadcast_shapes is slow
        return tuple(query[:-2])
    if enable_gqa:
        return (*torch.broadcast_shapes(query[:-3], key[:-3], value[:-3]), query[-3])
    return tuple(torch.broadcast_shapes(query[:-2], key[:-2], value[:-2]))


def _check_shapes(query: torch.Size, key: torch.Size, value: torch.Size, enable_gqa: bool) -> tuple[int, ...]:
    least = 3 if enable_gqa else 2
    if (
        len(query) >= least
        and len(key) >= least
        and len(value) >= least
        and query[-1] == key[-1]
        and key[-2] == value[-2]
        and (not enable_gqa or (key[-3] == value[-3] and key[-3] > 0 and query[-3] % key[-3] == 0))
    ):
        try:
            return lead_shape(query, key, value, enable_gqa)
        except RuntimeError:  # the leading axes do not broadcast
            pass
    heads = "(…, Hq, L, E), (…, H, S, E) and (…, H, S, Ev), with Hq a multiple of H" if enable_gqa else None
    raise InvalidValueError(
        f"query, key and value: expected shapes {heads or '(…, L, E), (…, S, E) and (…, S, Ev)'}, with leading axes "
        f"that broadcast, received {tuple(query)}, {tuple(key)} and {tuple(value)}"
    )


def _check_mask(mask: Tensor, dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    if not isinstance(mask, Tensor):
        raise InvalidTypeError(f"attn_mask: expected None or a torch.Tensor, received {type(mask).__name__}")
    if not mask.is_cpu:
        raise UnsupportedError(f"attn_mask: expected a tensor on the CPU, received one on {mask.device}")
    if mask.dtype not in (torch.bool, torch.float32, dtype):
        raise InvalidTypeError(f"attn_mask: expected torch.bool, torch.float32 or {dtype}, received {mask.dtype}")
    received = tuple(mask.shape)
    if not 2 <= len(received) <= len(shape) or any(
        size not in (1, wanted) for size, wanted in zip(received[::-1], shape[::-1], strict=False)
    ):
        raise InvalidValueError(
            f"attn_mask: expected two axes or more and a shape that broadcasts to {shape}, received {received}"
        )


def _refuse_gradients(name: str) -> None:
    raise UnsupportedError(
        f"{name}: expected no gradients, this attention is for inference, received a tensor that requires them: "
        "call it under torch.no_grad() or torch.inference_mode()"
    )
