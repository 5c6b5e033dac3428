"""ListOps of Long Range Arena: nested operations on lists of digits, to be computed."""

from __future__ import annotations

from collections.abc import Iterator
from statistics import median

import numpy as np

from comparisons.tasks.task import Batch, Source, batch

DIGITS = 10
OPERATORS = (min, max, lambda values: int(median(values)), lambda values: sum(values) % DIGITS)
END, PAD = DIGITS + len(OPERATORS), DIGITS + len(OPERATORS) + 1
VOCAB = PAD + 1
DEEPEST, WIDEST, NESTED = 10, 10, 0.25  # levels, arguments, and the chance that an argument is a list

Tree = tuple[list[int], dict[int, int]]  # tokens, and the values of lists by the places of their operators


def listops(length: int, sequences: int, rng: Source) -> Batch:
    """Return expressions of a quarter of `length` to all of it, filled up behind; their values are asked for.

    By the published rules (Tay et al. 2021): at most ten levels and ten arguments, a quarter of which are lists again;
    minimum, maximum, median, sum modulo 10. Their lengths are 500 to 2,000. Two things are not theirs, so that a small
    model learns it within minutes: a token's place is its level, and the values of lists within are asked for too, each
    at its operator; the whole expression's comes first.
    """
    count = max(1, length // 8)
    tokens = np.full((sequences, length), PAD)
    at, answers = np.empty((2, sequences, count), np.int64)
    asked = np.empty((sequences, count), bool)
    draws = _draws(rng)
    for row in range(sequences):
        found: list[int] = []
        while not length // 4 <= len(found) <= length:
            found, values = _list(1, length, draws)
        tokens[row, : len(found)] = found
        inner = rng.permutation([place for place in values if place])
        at[row] = np.resize([0, *inner], count)  # some more often, to fill up
        asked[row] = np.arange(count) < len(values)
        answers[row] = [values[place] for place in at[row].tolist()]
    return batch(tokens, answers, at, levels(tokens), asked)


def levels(tokens: np.ndarray) -> np.ndarray:
    """Return how deep tokens are nested: a list's operator and end are on its level, its arguments on the next one."""
    opened, closed = (tokens >= DIGITS) & (tokens < END), tokens == END
    level = opened.cumsum(1) - closed.cumsum(1) + closed + (tokens < DIGITS)
    return np.where(tokens == PAD, 0, level)


def _draws(rng: Source) -> Iterator[float]:
    """Give numbers of [0, 1) without end; drawn one by one they would take most of the time."""
    while True:
        yield from rng.random(4_096).tolist()


def _list(level: int, most: int, draws: Iterator[float]) -> Tree:
    """Return a list; one of more than `most` tokens is not finished, as nobody wants it."""
    operator = int(next(draws) * len(OPERATORS))
    tokens, arguments, values = [DIGITS + operator], [], {}
    for _ in range(2 + int(next(draws) * (WIDEST - 1))):
        if level < DEEPEST and next(draws) < NESTED:
            inner, within = _list(level + 1, most - len(tokens), draws)
            values |= {len(tokens) + place: value for place, value in within.items()}
            arguments.append(within[0])
        else:
            arguments.append(int(next(draws) * DIGITS))
            inner = arguments[-1:]
        tokens += inner
        if len(tokens) > most:
            break
    return [*tokens, END], values | {0: OPERATORS[operator](arguments)}
