"""The stages of attention: which functions they are, and the work that each does.

One call of a field's `attend_rows` does all that blocks of queries need. To take it apart it is called again: as it
was, without recent keys, without near keys, and with one query of each block, which makes the same linear forms and
hardly anything else. The clock stands still meanwhile.
"""

from __future__ import annotations

import math
import time
from typing import Any

import numpy as np

from attention._core import dispatch, exact, head, heads, planning, sample
from attention._native.far_field import Field
from attention._native.growing_field import GrowingField
from attention._native.moments import round_up
from attention._native.workspace import BLOCK
from attention.decoding import folding, key_value_index, prefix
from attention.decoding.sample import TokenSample
from comparisons.profile.clock import Amount, Clock, Replacement, counted, stage
from dci._geometry import directions, kmeans

ATTENTION = ": attention"  # taken apart
NONE_NEAR = 1e6  # a threshold that no cell is above
_TOGETHER = 24  # blocks that one pass over the moments serves


def product(a: Any, b: Any) -> Amount:
    """Of a product of matrices."""
    return Amount(flops=2.0 * a.shape[0] * a.shape[1] * b.shape[1])


def nearest(coordinates: Any, centers: Any, *_: Any) -> Amount:
    """Of the nearest of all centres."""
    return Amount(flops=2.0 * len(coordinates) * centers.size)


def nearest_by_region(coordinates: Any, regions: Any, _: Any, centers: Any, *__: Any) -> Amount:
    """Of the nearest of those around a region."""
    return Amount(flops=2.0 * len(coordinates) * (regions.size + centers[0].size))


GEOMETRY = (
    counted(kmeans, "nearest", nearest),
    counted(kmeans, "nearest_by_region", nearest_by_region),
    counted(kmeans, "multiply", product),
    counted(directions, "multiply", product),
)


def attended(pairs: float, width: int, value_width: int) -> Amount:
    """Of attention over pairs of a query and a key."""
    return Amount(2.0 * pairs * (width + value_width), pairs)


def _exact_rows(of: head.Head, rows: Any) -> Amount:
    stops = None if of.stops is None else of.stops[rows % of.length]
    pairs = len(rows) * of.n_keys if stops is None else int(stops.sum())
    return attended(pairs, of.field.dim, round_up(of.field.width))


def _taken_exactly(of: TokenSample, _: Any, span: tuple[int, int]) -> Amount:
    return attended(len(of.query) * (span[1] - span[0]), of.query.shape[1], of.field.width)


def _sdpa(query: Any, key: Any, value: Any, mask: Any, scale: float, causal: bool) -> Amount:
    pairs = math.prod(query.shape[:3]) * key.shape[-2]
    return attended(pairs / 2 if causal else pairs, query.shape[-1], value.shape[-1])


