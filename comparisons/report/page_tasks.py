"""The page of tasks in the README of the comparisons: everything between two marks, made of results."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from comparisons.data.datasets import ComparisonError
from comparisons.harness.results import Row
from comparisons.report import page, tables, tables_pretrained, tables_tasks
from comparisons.report.marks import write_between

BEGIN, END = "<!-- tasks: made by python -m comparisons.tasks page -->", "<!-- tasks: end -->"
TABLES = (
    ("With exact attention, and what `dci_attention` keeps of it", tables_tasks.summary),
    ("What a sequence takes: attention, the whole model, and memory", tables_tasks.costs),
    ("Where the model's time goes, and how much faster it could be and is", tables_tasks.ceilings),
    ("Where heads are left to exact attention, why, and what that costs", tables_tasks.fallbacks),
    ("Rivals without retraining, beside `dci_attention` at its default", tables_tasks.rivals),
    ("Language models: where the time goes, and how near their next tokens are", tables_pretrained.parts),
    ("Generating, token after token, through `DCICache`", tables_tasks.decoding),
)


def write(runs: Sequence[dict[str, Any]], readme: Path) -> None:
    """Write tables and figures of runs (as `results.read` returns them); figures go into ``images`` beside the page."""
    rows = [row for row in page.latest(runs) if row["suite"].startswith("task_")]
    if not rows:
        raise ComparisonError("nothing to write: these runs hold no results of tasks")
    write_between(readme, BEGIN, END, _parts(runs, rows, readme.parent / "images"))


def _parts(runs: Sequence[dict[str, Any]], rows: Sequence[Row], folder: Path) -> Iterator[str]:
    folder.mkdir(exist_ok=True)
    figures = dict(page.draw(rows))
    for name, (_, _, image) in figures.items():
        (folder / f"{name}.png").write_bytes(image)
    last = runs[-1]["sessions"][-1]
    torch = last["versions"].get("torch", "?")
    yield f"{last['threads']} threads of {last['cpu']} ({last['instruction_set']}), torch {torch}, {last['time'][:10]}."
    for title, make in TABLES:
        if len(table := make(rows)) > 1:
            yield f"{title}:"
            yield tables.markdown(table)
    for name, (title, caption, _) in figures.items():
        yield f"![{title}](images/{name}.png)"
        yield f"*{title}.* {caption}"
    missed = [bar for bar in tables.judged(rows)[1:] if bar[0] == "NO"]
    if missed:
        yield "Asked, and not reached:"
        yield tables.markdown([["suite", "data", "asked", "reached"], *(bar[1:] for bar in missed)])
    else:
        yield "All that is asked (`comparisons/report/bars_tasks.py`) is reached."
