"""The figures of a run's rows.

Each function takes rows and returns a figure, or None where there is nothing to draw. `FIGURES` lists them with the
words that stand under them.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter

from comparisons.harness.results import Row, select
from comparisons.knn.bench import Measurement
from comparisons.report import figures_attention, figures_tasks
from comparisons.report.plots import (
    KNOWN,
    OURS,
    SPARE,
    Drawing,
    axes_for,
    heading,
    legend,
    lines,
    look,
    names,
    series_of,
    ticks,
    times,
)
from comparisons.report.tables import finals, time

# ----------------------------------------------------------------------------------------------------- recall


def _against_recall(rows: Sequence[Row], value: Callable[[Row], float], better: str, label: str) -> Figure | None:
    """Draw every setting as a faint marker and each rival's Pareto front as a line."""
    some = select(rows, "pareto", "trace", k=10)
    some = [row for row in some if select(rows, "pareto", data=row["data"])]
    if not some:
        return None
    figure, axes = axes_for(len(names(some)))
    for ax, data in zip(axes, names(some), strict=True):
        for rival in sorted(names(select(some, data=data), "rival"), key=lambda name: [*KNOWN, name].index(name)):
            mine = _settings(select(some, data=data, rival=rival))
            points = [(row["recall"], value(row)) for row in mine]
            style = look(rival)
            ax.plot(*zip(*points, strict=True), style["marker"], color=style["color"], alpha=0.25, markersize=3.5)
            sign = 1 if better == "down" else -1
            edge = _edge([(recall, sign * y) for recall, y in points])
            ax.plot([x for x, _ in edge], [sign * y for _, y in edge], label=rival, **style)
        _recalls(ax)
        ax.set(yscale="log", xlabel="recall@10", ylabel=label, title=heading(select(some, data=data)))
        ticks(ax.yaxis, time if better == "down" else lambda rate: f"{rate:,.0f}")
        low, high = ax.get_ylim()
        ax.set_ylim((low / 3, high) if better == "down" else (low, 3 * high))  # room for the arrow
        ax.annotate("better", **_corner(better), textcoords="axes fraction", xycoords="axes fraction",
                    arrowprops={"arrowstyle": "->", "color": "#555555"}, color="#555555")  # fmt: skip
    legend(figure, axes)
    return figure


def _recalls(ax: Any) -> None:
    """Stretch recall towards 1, where everything happens."""
    ax.set_xscale("function", functions=(lambda r: -np.log10(1.03 - np.minimum(r, 1.02)), lambda x: 1.03 - 10.0**-x))
    ax.set_xlim(0.4, 1.001)
    ax.xaxis.set_major_locator(FixedLocator([0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.98, 0.99, 1]))
    ax.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))


def _settings(rows: Sequence[Row]) -> list[Row]:
    """Return a row a setting: that of the final, where the setting was in it."""
    found = {str((row["build"], row["search"])): row for row in select(rows, "trace")}
    return list((found | {str((row["build"], row["search"])): row for row in select(rows, "pareto")}).values())


def _corner(better: str) -> dict[str, Any]:
    low, high = (0.14, 0.03) if better == "down" else (0.86, 0.97)
    return {"xytext": (0.02, low), "xy": (0.13, high)}


