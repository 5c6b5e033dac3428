"""Input validation: the only place where arguments are coerced and checked.

Below it, points are C-contiguous float32 of shape (n, d) and finite, counts are ints, and nothing
is checked again. Every message says what was expected and what was received.
"""

import math
import os
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from .._native.kernels import survey
from .._native.rescore import METRICS
from .._runtime.scalars import Checks, describe, is_int
from .._runtime.threads import MAX_THREADS
from .._runtime.types import FloatArray
from ..errors import InvalidTypeError, InvalidValueError
from .subset import Subset

_checks = Checks(InvalidTypeError, InvalidValueError)
_METRIC_ALIASES = {"euclidean": "l2", "inner_product": "ip"}
# A mask of n points takes as long as sorting n / 32 ids. To measure anew: time `np.unique` against filling a mask.
_SORTED_PER_POINT = 32


def as_points(X: npt.ArrayLike, name: str = "X", dim: int | None = None) -> tuple[FloatArray, float]:
    """Coerce a set of points to a finite, C-contiguous float32 matrix.

    Parameters
    ----------
    X : array-like of shape (n, d)
        Numbers of any real dtype and memory order; never modified. An empty 1-D sequence is a set
        of no points.
    name : str
        What messages call it.
    dim : int, optional
        The wanted d.

    Returns
    -------
    points : ndarray of shape (n, d), float32
        `X` itself if it has this form already (it may be read-only), else one copy.
    absmax : float
        Largest magnitude in `points`, 0.0 if there are none.

    Raises
    ------
    InvalidTypeError
        dtype is not real (object, string, complex, date, record), or values are masked.
    InvalidValueError
        Ragged, not two axes, no columns, wrong `dim`, NaN, infinity, or beyond the float32 range.
    """
    return _finite_matrix(_real_array(X, name), name, dim)


def as_queries(Q: npt.ArrayLike, dim: int, name: str = "Q") -> tuple[FloatArray, float, bool]:
    """Coerce one query or a batch of them, as `as_points` does.

    Parameters
    ----------
    Q : array-like of shape (nq, dim) or (dim,)
        Queries; a non-empty 1-D array is a single query.
    dim : int
        Dimension of the index. 0 (fitted on an empty list) leaves the dimension open.
    name : str
        What messages call it.

    Returns
    -------
    queries : ndarray of shape (nq, dim), float32
    absmax : float
    single : bool
        Whether `Q` was one query, so that results lose their first axis.
    """
    array = _real_array(Q, name)
    single = array.ndim == 1 and array.size > 0
    if single:
        if dim and array.size != dim:
            raise InvalidValueError(f"{name}: expected shape (nq, {dim}) or ({dim},), received {describe(array)}")
        array = array[np.newaxis]
    queries, absmax = _finite_matrix(array, name, dim or None)
    return queries, absmax, single


def as_filter(allowed: npt.ArrayLike, n: int, name: str = "filter") -> Subset:
    """Coerce a mask or a set of allowed ids.

    Parameters
    ----------
    allowed : array-like of bool, shape (n,), or of int, shape (any,)
        Mask over ids, or the allowed ids in [0, n) in any order, repeats included.
    n : int
        Number of points.

    Returns
    -------
    Subset
        Of ids, in O(len(allowed)), where they are few; of a C-contiguous mask (`allowed` itself if it is one) else.

    Raises
    ------
    InvalidTypeError
        dtype is neither bool nor integer.
    InvalidValueError
        More than one axis, a mask of another length, or an id out of range.
    """
    array = _asarray(allowed, name)
    expected = f"{name}: expected a bool mask of shape ({n},) or a 1-D integer array of ids"
    if array.ndim != 1:
        raise InvalidValueError(f"{expected}, received {describe(array)}")
    if array.dtype == np.bool_:
        if array.size != n:
            raise InvalidValueError(f"{expected}, received {describe(array)}")
        return Subset(n, mask=np.ascontiguousarray(array))
    if array.size == 0:  # `[]` arrives as float64
        return Subset(n, ids=np.empty(0, np.int32))
    if array.dtype.kind not in "iu":
        raise InvalidTypeError(f"{expected}, received {describe(array)}")
    ascending = bool((array[1:] > array[:-1]).all())
    outside = (array < 0) | (array >= n) if not ascending or array[0] < 0 or array[-1] >= n else np.False_
    if outside.any():
        position = int(outside.argmax())
        raise InvalidValueError(f"{expected} in [0, {n}), received id {array[position]} at position {position}")
    if ascending:
        return Subset(n, ids=array.astype(np.int32))
    if array.size * _SORTED_PER_POINT < n:
        return Subset(n, ids=np.unique(array).astype(np.int32))
    mask = np.zeros(n, np.bool_)
    mask[array] = True
    return Subset(n, mask=mask)


