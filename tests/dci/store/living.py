"""Indexes that change, and what can be seen of them."""

import numpy as np

import dci

DIM = 6
LOWEST, HIGHEST = -(2**63), 2**63 - 1


def some_rows(count, seed=0):
    return np.random.default_rng(seed).standard_normal((count, DIM)).astype(np.float32)


def fitted(count=300, **params):
    return dci.DCI(random_state=0, num_threads=1, **{"n_simple": 4, **params}).fit(some_rows(count))


def observed(index):
    """What can be seen of an index."""
    Q = some_rows(20, seed=99)
    return [
        index.ids, index.get(index.ids), *index.query(Q, 5), *index.query(Q, 3, recall=1.0),
        *index.query_radius(Q, 1.5), np.array([len(index), index.dim]),
    ]  # fmt: skip


def assert_same(before, after):
    for first, second in zip(before, after, strict=True):
        np.testing.assert_array_equal(first, second)


def changed():
    """An index with ids of its own, removed rows and pending ones."""
    index = fitted()
    index.add(some_rows(20, 1), ids=np.arange(1000, 1020))
    index.remove([3, 5, 1003])
    index.add(some_rows(5, 2))
    return index
