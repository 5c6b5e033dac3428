"""Attention of the query heads that share one head of keys and values.

A head's keys lie in cells. For a block of similar queries every cell is one key and one value, the linear form of the
cell's Gaussian closure around the block's mean query: the far field is a small dense attention over these. Where a
cell holds so much of a query's mass that the closure's error would count, the query attends to its keys exactly.

Causal attention goes through the queries in segments: the keys before a segment are in the cells' moments, those
within it are attended to exactly.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from dci._runtime.threads import Work
from dci._runtime.types import FloatArray, IdArray

from .._native.far_field import Field
from .._native.near_field import LocalKeys
from .._native.workspace import BLOCK
from ..options import AttentionOptions
from .planning import HeadPlan

ALL_NEAR = -1.0  # a threshold that every cell is above
# To measure these anew: python -m comparisons run --suite attention_layers
_CHUNK = 1024  # queries that a thread takes at once
_FEWER = 256  # outlier queries, each with moments of its own: what is between two looks at Ctrl-C
_ALONE = 0.25  # times the threshold, for outlier queries: each of these may attend mostly to some key of its own
_APART = 0.5  # the same, where they share all but their variances with their block
REACH = 1.0  # variance of scores within a cell by which a query may differ from the mean of its block
_SEGMENT = 768  # keys that causal attention takes exactly, at most


@dataclass(frozen=True)
class Segment:
    """Queries [start, stop) attend to the keys before `boundary` through cells, and exactly from there on."""

    start: int
    stop: int
    boundary: int


def make_field(
    plan: HeadPlan,
    key: FloatArray,
    value: FloatArray,
    scale: float,
    options: AttentionOptions,
    num_threads: int,
    with_strays: bool = True,
) -> Field:
    """Put the keys (S, E) and values (S, Ev) of a head into the cells of its plan; none is in the moments yet.

    Without strays, a key far from the others of its cell is not looked at by itself.
    """
    for_keys, for_queries = plan.moments or (None, None)
    cell_of, strays = plan.cells_of(key, value, options.sink, num_threads)
    return Field(
        key,
        value,
        cell_of,
        plan.references,
        for_keys,
        for_queries,
        second_order=options.far_field != "mean",  # without a far field too: a better choice of near cells
        scale=scale,
        keep_far=options.far_field != "none",
        strays=strays if with_strays else strays[:0],
    )


class Head:
    """One head of keys and values, and the queries that attend to it.

    Parameters
    ----------
    query : (G, L, E) float32
    key, value : (S, E) and (S, Ev) float32
    stops : (L,) int64, ascending, or None
        Query i sees the keys before stops[i]; None for all.
    scale : float
    options : AttentionOptions
    plan : HeadPlan
    work : Work
    """

    def __init__(
        self,
        query: FloatArray,
        key: FloatArray,
        value: FloatArray,
        stops: npt.NDArray[np.int64] | None,
        scale: float,
        options: AttentionOptions,
        plan: HeadPlan,
        work: Work,
    ) -> None:
        self.group, self.length, width = query.shape
        self.query = np.ascontiguousarray(query).reshape(-1, width)
        self.n_keys = len(key)
        self.key, self.value = key, value
        self.stops = stops
        self.plan = plan
        self.work = work
        self.window = options.window
        self._order: IdArray | None = None
        self.risks = np.zeros(len(self.query), np.float32)  # squared errors that the last calls suspect
        self.field = make_field(plan, key, value, scale, options, work.num_threads)
        if stops is not None:  # many queries of a segment may be outliers: moments read for each take too long
            self.field.apart = _APART

    def segments(self) -> list[Segment]:
        """Cut the queries where the keys before them have grown by a segment."""
        if self.stops is None:
            return [Segment(0, self.length, self.n_keys)]
        out: list[Segment] = []
        start = 0
        while start < self.length:
            boundary = max(0, int(self.stops[start]) - self.window)
            if boundary < _SEGMENT:  # too few keys to put into cells
                boundary = 0
            end = max(int(self.stops[start]), boundary + self.window + _SEGMENT)
            stop = int(np.searchsorted(self.stops, end, side="right"))
            out.append(Segment(start, stop, boundary))
            start = stop
        return out

    def rows(self, segment: Segment) -> IdArray:
        """Rows of a segment's queries, g * L + i for query i of query head g, similar ones together."""
        if segment.stop - segment.start == self.length:
            if self._order is None:
                self._order = self.plan.order(self.query, BLOCK)
            return self._order
        of_group = np.arange(self.group, dtype=np.int32)[:, None] * self.length
        rows = (of_group + np.arange(segment.start, segment.stop, dtype=np.int32)).ravel()
        order: IdArray = rows[self.plan.order(self.query[rows], BLOCK)]
        return order

    def attend_segment(
        self,
        rows: IdArray,
        segment: Segment,
        threshold: float,
        out: FloatArray,
        wanted: npt.NDArray[np.uint8] | None = None,
    ) -> int:
        """Attend with rows of a segment, once the field has the keys before it.

        Parameters
        ----------
        rows : (n,) int32
        segment : Segment
        threshold : float
            Of a cell's weighed share of a query's mass: cells above it are near.
        out : (G * L, Ev) float32, written at these rows
        wanted : (n,) uint8, optional
            Rows whose output is wanted.

        Returns
        -------
        int
            Pairs of a query and a key, or a cell, that were scored.
        """
        if segment.boundary == 0:
            threshold = ALL_NEAR
        local = None if self.stops is None else LocalKeys(self.key, self.value, self.stops, segment.boundary)
        # Several chunks at once share a workspace.
        size = _CHUNK * max(1, min(4, len(rows) // (_CHUNK * self.work.num_threads)))
        if self.stops is not None:
            return self._attend(rows, threshold, out, local, wanted, REACH, size)[0]
        touched, outliers = self._attend(rows, threshold, out, None, wanted, REACH, size)
        if wanted is not None:
            outliers = outliers[np.isin(outliers, rows[wanted == 1])]
        return touched + self._attend(outliers, _ALONE * threshold, out, None, None, 0.0, _FEWER)[0]

    def _attend(
        self,
        rows: IdArray,
        threshold: float,
        out: FloatArray,
        local: LocalKeys | None,
        wanted: npt.NDArray[np.uint8] | None,
        reach: float,
        size: int,
    ) -> tuple[int, IdArray]:
        """Attend with rows, `size` at once; return the pairs that were scored, and rows out of their blocks' reach."""
        done: dict[int, tuple[int, IdArray]] = {}

        def attend_chunk(start: int) -> None:
            part = slice(start, start + size)
            these = None if wanted is None else wanted[part]
            done[start] = self.field.attend_rows(
                self.query, rows[part], threshold, out, local, these, reach, self.risks
            )

        starts = range(0, len(rows), size)
        self.work.run(attend_chunk, starts)
        outliers = [done[start][1] for start in starts]
        return sum(count for count, _ in done.values()), np.concatenate(outliers or [rows])

    def exact_rows(self, rows: IdArray) -> FloatArray:
        """Output of rows, (n, Ev), from every key they see."""
        out = np.empty((len(rows), self.field.width), np.float32)
        stops = np.full(self.length, self.n_keys) if self.stops is None else self.stops
        local = LocalKeys(self.key, self.value, stops)
        size = -(-len(rows) // self.work.num_threads)

        def attend_chunk(start: int) -> None:
            part = slice(start, start + size)
            self.field.exact_rows(self.query, rows[part], out[part], local)

        self.work.run(attend_chunk, range(0, len(rows), max(1, size)))
        return out

    def run(self, threshold: float, out: FloatArray) -> float:
        """Attend with every query, into (G * L, Ev); return how many keys and cells a query touched."""
        segments = self.segments()
        if len(segments) > 1:
            self.field.reset()
        touched = 0
        for segment in segments:
            self.field.advance(segment.boundary)
            touched += self.attend_segment(self.rows(segment), segment, threshold, out)
        return touched / len(self.query)
