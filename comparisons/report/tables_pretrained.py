"""Where the time of pretrained models goes, and how far their next tokens are from exact attention's."""

from __future__ import annotations

import statistics
from collections.abc import Sequence

from comparisons.harness.results import Row, select
from comparisons.report.bars_tasks import KEPT
from comparisons.report.tables_tasks import EXACT, Table


def parts(rows: Sequence[Row]) -> Table:
    """Return the parts of a language model's time, how much faster the whole is, and the most it could be."""
    table = [["model", "length", "method", "whole", "attention", "MLP", "logits", "rest", "exact / it", "at most"]]
    table[0] += ["perplexity", "same next token", "divergence", "touched"]
    for row in (row for row in rows if "head_seconds" in row and _shown(row)):
        whole = statistics.median(row["seconds"])
        exact = select(rows, suite=row["suite"], data=row["data"], length=row["length"], method=EXACT)[0]
        slow = statistics.median(exact["seconds"])
        some = [row["attention_seconds"], row["mlp_seconds"], row["head_seconds"]]
        cells = [row["data"], f"{row['length']:,}", row["method"], *(f"{part:.3g} s" for part in (whole, *some))]
        cells += [f"{whole - sum(some):.3g} s", f"{slow / whole:.2f} x"]
        cells += [f"{slow / (slow - exact['attention_seconds']):.2f} x"]
        cells += [f"{row['perplexity']:.3f} ({row['growth']:+.2%})", f"{row['kept']:.2%}"]
        table.append([*cells, f"{row['divergence']:.1e}", f"{row.get('touched', 1.0):.1%}"])
    return table


def _shown(row: Row) -> bool:
    return row["method"] == EXACT or row["options"].get("tolerance") in KEPT