def _edge(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """Return the Pareto front of (recall, cost), ascending."""
    best: list[tuple[float, float]] = []
    for recall, cost in sorted(points, key=lambda p: (-p[0], p[1])):
        if not best or cost < best[-1][1]:
            best.append((recall, cost))
    return best[::-1]


def total_time(rows: Sequence[Row]) -> Figure | None:
    """Draw recall against total time."""
    return _against_recall(rows, lambda row: Measurement.of(row).total, "down", "construction + queries")


def throughput(rows: Sequence[Row]) -> Figure | None:
    """Draw recall against queries a second, construction left out."""
    return _against_recall(rows, lambda row: row["queries"] / Measurement.of(row).query_time, "up", "queries a second")


# ------------------------------------------------------------------------------------------------------ bars


def equal_recall(rows: Sequence[Row]) -> Figure | None:
    """Draw total times at equal recall as bars of construction and queries."""
    some = select(rows, "knn")
    if not some:
        return None
    figure, axes = axes_for(len(names(some)), height=2.9, across=2)
    for ax, data in zip(axes, names(some), strict=True):
        mine = select(some, data=data)
        final = finals(mine)[::-1]
        labels = [f"{m.rival} ({m.recall:.3f})" for m in final]
        built, asked = [m.build_time for m in final], [m.query_time for m in final]
        ax.barh(labels, built, color="#555555", edgecolor="black", linewidth=0.5, label="construction")
        ax.barh(
            labels, asked, left=built, color="#dddddd", edgecolor="black", linewidth=0.5, hatch="///", label="queries"
        )
        for row, m in enumerate(final):
            ax.text(m.total, row, f" {time(m.total)}", va="center", fontweight="bold" if m.rival in OURS else None)
        ax.set(xlim=(0, 1.18 * max(m.total for m in final)), xlabel="seconds")
        ax.set_title(f"{heading(mine)}: recall {mine[0]['wanted']:g}")
        ax.grid(visible=False, axis="y")
    legend(figure, axes)
    return figure


def construction(rows: Sequence[Row]) -> Figure | None:
    """Draw construction times as bars on a logarithmic axis."""
    some = select(rows, "construction")
    if not some:
        return None
    figure, axes = axes_for(len(names(some)), height=3.8)
    for ax, data in zip(axes, names(some), strict=True):
        mine = [m for m in map(Measurement.of, select(some, data=data)) if m.rival not in ("dci.exact", "faiss flat")]
        mine = sorted(mine, key=lambda m: -m.build_time)
        least = min(m.build_time for m in mine)
        for m in mine:
            label = "\n".join([m.rival, " ".join(f"{k}={v}" for k, v in m.build.items() if k != "recall")]).strip()
            own = {"color": "#333333"} if m.rival in OURS else {"color": "white", "hatch": "///"}
            ax.barh(label, m.build_time, linewidth=0.6, edgecolor="black", **own)
            ax.text(m.build_time, label, f" {time(m.build_time)}", va="center")
        ax.set(xscale="log", xlim=(least / 2, 6 * mine[0].build_time), title=heading(select(some, data=data)))
        times(ax.xaxis, subs=(1,))
        ax.grid(visible=False, axis="y")
    return figure


# ----------------------------------------------------------------------------------------------------- growth


def _per_query(row: Row) -> float:
    return Measurement.of(row).query_time / row["queries"]


def growth(rows: Sequence[Row]) -> Figure | None:
    """Draw a query's time and construction against the number of points."""
    some = select(rows, "growth")
    if not some:
        return None
    figure, (left, right) = axes_for(2)
    lines(left, series_of(some, "n", _per_query))
    lines(right, series_of([row for row in some if row["build"]], "n", lambda row: Measurement.of(row).build_time))
    left.set(xlabel="points", ylabel="time of a query", title=f"queries at recall {some[0]['wanted']:g}")
    right.set(xlabel="points", ylabel="construction", title="construction")
    times(left.yaxis), times(right.yaxis)
    return figure


def dimension(rows: Sequence[Row]) -> Figure | None:
    """Draw total time against the ambient dimension, and against the intrinsic one."""
    some = [
        row | dict(zip(("intrinsic", "ambient"), _shape(row["data"]), strict=True)) for row in select(rows, "dimension")
    ]
    usual = statistics.mode(row["intrinsic"] for row in some) if some else None
    ambient = [row for row in some if row["intrinsic"] == usual]
    widest = statistics.mode(row["ambient"] for row in some) if some else None
    intrinsic = [row for row in some if row["ambient"] == widest]
    if not some:
        return None
    figure, (left, right) = axes_for(2)
    lines(left, series_of(ambient, "ambient", lambda row: Measurement.of(row).total))
    lines(right, series_of(intrinsic, "intrinsic", lambda row: Measurement.of(row).total))
    left.set(xlabel="dimension", ylabel="construction + queries", title=f"{usual} intrinsic dimensions")
    right.set(xlabel="intrinsic dimension", ylabel="construction + queries", title=f"{widest} dimensions")
    times(left.yaxis), times(right.yaxis)
    return figure


def _shape(name: str) -> tuple[int, int]:
    """Return the intrinsic and the ambient dimension in a manifold's name."""
    intrinsic, ambient = name.split("-")[-2:]
    return int(intrinsic), int(ambient)


def batches(rows: Sequence[Row]) -> Figure | None:
    """Draw a query's time against the size of the batch that it comes in; single queries from their own suite."""
    some = select(rows, "batch", "latency")
    if not some:
        return None
    figure, axes = axes_for(len(names(some)))
    for ax, data in zip(axes, names(some), strict=True):
        mine = select(some, data=data)
        lines(ax, series_of(mine, "batch", lambda row: row["median"] / row["batch"]), fit=False)
        ax.get_legend().remove()
        ax.set(
            xlabel="queries in a batch",
            ylabel="time of a query",
            title=f"{heading(mine)}: recall {mine[0]['wanted']:g}",
        )
        times(ax.yaxis)
    legend(figure, axes)
    return figure


def sensitivity(rows: Sequence[Row]) -> Figure | None:
    """Draw what one parameter of `dci` at a time does to its total time and its recall."""
    some = select(rows, "sensitivity")
    if not some:
        return None
    parameters = [*dict.fromkeys(name for row in some for name in row["build"] if name != "recall"), "k"]
    figure, axes = axes_for(len(parameters), height=2.8, width=3.7, across=3)
    for ax, parameter in zip(axes, parameters, strict=True):
        found = {data: _parameter(select(some, data=data), parameter) for data in names(some)}
        tops = [max(m.total for _, m in there) for there in zip(*found.values(), strict=False)]
        for (data, points), (color, marker, line) in zip(found.items(), (OURS["dci"], *SPARE), strict=False):
            ax.plot(
                range(len(points)), [m.total for _, m in points], marker=marker, linestyle=line, color=color, label=data
            )
            for at, ((_, m), top) in enumerate(zip(points, tops, strict=False)):
                place = {"xytext": (0, 6 if m.total == top else -12), "textcoords": "offset points", "ha": "center"}
                ax.annotate(f"{m.recall:.2f}", (at, m.total), fontsize=7, **place)
            ax.set_xticks(range(len(points)), [str(value) for value, _ in points])
        ax.set(yscale="log", title=parameter)
        ax.margins(x=0.15, y=0.2)
        times(ax.yaxis)
    legend(figure, axes)
    return figure


def _parameter(rows: Sequence[Row], parameter: str) -> list[tuple[Any, Measurement]]:
    """Return the values of one parameter with what they gave; "auto" is the setting without it."""
    plain = [row for row in rows if set(row["build"]) == {"recall"}]
    if parameter == "k":
        return [(row["k"], Measurement.of(row)) for row in sorted(plain, key=lambda row: row["k"])]
    own = [(row["build"][parameter], Measurement.of(row)) for row in rows if parameter in row["build"]]
    return [("auto", Measurement.of(row)) for row in plain if row["k"] == 10] + own


FIGURES = [
    Drawing(
        "recall-total-time",
        "Total time against recall",
        "Construction and all queries. Each faint marker is a setting, each line the Pareto front of a rival, whose "
        "settings took turns with the other rivals'. Down and right is better.",
        total_time,
    ),
    Drawing(
        "recall-throughput",
        "Queries a second against recall",
        "The same settings, construction left out. Up and right is better.",
        throughput,
    ),
    Drawing(
        "equal-recall",
        "Total time at equal recall",
        "Each rival's best setting of its own sweep; in brackets the recall that it reached. Shorter is better.",
        equal_recall,
    ),
    Drawing(
        "construction",
        "Construction",
        "The fastest construction that still reaches the recall, on a logarithmic axis; exact search has none.",
        construction,
    ),
    Drawing(
        "batches",
        "Single queries and batches",
        "Time of one query by the number of queries that come at once, on an index that is there already.",
        batches,
    ),
    Drawing(
        "growth",
        "Growth with the number of points",
        "The exponent is the slope of a line through the logarithms: 1 for exact search.",
        growth,
    ),
    Drawing(
        "dimension",
        "Growth with the dimension",
        "Manifolds of 20,000 points: ambient dimension on the left, intrinsic on the right.",
        dimension,
    ),
    Drawing(
        "sensitivity",
        "Sensitivity of dci",
        "Total time with one parameter changed, the others chosen by the index; the numbers are the recall reached. "
        "n_simple is m and n_composite L of the papers.",
        sensitivity,
    ),
    *figures_attention.FIGURES,
    *figures_tasks.FIGURES,
]
