"""T_K and T_Q: the keys with the largest inner product become the nearest neighbours.

For every query q and all keys k, with c = max ‖k‖::

    T_K(k) = [k / c, √(1 − ‖k‖² / c²)]      T_Q(q) = [q / ‖q‖, 0]
    ‖T_Q(q) − T_K(k)‖² = 2 − 2 (q · k) / (c ‖q‖)

so the distance falls as q · k grows, and the k nearest neighbours of T_Q(q) are the k keys that weigh most in the
softmax of attention. The reduction is that of Mao, Ester & Li 2024, IceFormer, section 4 (arXiv 2405.02842), after
Neyshabur & Srebro 2015.
"""

from typing import Any

import numpy as np
import numpy.typing as npt

from .errors import InvalidTypeError, InvalidValueError

Floats = npt.NDArray[np.floating[Any]]


def embed_keys(k: npt.ArrayLike, c: float | None = None) -> Floats:
    """Put keys on the upper half of the unit sphere of one dimension more.

    Parameters
    ----------
    k : array-like of shape (…, n, d)
        float32 or float64; other real dtypes become float64. Finite; of any magnitude.
    c : float, optional
        At least every ‖k‖. None takes the largest ‖k‖ of each set of n keys, or 1 if they are all zero.

    Returns
    -------
    embedded : ndarray of shape (…, n, d + 1)
        Rows of norm 1, of the dtype of `k`; a zero key becomes [0, …, 0, 1].

    Raises
    ------
    InvalidValueError
        Fewer than two axes, NaN or infinity, or a `c` below the norm of a key.
    InvalidTypeError
        The dtype is not real.

    Examples
    --------
    >>> embed_keys([[3.0, 4.0], [0.0, 0.0]])
    array([[0.6, 0.8, 0. ],
           [0. , 0. , 1. ]])
    """
    keys, dtype = _real(k, "k")
    keys, peak = _peak_one(keys, axis=(-2, -1))
    norms = np.linalg.norm(keys, axis=-1, keepdims=True)
    if c is None:
        longest = norms.max(axis=-2, keepdims=True, initial=0.0)
        longest[longest == 0] = 1.0
    else:
        with np.errstate(over="ignore"):  # beside an infinite c, the keys are zero
            longest = c / peak
        if not 0 < c < np.inf or (norms > longest * (1 + 4 * np.finfo(dtype).eps)).any():
            most = (norms * peak).max(initial=0.0)
            raise InvalidValueError(f"c: expected a finite number above 0 and at least max ‖k‖ = {most}, received {c}")
    ratio = np.minimum(norms / longest, 1.0)
    height = np.sqrt((1 - ratio) * (1 + ratio))
    return np.concatenate([keys / longest, height], axis=-1).astype(dtype)


def embed_queries(q: npt.ArrayLike) -> Floats:
    """Put queries on the equator of the keys' sphere.

    Parameters
    ----------
    q : array-like of shape (…, n, d)
        As the keys of `embed_keys`.

    Returns
    -------
    embedded : ndarray of shape (…, n, d + 1)
        Rows of norm 1, of the dtype of `q`; a zero query becomes zeros, at distance 1 from every key.

    Raises
    ------
    InvalidValueError, InvalidTypeError
        As `embed_keys`.

    Examples
    --------
    >>> embed_queries([[0.0, 2.0]])
    array([[0., 1., 0.]])
    """
    queries, dtype = _real(q, "q")
    queries, _ = _peak_one(queries, axis=-1)
    norms = np.linalg.norm(queries, axis=-1, keepdims=True)
    unit = queries / np.where(norms > 0, norms, 1.0)
    return np.concatenate([unit, np.zeros_like(unit[..., :1])], axis=-1).astype(dtype)


def _real(value: npt.ArrayLike, name: str) -> tuple[Floats, np.dtype[Any]]:
    array = np.asarray(value)
    if array.dtype.kind not in "biuf":
        raise InvalidTypeError(f"{name}: expected real numbers, received dtype {array.dtype}")
    if array.ndim < 2:
        raise InvalidValueError(f"{name}: expected shape (…, n, d), received {array.shape}")
    if not np.isfinite(array).all():
        raise InvalidValueError(f"{name}: expected finite numbers, received NaN or infinity")
    dtype = np.dtype(np.float32 if array.dtype == np.float32 else np.float64)
    return array.astype(np.float64), dtype


def _peak_one(rows: Floats, axis: int | tuple[int, int]) -> tuple[Floats, Floats]:
    """Divide by the largest magnitude, so that no square overflows; return that magnitude too, 1 for zeros."""
    peak = np.abs(rows).max(axis=axis, keepdims=True, initial=0.0)
    peak[peak == 0] = 1.0
    return rows / peak, peak
