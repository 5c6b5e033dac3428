"""From the tolerance to a threshold, and from an output to its error: some queries of a head computed exactly."""

import math
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

from .bounds import estimate_sum, row_probabilities
from .head import ALL_NEAR, BLOCK, REACH, Head, Segment
from .planning import FloatArray, IdArray

Moments = tuple[tuple[float, float], tuple[FloatArray, ...]]

_SEGMENTS = 4
_BLOCKS = 16
_ROWS = 2  # of a block
_CHECKED = 96  # rows of the output, beside those of the search, and as often as
_CHECKS, _HOPEFUL = 3, 0.9  # the error is below this share of the tolerance
_FIRST = 0.04  # threshold
_SLOPE = 0.35  # of log error over log threshold, about
_MOST, _LEAST = 0.4, 1e-4  # a cell with a large part of the mass is near even where the sample does not ask for it
_NONE_NEAR = 1e6
_LOOKS = 7
# Queries out of the reach of their blocks attend to every key. Where that is dear, blocks reach further, if a sample of
# those queries shows that the tolerance allows it.
_DEAR, _CHEAP = 512, 256  # keys that this costs a query, on average over all
_FURTHER, _STEPS = 1.5, 2
_ODD = 64  # rows of that sample
_ODD_PART = 0.5  # of the tolerance


@dataclass(frozen=True)
class Found:
    """A threshold, the relative L2 error that the sample has with it, and the keys and cells that a query touches."""

    threshold: float
    error: float
    touched: float


@dataclass(frozen=True)
class Part:
    """Blocks of a segment's queries, which of them count, and the state of the field there if it changes."""

    segment: Segment
    rows: IdArray
    wanted: np.ndarray
    moments: Moments | None


