"""Recalling what was said: pairs of a key and its value (MQAR), and lines with a number and a content (LongEval)."""

from __future__ import annotations

import numpy as np

from comparisons.tasks.task import Batch, Source, batch

KEYS, VALUES, FILLERS = 512, 128, 128  # of associative recall


def pairs_vocab(keys: int = KEYS, values: int = VALUES) -> int:
    """Return how many tokens there are."""
    return keys + values + FILLERS


def pairs(length: int, sequences: int, rng: Source, keys: int = KEYS, values: int = VALUES) -> Batch:
    """Return multi-query associative recall: pairs among fillers in the first half, keys asked for in the second.

    Arora et al. 2024 (Zoology). An eighth of the tokens are pairs, at most all keys; every pair is asked for once.
    """
    count = min(keys, length // 8)
    tokens = keys + values + rng.integers(0, FILLERS, (sequences, length))
    at, answers = np.empty((2, sequences, count), np.int64)
    half = length // 2
    for row in range(sequences):
        names, contents = rng.permutation(keys)[:count], rng.integers(0, values, count)
        told = 2 * np.sort(rng.choice(half // 2, count, replace=False))
        asked = half + 2 * np.sort(rng.choice((length - half) // 2, count, replace=False))
        tokens[row, told], tokens[row, told + 1] = names, keys + contents
        order = rng.permutation(count)
        tokens[row, asked] = names[order]
        at[row], answers[row] = asked, contents[order]
    return batch(tokens, answers, at)


NUMBERS = 100  # a number of a line is two digits to this base, its content one of as many words
WORDS = 4  # tokens beside digits and contents: "line", "is", the line's end, "line" in a question
LINE_TOKENS, ASK_TOKENS = 6, 4
ASKS = 256  # lines that are asked for at the end, at most


def lines_vocab(numbers: int = NUMBERS) -> int:
    """Return how many tokens there are."""
    return 2 * numbers + WORDS


def lines(length: int, sequences: int, rng: Source, numbers: int = NUMBERS) -> Batch:
    """Return lines "line 12 34 is word", some of which are asked for at the end.

    After LongEval (Li et al. 2023); a number is two tokens, a line has six. At most 256 questions are asked, and
    no more than take a third of the tokens.
    """
    line, is_, end, ask = range(2 * numbers, lines_vocab(numbers))
    asks = min(ASKS, max(1, length // 12))
    start = length - asks * ASK_TOKENS  # what does not make up a line before is ends
    count = min(start // LINE_TOKENS, numbers**2)
    tokens = np.full((sequences, length), end)
    at, answers = start + np.arange(1, asks + 1) * ASK_TOKENS - 1, np.empty((sequences, asks), np.int64)
    for row in range(sequences):
        names = np.stack(np.divmod(rng.permutation(numbers**2)[:count], numbers), 1)
        contents = rng.integers(0, numbers, count)
        body = np.full((count, LINE_TOKENS), (line, 0, 0, is_, 0, end))
        body[:, 1:3], body[:, 4] = names, numbers + contents
        tokens[row, start - body.size : start] = body.ravel()
        chosen = rng.choice(count, asks, replace=False)
        asked = np.full((asks, ASK_TOKENS), (ask, 0, 0, is_))
        asked[:, 1:3] = names[chosen]
        tokens[row, start:] = asked.ravel()
        answers[row] = contents[chosen]
    return batch(tokens, answers, np.tile(at, (sequences, 1)))
