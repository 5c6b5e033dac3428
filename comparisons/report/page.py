"""The report: one HTML page that needs nothing else, its figures also as PNG files."""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from comparisons.data.datasets import ComparisonError, optional
from comparisons.harness.results import Row, busy, merge
from comparisons.knn.suites import SUITES
from comparisons.report import tables

DPI = 150
STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; max-width: 70rem; margin: 2rem auto; padding: 0 1rem; color: #111; }
h1, h2 { line-height: 1.2; } h2 { margin-top: 2.5rem; border-top: 1px solid #999; padding-top: 1rem; }
figure { margin: 1rem 0; } img { max-width: 100%; height: auto; } figcaption { color: #444; }
.wide { overflow-x: auto; } table { border-collapse: collapse; font-size: 0.85rem; margin: 1rem 0; }
th, td { text-align: left; padding: 0.2rem 0.7rem; border-bottom: 1px solid #ccc; white-space: nowrap; }
th { border-bottom: 2px solid #444; } .missed { font-weight: bold; } code { font-size: 0.9em; }
@media print { body { max-width: none; } h2 { break-after: avoid; } figure { break-inside: avoid; } }
"""


def write(runs: Sequence[dict[str, Any]], folder: Path) -> Path:
    """Draw runs (as `results.read` returns them) into a folder.

    Where two runs hold the same suite on the same data, the later one counts.

    Returns
    -------
    Path
        The page, ``index.html``; beside it are the PNGs.
    """
    rows = latest(runs)
    if not rows:
        raise ComparisonError("nothing to report: these runs hold no results")
    figures = dict(draw(rows))
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, (_, _, image) in figures.items():
            (folder / f"{name}.png").write_bytes(image)
        page = folder / "index.html"
        page.write_text("".join(_page(runs, rows, figures)), encoding="utf-8")
    except OSError as error:
        raise ComparisonError(f"cannot write the report: {error}") from error
    return page


def latest(runs: Sequence[dict[str, Any]]) -> list[Row]:
    """Return the rows of all runs, of each suite on each data set those of the last run that has them."""
    found: dict[tuple, list[Row]] = {}
    for run in sorted(runs, key=lambda run: run["sessions"][-1]["time"]):
        mine: dict[tuple, list[Row]] = {}
        for row in merge(row for rows in run["steps"].values() for row in rows):
            mine.setdefault((row["suite"], row["data"], row.get("wanted")), []).append(row)
        found |= mine
    return [row for rows in found.values() for row in rows]


def draw(rows: Sequence[Row]) -> Iterator[tuple[str, tuple[str, str, bytes]]]:
    """Draw what there are rows for: name, and heading, caption and PNG."""
    optional("matplotlib", "the report")
    from comparisons.report import figures_knn

    for drawing in figures_knn.FIGURES:
        if figure := drawing.draw(rows):
            image = io.BytesIO()
            figure.savefig(image, format="png", dpi=DPI)
            yield drawing.name, (drawing.title, drawing.caption, image.getvalue())


def _page(
    runs: Sequence[dict[str, Any]], rows: Sequence[Row], figures: dict[str, tuple[str, str, bytes]]
) -> Iterator[str]:
    yield '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n<title>Comparisons</title>\n'
    yield f"<style>{STYLE}</style>\n</head>\n<body>\n<h1>Ranking against bucketing: comparisons of dci</h1>\n"
    yield "<h2>What was run</h2>\n"
    for run in runs:
        yield from _session(run)
    if suspicious := busy(rows):
        shown = ", ".join(sorted({f"{row['suite']} on {row['data']}" for row in suspicious}))
        yield f'<p class="missed">The machine was busy: repeats differ by more than 20 % in {html.escape(shown)}.</p>\n'
    if judged := tables.judged(rows):
        yield f"<h2>What was asked, and what came</h2>\n{_table(judged)}"
    for name, (title, caption, image) in figures.items():
        yield f'<h2>{html.escape(title)}</h2>\n<figure id="{name}">\n<img alt="{html.escape(title)}" '
        yield f'src="data:image/png;base64,{base64.b64encode(image).decode()}">\n'
        yield f"<figcaption>{html.escape(caption)}</figcaption>\n</figure>\n"
    if len(table := tables.summary(rows)) > 1:
        yield f"<h2>Total time at equal recall, as a multiple of dci's</h2>\n{_table(table)}"
    for name, suite in SUITES.items():
        if suite.tabled and len(table := tables.of_suite(rows, name)) > 1:
            yield f"<h2>{html.escape(suite.question.capitalize())}</h2>\n{_table(table)}"
    yield "</body>\n</html>\n"


def _session(run: dict[str, Any]) -> Iterator[str]:
    last = run["sessions"][-1]
    versions = ", ".join(f"{package} {version}" for package, version in last["versions"].items())
    seen = {name for rows in run["steps"].values() for row in rows for name in [f"{row['suite']} on {row['data']}"]}
    asked = sorted(name for name in seen if not name.startswith(("sweep", "trace")))
    facts = {
        "Command": "; ".join(dict.fromkeys(session["command"] for session in run["sessions"])),
        "Time": f"{run['sessions'][0]['time']}, in {len(run['sessions'])} sitting(s)"
        + ("" if run["complete"] else ", not complete"),
        "Machine": f"{last['cpu']}, {last['cpus']} processors, {last['platform']}, load at the start {last['load']}",
        "Threads": f"{last['threads']} for every rival",
        "Instruction set": f"{last['instruction_set']}; faiss: {last['faiss_options']}",
        "Versions": f"Python {last['python']}, {versions}, commit {last['commit']}",
        "Suites": ", ".join(asked),
    }
    yield "<ul>\n" + "".join(f"<li>{name}: {html.escape(text)}</li>\n" for name, text in facts.items()) + "</ul>\n"


def _table(rows: tables.Table) -> str:
    head, *body = ("".join(f"<{tag}>{html.escape(cell)}</{tag}>" for cell in row) for row, tag in
                   zip(rows, ["th", *["td"] * (len(rows) - 1)], strict=True))  # fmt: skip
    inner = "".join(f"<tr>{row}</tr>\n" for row in body)
    return f'<div class="wide"><table>\n<thead><tr>{head}</tr></thead>\n<tbody>\n{inner}</tbody>\n</table></div>\n'
