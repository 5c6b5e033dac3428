"""Chunks of a Dask array as tasks, with known sizes."""

from typing import Any

import dask.array as da
import numpy as np
from dask.delayed import Delayed, delayed

from .._shards.tasks import Block
from ..errors import InvalidTypeError, InvalidValueError
from .scheduler import Scheduler, warn_unknown


def as_array(X: Any, name: str) -> da.Array:
    """Return a Dask array of numbers with two axes."""
    if not isinstance(X, da.Array):
        raise InvalidTypeError(
            f"{name}: expected a Dask array, received {type(X).__name__}; dask.array.from_array(…, chunks=(rows, -1)) "
            "makes one of what this process holds"
        )
    if X.ndim != 2:
        raise InvalidValueError(f"{name}: expected shape (n, d), received {X.ndim} axes")
    if X.dtype.kind not in "biuf":
        raise InvalidTypeError(f"{name}: expected real numbers (bool, integer or floating dtype), received {X.dtype}")
    return X


def row_blocks(
    X: da.Array, scheduler: Scheduler, name: str, rows_each: int | None = None
) -> list[tuple[Block, Delayed]]:
    """Return the chunks that have rows, each of all columns.

    Parameters
    ----------
    X : dask array of shape (n, d)
        Sizes of chunks that are not known are computed.
    scheduler : Scheduler
    name : str
        What messages call it.
    rows_each : int, optional
        Other chunks than those of X.
    """
    if np.isnan(X.shape).any():
        X = _with_sizes(X, scheduler, name)
    if X.numblocks[1] > 1:
        X = X.rechunk({1: -1})
    if rows_each is not None:
        X = X.rechunk({0: rows_each})
    stops = np.cumsum(X.chunks[0])
    found = []
    for number, (stop, size, block) in enumerate(zip(stops, X.chunks[0], X.to_delayed().ravel(), strict=True)):
        if size:
            found.append((Block(number, int(stop - size), int(stop), X.shape[1]), block))
    if not found:
        found.append((Block(0, 0, 0, X.shape[1]), delayed(np.empty((0, X.shape[1]), np.float32))))
    return found


def _with_sizes(X: da.Array, scheduler: Scheduler, name: str) -> da.Array:
    warn_unknown(name)
    blocks = X.to_delayed()
    shapes = np.array(scheduler.run([delayed(np.shape)(block) for block in blocks.ravel()]))
    shapes = shapes.reshape(*blocks.shape, 2)
    rows, columns = shapes[:, 0, 0], shapes[0, :, 1]
    wrong = np.argwhere((shapes[..., 0] != rows[:, None]) | (shapes[..., 1] != columns))
    if len(wrong):
        row, column = wrong[0]
        raise InvalidValueError(
            f"{name}, chunk {row}: expected shape {(int(rows[row]), int(columns[column]))} beside the others, received "
            f"{tuple(shapes[row, column].tolist())}"
        )
    return da.Array(X.dask, X.name, (tuple(rows.tolist()), tuple(columns.tolist())), dtype=X.dtype)
