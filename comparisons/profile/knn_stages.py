"""The stages of an index: which functions of fitting and of queries they are, and the work that each does.

A search of cells chooses cells and scans their points in one call. To take it apart it is called again as it was, and
with the least budget there is, for which all centres are compared and hardly a point.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from comparisons.profile.attention_stages import GEOMETRY, product
from comparisons.profile.clock import Amount, Clock, Replacement, counted, stage
from dci._geometry import directions
from dci._native import cell_search
from dci._native.kernels import Reservoirs
from dci._search import bounded, exact, ranked, read_rows, single
from dci._store import living_index
from dci._tuning import build, calibration, engine, pilot

CELLS = ": cells searched"  # taken apart
KEPT = 64  # candidates, when it is
_REREAD = 64  # queries from which a batch reads coordinates from a cache, not from memory


def _projected(rows: Any, ids: Any, panels: Any, *_: Any) -> Amount:
    width = panels.shape[1]
    return Amount(2.0 * len(ids) * panels.size, bytes=4.0 * len(ids) * (width + panels.size / width))


def _scanned(points: Any, ids: Any, start: int, stop: int, queries: Any, *_: Any) -> Amount:
    return Amount(2.0 * (stop - start) * queries.shape[0] * queries.shape[1], bytes=4.0 * (stop - start) * points.width)


def _compared(candidates: int) -> Callable[..., Amount]:
    """Of true distances: twice the flops, since they are float64."""

    def work(points: Any, queries: Any, reservoirs: Any, *_: Any) -> Amount:
        numbers = float(reservoirs.size) * candidates * queries.shape[1]
        return Amount(flops=2 * 2 * numbers, bytes=4 * numbers)

    return work


def _searches(clock: Clock, original: Callable[..., None]) -> Callable[..., None]:
    """Let searches of cells be stages."""

    def search(
        cells: Any, queries: Any, max_visits: int, use_max: bool, reservoirs: Any, *filtered: Any, **named: Any
    ) -> None:
        def again(visits: int, reservoirs: Any) -> float:
            begin = time.thread_time()
            original(cells, queries, visits, use_max, reservoirs, *filtered, **named)
            return time.thread_time() - begin

        with clock.within(CELLS):
            original(cells, queries, max_visits, use_max, reservoirs, *filtered, **named)
        if not clock.taking_apart:
            return
        with clock.within(None):
            other = Reservoirs(reservoirs.size, KEPT)
            chosen, whole = again(1, other), again(max_visits, other)
        width, n = cells.n_composite * cells.n_simple, len(queries)
        each = cells.arrays.coordinates.itemsize * width + 4.0 * cells.n_composite
        read = max_visits * each * n if n < _REREAD else min(max_visits * n, cells.arrays.ids.size) * each
        scanned = Amount(2.0 * n * width * max_visits, bytes=read)
        parts = {": points scanned": (max(0.0, whole - chosen), scanned)}
        parts[": cells chosen"] = min(whole, chosen), Amount(2.0 * n * width * cells.n_centers)
        clock.take_apart(CELLS, parts)

    return search


COMMON = (
    counted(ranked, "project", _projected),
    Replacement(cell_search, "search", _searches),
)
FIT = (
    *GEOMETRY,
    *COMMON,
    counted(exact, "scan", _scanned),
    counted(pilot, "multiply", product),
    counted(calibration, "multiply", product),
    stage(living_index.check, "as_points", "points checked"),
    stage(directions, "principal_directions", "directions"),
    stage(build, "look_roughly", "number of directions"),
    stage(build, "choose_n_simple", "number of directions"),
    stage(engine.Engine, "neighbours", ": true neighbours"),
    stage(bounded.BoundedSearch, "search", ": true neighbours"),
    stage(ranked.Ranker, "_choose_centers", "cells: centres"),
    stage(ranked.Ranker, "_assign", "cells: points assigned"),
    stage(ranked.Ranker, "_fill", "cells: points packed"),
    stage(engine.Engine, "settle", "calibration"),
    stage(calibration, "_visits_needed", "calibration: visits needed"),
    stage(calibration, "find_ranks", "calibration: ranks found"),
)


def query(candidates: int) -> tuple[Replacement, ...]:
    """Return the stages of a query that compares so many candidates."""
    return (
        *COMMON,
        stage(ranked.Ranker, "search", "search"),
        stage(ranked.Ranker, "_project", ": queries projected"),
        stage(read_rows, "rescore", ": candidates compared", _compared(candidates)),
        stage(single.Way, "answer", "search"),
        stage(single, "project", ": queries projected", _projected),
        stage(single, "rescore", ": candidates compared", _compared(candidates)),
    )
