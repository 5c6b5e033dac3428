"""The tables of tasks: what is kept of a model's accuracy, and what that takes."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Sequence

from comparisons.harness.results import Row, select
from comparisons.report.bars_tasks import KEPT, attention_ratio, of_ours

Table = list[list[str]]  # the first row is the header
EXACT, TEXTBOOK = "torch exact", "textbook"
TOLERANCE = min(KEPT)  # the default


def of_suite(rows: Sequence[Row], suite: str) -> Table:
    """Return every row of a task."""
    table = [["data", "length", "method", "its setting", "accuracy", "kept", "perplexity", "model", "exact / it"]]
    table[0] += [
        "attention",
        "exact / it",
        "textbook / it",
        "exact / it, processor",
        "touched",
        "approximated",
        "worst error",
        "memory",
    ]
    of_suite = select(rows, suite)
    for row in sorted(of_suite, key=lambda row: (row["data"], row["length"])):
        setting = " ".join(f"{name}={value}" for name, value in row["options"].items())
        growth = f"{row['perplexity']:.3f} ({row['growth']:+.2%})" if "growth" in row else ""
        cells = [row["data"], f"{row['length']:,}", row["method"], setting, f"{row['accuracy']:.4f}"]
        cells += [f"{row['kept']:.2%}", growth, f"{statistics.median(row['seconds']):.3g} s"]
        cells += [_times(attention_ratio(of_suite, row, EXACT, "seconds"))]
        if "attention_seconds" in row:
            cells += [f"{row['attention_seconds']:.3g} s"]
            cells += [_times(attention_ratio(of_suite, row, method)) for method in (EXACT, TEXTBOOK)]
            cells += [_times(attention_ratio(of_suite, row, EXACT, "attention_processor"))]
            cells += [f"{row['touched']:.1%}", f"{row['approximated']:.0%}"]
            cells += [f"{row['worst']:.4f}" if "worst" in row else ""]
            cells += [f"{row['peak_bytes'] / 1e6:.0f} MB"]
        table.append(cells + [""] * (len(table[0]) - len(cells)))
    return table


def summary(rows: Sequence[Row]) -> Table:
    """Return a line a task and length: accuracy exact and kept at both tolerances, times, keys touched."""
    head = ["task", "length", "metric", "exact"]
    for tolerance in KEPT:
        head += [
            f"kept at {tolerance:g}",
            "attention: exact / ours",
            "textbook / ours",
            "model: exact / ours",
            "touched",
        ]
    table = [head]
    for data, length in _places(rows):
        some = select(rows, data=data, length=length)
        first = select(some, method=EXACT)[0]
        value = f"perplexity {first['perplexity']:.2f}" if "growth" in first else f"{first['accuracy']:.2%}"
        cells = [data, f"{length:,}", first["metric"], value]
        for tolerance in KEPT:
            cells += _ours(some, tolerance)
        table.append(cells)
    return table


def _ours(rows: Sequence[Row], tolerance: float) -> list[str]:
    mine = of_ours(rows, tolerance)
    plain = [row for row in mine if not row["forced"]]
    if not plain:
        return [""] * 5
    kept = f"{plain[0]['kept']:.2%}" + (f", {plain[0]['growth']:+.2%}" if "growth" in plain[0] else "")
    for forced in (row for row in mine if row["forced"]):
        kept += f" (forced {forced['kept']:.2%})"
    times = [_times(attention_ratio(rows, plain[0], method)) for method in (EXACT, TEXTBOOK)]
    touched = f"{plain[0]['touched']:.0%}" if "touched" in plain[0] else ""
    return [kept, *times, _times(attention_ratio(rows, plain[0], EXACT, "seconds")), touched]


def rivals(rows: Sequence[Row]) -> Table:
    """Return what each rival keeps in no more attention time than ours at the default, and at its most accurate."""
    table = [["task", "length", "ours keeps", "in", "rival", "keeps in that time", "keeps at most", "in"]]
    for data, length in _places(rows):
        some = select(rows, data=data, length=length)
        mine = sorted(of_ours(some, TOLERANCE), key=lambda row: not row["forced"])
        for method in _rivals(some):
            for row in mine[:1]:
                theirs = select(some, method=method)
                enough = [r["kept"] for r in theirs if r["attention_seconds"] <= row["attention_seconds"]]
                best = max(theirs, key=lambda r: (r["kept"], -r["attention_seconds"]))
                cells = [data, f"{length:,}", f"{row['kept']:.2%}", f"{row['attention_seconds']:.3g} s", method]
                cells += [f"{max(enough):.2%}" if enough else "slower"]
                table.append([*cells, f"{best['kept']:.2%}", f"{best['attention_seconds']:.3g} s"])
    return table


def decoding(rows: Sequence[Row]) -> Table:
    """Return how long continuations agree with exact attention's, and their times."""
    table = [["task", "prompt", "method", "tokens", "same token", "first to differ, of each prompt", "first", "each"]]
    for row in (row for row in rows if "diverged" in row):
        count = row["items"] // len(row["diverged"])
        differ = ", ".join("none" if at == count else str(at + 1) for at in row["diverged"])
        times = [f"{row['first_seconds']:.3g} s", f"{1e3 * row['token_seconds']:.3g} ms"]
        cells = [
            row["data"],
            f"{row['length']:,}",
            row["method"],
            f"{row['items']:,}",
            f"{row['accuracy']:.2%}",
            differ,
        ]
        table.append(cells + times)
    return table


def _rivals(rows: Sequence[Row]) -> list[str]:
    ours = [row["method"] for row in rows if "tolerance" in row["options"]]
    return [name for name in dict.fromkeys(row["method"] for row in rows) if name not in (EXACT, TEXTBOOK, *ours)]


def _places(rows: Sequence[Row]) -> Iterator[tuple[str, int]]:
    """Return the tasks and lengths that have a row of exact attention, in the order of the rows."""
    tasks = [row for row in rows if row["method"] == EXACT and "attention_seconds" in row]
    yield from dict.fromkeys((row["data"], row["length"]) for row in tasks)


def _times(ratio: float | None) -> str:
    return "" if ratio is None else f"{ratio:.2f} x"
