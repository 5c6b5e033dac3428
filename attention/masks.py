"""What each query may see: masks read once and put into a form that keeps the fast path.

Causal, padding, prefix and sliding-window masks, and what comes of combining them, show each query an interval of
consecutive keys, and the intervals only move forward from one query to the next. Padding that leaves holes does so
among the keys that it keeps. Everything else stays as it is and is honoured by the exact path.
"""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

# Mask values: models hide keys by the lowest finite number as well as by -inf; either leaves a weight of zero beside a
# visible key. (Not float16's lowest: scores of float16 queries and keys can be beyond it.)
_LOWEST_MASK_VALUE = -3e38
_BLOCK_BYTES = 1 << 20  # of a mask at once: in cache, for the few passes over it

Bools = npt.NDArray[np.bool_]
Ints = npt.NDArray[np.int64]


class MaskRule(NamedTuple):
    """What a mask says beside its padding.

    Attributes
    ----------
    causal : bool
    window : int, optional
        So many keys a query sees to a side, its own among them.
    """

    causal: bool
    window: int | None = None


@dataclass(frozen=True, eq=False)
class Visible:
    """What L queries see of S keys; without arguments, everything.

    Attributes
    ----------
    keys : Tensor of shape (kept,), int64, or None
        Ascending ids of the keys that any query sees; the others are as if they did not exist. None: all.
    starts, stops : Tensor of shape (L,), int64, or None
        Query i sees the kept keys [starts[i], stops[i]), none if this is empty. Neither ever descends, but for
        queries that see nothing. None: every query sees all kept keys.
    mask : Tensor of shape (L, S) or None
        A mask of no known structure, bool (True = attend) or added to the scores; then the others are None.
    causal : bool
        Query i sees no key behind key i, beside what `mask` says; only together with it.
    """

    keys: Tensor | None = None
    starts: Tensor | None = None
    stops: Tensor | None = None
    mask: Tensor | None = None
    causal: bool = False

    def before(self, length: int, n_keys: int) -> "Visible":
        """Return what is left where query i sees no key behind key i."""
        if self.mask is not None:
            return Visible(mask=self.mask, causal=True)
        ends = torch.arange(1, length + 1)
        if self.keys is not None:
            ends = torch.searchsorted(self.keys, ends)
            n_keys = len(self.keys)
        ends = ends.clamp(max=n_keys)
        if self.starts is None or self.stops is None:
            return Visible(self.keys, torch.zeros_like(ends), ends)
        return Visible(self.keys, self.starts, torch.minimum(self.stops, ends))

    def same(self, other: "Visible") -> bool:
        """Whether both say the same; masks without structure are not compared."""
        if self.mask is not None or other.mask is not None:
            return False
        pairs = ((self.keys, other.keys), (self.starts, other.starts), (self.stops, other.stops))
        return all(a is b or (a is not None and b is not None and torch.equal(a, b)) for a, b in pairs)


def read(mask: Tensor) -> Visible:
    """Find the structure of a mask.

    Parameters
    ----------
    mask : Tensor of shape (L, S)
        bool (True = attend) or floating; a floating mask of 0 and -inf (or float32's or bfloat16's lowest number,
        where a query sees another key) is a boolean mask. L and S are at least 1; axes of stride 0 are cheap.

    Returns
    -------
    Visible

    Notes
    -----
    One reading of the mask in blocks that fit the cache, two if keys are missing in its intervals; a mask without
    structure mostly shows in the first block.
    """
    length, n_keys = mask.shape
    if length == 1 or mask.stride(0) == 0:
        row = _shown(mask[:1])
        return Visible(mask=mask) if row is None else _padding(row[0], length)
    found = _intervals(mask, None)
    if found is not None:
        return _among(None, n_keys, *found)
    last = _shown(mask[-1:])  # since intervals only move forward, it tells which keys padding keeps
    if last is not None and last.any():
        kept = np.flatnonzero(last[0])
        found = _intervals(mask, kept)
        if found is not None:
            return _among(torch.from_numpy(kept), len(kept), *found)
    return Visible(mask=mask)


def _among(keys: Tensor | None, n_keys: int, starts: Ints, stops: Ints) -> Visible:
    if (starts == 0).all() and (stops == n_keys).all():
        return Visible(keys)
    return Visible(keys, torch.from_numpy(starts), torch.from_numpy(stops))


def _padding(kept: Bools, length: int) -> Visible:
    """Turn one row, which holds for all queries, into an interval or into ids of keys."""
    if kept.all():
        return Visible()
    found = _edges(kept[np.newaxis])
    if found is None:
        return Visible(torch.from_numpy(np.flatnonzero(kept)))
    starts, stops = (torch.from_numpy(edge).expand(length) for edge in found)
    return Visible(None, starts, stops)


def _intervals(mask: Tensor, kept: Ints | None) -> tuple[Ints, Ints] | None:
    """Start and stop of each row's interval among the keys `kept`, or None if that is not what the mask is."""
    length, n_keys = mask.shape
    starts, stops = np.zeros(length, np.int64), np.zeros(length, np.int64)
    rows = max(1, _BLOCK_BYTES // n_keys)
    for first in range(0, length, rows):
        shown = _shown(mask[first : first + rows])
        if shown is None:
            return None
        if kept is not None:
            among = shown[:, kept]
            if np.count_nonzero(among) != np.count_nonzero(shown):
                return None
            shown = among
        found = _edges(shown)
        if found is None:
            return None
        starts[first : first + rows], stops[first : first + rows] = found
    sees = starts < stops
    if (np.diff(starts[sees]) < 0).any() or (np.diff(stops[sees]) < 0).any():
        return None
    return starts, stops


def _shown(block: Tensor) -> Bools | None:
    """Which keys each row of a block sees, or None if its numbers are not those of a boolean mask."""
    if block.dtype == torch.bool:
        return block.numpy()
    shown = block == 0
    hidden = block <= (_LOWEST_MASK_VALUE if block.dtype != torch.float16 else -torch.inf)
    if not bool((shown ^ hidden).all()):
        return None
    blind = ~shown.any(dim=-1)
    if bool(blind.any()) and not bool(torch.isneginf(block[blind]).all()):
        return None  # finite numbers leave such a row a softmax of something
    return shown.numpy()


def _edges(shown: Bools) -> tuple[Ints, Ints] | None:
    """Start and stop of each row's interval, (0, 0) for an empty one; None if a row is not an interval."""
    n_rows, n_keys = shown.shape
    changes = np.empty((n_rows, n_keys + 1), np.bool_)
    changes[:, 0] = shown[:, 0]
    np.not_equal(shown[:, 1:], shown[:, :-1], out=changes[:, 1:-1])
    changes[:, -1] = shown[:, -1]
    if np.count_nonzero(changes) > 2 * n_rows:
        return None
    row, column = np.divmod(np.flatnonzero(changes), n_keys + 1)
    if (np.bincount(row, minlength=1) > 2).any():  # the count in a row is even: what begins also ends
        return None
    starts, stops = np.zeros(n_rows, np.int64), np.zeros(n_rows, np.int64)
    starts[row[::2]] = column[::2]
    stops[row[::2]] = column[1::2]
    return starts, stops
