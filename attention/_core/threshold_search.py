"""The threshold of near cells, found by looking at what a sample of queries does at some thresholds.

Errors rise with the threshold, and the keys that are touched become fewer.
"""

from collections.abc import Callable, Generator
from typing import NamedTuple

import numpy as np

_FACTOR = 4.0  # from one threshold to the next, without a slope
_AIM = 0.9  # of the tolerance, for the power law to meet
_APART = 1.1  # a threshold is at least this factor from those that are known
_LEAST_SLOPE, _TINY = 0.1, 1e-9


class Look(NamedTuple):
    """What a sample shows at one threshold.

    Attributes
    ----------
    threshold : float
    error : float
        Relative L2 error of the sample.
    bound : float
        What is to be within the tolerance: the error, or an upper bound of it.
    touched : float
        Keys and cells that a query touches, on average.
    """

    threshold: float
    error: float
    bound: float
    touched: float


Measure = Callable[[float], Look]
Search = Generator[float, Look, Look]  # yields thresholds, is sent what a sample shows at them, returns one of these


class ThresholdSearch(NamedTuple):
    """How to look for the largest threshold whose bound is within a tolerance.

    Attributes
    ----------
    least, most : float
        Thresholds between which to look.
    looks : int
        At most so many.
    refinements : int or None
        So many looks between a threshold that keeps the tolerance and one that does not, and then the end; None looks
        there as anywhere, until it is settled.
    slope : float or None
        Of the log bound over the log threshold, about: the next threshold follows this power law, later that through
        the two thresholds. None goes by factors, then by halves of the logarithm.
    """

    least: float
    most: float
    looks: int
    refinements: int | None = None
    slope: float | None = None

    def find(
        self,
        measure: Measure,
        tolerance: float,
        first: float,
        settled: Callable[[Look, Look | None, Look | None], bool],
    ) -> Look:
        """Search, from the threshold `first`.

        Parameters
        ----------
        measure : callable
        tolerance, first : float
        settled : callable
            Of the last look, the last one that keeps the tolerance and the last one that does not: whether to stop.
            Not asked while a set number of looks refines the threshold.

        Returns
        -------
        Look
            The last one that keeps the tolerance; if there is none, the last one.
        """
        return follow(self.looking(tolerance, first, settled), measure)

    def looking(
        self, tolerance: float, first: float, settled: Callable[[Look, Look | None, Look | None], bool]
    ) -> Search:
        """`find`, by whoever measures."""
        good, bad, refined = None, None, 0
        look = yield first
        for _ in range(1, self.looks):
            if look.bound <= tolerance:
                good, at_end = look, look.threshold >= self.most
            else:
                bad, at_end = look, look.threshold <= self.least
            if at_end or (not refined and settled(look, good, bad)) or refined == self.refinements:
                break
            if good and bad and self.refinements is not None:
                refined += 1
            look = yield self._next(look, good, bad, tolerance)
        return look if look.bound <= tolerance else good or look

    def _next(self, look: Look, good: Look | None, bad: Look | None, tolerance: float) -> float:
        low, high = self.least, self.most
        if self.slope is None:
            if good and bad:
                return float(np.sqrt(good.threshold * bad.threshold))
            step = _FACTOR if good else 1 / _FACTOR
            return float(np.clip(look.threshold * step, low, high))
        slope = self.slope
        if good and bad:
            rise = np.log(bad.bound / max(good.bound, _TINY)) / np.log(bad.threshold / good.threshold)
            slope = max(float(rise), _LEAST_SLOPE)
        threshold = look.threshold * (_AIM * tolerance / max(look.bound, _TINY)) ** (1 / slope)
        low, high = (good.threshold * _APART if good else low), (bad.threshold / _APART if bad else high)
        return float(np.clip(threshold, low, max(low, high)))


def follow(search: Search, measure: Measure) -> Look:
    """Measure what a search asks for; return what it found."""
    threshold = next(search)
    while True:
        try:
            threshold = search.send(measure(threshold))
        except StopIteration as end:
            found: Look = end.value
            return found


def search_size(size: float, least: float, none_near: float, looks: int) -> Search:
    """Bisect for the threshold whose near field has about `size` keys.

    Parameters
    ----------
    size : float
        Keys of a query, beside those that it touches at the threshold `none_near`.
    least, none_near : float
        Thresholds between which to look; at the larger one no cell is near.
    looks : int
    """
    base = look = yield none_near
    low, high = np.log(least), np.log(none_near)
    for _ in range(looks):
        middle = (low + high) / 2
        look = yield float(np.exp(middle))
        low, high = (low, middle) if look.touched - base.touched < size else (middle, high)
    return look
