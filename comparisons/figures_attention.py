"""The figures of attention's rows.

Rows of the suite ``attention_length`` hold ``method``, ``data``, ``length``, ``seconds`` and ``error``; those of
``attention_keys`` hold ``method``, ``data``, ``keys`` (the share of the keys touched) and ``error``.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence

from matplotlib.figure import Figure

from comparisons.plots import Drawing, axes_for, lines, names, series_of, times
from comparisons.results import Row, select


def attention_length(rows: Sequence[Row]) -> Figure | None:
    """Draw time and error against length."""
    some = select(rows, "attention_length")
    if not some:
        return None
    figure, axes = axes_for(2 * len(names(some)))
    for (left, right), data in zip(zip(axes[::2], axes[1::2], strict=True), names(some), strict=True):
        mine = select(some, data=data)
        lines(left, series_of(mine, "length", lambda row: statistics.median(row["seconds"]), "method"))
        errors = [row for row in mine if row.get("error")]
        lines(right, series_of(errors, "length", lambda row: row["error"], "method"), fit=False)
        left.set(xlabel="length", ylabel="time", title=f"{data}: time")
        right.set(xlabel="length", ylabel="relative error", title=f"{data}: error")
        times(left.yaxis)
    return figure


def attention_keys(rows: Sequence[Row]) -> Figure | None:
    """Draw error against the share of the keys that are touched."""
    some = select(rows, "attention_keys")
    if not some:
        return None
    figure, axes = axes_for(len(names(some)))
    for ax, data in zip(axes, names(some), strict=True):
        lines(ax, series_of(select(some, data=data), "keys", lambda row: row["error"], "method"), fit=False)
        ax.set(xlabel="share of the keys touched", ylabel="relative error", title=data)
    return figure


FIGURES = [
    Drawing(
        "attention-length",
        "Attention against length",
        "Time with fitted exponents, and relative error of the output.",
        attention_length,
    ),
    Drawing(
        "attention-keys",
        "Error against keys touched",
        "Relative error of the output by the share of the keys that take part exactly.",
        attention_keys,
    ),
]
