"""Some queries of a head computed exactly: from the tolerance to a threshold, and from an output to its error."""

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from dci._runtime.types import FloatArray, IdArray

from .._native.workspace import BLOCK
from .bounds import estimate_sum, row_probabilities
from .head import ALL_NEAR, Head, Segment
from .threshold_search import Look, ThresholdSearch, follow, search_size

Squares = npt.NDArray[np.float64]
MomentsState = tuple[tuple[float, float], tuple[FloatArray, ...]]

# To measure these anew: python -m comparisons run --suite attention_truth
_SEGMENTS = 4
_BLOCKS = 16
# Each for every query head that shares the keys:
_ROWS = 2  # of a block
_CHECKED = 96  # rows of the output, beside those of the search, and as often as
_RISKIEST = 32
_CHECKS, _HOPEFUL = 3, 0.9  # the error is below this share of the tolerance
_FIRST = 0.04  # threshold
# The largest threshold, and the same over the tolerance wanted: a cell with a large part of the mass is near even where
# the sample does not ask for it.
_MOST, _MOST_OF_TOLERANCE = 0.4, 9.0
_SEARCH = ThresholdSearch(least=1e-4, most=_MOST, looks=7, slope=0.35)
_NONE_NEAR, _SIZE_LOOKS = 1e6, 14
_LEAST_WHOLE = 0.25  # of the output's size, that its estimate is believed to be at least
_TINY = float(np.finfo(np.float32).tiny)


@dataclass(frozen=True)
class SampledSegment:
    """Blocks of a segment's queries, which of them count, and the state of the field there if it changes."""

    segment: Segment
    rows: IdArray
    wanted: np.ndarray
    state: MomentsState | None


