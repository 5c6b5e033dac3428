"""The k-NN question: total time of a batch at equal recall, ranking against buckets, graphs and exact search."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np

from comparisons import datasets
from comparisons.adapters import (
    DCI,
    Adapter,
    Arguments,
    DCIExact,
    FaissFlat,
    FaissHNSW,
    FaissIVF,
    FaissLSH,
)
from comparisons.harness import THREADS, Bench, Measurement, Setting, busy, cheapest, finalists

K = 10
QUICK = 5.0  # seconds in total, below which LSH and HNSW are repeated


@dataclass(frozen=True)
class Goal:
    """What is asked of `dci` on a data set: a recall, and total time against two rivals."""

    recall: float
    over_ivf: float | None  # at least so many times faster
    over_flat: float


GOALS = {
    "manifold": Goal(0.95, 8, 8),
    "glove": Goal(0.90, 4, 6),
    "sentences": Goal(0.90, 1.5, 1),
    "words": Goal(0.90, None, 1 / 1.1),
    "noise": Goal(0.90, None, 1 / 1.1),
}
SMOKE = ("manifold", "glove", "words", "noise")  # no embedding to make


def load(name: str, smoke: bool = False) -> datasets.Dataset:
    """Return a data set, or its first 4,000 points and 500 queries."""
    return _head(name) if smoke else datasets.load(name)


@cache
def _head(name: str) -> datasets.Dataset:
    few = datasets.load(name).head(4_000, 500)
    return datasets.Dataset(name, few.points.copy(), few.queries.copy())  # lets go of the whole


@dataclass
class Comparison:
    """One row of the table."""

    data: datasets.Dataset
    wanted: float
    dci: Measurement
    flat: Measurement
    exact: Measurement
    ivf: Measurement | None  # None: no setting reaches the recall
    others: list[Measurement]  # LSH and HNSW at the recall that they reach
    sweep: list[Measurement]
    busy: bool

    @property
    def over_flat(self) -> float:
        return self.flat.total / self.dci.total

    @property
    def over_ivf(self) -> float | None:
        return self.ivf.total / self.dci.total if self.ivf else None

    def record(self) -> dict[str, Any]:
        """Return everything for JSON."""
        named = {name: getattr(self, name) for name in ("dci", "flat", "exact", "ivf")}
        return {
            "data": self.data.name,
            "points": list(self.data.points.shape),
            "queries": len(self.data.queries),
            "k": K,
            "recall_wanted": self.wanted,
            "over_flat": self.over_flat,
            "over_ivf": self.over_ivf,
            "busy": self.busy,
            **{name: m.record() if m else None for name, m in named.items()},
            "others": [m.record() for m in self.others],
            "sweep": [m.record() for m in self.sweep],
        }


def compare(
    data: datasets.Dataset,
    wanted: float,
    repeats: int = 3,
    threads: int = THREADS,
    others: Sequence[type[Adapter]] = (FaissLSH, FaissHNSW),
) -> Comparison:
    """Sweep IVF, then let its two best settings, flat, `dci.exact` and `dci` take turns.

    Parameters
    ----------
    data : Dataset
    wanted : float
        Recall@10; all `dci` is told, and what IVF's nlist and nprobe are tuned for on these very queries.
    repeats : int
        Rounds of the final, each building and answering anew.
    threads : int
    others : sequence of Adapter types
        Rivals shown at the recall that they reach: repeated too where they are quick, else measured once.
    """
    bench = Bench(data, K, threads)
    types = {rival.name: rival for rival in others}
    sweep = bench.sweep(FaissIVF, wanted)
    best_ivf = [Setting(FaissIVF, m.build, m.search) for m in finalists(sweep, wanted, 2)]
    settings = [Setting(DCI, {"recall": wanted}), Setting(FaissFlat), Setting(DCIExact), *best_ivf]
    dci, flat, exact, *ivf = final = bench.interleave(settings, repeats)
    shown = [m for rival in others for m in farthest(bench.sweep(rival, wanted))]
    quick = [Setting(types[m.rival], m.build, m.search) for m in shown if m.total < QUICK]
    repeated = {m.label: m for m in bench.interleave(quick, repeats)}
    return Comparison(
        data=data,
        wanted=wanted,
        dci=dci,
        flat=flat,
        exact=exact,
        ivf=cheapest(ivf, 0),  # in the sweep they reached the recall
        others=[repeated.get(m.label, m) for m in shown],
        sweep=sweep,
        busy=busy(final),
    )


def farthest(measurements: Sequence[Measurement]) -> list[Measurement]:
    """Keep, for each value of the first build argument (bits, M), what reaches the highest recall."""
    best: dict[Any, Measurement] = {}
    for m in measurements:
        which = next(iter(m.build.values()))
        if which not in best or m.recall > best[which].recall:
            best[which] = m
    return list(best.values())


def latency(data: datasets.Dataset, wanted: float, threads: int = THREADS) -> tuple[Arguments, Arguments]:
    """Compare one query at a time with the IVF that answers fastest at the recall; construction is free here.

    IVF may spread one query's lists over the threads (``parallel_mode=1``) or not; the faster counts.

    Returns
    -------
    dci, ivf : dict
        ``label``, ``recall``, ``median`` and ``p90`` in seconds.
    """
    bench = Bench(data, K, threads)
    few = finalists(bench.sweep(FaissIVF, wanted, cost="query_time"), wanted, 2, cost="query_time")
    if not few:
        raise RuntimeError(f"no IVF setting reaches recall {wanted} on {data.name}")
    rivals = [Setting(FaissIVF, m.build, {**m.search, "parallel_mode": mode}) for m in few for mode in (0, 1)]
    dci, *ivf = bench.latency([Setting(DCI, {"recall": wanted}), *rivals])
    return dci, min(ivf, key=lambda row: row["median"])


def growth(
    sets: Sequence[datasets.Dataset], wanted: float, repeats: int = 3, threads: int = THREADS
) -> tuple[float, list[Arguments]]:
    """Measure `dci` on growing sets; return the exponent of the cost per query in n, and the rows.

    The exponent is the slope of a line through log(seconds a query) against log(n): 1 for exact search.
    """
    rows = []
    for data in sets:
        measured = Bench(data, K, threads).interleave([Setting(DCI, {"recall": wanted})], repeats)[0]
        rows.append(
            {
                "n": len(data.points),
                "recall": measured.recall,
                "build": measured.build_time,
                "per_query": measured.query_time / len(data.queries),
                "total": measured.total,
            }
        )
    n, cost = (np.log([row[key] for row in rows]) for key in ("n", "per_query"))
    return float(np.polyfit(n, cost, 1)[0]), rows


def calibration(
    data: datasets.Dataset, recalls: Sequence[float] = (0.8, 0.9, 0.95, 0.99), threads: int = THREADS
) -> dict[float, float]:
    """Fit once, ask for several recalls on queries that calibration never saw; return what is reached."""
    bench = Bench(data, K, threads)
    index, _ = bench.fit(Setting(DCI, {"recall": 0.9}))
    return {wanted: bench.query(index, {"recall": wanted})[0] for wanted in recalls}


# ----------------------------------------------------------------------------------------------- the tables


def table(rows: Sequence[Sequence[str]]) -> str:
    """Align rows of cells as a Markdown table; the first row is the header."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ["| " + " | ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)) + " |" for row in rows]
    return "\n".join([lines[0], "|" + "|".join("-" * (w + 2) for w in widths) + "|", *lines[1:]])


