"""The figures of attention's rows; `comparisons.attention.suites` says what these hold."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from typing import Any

from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, NullLocator, PercentFormatter

from comparisons.harness.results import Row, select
from comparisons.report import bars
from comparisons.report.plots import ATTENTION, Drawing, axes_for, legend, lines, look, names, series_of, ticks, times

SHORTEST = 1_024  # tokens; below, all times are those of a call
CEILING = "exact top-k"


def _known_first(series: dict[str, Any]) -> dict[str, Any]:
    """Return series in one order, whatever was measured first."""
    return {name: series[name] for name in sorted(series, key=lambda name: [*ATTENTION, name].index(name))}


def _number(value: float) -> str:
    return f"{value:.2g}"


def attention_length(rows: Sequence[Row]) -> Figure | None:
    """Draw time and error against length."""
    some = [row for row in select(rows, "attention_length") if row["length"] >= SHORTEST]
    if not some:
        return None
    figure, axes = axes_for(2 * len(names(some)))
    for (left, right), data in zip(zip(axes[::2], axes[1::2], strict=True), names(some), strict=True):
        mine = select(some, data=data)
        lines(left, _known_first(series_of(mine, "length", bars.seconds, "method")), since=bars.LONG)
        errors = [row for row in mine if row["error"] > 1e-6]
        lines(right, _known_first(series_of(errors, "length", lambda row: row["error"], "method")), fit=False)
        left.set(xlabel="length", ylabel="time", title=f"{data}: time")
        right.set(xlabel="length", ylabel="relative error, median of heads", title=f"{data}: error")
        times(left.yaxis, subs=(1,))
        ticks(right.yaxis, _number, subs=(1, 2, 5))
        if not errors:
            right.text(0.5, 0.5, "left to the exact kernel", transform=right.transAxes, ha="center")
        for tolerance in bars.TOLERANCES:
            right.axhline(tolerance, color="#999999", linewidth=0.8)
    return figure


def attention_layers(rows: Sequence[Row]) -> Figure | None:
    """Draw how many times faster whole layers are than exact attention, beside what is asked."""
    some = [row for row in select(rows, "attention_layers") if "tolerance" in row["options"]]
    if not some:
        return None
    cases = list(dict.fromkeys((row["data"], row["length"]) for row in some))[::-1]
    tolerances = sorted({row["options"]["tolerance"] for row in some})
    figure, axes = axes_for(len(tolerances), height=1.6 + 0.28 * len(cases))
    for at, (ax, tolerance) in enumerate(zip(axes, tolerances, strict=True)):
        widest = 0.0
        for place, (data, length) in enumerate(cases):
            mine = [row for row in select(some, data=data, length=length) if row["options"]["tolerance"] == tolerance]
            ratios = _ratios(rows, mine)
            if not ratios:
                continue
            middle = statistics.median(ratios)
            ax.barh(place, middle, color="#bbbbbb", edgecolor="black", linewidth=0.6)
            ax.plot(ratios, [place] * len(ratios), "|", color="black", markersize=7)
            worst, end = max(row["worst"] for row in mine), max(ratios)
            if floor := bars.FLOORS.get((data, length)):
                asked = floor[min(at, len(floor) - 1)]
                ax.plot([asked, asked], [place - 0.4, place + 0.4], color="black", linewidth=2.5)
                end = max(end, asked)
            widest = max(widest, end)
            ax.text(end, place, f"  {middle:.1f} x, worst error {worst:.3f}", va="center")
        ax.set_yticks(range(len(cases)), [f"{data}, {length:,}" for data, length in cases])
        ax.set(xlabel="torch exact / dci_attention", title=f"tolerance {tolerance:g}")
        ax.set_xlim(0, 2.4 * (widest or 1.0))
        ax.grid(visible=False, axis="y")
    return figure


def _ratios(rows: Sequence[Row], mine: Sequence[Row]) -> list[float]:
    found = []
    for row in mine:
        place = {"data": row["data"], "length": row["length"], "layer": row.get("layer")}
        exact = select(rows, row["suite"], **place, method="torch exact")
        found += [bars.seconds(other) / bars.seconds(row) for other in exact[:1]]
    return found


def _panels(rows: Sequence[Row], suite: str, draw: Callable[[Any, list[Row]], None]) -> Figure | None:
    """Draw a panel for each data set, with one legend."""
    some = select(rows, suite)
    if not some:
        return None
    figure, axes = axes_for(len(names(some)))
    for ax, data in zip(axes, names(some), strict=True):
        mine = select(some, data=data)
        draw(ax, mine)
        ax.set_title(f"{data}, {mine[0]['length']:,} keys")
        if ax.get_legend():
            ax.get_legend().remove()
    legend(figure, axes)
    return figure


def attention_keys(rows: Sequence[Row]) -> Figure | None:
    """Draw error against the share of the keys that are touched."""

    def draw(ax: Any, mine: list[Row]) -> None:
        drawn = [row for row in mine if row["error"] > 1e-6]
        for name, points in _known_first(series_of(drawn, "keys", lambda row: row["error"], "method")).items():
            ax.plot(*zip(*sorted(points), strict=True), label=name, **look(name))
        ax.set(xscale="log", yscale="log", xlabel="share of the keys touched", ylabel="relative error, median of heads")
        ticks(ax.xaxis, lambda value: f"{value:.2%}" if value < 0.01 else f"{value:.0%}", subs=(1, 3))
        ticks(ax.yaxis, _number)

    return _panels(rows, "attention_keys", draw)


def attention_ranking(rows: Sequence[Row]) -> Figure | None:
    """Draw the attention mass that is recalled against the share of the keys examined."""

    def draw(ax: Any, mine: list[Row]) -> None:
        for name in _known_first(dict.fromkeys(names(mine, "method"))):
            shares = sorted({row["keys"] for row in select(mine, method=name)})
            mass = [statistics.median(bars.recalled(select(mine, keys=share), name).values()) for share in shares]
            ax.plot(shares, mass, label=name, **look(name))
        ax.set(xscale="log", xlabel="share of the keys examined", ylabel="attention mass recalled")
        ax.set_ylim(bottom=0)
        ax.set_xticks(sorted({row["keys"] for row in mine}))
        ax.xaxis.set_minor_locator(NullLocator())
        ax.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{100 * value:g}%"))
        ax.yaxis.set_major_formatter(PercentFormatter(1))

    return _panels(rows, "attention_ranking", draw)


def attention_rivals(rows: Sequence[Row]) -> Figure | None:
    """Draw every rival's error against its time."""

    def draw(ax: Any, mine: list[Row]) -> None:
        exact = [bars.seconds(row) for row in mine if row["method"] == "torch exact"]
        drawn = [row for row in mine if row["error"] > 1e-6]
        points = {name: [(bars.seconds(row), row["error"]) for row in select(drawn, method=name)]
                  for name in names(drawn, "method")}  # fmt: skip
        for name, some in _known_first(points).items():
            ax.plot(*zip(*sorted(some), strict=True), label=name, **look(name))
        for seconds in exact[:1]:
            ax.axvline(seconds, color="black", linewidth=1, linestyle=(0, (1, 1)))
            ax.annotate(" torch exact", (seconds, 0.02), xycoords=("data", "axes fraction"), rotation=90, fontsize=8)
        ax.set(xscale="log", yscale="log", xlabel="time", ylabel="relative error, median of heads")
        times(ax.xaxis, subs=(1, 3))
        ticks(ax.yaxis, _number)

    return _panels(rows, "attention_rivals", draw)


