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
    """Return every row of a task; times are those of a sequence."""
    table = [["data", "length", "method", "its setting", "accuracy", "kept", "perplexity", "model", "exact / it"]]
    table[0] += ["textbook / it", "attention", "exact / it", "textbook / it", "exact / it, processor", "touched"]
    table[0] += ["approximated", "worst error", "memory"]
    of_suite = select(rows, suite)
    for row in sorted(of_suite, key=lambda row: (row["data"], row["length"])):
        setting = " ".join(f"{name}={value}" for name, value in row["options"].items())
        growth = f"{row['perplexity']:.3f} ({row['growth']:+.2%})" if "growth" in row else ""
        cells = [row["data"], f"{row['length']:,}", row["method"], setting, f"{row['accuracy']:.4f}"]
        cells += [f"{row['kept']:.2%}", growth, f"{_each(row, 'seconds'):.3g} s"]
        cells += [_times(attention_ratio(of_suite, row, method, "seconds")) for method in (EXACT, TEXTBOOK)]
        if "attention_seconds" in row:
            cells += [f"{_each(row, 'attention_seconds'):.3g} s"]
            cells += [_times(attention_ratio(of_suite, row, method)) for method in (EXACT, TEXTBOOK)]
            cells += [_times(attention_ratio(of_suite, row, EXACT, "attention_processor"))]
            cells += [f"{row['touched']:.1%}", f"{row['approximated']:.0%}", _worst(row), _memory(row)]
        table.append(cells + [""] * (len(table[0]) - len(cells)))
    return table


def summary(rows: Sequence[Row]) -> Table:
    """Return a line a task and length: accuracy exact, and kept at both tolerances, keys touched, the worst error."""
    table = [["task", "length", "metric", "answers", "exact"]]
    for tolerance in KEPT:
        table[0] += [f"kept at {tolerance:g}", "touched", "worst error"]
    for data, length in _places(rows):
        some = select(rows, data=data, length=length)
        first = select(some, method=EXACT)[0]
        value = f"perplexity {first['perplexity']:.2f}" if "growth" in first else f"{first['accuracy']:.2%}"
        cells = [data, f"{length:,}", first["metric"], f"{first['items']:,}", value]
        for tolerance in KEPT:
            cells += _ours(some, tolerance)
        table.append(cells)
    return table


def _ours(rows: Sequence[Row], tolerance: float) -> list[str]:
    """Return what is kept, the keys that are touched and the worst error; beside them those of a forced row."""
    lines = []
    for row in sorted(of_ours(rows, tolerance), key=lambda row: row["forced"]):
        kept = f"{row['kept']:.2%}" + (f", {row['growth']:+.2%}" if "growth" in row else "")
        lines.append([kept, f"{row.get('touched', 1.0):.0%}", _worst(row)])
    return [" / forced ".join(cells) for cells in zip(*lines, strict=True)] or [""] * 3


def costs(rows: Sequence[Row]) -> Table:
    """Return what a sequence takes with ours at both tolerances: attention, the whole model, and memory."""
    table = [["task", "length", "tolerance", "attention", "exact / ours", "textbook / ours"]]
    table[0] += ["model", "exact / ours", "textbook / ours", "memory", "memory, exact"]
    for data, length in _places(rows):
        some = select(rows, data=data, length=length)
        exact = select(some, method=EXACT)[0]
        for tolerance in KEPT:
            for row in (row for row in of_ours(some, tolerance) if not row["forced"]):
                cells = [data, f"{length:,}", f"{tolerance:g}"]
                for what in ("attention_seconds", "seconds"):
                    cells += [f"{_each(row, what):.3g} s"]
                    cells += [_times(attention_ratio(some, row, method, what)) for method in (EXACT, TEXTBOOK)]
                table.append([*cells, _memory(row), _memory(exact)])
    return table


def ceilings(rows: Sequence[Row]) -> Table:
    """Return where a model's time goes with exact attention, the most that a faster one could give, and what ours does.

    The most is Amdahl's: the whole time over what is left when attention takes none.
    """
    table = [["task", "length", "model, exact", "attention", "MLP", "rest", "at most"]]
    table[0] += [f"reached at {tolerance:g}" for tolerance in KEPT]
    for data, length in _places(rows):
        some = select(rows, data=data, length=length)
        exact = select(some, method=EXACT)[0]
        if "mlp_seconds" not in exact:
            continue
        whole, attention, mlp = (_each(exact, what) for what in ("seconds", "attention_seconds", "mlp_seconds"))
        cells = [data, f"{length:,}", f"{whole:.3g} s"]
        cells += [f"{part / whole:.0%}" for part in (attention, mlp, whole - attention - mlp)]
        cells += [f"{whole / (whole - attention):.2f} x"]
        for tolerance in KEPT:
            plain = [row for row in of_ours(some, tolerance) if not row["forced"]]
            cells += [_times(attention_ratio(some, plain[0], EXACT, "seconds")) if plain else ""]
        table.append(cells)
    return table


def fallbacks(rows: Sequence[Row]) -> Table:
    """Return where ours left heads to exact attention, why, and what attention took then."""
    table = [["task", "length", "tolerance", "heads left", "why", "exact / ours"]]
    for data, length in _places(rows):
        some = select(rows, data=data, length=length)
        for tolerance in KEPT:
            for row in of_ours(some, tolerance):
                if row["forced"] or not row.get("reasons"):
                    continue
                why = ", ".join(sorted(row["reasons"], key=row["reasons"].get, reverse=True))
                cells = [data, f"{length:,}", f"{tolerance:g}", f"{1 - row['approximated']:.0%}", why]
                table.append([*cells, _times(attention_ratio(some, row, EXACT))])
    return table


def _each(row: Row, what: str) -> float:
    """Return the seconds of a sequence."""
    total = statistics.median(row[what]) if what == "seconds" else row[what]
    return total / row.get("sequences", 1)


def _worst(row: Row) -> str:
    """Return the largest error of a head, and in which layer, counted from 1, if that is known."""
    if "worst" not in row:
        return ""
    return f"{row['worst']:.3f}" + (f", layer {row['worst_layer'] + 1}" if "worst_layer" in row else "")


def _memory(row: Row) -> str:
    return f"{row['peak_bytes'] / 1e6:.0f} MB" if "peak_bytes" in row else ""


def rivals(rows: Sequence[Row]) -> Table:
    """Return what each rival keeps in no more attention time than ours at the default, and at its most accurate."""
    table = [["task", "length", "exact", "ours keeps", "in", "rival", "keeps in that time", "keeps at most", "in"]]
    for data, length in _places(rows):
        some = select(rows, data=data, length=length)
        mine = sorted(of_ours(some, TOLERANCE), key=lambda row: not row["forced"])
        for method in _rivals(some):
            for row in mine[:1]:
                theirs = select(some, method=method)
                enough = [r["kept"] for r in theirs if r["attention_seconds"] <= row["attention_seconds"]]
                best = max(theirs, key=lambda r: (r["kept"], -r["attention_seconds"]))
                cells = [data, f"{length:,}", f"{row['exact_accuracy']:.2%}", f"{row['kept']:.2%}"]
                cells += [f"{_each(row, 'attention_seconds'):.3g} s", method]
                cells += [f"{max(enough):.2%}" if enough else "slower"]
                table.append([*cells, f"{best['kept']:.2%}", f"{_each(best, 'attention_seconds'):.3g} s"])
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