def totals_table(comparisons: Sequence[Comparison]) -> str:
    """Return the table of total times at equal recall."""
    header = ["data", "recall wanted", "reached", "dci (fit + query)", "faiss flat", "dci.exact"]
    header += ["best IVF", "its setting", "IVF / dci", "flat / dci", "spread"]
    rows = [header]
    for c in comparisons:
        ivf = c.ivf
        rows.append(
            [
                f"{c.data.name} {c.data.shape}",
                f"{c.wanted:.2f}",
                f"{c.dci.recall:.3f}",
                f"{c.dci.total:.2f} s ({c.dci.build_time:.2f} + {c.dci.query_time:.2f})",
                f"{c.flat.total:.2f} s",
                f"{c.exact.total:.2f} s",
                f"{ivf.total:.2f} s at {ivf.recall:.3f}" if ivf else "not reached",
                ivf.label.removeprefix("faiss IVF ") if ivf else "",
                f"{c.over_ivf:.1f} x" if c.over_ivf else "",
                f"{c.over_flat:.1f} x",
                f"{c.dci.spread:.0%}{' BUSY' if c.busy else ''}",
            ]
        )
    return table(rows)


def others_table(comparisons: Sequence[Comparison]) -> str:
    """Return the table of the rivals that are shown at the recall that they reach."""
    rows = [["data", "rival", "reached", "total", "construction", "queries"]]
    for c in comparisons:
        for m in c.others:
            times = [f"{seconds:.2f} s" for seconds in (m.total, m.build_time, m.query_time)]
            rows.append([c.data.name, m.label, f"{m.recall:.3f}", *times])
    return table(rows)