def attention_truth(rows: Sequence[Row]) -> Figure | None:
    """Draw every approximated head's true error against its bound, both over the tolerance."""
    some = [row for row in select(rows, "attention_truth") if row["errors"]]
    if not some:
        return None
    tolerances = sorted({row["options"]["tolerance"] for row in some})
    figure, axes = axes_for(len(tolerances))
    for ax, tolerance in zip(axes, tolerances, strict=True):
        for kind, real, color in (("made", False, "#999999"), ("of the encoder", True, "black")):
            mine = [row for row in some if row["options"]["tolerance"] == tolerance and ("layer" in row) == real]
            pairs = [pair for row in mine for pair in zip(row["bounds"], row["errors"], strict=True)]
            if pairs:
                at, true = ([value / tolerance for value in values] for values in zip(*pairs, strict=True))
                ax.plot(at, true, ".", color=color, markersize=3, label=f"heads {kind}")
        ax.plot([0, 1], [0, 1], color="black", linewidth=0.8)
        ax.axhline(1, color="black", linewidth=0.8, linestyle=(0, (1, 1)))
        ax.set(xlim=(0, 1.05), ylim=(0, 1.3), xlabel="bound / tolerance", ylabel="true error / tolerance")
        ax.set_title(f"tolerance {tolerance:g}")
    legend(figure, axes)
    return figure


FIGURES = [
    Drawing(
        "attention-length",
        "Attention against length",
        "One head of each layer. Time with the exponents fitted from 8,192 tokens on (exact attention: 2), and the "
        "relative error of the output; grey lines are the tolerances.",
        attention_length,
    ),
    Drawing(
        "attention-layers",
        "Whole layers",
        "Exact attention's time as a multiple of dci_attention's, everything included: bars are the median of the "
        "layers, thin ticks the layers, thick ones what is asked.",
        attention_layers,
    ),
    Drawing(
        "attention-rivals",
        "Approximations of attention",
        "Error against time of every setting of every rival, all heads together. Down and left is better; the dotted "
        "line is exact attention, right of it nothing pays.",
        attention_rivals,
    ),
    Drawing(
        "attention-keys",
        "Error against keys touched",
        "Top-k alone keeps so many keys of each query: by an index, or exactly, which no index can better. The far "
        "field sees all keys, most of them through their cells, which are counted as touched.",
        attention_keys,
    ),
    Drawing(
        "attention-ranking",
        "Ranking against bucketing",
        "Attention mass of the keys whose scores are computed, each method at its best setting for each head, median "
        "of heads. LSH codes rank all keys by 256 or 1,024 bits; buckets have 6 to 16.",
        attention_ranking,
    ),
    Drawing(
        "attention-truth",
        "True errors against bounds",
        "A dot is a head that was approximated: below the diagonal its true error is within the bound that the report "
        "has, below the dotted line within the tolerance.",
        attention_truth,
    ),
]
