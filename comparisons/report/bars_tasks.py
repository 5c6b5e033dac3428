"""What is asked of `dci_attention` inside models: their answers kept, their attention faster."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Sequence

from comparisons.harness.results import Row, select

KEPT = {0.05: 0.995, 0.1: 0.99}  # share of exact attention's accuracy, at a tolerance
GROWTH = 0.005  # of a perplexity
GROWTH_PRETRAINED = 0.002  # of a pretrained language model's, at the default tolerance
SAME = 0.99  # of the most likely next tokens
TIMED = 16_384  # tokens at which times are judged
OVER_EXACT, OVER_EXACT_CAUSAL, OVER_TEXTBOOK = 5.0, 2.5, 20.0

Judged = tuple[str, str, bool, bool]  # asked, reached, holds, timed


def judge(rows: Sequence[Row]) -> Iterator[Judged]:
    """Judge the rows of one task, length by length."""
    for length in sorted({row["length"] for row in rows}):
        some = select(rows, length=length)
        for tolerance, least in KEPT.items():
            for row in of_ours(some, tolerance):
                where = f"{length:,} at {tolerance:g}{', forced' if row['forced'] else ''}"
                tight = row["suite"] == "task_smollm2" and tolerance == min(KEPT)
                yield from _kept(row, where, least, GROWTH_PRETRAINED if tight else GROWTH)
                if length == TIMED and not row["forced"]:
                    yield from _times(some, row, where)


def of_ours(rows: Sequence[Row], tolerance: float) -> list[Row]:
    """Return the rows of this project at a tolerance."""
    return [row for row in rows if row["options"].get("tolerance") == tolerance]


def attention_ratio(rows: Sequence[Row], row: Row, method: str, what: str = "attention_seconds") -> float | None:
    """Return how many times longer another method takes at the same length; ``seconds`` are the whole model's."""
    others = select(rows, method=method, data=row["data"], length=row["length"])
    if not others or what not in row:
        return None
    mine, theirs = (statistics.median(one[what]) if what == "seconds" else one[what] for one in (row, others[0]))
    return theirs / mine


def _kept(row: Row, where: str, least: float, growth: float) -> Iterator[Judged]:
    if "growth" in row:
        yield f"{where}: perplexity at most + {growth:.1%}", f"{row['growth']:+.2%}", row["growth"] <= growth, False
    if row["metric"].startswith("same next"):
        least = SAME
    asked = f"{where}: {row['metric']}, at least {least:.1%} of exact attention's"
    yield asked, f"{row['kept']:.2%}", row["kept"] >= least, False


def _times(rows: Sequence[Row], row: Row, where: str) -> Iterator[Judged]:
    floors = {"torch exact": OVER_EXACT_CAUSAL if row.get("causal") else OVER_EXACT, "textbook": OVER_TEXTBOOK}
    for method, floor in floors.items():
        if (ratio := attention_ratio(rows, row, method)) is not None:
            yield f"{where}: attention of {method} / ours at least {floor:g}", f"{ratio:.2f}", ratio >= floor, True