def is_mask(allowed: npt.ArrayLike, name: str = "filter") -> bool:
    """Whether a filter is a mask, not ids."""
    return bool(_asarray(allowed, name).dtype == np.bool_)


def as_ids(ids: npt.ArrayLike, name: str = "ids", count: int | None = None) -> npt.NDArray[np.int64]:
    """Coerce ids to a one-dimensional array of int64.

    Parameters
    ----------
    ids : int or array-like of int, shape (any,)
        Within the range of int64.
    name : str
        What messages call them.
    count : int, optional
        The wanted length.

    Raises
    ------
    InvalidTypeError
        Not integers.
    InvalidValueError
        More than one axis, another length, or beyond int64.
    """
    try:
        array = _asarray(ids, name)
    except OverflowError:
        raise InvalidValueError(f"{name}: expected ints within 64 bits, received larger ones") from None
    expected = f"{name}: expected a 1-D integer array" + ("" if count is None else f" of {count} ids")
    if array.ndim == 0:
        array = array.reshape(1)
    if array.ndim != 1 or (count is not None and array.size != count):
        raise InvalidValueError(f"{expected}, received {describe(array)}")
    if array.size == 0:
        return np.empty(0, np.int64)
    if (array.dtype.kind == "O" and all(is_int(value) for value in array)) or array.dtype == np.uint64:
        large = next((int(value) for value in array if not -(2**63) <= int(value) < 2**63), None)
        if large is not None:
            raise InvalidValueError(f"{name}: expected ints within 64 bits, received {large}")
    elif array.dtype.kind not in "iu":
        raise InvalidTypeError(f"{expected}, received {describe(array)}")
    return np.ascontiguousarray(array, np.int64)


def as_radius(r: npt.ArrayLike, n_queries: int, metric: str) -> FloatArray:
    """Coerce a radius to one a query, (n_queries,) float32: infinite ones too, but no NaN and no negative distance."""
    array = _real_array(r, "r")
    expected = f"r: expected a number or shape ({n_queries},)"
    if array.ndim > 1 or (array.ndim == 1 and len(array) != n_queries):
        raise InvalidValueError(f"{expected}, received {describe(array)}")
    if np.isnan(array.astype(np.float64)).any():
        raise InvalidValueError(f"{expected}, received NaN")
    if metric != "ip" and (array < 0).any():
        raise InvalidValueError(f"{expected} >= 0 for the metric {metric!r}, received {array.min()}")
    with np.errstate(over="ignore"):
        return np.broadcast_to(array.astype(np.float32), (n_queries,))


def check_count(value: Any, name: str) -> int:
    """Return a count of at least 1."""
    return _checks.count(value, name, "an int >= 1")


def check_k(k: Any) -> int:
    """Return the number of neighbours `k`, at least 1."""
    return check_count(k, "k")


def check_budget(value: Any, total: int, name: str) -> int | None:
    """Resolve a visiting budget to a count.

    Parameters
    ----------
    value : int, float or None
        A count of at least 1, a share in (0, 1] (floats), or None, which passes through.
    total : int
        What a share is a share of, and the most that is ever returned.
    name : str
        What messages call it.

    Returns
    -------
    count : int or None
        Between 1 and ``max(total, 1)``.
    """
    expected = "an int >= 1 or a float share in (0, 1]"
    if value is None:
        return None
    if is_int(value):
        return min(_checks.count(value, name, expected), max(total, 1))
    return max(math.ceil(_checks.share(value, name, expected) * total), 1)


def check_recall(recall: Any, name: str = "recall") -> float:
    """Return a wanted recall, a number in (0, 1]."""
    return _checks.share(recall, name, "a number in (0, 1]")


def check_count_or_auto(value: Any, name: str) -> int | None:
    """Return a count of at least 1, or None for ``"auto"``."""
    if isinstance(value, str) and value == "auto":
        return None
    return _checks.count(value, name, "an int >= 1 or 'auto'")


