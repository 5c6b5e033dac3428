"""Attention whose keys lie in several processes: each attends to its own, and what comes out is merged."""

from collections.abc import Sequence

import torch
from torch import Tensor

from .errors import InvalidTypeError, InvalidValueError

_FLOATS = ("torch.float16", "torch.bfloat16", "torch.float32", "torch.float64")


def merge_partial(outputs: Sequence[Tensor], lses: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """Merge what the same queries attended to among different keys into attention to all of them.

    Parameters
    ----------
    outputs : sequence of Tensor of shape (…, L, Ev)
        From each set of keys, as ``dci_attention(…, return_lse=True)`` returns them; of one dtype.
    lses : sequence of Tensor of shape (…, L)
        The logarithm of each query's normaliser there, log Σ exp(score); -inf where it saw no key.

    Returns
    -------
    out : Tensor of shape (…, L, Ev)
        Of the dtype of `outputs`; zeros for queries that saw no key anywhere.
    lse : Tensor of shape (…, L)
        Of all keys: float32, or float64 if `lses` are. With `out` it can be merged further.

    Raises
    ------
    InvalidValueError
        No outputs, as many `lses`, or shapes that do not fit.
    InvalidTypeError
        Something other than tensors of floating point, or of several dtypes.

    Notes
    -----
    With the shares w_p = exp(lse_p - lse) of all mass, out = Σ w_p out_p: exact up to rounding, in any order. Where
    parts are approximations, so is this: the mean of their errors by these shares, and what errors of the shares add.

    Examples
    --------
    >>> import torch
    >>> from attention import dci_attention, merge_partial
    >>> query, key, value = torch.randn(3, 1, 2, 50, 8).unbind()
    >>> parts = [dci_attention(query, key[..., part, :], value[..., part, :], return_lse=True)
    ...          for part in (slice(0, 20), slice(20, 50))]
    >>> out, lse = merge_partial(*zip(*parts))
    >>> torch.allclose(out, dci_attention(query, key, value), atol=1e-5)
    True
    """
    outputs, lses = list(outputs), list(lses)
    if not outputs or len(outputs) != len(lses):
        raise InvalidValueError(
            f"outputs, lses: expected as many of each, at least one, received {len(outputs)} and {len(lses)}"
        )
    for name, tensors in (("outputs", outputs), ("lses", lses)):
        kinds = [_kind(x) for x in tensors]
        if not all(kind in _FLOATS for kind in kinds):
            raise InvalidTypeError(f"{name}: expected tensors of floating point, received {kinds}")
        if len(set(kinds)) > 1:
            raise InvalidTypeError(f"{name}: expected one dtype, received {kinds}")
    shape = outputs[0].shape
    if len(shape) < 2 or any(x.shape != shape for x in outputs) or any(x.shape != shape[:-1] for x in lses):
        raise InvalidValueError(
            f"outputs, lses: expected shapes (…, L, Ev) and (…, L), the same of all, received "
            f"{[tuple(x.shape) for x in outputs]} and {[tuple(x.shape) for x in lses]}"
        )
    precision = torch.promote_types(lses[0].dtype, torch.float32)
    each = torch.stack([x.to(precision) for x in lses])
    lse = each.logsumexp(0)
    shift = lse.masked_fill(lse == -torch.inf, 0.0)  # of queries that saw nothing: their shares are zeros
    out = torch.zeros(shape, dtype=torch.promote_types(precision, outputs[0].dtype), device=outputs[0].device)
    for share, part in zip((each - shift).exp(), outputs, strict=True):
        out += share[..., None] * part
    return out.to(outputs[0].dtype), lse


def _kind(x: object) -> str:
    return str(x.dtype) if isinstance(x, Tensor) else type(x).__name__
