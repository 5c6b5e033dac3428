"""The figures of tasks; `comparisons.tasks.rows` says what their rows hold."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator, PercentFormatter

from comparisons.harness.results import Row, select
from comparisons.report.bars_tasks import KEPT, attention_ratio
from comparisons.report.plots import Drawing, axes_for, legend, look, names, ticks
from comparisons.report.tables_tasks import EXACT

MARKERS = "osD^vX*pP<>h"
TOPK = ("exact top-k", "IceFormer", "dci top-k")


def _tasks(rows: Sequence[Row]) -> list[Row]:
    return [row for row in rows if row["suite"].startswith("task_") and "attention_seconds" in row]


def _knob(rows: Sequence[Row]) -> list[Row]:
    """Return the rows at the length of each task at which all tolerances were tried, one a tolerance."""
    found = []
    for data in names(rows):
        mine = [row for row in select(rows, data=data) if "tolerance" in row["options"]]
        lengths = [row["length"] for row in mine]
        some = [row for row in mine if row["length"] == max(lengths, key=lengths.count)]
        forced = any(row["forced"] for row in some)
        found += [row for row in some if row["forced"] == forced]
    return found


def tolerance(rows: Sequence[Row]) -> Figure | None:
    """Draw what is kept against the tolerance, a line a task."""
    some = _knob(_tasks(rows))
    if not some:
        return None
    figure, axes = axes_for(2)
    for at, data in enumerate(names(some)):
        mine = sorted(select(some, data=data), key=lambda row: row["options"]["tolerance"])
        x = [row["options"]["tolerance"] for row in mine]
        style: dict[str, Any] = {"marker": MARKERS[at % len(MARKERS)], "color": f"C{at}", "linewidth": 1.4}
        label = f"{data}, {mine[0]['length']:,}"
        axes[0].plot(x, [row["kept"] for row in mine], label=label, **style)
        ratios = [attention_ratio(_tasks(rows), row, EXACT) or float("nan") for row in mine]
        axes[1].plot(x, ratios, label=label, **style)
    for value, least in KEPT.items():
        axes[0].plot([value], [least], "_", color="black", markersize=16, markeredgewidth=2)
    axes[0].set(xlabel="tolerance", ylabel="accuracy kept", title="accuracy")
    axes[1].set(xlabel="tolerance", ylabel="torch exact / dci_attention", title="attention's time")
    axes[1].axhline(1, color="black", linewidth=0.8)
    axes[0].yaxis.set_major_formatter(PercentFormatter(1))
    for ax in axes:
        ax.set_xscale("log")
        ticks(ax.xaxis, lambda value: f"{value:g}")
    legend(figure, axes)
    return figure


def _panels(rows: Sequence[Row], draw: Callable[[Any, list[Row]], None]) -> Figure | None:
    """Draw a panel a task, at the length at which the rivals were tried."""
    some = _tasks(rows)
    places = [(row["data"], row["length"]) for row in some if "tolerance" not in row["options"] and row["options"]]
    places = list(dict.fromkeys(places))
    if not places:
        return None
    figure, axes = axes_for(len(places), height=3.4, across=2)
    for ax, (data, length) in zip(axes, places, strict=True):
        draw(ax, select(some, data=data, length=length))
        ax.set(title=f"{data}, {length:,}", ylabel="accuracy kept")
        ax.yaxis.set_major_formatter(PercentFormatter(1))
    legend(figure, axes)
    return figure


def _series(rows: Sequence[Row]) -> dict[str, list[Row]]:
    """Return rows by method, all of ours under one name."""
    found: dict[str, list[Row]] = {}
    forced = any(row["forced"] for row in rows)
    for row in rows:
        ours = "tolerance" in row["options"]
        if row["method"] != EXACT and (not ours or row["forced"] == forced):
            found.setdefault("dci_attention" if ours else row["method"], []).append(row)
    return found


def keys(rows: Sequence[Row]) -> Figure | None:
    """Draw what is kept against the share of the keys that is touched: top-k and ours."""

    def draw(ax: Any, mine: list[Row]) -> None:
        for name, some in _series(mine).items():
            if name == "dci_attention" or name in TOPK:
                points = sorted((row["touched"], row["kept"]) for row in some)
                ax.plot(*zip(*points, strict=True), label=name, **look(name))
        ax.set(xscale="log", xlabel="share of the keys touched")
        ticks(ax.xaxis, lambda value: f"{value:.1%}" if value < 0.01 else f"{value:.0%}", subs=(1, 3))

    return _panels(rows, draw)


def times(rows: Sequence[Row]) -> Figure | None:
    """Draw what is kept against attention's time, all rivals."""

    def draw(ax: Any, mine: list[Row]) -> None:
        exact = select(mine, method=EXACT)
        for name, some in _series(mine).items():
            points = sorted((row["attention_seconds"] / exact[0]["attention_seconds"], row["kept"]) for row in some)
            ax.plot(*zip(*points, strict=True), label=name, **look(name))
        ax.axvline(1, color="black", linewidth=1, linestyle=(0, (1, 1)))
        ax.set(xscale="log", xlabel="attention's time / torch exact's")
        ticks(ax.xaxis, lambda value: f"{value:g}", subs=(1, 3))

    return _panels(rows, draw)


def lengths(rows: Sequence[Row]) -> Figure | None:
    """Draw accuracies against the length, exact and ours."""
    some = [row for row in _tasks(rows) if not row["forced"]]
    some = [row for row in some if row["method"] == EXACT or row["options"].get("tolerance") in KEPT]
    grown = [data for data in names(some) if len({row["length"] for row in select(some, data=data)}) > 1]
    if not grown:
        return None
    figure, axes = axes_for(len(grown), height=3.2)
    for ax, data in zip(axes, grown, strict=True):
        mine = select(some, data=data)
        for method in names(mine, "method"):
            what = "perplexity" if "perplexity" in mine[0] else "accuracy"
            points = sorted((row["length"], row[what]) for row in select(mine, method=method))
            ax.plot(*zip(*points, strict=True), label=method, **look(method))
        ax.set(xscale="log", xlabel="length", ylabel=what if what == "perplexity" else mine[0]["metric"], title=data)
        if what == "accuracy":
            ax.set_ylim(0, 1.03)
        ax.xaxis.set_major_locator(FixedLocator(sorted({row["length"] for row in mine})))
        ax.xaxis.set_minor_locator(NullLocator())
        ax.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
    legend(figure, axes)
    return figure


FIGURES = [
    Drawing(
        "tasks-tolerance",
        "Accuracy kept and time against the tolerance",
        "Accuracy with dci_attention as a share of that with exact attention; black dashes are what is asked. Right: "
        "how many times longer PyTorch's fused attention takes.",
        tolerance,
    ),
    Drawing(
        "tasks-time",
        "Accuracy kept against attention's time",
        "Every setting of every method that needs no retraining, time as a multiple of PyTorch's fused attention: "
        "left of the dotted line it pays, up and left is better.",
        times,
    ),
    Drawing(
        "tasks-keys",
        "Accuracy kept against keys touched",
        "Top-k keeps so many keys of each query and forgets the others; dci_attention sees these through their cells, "
        "which are counted.",
        keys,
    ),
    Drawing(
        "tasks-length",
        "Accuracy against the length",
        "With exact attention and with dci_attention, which leaves short sequences to PyTorch.",
        lengths,
    ),
]
