"""Attention heads made to be hard: clusters that overlap or meet, values with heavy tails, norms in few rows.

Each function returns queries, keys and values of six heads, (3, heads, length, width) float32: three spreads of the
scores, two seeds each.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

WIDTH = 32
SPREADS, SEEDS = (1.0, 2.0, 4.0), (0, 1)  # standard deviation of a query's scores

Made = tuple[np.ndarray, np.ndarray, np.ndarray]


def _all(make: Callable[[int, float, np.random.Generator], Made], length: int) -> np.ndarray:
    made = [make(length, spread, np.random.default_rng(seed)) for spread in SPREADS for seed in SEEDS]
    return np.stack([np.stack(head) for head in made], axis=1).astype(np.float32)


def _normal(rng: np.random.Generator, *shape: int) -> np.ndarray:
    return rng.standard_normal(shape, dtype=np.float32)


def _spread_to(query: np.ndarray, key: np.ndarray, spread: float) -> np.ndarray:
    scores = query[:512] @ key.T / np.sqrt(key.shape[1])
    return query * (spread / scores.std(axis=1).mean())


def _clustered(
    length: int, spread: float, rng: np.random.Generator, count: int, noise: float = 0.5, between: float = 0.5
) -> Made:
    """Draw keys around centres, queries up to `between` of the way from one centre to another, values around means."""
    centres, means = _normal(rng, count, WIDTH), _normal(rng, count, WIDTH)
    of_key, of_query, other = rng.integers(count, size=(3, length))
    key = centres[of_key] + noise * _normal(rng, length, WIDTH)
    way = rng.uniform(0, between, size=(length, 1)).astype(np.float32)
    query = (1 - way) * centres[of_query] + way * centres[other] + noise * _normal(rng, length, WIDTH)
    return _spread_to(query, key, spread), key, means[of_key] + _normal(rng, length, WIDTH)


def _clusters(count: int, values: str) -> Callable[[int], np.ndarray]:
    def make(length: int, spread: float, rng: np.random.Generator) -> Made:
        query, key, value = _clustered(length, spread, rng, count)
        if values == "heavy":  # log-normal norms
            value = value * np.exp(1.5 * _normal(rng, length, 1))
        elif values == "heavier":  # norms without a variance
            value = value * np.abs(rng.standard_t(1.5, size=(length, 1))).clip(0, 1e3)
        return query, key, value

    return lambda length: _all(make, length)


def _meeting(length: int) -> np.ndarray:
    """Make tight clusters: a few queries lie where some meet, and hold most of the error."""

    def make(length: int, spread: float, rng: np.random.Generator) -> Made:
        return _clustered(length, spread, rng, 200, noise=0.3, between=0.0)

    return _all(make, length)


def _few_rows(length: int, count: int = 5, larger: float = 300.0) -> np.ndarray:
    """Make a few keys of huge values that a few queries attend to: these have most of the output's norm."""

    def make(length: int, spread: float, rng: np.random.Generator) -> Made:
        query, key, value = _clustered(length, spread, rng, 64)
        for at in rng.choice(length, count, replace=False):
            axis = _normal(rng, WIDTH)
            axis /= np.linalg.norm(axis)
            key[at] = 1.5 * np.linalg.norm(key, axis=1).mean() * axis
            value[at] *= larger
            query[rng.choice(length, 3, replace=False)] += 1.2 * np.linalg.norm(query, axis=1).mean() * axis
        return query, key, value

    return _all(make, length)


def _opposite(length: int) -> np.ndarray:
    """Make pairs of near keys with opposite values."""

    def make(length: int, spread: float, rng: np.random.Generator) -> Made:
        query, key, value = _clustered(length, spread, rng, 64)
        half = length // 2
        key[half : 2 * half] = key[:half] + 0.05 * _normal(rng, half, WIDTH)
        value[half : 2 * half] = -value[:half] + 0.1 * _normal(rng, half, WIDTH)
        return query, key, value

    return _all(make, length)


HEADS: dict[str, Callable[[int], np.ndarray]] = {
    f"clusters-{count}{suffix}": _clusters(count, values)
    for count in (8, 64, 300)
    for suffix, values in (("", "within"), ("-heavy", "heavy"), ("-heavier", "heavier"))
}
HEADS |= {"meeting": _meeting, "few-rows": _few_rows, "opposite": _opposite}
