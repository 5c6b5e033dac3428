"""ListOps of Long Range Arena: nested operations on lists of digits, to be computed."""

from __future__ import annotations

import numpy as np

from comparisons.tasks.task import Batch, Source, batch

DIGITS = 10
OPERATORS = (min, max, lambda values: int(np.median(values)), lambda values: sum(values) % DIGITS)
END, PAD = DIGITS + len(OPERATORS), DIGITS + len(OPERATORS) + 1
VOCAB = PAD + 1
DEEPEST, WIDEST, NESTED = 10, 10, 0.25  # levels, arguments, and the chance that an argument is a list

Tree = tuple[list[int], int]  # tokens and value


def listops(length: int, sequences: int, rng: Source) -> Batch:
    """Return expressions of a quarter of `length` to all of it, filled up behind; their values are asked for.

    By the published rules (Tay et al. 2021): at most ten levels and ten arguments, a quarter of which are lists again;
    minimum, maximum, median, sum modulo 10. Their lengths are 500 to 2,000.
    """
    tokens, answers = np.full((sequences, length), PAD), np.empty((sequences, 1), np.int64)
    for row in range(sequences):
        found: list[int] = []
        while not length // 4 <= len(found) <= length:
            found, answers[row] = _list(1, length, rng)
        tokens[row, : len(found)] = found
    return batch(tokens, answers)


def _list(level: int, most: int, rng: Source) -> Tree:
    """Return a list; one of more than `most` tokens is not finished, as nobody wants it."""
    operator = int(rng.integers(len(OPERATORS)))
    tokens, values = [DIGITS + operator], []
    for _ in range(rng.integers(2, WIDEST + 1)):
        if level < DEEPEST and rng.random() < NESTED:
            inner, value = _list(level + 1, most - len(tokens), rng)
        else:
            value = int(rng.integers(DIGITS))
            inner = [value]
        tokens += inner
        values.append(value)
        if len(tokens) > most:
            break
    return [*tokens, END], OPERATORS[operator](values)
