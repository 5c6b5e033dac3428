"""Images as sequences of pixels: a grid of handwritten digits, read row by row, each to be named."""

from __future__ import annotations

import math
from functools import lru_cache

import numpy as np

from comparisons.data.datasets import optional
from comparisons.tasks.task import Batch, Source, batch

SIDE, LEVELS = 8, 17  # pixels of a digit, and their grey levels
VOCAB = LEVELS * SIDE**2
CELLS = 64  # of the largest image
TESTED = 397  # digits that training does not see


def digits(length: int, sequences: int, rng: Source, cells: int = CELLS) -> Batch:
    """Return images of `length` pixels (a square of whole digits), whose digits are asked for at their last pixels.

    scikit-learn's digits, 8 × 8 each. A pixel's token is its grey level and its place in its cell, its place the number
    of the cell; smaller images have any of the cells of the largest, which are 64.
    """
    across = math.isqrt(length) // SIDE
    images, names = _digits(rng.held_out)
    tokens, answers, places = [], [], []
    for _ in range(sequences):
        chosen = rng.integers(0, len(images), (across, across))
        pixels = images[chosen] * SIDE**2 + np.arange(SIDE**2).reshape(SIDE, SIDE)
        tokens.append(pixels.transpose(0, 2, 1, 3).ravel())
        answers.append(names[chosen].ravel())
        taken = rng.permutation(cells)[: across**2].reshape(across, across)
        places.append(taken.repeat(SIDE, 0).repeat(SIDE, 1).ravel())
    last = SIDE * np.arange(1, across + 1) - 1
    at = (last[:, None] * across * SIDE + last).ravel()
    return batch(np.stack(tokens), np.stack(answers), np.tile(at, (sequences, 1)), np.stack(places))


@lru_cache(maxsize=2)
def _digits(held_out: bool) -> tuple[np.ndarray, np.ndarray]:
    loaded = optional("sklearn.datasets", "the task 'digits'", "scikit-learn").load_digits()
    order = np.random.default_rng(0).permutation(len(loaded.target))
    part = order[:TESTED] if held_out else order[TESTED:]
    return loaded.images[part].astype(np.int64), loaded.target[part]
