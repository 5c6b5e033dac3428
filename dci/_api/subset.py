"""The points that a filter allows."""

import numpy as np

from .._runtime.cached import cached
from .._runtime.types import BoolArray, IdArray


class Subset:
    """Some of n points, as a mask, as ids or as both: what was not given is made when first asked for.

    Parameters
    ----------
    n : int
    mask : (n,) bool, optional
    ids : (count,) int32, ascending, optional
        One of both is needed.

    Attributes
    ----------
    count : int
    mask : (n,) bool
    ids : (count,) int32, ascending
    """

    def __init__(self, n: int, mask: BoolArray | None = None, ids: IdArray | None = None) -> None:
        self.n = n
        if mask is not None:
            self.mask = mask
        if ids is not None:
            self.ids = ids
        self.count = len(self.ids) if mask is None else int(np.count_nonzero(mask))

    @cached
    def mask(self) -> BoolArray:
        """Whether each point is one of them."""
        mask = np.zeros(self.n, np.bool_)
        mask[self.ids] = True
        return mask

    @cached
    def ids(self) -> IdArray:
        """Which points they are."""
        return np.flatnonzero(self.mask).astype(np.int32)

    def before(self, stop: int) -> "Subset":
        """Those of the first `stop` points."""
        if stop == self.n:
            return self
        if "ids" in self.__dict__:
            return Subset(stop, ids=self.ids[: np.searchsorted(self.ids, stop)])
        return Subset(stop, mask=self.mask[:stop])

    def ids_from(self, start: int) -> IdArray:
        """Those of the points from `start` on, counted from there."""
        if "ids" in self.__dict__:
            return self.ids[np.searchsorted(self.ids, start) :] - np.int32(start)
        return np.flatnonzero(self.mask[start:]).astype(np.int32)