def check_num_threads(num_threads: Any) -> int:
    """Return a number of threads.

    Parameters
    ----------
    num_threads : int or None
        None reads ``DCI_NUM_THREADS`` and without it takes the CPUs that this process may use.
    """
    expected = f"None or an int from 1 to {MAX_THREADS}"
    name = "num_threads"
    if num_threads is None:
        from_environment = os.environ.get("DCI_NUM_THREADS", "").strip()
        if not from_environment:
            return min(_available_cpus(), MAX_THREADS)
        name = "environment variable DCI_NUM_THREADS"
        if not from_environment.isdecimal():
            raise InvalidValueError(f"{name}: expected {expected}, received {from_environment!r}")
        num_threads = int(from_environment)
    return _checks.count(num_threads, name, expected, most=MAX_THREADS)


def check_random_state(random_state: Any) -> np.random.Generator:
    """Return a generator.

    Parameters
    ----------
    random_state : None, int >= 0, numpy.random.Generator or numpy.random.RandomState
        None takes entropy from the system; a generator is used as it is and so advances; from a
        `RandomState`, a seed is drawn.
    """
    expected = "None, an int >= 0, a numpy.random.Generator or a numpy.random.RandomState"
    if random_state is None:
        return np.random.default_rng()
    if isinstance(random_state, np.random.Generator):
        return random_state
    if isinstance(random_state, np.random.RandomState):
        return np.random.default_rng(random_state.randint(0, 2**32, size=4, dtype=np.uint32))
    return np.random.default_rng(_checks.count(random_state, "random_state", expected, least=0))


def check_choice(value: Any, name: str, choices: Sequence[str]) -> str:
    """Return `value`, one of `choices`."""
    return _checks.choice(value, name, choices)


def check_metric(metric: Any) -> str:
    """Return ``"l2"``, ``"ip"`` or ``"cosine"``; ``"euclidean"`` and ``"inner_product"`` are other names of two."""
    return check_choice(_METRIC_ALIASES.get(metric, metric) if isinstance(metric, str) else metric, "metric", METRICS)


def _asarray(value: npt.ArrayLike, name: str) -> npt.NDArray[Any]:
    if isinstance(value, np.ma.MaskedArray):
        # np.asarray would silently use what lies under the mask
        raise InvalidTypeError(f"{name}: expected a plain array, received a masked array")
    try:
        return np.asarray(value)
    except (TypeError, ValueError, RuntimeError) as error:
        raise InvalidValueError(
            f"{name}: expected a rectangular array of numbers, received a "
            f"{type(value).__name__} that NumPy cannot convert: {error}"
        ) from error


def _real_array(value: npt.ArrayLike, name: str) -> npt.NDArray[Any]:
    array = _asarray(value, name)
    if array.dtype.kind not in "biuf":
        origin = "" if isinstance(value, np.ndarray) else f" from a {type(value).__name__}"
        raise InvalidTypeError(
            f"{name}: expected real numbers (bool, integer or floating dtype), received {describe(array)}{origin}"
        )
    return array


def _finite_matrix(array: npt.NDArray[Any], name: str, dim: int | None) -> tuple[FloatArray, float]:
    if array.ndim == 1 and array.size == 0:
        array = array.reshape(0, dim or 0)
    fits = array.ndim == 2 and (dim is None or array.shape[1] == dim)
    if not fits or (array.shape[1] == 0 and array.shape[0] > 0):
        least = " with d >= 1" if fits else ""
        shape = f"(n, {'d' if dim is None else dim})"
        raise InvalidValueError(f"{name}: expected a 2-D array of shape {shape}{least}, received {describe(array)}")

    if array.dtype == np.float32 and array.flags.c_contiguous and array.flags.aligned:
        points: FloatArray = array
    else:
        with np.errstate(over="ignore"):  # overflow becomes infinity, reported below with its row
            points = np.require(array, dtype=np.float32, requirements=["C", "A"])
    if points.size == 0:
        return points, 0.0
    bad_row, absmax = survey(points)
    if bad_row >= 0:
        _raise_not_finite(array[bad_row], bad_row, name)
    return points, absmax


def _raise_not_finite(row: npt.NDArray[Any], index: int, name: str) -> None:
    if np.isfinite(row).all():
        raise InvalidValueError(
            f"{name}: expected magnitudes within the float32 range (about 3.4e38), received "
            f"{row[np.abs(row).argmax()]} in row {index}"
        )
    column = int((~np.isfinite(row)).argmax())
    raise InvalidValueError(f"{name}: expected finite values, received {row[column]} in row {index}, column {column}")


def _available_cpus() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
