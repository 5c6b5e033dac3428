"""What is asked of `dci`, read off the rows of a run: shown by the report, asserted by the full pytest suites.

`JUDGES` maps a suite to a function from its rows to bars; another package adds its own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from comparisons.harness import Measurement, cheapest
from comparisons.results import Row, select
from comparisons.suites import PAIR, RECALL, Options, wanted_recall

MARGIN = 0.01  # recall is calibrated on a sample and measured on other queries
FEW = 1_000  # queries, below which chance moves the recall by more than that


@dataclass(frozen=True)
class Bar:
    """One thing asked, and what came.

    Attributes
    ----------
    timed : bool
        Holds on whole data and a quiet machine only, not in smoke runs.
    """

    suite: str
    data: str
    asked: str
    reached: str
    holds: bool
    timed: bool = True


@dataclass(frozen=True)
class Goal:
    """Total time on a data set: at least so many times faster than these."""

    over_flat: float
    over_ivf: float | None = None


GOALS = {
    "manifold": Goal(8, 8),
    "glove": Goal(6, 4),
    "sentences": Goal(1, 1.5),
    "words": Goal(1 / 1.1),
    "noise": Goal(1 / 1.1),
}


def bars(rows: Sequence[Row]) -> list[Bar]:
    """Judge all rows, suite by suite and data set by data set."""
    found: list[Bar] = []
    for suite, judge in JUDGES.items():
        of_suite = select(rows, suite)
        for data in dict.fromkeys(row["data"] for row in of_suite):
            found += judge(data, select(of_suite, data=data))
        if suite == "growth" and of_suite:
            found += _exponent(of_suite)
    return found


def exponent(points: Sequence[tuple[float, float]]) -> float:
    """Return the slope of a line through (log x, log y): how y grows with x.

    Examples
    --------
    >>> round(exponent([(1, 3), (2, 12), (4, 48)]), 6)
    2.0
    """
    x, y = np.log(np.array(points, dtype=float)).T
    return float(np.polyfit(x, y, 1)[0])


def best(rows: Sequence[Row], rival: str, cost: str = "total") -> Measurement | None:
    """Return a rival's cheapest row; in a final every row reaches the recall."""
    return cheapest([Measurement.of(row) for row in rows if row["rival"] == rival], 0, cost)


def _knn(data: str, rows: Sequence[Row]) -> Iterator[Bar]:
    dci, goal = best(rows, "dci"), GOALS.get(data)
    if dci is None:
        return
    yield _recall_bar("knn", data, rows[0]["wanted"], dci.recall, rows[0]["queries"])
    if goal is None or rows[0]["wanted"] != wanted_recall(data, Options()):
        return
    for name, factor in (("faiss flat", goal.over_flat), ("faiss IVF", goal.over_ivf)):
        rival = best(rows, name)
        if factor and rival:
            ratio = rival.total / dci.total
            yield Bar("knn", data, f"total time: {name} / dci at least {factor:.2g}", f"{ratio:.2f}", ratio >= factor)


def _latency(data: str, rows: Sequence[Row]) -> Iterator[Bar]:
    medians = {name: [row["median"] for row in rows if row["rival"] == name] for name in ("dci", "faiss IVF")}
    if data in PAIR and all(medians.values()):
        dci, ivf = (1e6 * min(values) for values in medians.values())
        yield Bar("latency", data, "one query: median at most faiss IVF's", f"{dci:.0f} and {ivf:.0f} µs", dci <= ivf)


def _pareto(data: str, rows: Sequence[Row]) -> Iterator[Bar]:
    """`dci` is cheapest at every recall: at the recall of each rival's setting, some `dci` reaches as much in less."""
    measured = [Measurement.of(row) for row in rows]
    dci = [m for m in measured if m.rival == "dci"]
    for name in ("faiss LSH", "faiss IVF"):
        ratios = []
        for m in measured:
            if m.rival == name and m.recall >= 0.5:
                match = cheapest(dci, min(m.recall, 0.99))
                ratios.append((m.total / match.total if match else 0.0, m))
        if data in PAIR and ratios and dci:
            worst, at = min(ratios, key=lambda pair: pair[0])
            asked = f"total time at every recall of {name} from 0.5 to 0.99: {name} / dci above 1"
            yield Bar("pareto", data, asked, f"least: {worst:.2f} at {at.recall:.3f} ({at.arguments})", worst > 1)


def _calibration(data: str, rows: Sequence[Row]) -> Iterator[Bar]:
    for row in rows:
        yield _recall_bar("calibration", data, row["search"]["recall"], row["recall"], row["queries"])


def _memory(data: str, rows: Sequence[Row]) -> Iterator[Bar]:
    for row in rows:
        growth, limit = row["growth_bytes"] / 1e6, (row["data_bytes"] + 200e6) / 1e6
        yield Bar("memory", data, f"fit and query at most {limit:.0f} MB", f"{growth:.0f} MB", growth <= limit)


def _growth(data: str, rows: Sequence[Row]) -> Iterator[Bar]:
    if dci := best(rows, "dci"):
        yield _recall_bar("growth", data, rows[0]["wanted"], dci.recall, rows[0]["queries"])


def _exponent(rows: Sequence[Row]) -> Iterator[Bar]:
    cost = [(row["n"], Measurement.of(row).query_time) for row in rows if row["rival"] == "dci"]
    if len(cost) > 1 and max(cost)[0] >= 100_000 and rows[0]["wanted"] == RECALL:
        slope = exponent(cost)
        yield Bar("growth", "glove", "exponent of a query's time in n at most 0.6", f"{slope:.2f}", slope <= 0.6)


def _recall_bar(suite: str, data: str, wanted: float, reached: float, queries: int) -> Bar:
    margin = MARGIN if queries >= FEW else 5 * MARGIN
    holds = reached >= wanted - margin
    return Bar(suite, data, f"recall {wanted} within {margin}", f"{reached:.3f}", holds, timed=False)


JUDGES: dict[str, Callable[[str, Sequence[Row]], Iterator[Bar]]] = {
    "knn": _knn,
    "latency": _latency,
    "growth": _growth,
    "pareto": _pareto,
    "calibration": _calibration,
    "memory": _memory,
}
