"""What needs all of the context: the most frequent words, and the values of variables named after others (RULER)."""

from __future__ import annotations

import numpy as np

from comparisons.tasks.task import Batch, Source, batch

WORDS, BEST = 64, 3
ASKS = 16  # times that a sequence is asked, in its second half


def words_vocab(count: int = WORDS) -> int:
    """Return how many tokens there are: words, the same as answers, and what asks."""
    return 2 * count + 1


def words(length: int, sequences: int, rng: Source, count: int = WORDS) -> Batch:
    """Return words of which three are frequent, in a known order; they are asked for in the second half.

    After Hsieh et al. 2024 (RULER), frequent words extraction. The three make up 30, 20 and 10 % of the words, others
    share the rest evenly. Answers have tokens of their own and do not count; each follows those before it.
    """
    asks = min(ASKS, length // 32)
    tokens = np.empty((sequences, length), np.int64)
    at, answers = np.empty((2, sequences, asks, BEST), np.int64)
    shares = np.full(count, 0.4 / (count - BEST))
    shares[:BEST] = 0.3, 0.2, 0.1
    spacing = (length - length // 2) // asks
    for row in range(sequences):
        names = rng.permutation(count)
        tokens[row] = names[rng.choice(count, length, p=shares)]
        starts = length // 2 + spacing * np.arange(asks) + spacing - BEST - rng.integers(0, spacing - BEST, asks)
        at[row] = starts[:, None] + np.arange(BEST)
        answers[row] = names[:BEST]
        tokens[row, at[row]] = np.concatenate([[2 * count], count + names[: BEST - 1]])
    return batch(tokens, answers.reshape(sequences, -1), at.reshape(sequences, -1))


NAMES, VALUES, FILLERS = 128, 64, 32
CHAINS = 3  # in which a variable is named after an earlier one, at most so many times
SLOT = 4  # tokens of an assignment, the last of which is a filler


def variables_vocab(names: int = NAMES, values: int = VALUES) -> int:
    """Return how many tokens there are: names, values, fillers, "=" and "?"."""
    return names + values + FILLERS + 2


def variables(length: int, sequences: int, rng: Source, names: int = NAMES, values: int = VALUES) -> Batch:
    """Return assignments "name = value" and "name = name" among fillers; then names are asked for their values.

    After RULER's variable tracking. There is an assignment in eight tokens, at most one of each name; every other one
    names an earlier variable. Training also learns the value at every assignment; only what is asked at the end, all
    variables once, is evaluated.
    """
    slots = length // SLOT
    count = min(names, max(4, slots // 2))
    tokens = names + values + rng.integers(0, FILLERS, (sequences, length))
    becomes, ask = names + values + FILLERS, names + values + FILLERS + 1
    at, answers = np.empty((2, sequences, 2 * count), np.int64)
    for row in range(sequences):
        named, sources, found = _chains(count, rng, names, values)
        place = SLOT * np.sort(rng.choice(slots - -(-2 * count // SLOT), count, replace=False))
        tokens[row, place], tokens[row, place + 1], tokens[row, place + 2] = named, becomes, sources
        at[row, :count], answers[row, :count] = place + 2, found
        chosen = rng.permutation(count)
        asked = length - 2 * count + 2 * np.arange(count)
        tokens[row, asked], tokens[row, asked + 1] = ask, named[chosen]
        at[row, count:], answers[row, count:] = asked + 1, found[chosen]
    mask = np.tile(np.arange(2 * count) >= count, (sequences, 1))
    return batch(tokens, answers, at, asked=mask)


def _chains(count: int, rng: Source, names: int, values: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return names, what stands behind "=", and their values, in the order of the text."""
    named, found, depth = rng.permutation(names)[:count], rng.integers(0, values, count), np.zeros(count, int)
    sources = names + found
    for i in range(1, count):
        earlier = int(rng.integers(0, i))
        if rng.random() < 1 / 2 and depth[earlier] < CHAINS - 1:
            sources[i], found[i], depth[i] = named[earlier], found[earlier], depth[earlier] + 1
    return named, sources, found