class Sample:
    """Some blocks of a head's queries to find a threshold with, and some of all queries to check the output with.

    A block is sampled whole, as its queries share its linear forms, but only a few of its rows are computed exactly.
    """

    def __init__(self, head: Head, seed: int) -> None:
        self.head = head
        self.rng = np.random.default_rng(seed)
        far = [segment for segment in head.segments() if segment.boundary > 0]
        self.empty = not far
        if self.empty:
            return
        picked = [far[i] for i in sorted({round(x) for x in np.linspace(0, len(far) - 1, _SEGMENTS)})]
        self.n_far = head.group * sum(segment.stop - segment.start for segment in far)
        self.parts = []
        for segment in picked:
            head.field.advance(segment.boundary)
            state = head.field.state() if len(picked) > 1 else None
            rows, wanted = self._blocks(segment, -(-_BLOCKS // len(picked)))
            self.parts.append(SampledSegment(segment, rows, wanted, state))
        self.chosen = np.concatenate([part.rows[part.wanted == 1] for part in self.parts])
        self.exact = head.exact_rows(self.chosen)
        self.out = np.empty((len(head.query), head.field.width), np.float32)

    def _blocks(self, segment: Segment, n_blocks: int) -> tuple[IdArray, np.ndarray]:
        """Rows of some blocks of a segment, and which of these are wanted."""
        rows = self.head.rows(segment)
        n_full = max(1, len(rows) // BLOCK)
        first = np.linspace(0, n_full, min(n_blocks, n_full), endpoint=False).astype(int) * BLOCK
        chosen = np.concatenate([rows[start : start + BLOCK] for start in first])
        wanted = np.zeros(len(chosen), np.uint8)
        for start in range(0, len(chosen), BLOCK):
            size = min(BLOCK, len(chosen) - start)
            wanted[start + self.rng.choice(size, min(size, _ROWS * self.head.group), replace=False)] = 1
        return chosen, wanted

    def measure(self, threshold: float) -> Look:
        """Attend with the sampled blocks."""
        head, touched = self.head, 0
        for part in self.parts:
            if part.state is not None:
                head.field.restore(part.state)
            touched += head.attend_segment(part.rows, part.segment, threshold, self.out, part.wanted)
            touched -= int((part.wanted == 0).sum()) * head.field.n_cells
        query_head = self.chosen // head.length
        off = np.bincount(query_head, squared_norms(self.out[self.chosen] - self.exact))
        error = float(np.sqrt(off / np.maximum(np.bincount(query_head, squared_norms(self.exact)), _TINY)).max())
        return Look(threshold, error, error, touched / len(self.chosen))

    def search(self, tolerance: float, most: float) -> Look:
        """Look for the largest threshold within the tolerance.

        Once more than `most` keys are touched and the error is still too large, smaller thresholds are not tried.
        """

        def settled(look: Look, good: Look | None, bad: Look | None) -> bool:
            if look is bad:
                return look.touched > most or _saves_little(good, bad)
            cells_alone = look.touched < 1.1 * self.head.field.n_cells
            return look.error > 0.8 * tolerance or cells_alone or _saves_little(good, bad)

        search = _SEARCH._replace(most=max(_MOST, _MOST_OF_TOLERANCE * tolerance))
        return search.find(self.measure, tolerance, _FIRST, settled)

    def search_size(self, size: float) -> Look:
        """Look for the threshold whose near field has about `size` keys, the cells and the segment not counted."""
        if size >= self.head.n_keys:
            return self.measure(ALL_NEAR)
        return follow(search_size(size, _SEARCH.least, _NONE_NEAR, _SIZE_LOOKS), self._count)

    def _count(self, threshold: float) -> Look:
        """Attend with every row of the sampled blocks, for how many keys they touch."""
        touched, n_rows = 0, 0
        for part in self.parts:
            if part.state is not None:
                self.head.field.restore(part.state)
            touched += self.head.attend_segment(part.rows, part.segment, threshold, self.out)
            n_rows += len(part.rows)
        return Look(threshold, 0.0, 0.0, touched / n_rows)

    def check(self, out: FloatArray, tolerance: float = 1.0) -> tuple[float, float]:
        """Relative L2 error of an output (G * L, Ev) that `Head.run` has written, and its upper bound.

        Both are those of the worst query head. The riskiest rows are computed exactly first, as one of them may hold
        most of the error. Of the others some are looked at; more, where the bound alone is beyond the tolerance. All
        that were are exact from then on; the bound counts what they were.
        """
        group, length = self.head.group, self.head.length
        sizes = squared_norms(out)
        # Everything is a share of what its query head's output has.
        risks = self.head.risks / self._wholes(sizes)
        most = _RISKIEST * group
        riskiest = np.argpartition(risks, -most)[-most:] if len(risks) > most else np.arange(len(risks))
        first: IdArray = np.sort(riskiest[risks[riskiest] > 0]).astype(np.int32)
        out[first] = self.head.exact_rows(first)
        risks[first] = 0
        sizes[first] = squared_norms(out[first])
        wholes = self._wholes(sizes)
        chances = row_probabilities(risks, sizes / wholes)
        if not chances.any():
            return 0.0, 0.0
        drawn, exact = self.chosen, self.exact
        for looks in range(1, _CHECKS + 1):
            rows = self.rng.choice(len(out), _CHECKED * group, p=chances).astype(np.int32)
            some, places = np.unique(rows, return_inverse=True)
            drawn, exact = np.concatenate([drawn, rows]), np.concatenate([exact, self.head.exact_rows(some)[places]])
            # The rows of the search count as well: they were drawn evenly.
            share = looks * _CHECKED * group / len(drawn)
            probabilities = share * chances[drawn] + (1 - share) / self.n_far
            errors = squared_norms(out[drawn] - exact) / wholes[drawn]
            larger = (squared_norms(exact) - sizes[drawn]) / wholes[drawn]
            found = [self._estimate(drawn // length == g, errors, larger, probabilities) for g in range(group)]
            estimate, bound = (max(values) for values in zip(*found, strict=True))
            if bound <= tolerance or estimate > _HOPEFUL * tolerance:
                break
        out[drawn] = exact
        return estimate, bound

    @staticmethod
    def _estimate(
        counts: npt.NDArray[np.bool_], errors: Squares, larger: Squares, probabilities: Squares
    ) -> tuple[float, float]:
        """Estimate the relative error of the rows that count, of all drawn ones, and bound it."""
        error = estimate_sum(np.where(counts, errors, 0.0), probabilities)
        more = estimate_sum(np.where(counts, larger, 0.0), probabilities)
        return (
            math.sqrt(error.total / max(1 + more.total, _LEAST_WHOLE)),
            math.sqrt(error.upper / max(1 + more.lower, _LEAST_WHOLE)),
        )

    def _wholes(self, sizes: Squares) -> Squares:
        """Squared norm of the output of the query head of each row, (G * L,), given those of rows."""
        sums: Squares = sizes.reshape(self.head.group, self.head.length).sum(1)
        return np.maximum(sums, _TINY).repeat(self.head.length)


def _saves_little(good: Look | None, bad: Look | None) -> bool:
    """Whether thresholds between these would touch hardly fewer keys."""
    return good is not None and bad is not None and good.touched < 1.2 * bad.touched


def squared_norms(rows: FloatArray) -> Squares:
    """Squared norms of rows, (n,) float64, also where they are beyond float32."""
    norms: Squares = np.einsum("ij,ij->i", rows, rows).astype(np.float64)
    if not np.isfinite(norms).all():
        norms = np.square(rows, dtype=np.float64).sum(1)
    return norms
