"""What all figures share: readable in black and white, every rival has a marker and a line of its own."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib as mpl
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, NullLocator

from comparisons.harness.results import Row
from comparisons.report.bars import exponent
from comparisons.report.tables import time

RC = {
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlesize": 10,
    "hatch.linewidth": 0.6,
}
OURS = {"dci": ("black", "o", "-")}
KNOWN = {
    **OURS,
    "dci.exact": ("#666666", "s", (0, (6, 2))),
    "faiss flat": ("#8c564b", "D", (0, (1, 1.5))),
    "faiss IVF": ("#d62728", "^", (0, (4, 1.5))),
    "faiss LSH": ("#1f77b4", "X", (0, (5, 1, 1, 1))),
    "faiss LSH refined": ("#17a0c4", "P", (0, (5, 1, 1, 1, 1, 1))),
    "faiss HNSW": ("#2ca02c", "v", (0, (2, 1))),
    "hnswlib": ("#9acd32", "<", (0, (3, 1, 1, 2))),
    "LoRANN": ("#9467bd", "*", (0, (8, 2, 2, 2))),
    "scikit-learn": ("#ff7f0e", "p", (0, (1, 3))),
}
ATTENTION = {  # never in one figure with those above, but for faiss
    "dci_attention 0.05": ("black", "o", "-"),
    "dci_attention 0.1": ("#444444", "D", (0, (8, 1.5))),
    "dci_attention": ("black", "o", "-"),
    "far field, covariance": ("black", "o", "-"),
    "far field, mean": ("#555555", "d", (0, (8, 1.5))),
    "torch exact": ("#8c564b", "s", (0, (6, 2))),
    "exact top-k": ("#8c564b", "s", (0, (6, 2))),
    "dci": ("black", "o", "-"),
    "dci, 10% ranked": ("#444444", "D", (0, (8, 1.5))),
    "dci top-k": ("#444444", "D", (0, (4, 1, 1, 1, 1, 1))),
    "dci random directions": ("#ff7f0e", "p", (0, (1, 3))),
    "IceFormer": ("#ff7f0e", "p", (0, (1, 3))),
    "faiss IVF": KNOWN["faiss IVF"],
    "faiss LSH": KNOWN["faiss LSH"],
    "LSH buckets": KNOWN["faiss LSH"],
    "faiss LSH codes": KNOWN["faiss LSH refined"],
    "textbook": ("#e377c2", "h", "--"),
    "Reformer buckets": ("#9467bd", "*", (0, (8, 2, 2, 2))),
    "Nyström": ("#2ca02c", "v", (0, (2, 1))),
    "Performer": ("#bcbd22", ">", ":"),
    "window and sinks": ("#9acd32", "<", (0, (3, 1, 1, 2))),
}
SPARE = (("#e377c2", "h", "--"), ("#7f7f7f", "d", "-."), ("#bcbd22", ">", ":"), ("#393b79", "H", (0, (7, 1))))


@dataclass(frozen=True)
class Drawing:
    """A figure of the report: its file's name, its heading, the words under it, and what draws it."""

    name: str
    title: str
    caption: str
    draw: Callable[[Sequence[Row]], Figure | None]


def look(name: str) -> dict[str, Any]:
    """Return colour, marker and line style of a rival; `dci` is the only solid black."""
    color, marker, line = KNOWN.get(name) or ATTENTION.get(name) or SPARE[sum(name.encode()) % len(SPARE)]
    first = name in OURS or ATTENTION.get(name) == OURS["dci"]
    return {"color": color, "marker": marker, "linestyle": line, "linewidth": 2.2 if first else 1.4, "markersize": 6}


def axes_for(count: int, height: float = 4.2, width: float = 5.4, across: int = 2) -> tuple[Figure, list[Any]]:
    """Return a figure of `count` panels, `across` in a row."""
    rows, columns = -(-count // across), min(count, across)
    with mpl.rc_context(RC):
        figure = Figure(figsize=(width * columns, height * rows), layout="constrained")
        axes = list(figure.subplots(rows, columns, squeeze=False).ravel())
    for spare in axes[count:]:
        spare.remove()
    for ax in axes[:count]:
        ax.grid(which="major", color="#dddddd", linewidth=0.6)
        ax.set_axisbelow(True)
    return figure, axes[:count]


def names(rows: Iterable[Row], key: str = "data") -> list[str]:
    return list(dict.fromkeys(row[key] for row in rows))


def legend(figure: Figure, axes: Sequence[Any]) -> None:
    """Put one legend for all panels below them."""
    entries: dict[str, Any] = {}
    for ax in axes:
        handles, labels = ax.get_legend_handles_labels()
        entries |= dict(zip(labels, handles, strict=True))
    figure.legend(
        entries.values(),
        entries,
        loc="outside lower center",
        ncols=min(4, 2 * len(axes)),
        frameon=False,
        handlelength=4,
    )


def times(axis: Any, subs: Sequence[int] = (1, 2, 5)) -> None:
    """Label a logarithmic axis with times."""
    ticks(axis, time, subs)


def ticks(axis: Any, text: Callable[[float], str], subs: Sequence[int] = (1, 2, 5)) -> None:
    """Label a logarithmic axis at 1, 2 and 5 of every power of ten."""
    axis.set_major_locator(LogLocator(subs=subs))
    axis.set_minor_locator(NullLocator())
    axis.set_major_formatter(FuncFormatter(lambda value, _: text(value)))


def heading(rows: Sequence[Row]) -> str:
    return f"{rows[0]['data']}, {rows[0]['n']:,} × {rows[0]['dim']}"


def lines(ax: Any, series: dict[str, list[tuple[float, float]]], fit: bool = True, since: float = 0) -> None:
    """Draw named series of points on two logarithmic axes, with the exponent of each from `since` on in its label."""
    for name, points in series.items():
        points = sorted(points)
        fitted = [(x, y) for x, y in points if x >= since]
        slope = f", exponent {exponent(fitted):.2f}" if fit and len({x for x, _ in fitted}) > 2 else ""
        ax.plot(*zip(*points, strict=True), label=name + slope, **look(name))
    ticks = sorted({x for points in series.values() for x, _ in points})
    ax.set(xscale="log", yscale="log")
    ax.xaxis.set_major_locator(FixedLocator(ticks))
    ax.xaxis.set_minor_locator(NullLocator())
    ax.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}" if value >= 1 else f"{value:.2%}"))
    ax.tick_params(axis="x", rotation=30)
    if series:  # below the panel, where no line runs
        ax.legend(frameon=False, handlelength=4, fontsize=8, ncols=2, loc="upper center", bbox_to_anchor=(0.5, -0.24))


def series_of(rows: Sequence[Row], x: str, y: Callable[[Row], float], name: str = "rival") -> dict[str, list]:
    """Return the least y of each name at each x."""
    found: dict[str, dict[float, float]] = {}
    for row in rows:
        mine = found.setdefault(row[name], {})
        mine[row[x]] = min(y(row), mine.get(row[x], float("inf")))
    return {label: list(points.items()) for label, points in found.items()}