class Timed:
    """What makes the calls of a field stages of a clock; goes before the class of the field."""

    clock: Clock
    scratch: np.ndarray | None = None

    def __init__(self, keys: Any, values: Any, *arguments: Any, **named: Any) -> None:
        with self.clock.within("cells: keys packed"):
            super().__init__(keys, values, *arguments, **named)
        n, m = self.n_keys, self.n_directions
        numbers = 2 * self.dim + self.width + round_up(self.width) + round_up(m)  # read, and written in cells
        flops = 2.0 * n * self.dim * round_up(m) if m < self.dim else 0.0
        self.clock.count(Amount(flops, bytes=4.0 * n * numbers), "cells: keys packed")

    def advance(self, boundary: int) -> None:
        before = int(self.counts.sum())
        with self.clock.within("cells: moments"):
            super().advance(boundary)
        m = self.n_directions
        taken, row = int(self.counts.sum()) - before, round_up(m) + round_up(self.width)
        lifted = 2.0 * self.n_cells * self.dim * m * round_up(m) if m < self.dim else 0.0
        self.clock.count(Amount(2.0 * taken * m * row + lifted, bytes=4.0 * taken * row), "cells: moments")

    def state(self) -> Any:
        with self.clock.within("cells: moments"):
            return super().state()

    def restore(self, state: Any) -> None:
        with self.clock.within("cells: moments"):
            super().restore(state)

    def attend_rows(
        self, queries: Any, order: Any, threshold: float, out: Any, local: Any = None, wanted: Any = None,
        reach: float = math.inf, risks: Any = None,
    ) -> tuple[int, Any]:  # fmt: skip
        with self.clock.within(ATTENTION):
            result = super().attend_rows(queries, order, threshold, out, local, wanted, reach, risks)
        if self.clock.taking_apart and len(order):
            with self.clock.within(None):
                parts = self._parts(queries, order, threshold, self._scratch(out), local, wanted, reach)
            self.clock.take_apart(ATTENTION, parts)
        return result

    def _parts(
        self, queries: Any, order: Any, threshold: float, out: Any, local: Any, wanted: Any, reach: float
    ) -> dict[str, tuple[float, Amount]]:
        """Attend again in parts, each of which includes the next."""

        def again(limit: float, local: Any = None, rows: Any = order, reach: float = reach) -> tuple[float, int]:
            begin = time.thread_time()
            of_rows = wanted if rows is order else None
            touched = super(Timed, self).attend_rows(queries, rows, limit, out, local, of_rows, reach)[0]
            return time.thread_time() - begin, touched

        n, block = len(order), BLOCK if reach > 0 else 1
        width, values, m = self.dim, round_up(self.width), self.n_directions
        whole = again(threshold, local)
        near = whole if local is None else again(threshold)
        far = again(NONE_NEAR) if threshold >= 0 else (0.0, 0)
        forms = far
        if threshold >= 0 and block > 1:
            forms = again(NONE_NEAR, rows=np.ascontiguousarray(order[::block]), reach=0.0)
        times = [whole[0]]
        for seconds, _ in (near, far, forms):
            times.append(min(seconds, times[-1]))
        own, close = whole[1] - near[1], near[1] - far[1]  # pairs of a query and a key
        # A cell's keys are read once for all the queries of a block that choose it, at best.
        read = 4.0 * close / min(n, BLOCK) * (width + values)
        parts = {": near keys": (times[1] - times[2], attended(close, width, values).and_also(Amount(bytes=read)))}
        if own:
            parts[": recent keys"] = times[0] - times[1], attended(own, width, values)
        if far[1]:
            projections = 2.0 * n * round_up(m) * ((width if m < width else 0) + 2 * width + values)
            over_cells = attended(far[1], width, values).and_also(Amount(flops=projections))
            n_blocks = -(-n // block)
            numbers = round_up(self.n_cells) * m * (width + values)  # of the moments
            read = 4.0 * -(-n_blocks // _TOGETHER) * numbers
            of_forms = Amount(4.0 * n_blocks * numbers, bytes=read)
            if block == 1:  # nothing tells the two apart
                return parts | {": linear forms": (times[2], of_forms.and_also(over_cells))}
            parts |= {": far cells": (times[2] - times[3], over_cells), ": linear forms": (times[3], of_forms)}
        return parts

    def _scratch(self, out: Any) -> Any:
        """Return memory that another call may write to, touched before."""
        if self.scratch is None or self.scratch.shape != out.shape:
            self.scratch = np.ones_like(out)
        return self.scratch


class TimedGrowing:
    """What makes the calls of a growing field stages of a clock; goes before the class of the field."""

    clock: Clock

    def append(self, keys: Any, values: Any, cell_of: Any) -> None:
        with self.clock.within("cells: keys added"):
            super().append(keys, values, cell_of)
        m, row = self.n_directions, round_up(self.n_directions) + round_up(self.width)
        numbers = 2 * (self.dim + self.width) + row  # read, and written in cells
        amount = Amount(2.0 * len(keys) * (m * (self.dim + row)), bytes=4.0 * len(keys) * numbers)
        self.clock.count(amount, "cells: keys added")

    def attend_rows(
        self, queries: Any, rows: Any, threshold: float, out: Any, local: Any = None, risks: Any = None,
        most_risks: Any = None,
    ) -> int:  # fmt: skip
        with self.clock.within(ATTENTION):
            touched: int = super().attend_rows(queries, rows, threshold, out, local, risks, most_risks)
        if self.clock.taking_apart and len(rows):
            with self.clock.within(None):
                parts = self._parts(queries, rows, threshold, np.empty_like(out), local, risks, most_risks)
            self.clock.take_apart(ATTENTION, parts)
        return touched

    def _parts(
        self, queries: Any, rows: Any, threshold: float, out: Any, local: Any, risks: Any, most_risks: Any
    ) -> dict[str, tuple[float, Amount]]:
        """Attend again in parts, each of which includes the next."""

        def again(limit: float, local: Any, most: Any) -> tuple[float, int]:
            begin = time.thread_time()
            touched = super(TimedGrowing, self).attend_rows(queries, rows, limit, out, local, risks, most)
            return time.thread_time() - begin, touched

        width, values, m, n = self.dim, round_up(self.width), self.n_directions, len(rows)
        whole = again(threshold, local, most_risks)
        near = whole if local is None else again(threshold, None, most_risks)
        cells = again(NONE_NEAR, None, None) if threshold >= 0 else (0.0, 0)
        times = [whole[0], min(near[0], whole[0])]
        times.append(min(cells[0], times[-1]))
        own, close = whole[1] - near[1], near[1] - cells[1]  # pairs of a query and a key
        amount = attended(close, width, values).and_also(Amount(bytes=4.0 * close * (width + values)))
        parts = {": near keys": (times[1] - times[2], amount)}
        if own:
            parts[": recent keys"] = times[0] - times[1], attended(own, width, values)
        if cells[1]:
            numbers = self.n_cells * (width + m * (m + 1) // 2 + values)  # of the moments that every query reads
            over_cells = Amount(2.0 * n * numbers, 2.0 * n * self.n_cells, 4.0 * numbers)
            parts[": cells"] = times[2], over_cells
        return parts


def _growing_fields(clock: Clock, original: type[GrowingField]) -> type[GrowingField]:
    """Return growing fields whose calls are stages."""
    return type("TimedGrowingField", (TimedGrowing, original), {"clock": clock})


def _fields(clock: Clock, original: type[Field]) -> type[Field]:
    """Return fields whose calls are stages."""
    return type("TimedField", (Timed, original), {"clock": clock})


PLAN = (
    counted(planning, "multiply", product),
    stage(planning, "score_directions", "plan: directions"),
    stage(planning, "product_directions", "plan: directions"),
    stage(planning, "make_cells", "plan: cells"),
    stage(planning, "assign_cells", "plan: cells", inside="plan"),
)
CALL = (
    *GEOMETRY,
    *PLAN,
    Replacement(head, "Field", _fields),
    stage(planning.HeadPlan, "cells_of", "cells: keys assigned"),
    stage(heads, "make_plan", "plan"),
    stage(planning.HeadPlan, "order", "queries ordered"),
    stage(sample.Sample, "__init__", "sample"),
    stage(sample.Sample, "search", "search"),
    stage(sample.Sample, "check", "check"),
    stage(head.Head, "run", "run"),
    stage(head.Head, "exact_rows", ": exact rows", _exact_rows),
    stage(dispatch, "_complete_exactly", "exact kernel"),
    counted(exact, "_sdpa", _sdpa),
)
DECODING = (
    *GEOMETRY,
    *PLAN,
    Replacement(prefix, "GrowingField", _growing_fields),
    stage(planning.HeadPlan, "cells_of_more", "cells: keys assigned"),
    stage(prefix, "plan_steps", "plan"),
    stage(TokenSample, "take_exact", "sample", _taken_exactly),
    stage(TokenSample, "measure", "search"),
    stage(TokenSample, "most_risk", "search"),
    stage(folding.FoldedKeys, "attend_folded", "step"),
    stage(folding.FoldedKeys, "_seen", ": recent keys copied"),
    stage(key_value_index.KeyValueIndex, "append", "append"),
    stage(key_value_index.KeyValueIndex, "_remember", "queries remembered"),
)
