"""Where the time goes, as tables: printed, or written between two marks of `docs/performance.md`."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from comparisons.data.datasets import ComparisonError
from comparisons.harness.results import Row, select
from comparisons.profile.bench import MACHINE, SUITE
from comparisons.profile.clock import REST, Amount
from comparisons.profile.limits import Limits
from comparisons.report import page, tables
from comparisons.report.marks import write_between

BEGIN, END = "<!-- profile: made by python -m comparisons profile -->", "<!-- profile: end -->"
LEAST = 0.01  # of the time; stages of less are one line
_UNITS = (("G", 1e9), ("M", 1e6), ("k", 1e3), ("", 1.0))


def write(runs: Sequence[dict[str, Any]], document: Path) -> None:
    """Write the tables of runs (as `results.read` returns them) between the marks of a document."""
    rows = select(page.latest(runs), SUITE)
    if not rows:
        raise ComparisonError("nothing to write: these runs hold no profile")
    last = runs[-1]["sessions"][-1]
    torch = last["versions"].get("torch", "?")
    machine = (
        f"One thread of {last['cpu']} ({last['instruction_set']}), torch {torch}, {last['time'][:10]}; "
        f"the machine's load was {last['load']:g} when the run began, on {last['cpus']} processors."
    )
    write_between(document, BEGIN, END, [machine, *text_of(rows)])


def text_of(rows: Sequence[Row]) -> Iterator[str]:
    """Return paragraphs: the limits, all workloads in one table, then the stages of each."""
    limits = limits_of(rows)
    yield "The limits of one core, measured in the same run:"
    yield tables.markdown(limits_table(limits))
    wholes = select(rows, SUITE, operation="whole")
    yield "All workloads; *of the limit* is the least time that the counted work can take over the time that it took:"
    header = ["workload", "time", "of one", "largest stages", "of the limit"]
    yield tables.markdown([header, *(_summary(whole, rows, limits) for whole in wholes)])
    for whole in wholes:
        stages = stages_of(rows, whole["data"])
        clocked = sum(map(_median, stages))
        yield f"### {whole['title']}"
        yield (
            f"{whole['shape']}: {tables.time(_median(whole))} a {whole['unit']} without clocks, "
            f"{tables.time(clocked)} with them."
        )
        yield tables.markdown(stage_table(stages, limits))


def limits_of(rows: Sequence[Row]) -> Limits:
    """Return the best of what was measured before and after."""
    found = [Limits(*(row[name] for name in Limits._fields)) for row in select(rows, SUITE, data=MACHINE)]
    if not found:
        raise ComparisonError("this profile was interrupted before the machine's limits were measured: run it again")
    best = found[0]
    for other in found[1:]:
        best = best.better(other)
    return best


def limits_table(limits: Limits) -> tables.Table:
    return [
        ["limit", "a second"],
        ["products of matrices, the kernel of scores", f"{limits.kernel_flops / 1e9:.1f} Gflop"],
        ["products of matrices, PyTorch", f"{limits.torch_flops / 1e9:.1f} Gflop"],
        ["exponentials, the kernel of the softmax", f"{limits.exps / 1e9:.2f} G"],
        ["memory: a copy, bytes read and written", f"{limits.bytes / 1e9:.1f} GB"],
    ]


def stages_of(rows: Sequence[Row], name: str) -> list[Row]:
    """Return the stages of a workload, those that take longest first."""
    stages = [row for row in select(rows, SUITE, data=name) if row["operation"] != "whole"]
    return sorted(stages, key=lambda row: (row["operation"] == REST, -_median(row)))


def stage_table(stages: Sequence[Row], limits: Limits) -> tables.Table:
    """Return time, share, work and rate of each stage; the small ones in one line."""
    total = sum(map(_median, stages))
    rows = [["stage", "time", "share", "flop", "exp", "bytes", "rate", "of the limit"]]
    large = [row for row in stages if _median(row) >= LEAST * total or row["operation"] == REST]
    small = [row for row in stages if row not in large]
    phases = {row["operation"].partition(":")[0] for row in stages if ":" in row["operation"]}
    for row in large:
        name = row["operation"]
        rows.append(_cells(f"{name}: the rest" if name in phases else name, _median(row), total, _amount(row), limits))
    if small:
        seconds = sum(map(_median, small))
        rows.append([f"others, each below {LEAST:.0%}", *_cells("", seconds, total, Amount(), limits)[1:]])
    work = Amount(*map(sum, zip(*map(_amount, stages), strict=True)))
    rows.append(_cells("all", total, total, work, limits))
    least = sum(limits.seconds(_amount(row)) for row in stages)
    rows[-1][-1] = f"{least / total:.0%}"
    return rows


def _cells(name: str, seconds: float, total: float, work: Amount, limits: Limits) -> list[str]:
    known = any(work) and seconds > 0
    return [
        name,
        tables.time(seconds),
        f"{seconds / total:.1%}",
        *(_count(part) if part else "" for part in work),
        f"{work.flops / seconds / 1e9:.1f} Gflop/s" if work.flops and seconds > 0 else "",
        f"{limits.seconds(work) / seconds:.0%}" if known else "",
    ]


def _summary(whole: Row, rows: Sequence[Row], limits: Limits) -> list[str]:
    stages = stages_of(rows, whole["data"])
    total = sum(map(_median, stages))
    largest = sorted(stages, key=_median, reverse=True)[:3]
    named = ", ".join(f"{row['operation']} {_median(row) / total:.0%}" for row in largest)
    least = sum(limits.seconds(_amount(row)) for row in stages)
    return [whole["title"], tables.time(_median(whole)), whole["unit"], named, f"{least / total:.0%}"]


def _amount(row: Row) -> Amount:
    return Amount(row["flops"], row["exps"], row["bytes"])


def _count(number: float) -> str:
    unit, size = next((u, s) for u, s in _UNITS if number >= s or s == 1.0)
    return f"{number / size:.3g} {unit}".rstrip()


def _median(row: Row) -> float:
    return statistics.median(row["seconds"])
