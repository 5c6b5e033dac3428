"""Tensors that a growing index writes to in place, in any mode of autograd."""

from copy import copy

import numpy as np
import torch
from torch import Tensor

from dci._runtime.types import FloatArray

from .._native.near_field import LocalKeys

_LEAST_ROOM = 256
LARGEST = 1e12  # of a query: the squares that cells need do not overflow below it, at any key of an ordinary size


def usual(query: Tensor) -> Tensor:
    """Tell which queries cells can answer, (…, E) to (…), bool: finite ones, that do not spoil the mean of a block."""
    return (query.abs() < LARGEST).all(-1)


def _empty(shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    with torch.inference_mode(False):  # a tensor of inference mode could not be written to outside of it
        return torch.empty(shape, dtype=dtype, device="cpu")


class Growing:
    """Rows of every sequence and head, (B, H, n, W): room grows by halves, so that a row is copied a few times at most.

    Parameters
    ----------
    like : Tensor of shape (B, H, any, W)
        Whose dtype and shape the rows have.
    """

    def __init__(self, like: Tensor) -> None:
        self.length = 0
        self._rows = _empty((*like.shape[:2], like.shape[2], like.shape[3]), like.dtype)

    @property
    def filled(self) -> Tensor:
        """The rows that there are, a view."""
        return self._rows[:, :, : self.length]

    @property
    def all_rows(self) -> Tensor:
        """The rows that there are and the room behind them, until these are copied."""
        return self._rows

    @property
    def room(self) -> int:
        """How many rows fit before they are copied."""
        return self._rows.shape[2]

    def reserve(self, count: int) -> None:
        """Make room for so many rows more."""
        stop = self.length + count
        if stop > self.room:
            self._copy(self.filled, stop + max(stop // 2, _LEAST_ROOM))

    def append(self, rows: Tensor) -> None:
        """Add rows behind the others."""
        self.reserve(rows.shape[2])
        stop = self.length + rows.shape[2]
        self._rows[:, :, self.length : stop] = rows.detach()
        self.length = stop

    def select(self, indices: Tensor) -> "Growing":
        """Return a copy with these sequences, in this order, as often as they are named."""
        chosen = copy(self)
        chosen._copy(self.filled.index_select(0, indices), self.room)
        return chosen

    def _copy(self, rows: Tensor, room: int) -> None:
        new = _empty((*rows.shape[:2], room, rows.shape[3]), rows.dtype)
        new[:, :, : self.length] = rows
        self._rows = new


class Queries:
    """The queries of the last `size` tokens of every sequence and head, in float32."""

    def __init__(self, shape: tuple[int, int, int, int], size: int) -> None:
        batch, heads, group, width = shape
        self.seen = 0
        self._size = size
        self._ring = _empty((batch, heads, group, size, width), torch.float32)

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """(B, H, G, E)."""
        batch, heads, group, _, width = self._ring.shape
        return batch, heads, group, width

    def append(self, query: FloatArray) -> None:
        """Remember queries (B, H, G, L, E)."""
        ring: FloatArray = self._ring.numpy()
        query = query[:, :, :, -self._size :]
        length = query.shape[3]
        first = self.seen % self._size
        before_end = min(length, self._size - first)
        ring[:, :, :, first : first + before_end] = query[:, :, :, :before_end]
        if before_end < length:
            ring[:, :, :, : length - before_end] = query[:, :, :, before_end:]
        self.seen += length

    def last(self, sequence: int, head: int, count: int) -> FloatArray:
        """Return the usual ones of the last `count` tokens, or of as many as there are, (tokens, G, E)."""
        count = min(count, self.seen, self._size)
        places = np.arange(self.seen - count, self.seen) % self._size
        ring: FloatArray = self._ring[sequence, head].numpy()  # threads of torch may take longer to begin than this
        rows = np.ascontiguousarray(ring[:, places].transpose(1, 0, 2))
        return rows[(np.abs(rows) < LARGEST).all((1, 2))]

    def select(self, indices: Tensor) -> "Queries":
        """Return a copy with these sequences."""
        chosen = copy(self)
        rows = self._ring.index_select(0, indices)
        chosen._ring = _empty(rows.shape, rows.dtype)
        chosen._ring.copy_(rows)
        return chosen


class Recent:
    """The last keys and values of every sequence and head, as kernels attend to them.

    Those of other dtypes than float32 are copied, once each.

    Parameters
    ----------
    keys, values : Growing
    count : int
        Keys before these are not among them.
    room : int
        How many there may be before they are copied again.
    """

    def __init__(self, keys: Growing, values: Growing, count: int, room: int) -> None:
        self._sources, self._rows = (keys, values), (keys.all_rows, values.all_rows)
        self._count, self._filled = count, count
        self._copies: list[Tensor] = []
        rows, self._first = list(self._rows), 0
        if any(x.dtype != torch.float32 for x in self._rows):
            rows = self._copies = [_empty((*x.shape[:2], room, x.shape[3]), torch.float32) for x in self._rows]
            self._first = count
        self._stop = self._first + rows[0].shape[2]
        key, value = (x.flatten(0, 1).numpy() for x in rows)
        self._pairs: list[tuple[FloatArray, FloatArray]] = list(zip(key, value, strict=True))  # B * H of them
        self._stops = np.empty(0, np.int64)
        self._local: list[LocalKeys] = []

    def holds(self, n_keys: int) -> bool:
        """Whether there is room for the keys up to these, and they are where they were."""
        return n_keys <= self._stop and all(
            rows is source.all_rows for rows, source in zip(self._rows, self._sources, strict=True)
        )

    def seen(self, n_keys: int, length: int) -> list[LocalKeys]:
        """Return the keys of each head, of which the last `length` tokens see those up to their own."""
        for copy_of, source in zip(self._copies, self._rows, strict=False):  # no copies, or of both
            part = slice(self._filled - self._count, n_keys - self._count)
            copy_of[:, :, part] = source[:, :, self._filled : n_keys]
        self._filled = n_keys
        if len(self._stops) != length:
            self._stops = np.empty(length, np.int64)
            boundary = self._count - self._first
            self._local = [LocalKeys(key, value, self._stops, boundary) for key, value in self._pairs]
        self._stops[:] = np.arange(n_keys - self._first - length + 1, n_keys - self._first + 1)
        return self._local
