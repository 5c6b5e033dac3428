"""The oracle: exact attention and exact top-k attention in plain NumPy.

Every score is kept; for tests and for studying, not for long sequences.
"""

import math
from typing import Any

import numpy as np
import numpy.typing as npt

from .errors import InvalidValueError

Floats = npt.NDArray[np.floating[Any]]


def dense_attention(
    query: npt.ArrayLike,
    key: npt.ArrayLike,
    value: npt.ArrayLike,
    mask: npt.ArrayLike | None = None,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
    dtype: npt.DTypeLike = np.float64,
) -> Floats:
    """Compute softmax(scale · q kᵀ + mask) v.

    Parameters
    ----------
    query, key, value : array-like of shape (…, L, E), (…, S, E) and (…, S, Ev)
        Leading axes broadcast.
    mask : array-like, optional
        Broadcasts to (…, L, S): bool (True = attend), or added to the scores.
    is_causal : bool
        Query i sees no key behind key i; combines with `mask`.
    scale : float, optional
        None means 1/√E.
    enable_gqa : bool
        Axis -3 are heads; each of the keys' serves as many consecutive heads of the queries.
    dtype : dtype-like
        What it is computed in.

    Returns
    -------
    out : ndarray of shape (…, L, Ev)
        Zeros for queries that see nothing.

    Examples
    --------
    >>> dense_attention([[0.0]], [[1.0], [2.0]], [[3.0], [5.0]])
    array([[4.]])
    """
    q, k, v = _prepared(query, key, value, enable_gqa, dtype)
    return np.asarray(_softmax(_scores(q, k, mask, is_causal, scale)) @ v)


def topk_attention(
    query: npt.ArrayLike,
    key: npt.ArrayLike,
    value: npt.ArrayLike,
    k: int,
    mask: npt.ArrayLike | None = None,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
    dtype: npt.DTypeLike = np.float64,
) -> Floats:
    """Compute attention to the `k` keys of each query with the largest scores, as IceFormer's index would if exact.

    Parameters
    ----------
    query, key, value, mask, is_causal, scale, enable_gqa, dtype
        As in `dense_attention`.
    k : int
        At least 1; among equal scores, the first keys. With `k` keys or fewer it is `dense_attention`.

    Returns
    -------
    out : ndarray of shape (…, L, Ev)

    References
    ----------
    Mao, Ester & Li 2024, section 4, arXiv 2405.02842.

    Examples
    --------
    >>> topk_attention([[1.0]], [[1.0], [2.0]], [[3.0], [5.0]], k=1)
    array([[5.]])
    """
    if k < 1:
        raise InvalidValueError(f"k: expected an int >= 1, received {k}")
    q, keys, v = _prepared(query, key, value, enable_gqa, dtype)
    scores = _scores(q, keys, mask, is_causal, scale)
    order = np.argsort(-scores, axis=-1, kind="stable")
    np.put_along_axis(scores, order[..., k:], -np.inf, axis=-1)
    return np.asarray(_softmax(scores) @ v)


def _prepared(
    query: npt.ArrayLike, key: npt.ArrayLike, value: npt.ArrayLike, enable_gqa: bool, dtype: npt.DTypeLike
) -> tuple[Floats, Floats, Floats]:
    q, k, v = (np.asarray(x).astype(dtype) for x in (query, key, value))
    if enable_gqa:
        group = q.shape[-3] // k.shape[-3]
        k, v = (np.repeat(x, group, axis=-3) for x in (k, v))
    return q, k, v


def _scores(q: Floats, k: Floats, mask: npt.ArrayLike | None, is_causal: bool, scale: float | None) -> Floats:
    width = q.shape[-1]
    if scale is None:
        scale = 1 / math.sqrt(max(width, 1))
    scores = np.asarray(q @ np.swapaxes(k, -1, -2) * scale)
    if mask is not None:
        mask = np.asarray(mask)
        scores = np.where(mask, scores, -np.inf) if mask.dtype == np.bool_ else scores + mask
    if is_causal:
        scores = np.where(np.tri(*scores.shape[-2:], dtype=np.bool_), scores, -np.inf)
    return scores


def _softmax(scores: Floats) -> Floats:
    largest = scores.max(axis=-1, keepdims=True, initial=-np.inf)
    weights = np.exp(scores - np.where(np.isfinite(largest), largest, 0))
    total = weights.sum(axis=-1, keepdims=True)
    return np.asarray(np.divide(weights, total, out=np.zeros_like(weights), where=total > 0))