class Sample:
    """Some blocks of a head's queries to find a threshold with, and some of all queries to check the output with.

    A block is sampled whole, as its queries share its linear forms, but only a few of its rows are computed exactly.
    """

    def __init__(self, head: Head, seed: int) -> None:
        self.head = head
        self.rng = rng = np.random.default_rng(seed)
        self.beyond: IdArray = np.empty(0, np.int32)  # sampled rows out of reach of their blocks
        self.odd: IdArray = np.empty(0, np.int32)  # some that were, at first
        self.odd_share = 0.0
        far = [segment for segment in head.segments() if segment.boundary > 0]
        self.empty = not far
        if self.empty:
            return
        picked = [far[i] for i in sorted({round(x) for x in np.linspace(0, len(far) - 1, _SEGMENTS)})]
        self.n_far = head.group * sum(segment.stop - segment.start for segment in far)
        self.parts = []
        for segment in picked:
            head.field.advance(segment.boundary)
            moments = head.field.moments() if len(picked) > 1 else None
            self.parts.append(self._part(segment, -(-_BLOCKS // len(picked)), moments, rng))
        self.chosen = np.concatenate([part.rows[part.wanted == 1] for part in self.parts])
        self.exact = head.exact(self.chosen)
        self.out = np.empty((len(head.query), head.field.width), np.float32)

    def _part(self, segment: Segment, n_blocks: int, moments: Moments | None, rng: np.random.Generator) -> Part:
        rows = self.head.rows(segment)
        n_full = max(1, len(rows) // BLOCK)
        first = np.linspace(0, n_full, min(n_blocks, n_full), endpoint=False).astype(int) * BLOCK
        chosen = np.concatenate([rows[start : start + BLOCK] for start in first])
        wanted = np.zeros(len(chosen), np.uint8)
        for start in range(0, len(chosen), BLOCK):
            size = min(BLOCK, len(chosen) - start)
            wanted[start + rng.choice(size, min(size, _ROWS), replace=False)] = 1
        return Part(segment, chosen, wanted, moments)

    def _attend(self, threshold: float, wanted: list[np.ndarray]) -> tuple[int, IdArray]:
        """Attend with the blocks; return what the wanted rows touch, and the rows out of reach."""
        head, touched, beyond = self.head, 0, []
        for part, these in zip(self.parts, wanted, strict=True):
            if part.moments is not None:
                head.field.restore(part.moments)
            touched += head.attend(part.rows, part.segment, threshold, self.out, these)
            touched -= int((these == 0).sum()) * head.field.n_cells
            beyond.append(head.beyond)
        return touched, np.concatenate(beyond)

    def measure(self, threshold: float) -> Found:
        """Attend with the sampled blocks."""
        wanted = [part.wanted for part in self.parts]
        touched, self.beyond = self._attend(threshold, wanted)
        error = np.hypot(relative_error(self.out[self.chosen], self.exact), self._odd_error(self.out))
        return Found(threshold, float(error), touched / sum(int(these.sum()) for these in wanted))

    def search(self, tolerance: float, most: float) -> Found:
        """Look for the largest threshold within the tolerance, by a power law between threshold and error.

        Once more than `most` keys are touched and the error is still too large, smaller thresholds are not tried.
        """
        good, bad = None, None
        threshold, slope = _FIRST, _SLOPE
        for _ in range(_LOOKS):
            look = self.measure(threshold)
            if self.head.reach == REACH and self._reach_further(tolerance):
                look = self.measure(threshold)
            if look.error <= tolerance:
                good = look
                if look.error > 0.8 * tolerance or threshold >= _MOST or look.touched < 1.1 * self.head.field.n_cells:
                    break
            else:
                bad = look
                if threshold <= _LEAST or look.touched > most:
                    break
            if good and bad:
                slope = np.log(bad.error / max(good.error, 1e-9)) / np.log(bad.threshold / good.threshold)
                slope = max(float(slope), 0.1)
                if good.touched < 1.2 * bad.touched:
                    break
            threshold = look.threshold * (0.9 * tolerance / max(look.error, 1e-9)) ** (1 / slope)
            low, high = (good.threshold * 1.1 if good else _LEAST), (bad.threshold / 1.1 if bad else _MOST)
            threshold = float(np.clip(threshold, low, max(low, high)))
        return good or look

    def _reach_further(self, tolerance: float) -> bool:
        """Let blocks reach all but a few of the queries, unless those that only then are reached err too much."""
        none = [np.zeros(len(part.rows), np.uint8) for part in self.parts]
        keys_each, beyond = self.head.n_keys / sum(map(len, none)), self.beyond
        if len(beyond) * keys_each <= _DEAR or len(self.odd):
            return False
        self.odd = np.sort(self.rng.choice(beyond, min(len(beyond), _ODD), replace=False))
        self.odd_share = len(beyond) / sum(map(len, none))
        for _ in range(_STEPS):
            self.head.reach *= _FURTHER
            _, beyond = self._attend(_FIRST, none)
            if len(beyond) * keys_each <= _CHEAP:
                break
        odd = [np.isin(part.rows, self.odd) for part in self.parts]
        self._attend(_FIRST, [these.view(np.uint8) for these in odd])
        if len(beyond) * keys_each > _CHEAP or self._odd_error(self.out, more=3) > _ODD_PART * tolerance:
            self.head.reach, self.odd_share = REACH, 0.0
            return False
        for part, these in zip(self.parts, odd, strict=True):
            part.wanted[these] = 1
        return True

    @cached_property
    def _exact_odd(self) -> FloatArray:
        return self.head.exact(self.odd)

    def _odd_error(self, out: FloatArray, more: float = 0.0) -> float:
        """Estimate what the queries that were out of reach at first bring to the relative L2 error.

        With `more` standard errors of its square added.
        """
        if len(self.odd) == 0:
            return 0.0
        squares = np.square(out[self.odd] - self._exact_odd).sum(1, dtype=np.float64)
        norm = np.square(self.exact).sum(dtype=np.float64) / len(self.exact)
        total = squares.sum() + more * np.sqrt(np.square(squares).sum())
        return float(np.sqrt(self.odd_share * total / len(squares) / max(norm, float(np.finfo(np.float32).tiny))))

    def search_size(self, size: float) -> Found:
        """Bisect for the threshold whose near field has about `size` keys, the cells and the segment not counted."""
        if size >= self.head.n_keys:
            return self.measure(ALL_NEAR)
        none_near = look = self.measure(_NONE_NEAR)
        low, high = np.log(_LEAST), np.log(_NONE_NEAR)
        for _ in range(14):
            middle = (low + high) / 2
            look = self.measure(float(np.exp(middle)))
            low, high = (low, middle) if look.touched - none_near.touched < size else (middle, high)
        return look

    def check(self, out: FloatArray, tolerance: float = 1.0) -> tuple[float, float]:
        """Relative L2 error of an output (G * L, Ev) that `Head.run` has written, and its upper bound.

        Where the bound alone is beyond the tolerance, more rows are looked at. All that were are exact from then on;
        the bound counts what they were.
        """
        sizes = squared_norms(out)
        chances = row_probabilities(self.head.risks, sizes)
        if not chances.any():
            return 0.0, 0.0
        drawn, exact, total = self.chosen, self.exact, max(float(sizes.sum()), float(np.finfo(np.float32).tiny))
        for looks in range(1, _CHECKS + 1):
            rows = self.rng.choice(len(out), _CHECKED, p=chances).astype(np.int32)
            some, places = np.unique(rows, return_inverse=True)
            drawn, exact = np.concatenate([drawn, rows]), np.concatenate([exact, self.head.exact(some)[places]])
            # The rows of the search count as well: they were drawn evenly.
            share = looks * _CHECKED / len(drawn)
            probabilities = share * chances[drawn] + (1 - share) / self.n_far
            error = estimate_sum(squared_norms(out[drawn] - exact), probabilities)
            larger = estimate_sum(squared_norms(exact) - sizes[drawn], probabilities)
            estimate = math.sqrt(error.total / max(total + larger.total, 0.25 * total))
            bound = math.sqrt(error.upper / max(total + larger.lower, 0.25 * total))
            if bound <= tolerance or estimate > _HOPEFUL * tolerance:
                break
        out[drawn] = exact
        return estimate, bound


def squared_norms(rows: FloatArray) -> npt.NDArray[np.float64]:
    """Squared norms of rows, (n,) float64, also where they are beyond float32."""
    norms: npt.NDArray[np.float64] = np.einsum("ij,ij->i", rows, rows).astype(np.float64)
    if not np.isfinite(norms).all():
        norms = np.square(rows, dtype=np.float64).sum(1)
    return norms


def relative_error(out: FloatArray, exact: FloatArray) -> float:
    """‖out − exact‖ / ‖exact‖, with the smallest float in place of a zero norm."""
    return float(np.linalg.norm(out - exact) / max(float(np.linalg.norm(exact)), float(np.finfo(np.float32).tiny)))
