"""Ids that callers give, held against those of an index."""

import numpy as np

from .._runtime.types import IndexArray
from ..errors import InvalidValueError, UnknownIdError


def check_new(ids: IndexArray, rows: IndexArray) -> None:
    """Refuse ids that are in use, as `rows` say, or given twice."""
    if (rows >= 0).any():
        raise InvalidValueError(f"ids: expected ids that are not in use, received {_some(ids[rows >= 0])}")
    check_different(ids)


def check_different(ids: IndexArray) -> None:
    """Refuse ids that are given twice."""
    values, counts = np.unique(ids, return_counts=True)
    if len(values) < len(ids):
        raise InvalidValueError(f"ids: expected different ids, received {_some(values[counts > 1])} more than once")


def raise_unknown(ids: IndexArray) -> None:
    """Raise an error that names ids, if there are any."""
    if len(ids):
        raise UnknownIdError(f"ids: expected ids of the index, received {_some(ids)}")


def _some(ids: IndexArray) -> str:
    shown = ", ".join(map(str, ids[:5].tolist()))
    return shown if len(ids) <= 5 else f"{shown} and {len(ids) - 5} more"
