"""Indexes of every kind that a file has to hold."""

from contextlib import ExitStack
from unittest import mock

import numpy as np

from dci import DCI
from dci._tuning import build, engine

DIM = 6
RNG = np.random.default_rng


def points(n, seed=0, dim=DIM):
    rng = RNG(seed)
    centers = rng.standard_normal((8, dim)) * 4
    return (centers[rng.integers(8, size=n)] + rng.standard_normal((n, dim))).astype(np.float32)


def fitted(n=600, *, queries=None, **params):
    return DCI(**{"random_state": 0, "n_simple": 3} | params).fit(points(n), queries)


def changed():
    """Removed rows, pending rows, and ids of their own."""
    index = fitted()
    index.remove(np.arange(0, 600, 3))
    index.add(points(40, 1), ids=np.arange(5000, 5040)[::-1])
    index.add(points(7, 2))
    index.remove([5003, 5041])
    index.update([1, 2], points(2, 3))
    return index


def grown():
    """Folded pending rows, so that cells have been added to."""
    index = fitted(ranking="max")
    index.add(points(300, 1))
    index.remove(np.arange(100, 200))
    return index


def widened():
    """Codes that were written anew, in the structure and pending."""
    index = fitted(store="int8", metric="cosine")
    index.add(points(300, 1) * np.float32(3))
    index.add(points(9, 2))
    index.remove([5, 601])
    return index


def emptied():
    index = fitted()
    index.remove(index.ids)
    return index


def reset():
    """Parameters for the next fit that are not those of this one."""
    return fitted(directions="random").set_params(metric="cosine", ranking="max", n_simple="auto", n_levels=1)


def directions(rows=6):
    return RNG(4).standard_normal((rows, DIM)).astype(np.float32)


KINDS = {
    "unfitted": lambda: DCI(metric="euclidean", recall=0.5, num_threads=2),
    "unfitted with directions": lambda: DCI(directions=directions()),
    "no points": lambda: DCI().fit(np.empty((0, DIM))),
    "nothing": lambda: DCI().fit([]),
    "exact": lambda: DCI(recall=1).fit(points(300)),
    "tiny": lambda: DCI(random_state=3).fit(points(50)),
    "zero": lambda: DCI(n_simple=2).fit(np.zeros((40, 3))),
    "quantized": fitted,
    "float": lambda: fitted(n_levels=1),
    "max": lambda: fitted(ranking="max"),
    "max, one level": lambda: fitted(ranking="max", n_levels=1),
    "three levels": lambda: fitted(n_levels=3, n_composite=2),
    "cosine": lambda: fitted(metric="cosine"),
    "cosine, max": lambda: fitted(metric="cosine", ranking="max"),
    "ip": lambda: fitted(metric="ip"),
    "ip, random": lambda: fitted(metric="ip", directions="random"),
    "ip, max": lambda: fitted(metric="inner_product", ranking="max"),
    "array": lambda: fitted(directions=directions(), n_composite=2),
    "ip, array, max": lambda: fitted(directions=directions(), n_simple=6, metric="ip", ranking="max"),
    "queries": lambda: fitted(queries=points(90, 5), directions="query"),
    "ip, queries": lambda: fitted(queries=points(90, 5), metric="ip"),
    "no seed": lambda: fitted(random_state=None),
    "generator": lambda: fitted(random_state=RNG(7)),
    "NumPy's numbers": lambda: fitted(random_state=np.int64(3), n_composite=np.int32(2), recall=np.float64(0.9)),
    "changed": changed,
    "grown": grown,
    "emptied": emptied,
    "reset": reset,
    "float16": lambda: fitted(store="float16"),
    "float16, ip": lambda: fitted(store="float16", metric="ip", ranking="max"),
    "int8": lambda: fitted(store="int8"),
    "int8, exact": lambda: DCI(recall=1, store="int8").fit(points(300)),
    "int8, no points": lambda: DCI(store="int8").fit(np.empty((0, DIM))),
    "widened": widened,
}


def make(kind):
    return KINDS[kind]()


def nothing_is_tiny():
    """Have budgets measured for all indexes, however small."""
    stack = ExitStack()
    for module in (build, engine):
        stack.enter_context(mock.patch.object(module, "is_tiny", return_value=False))
    return stack


def make_calibrated(kind):
    """Make an index that has calibrations."""
    with nothing_is_tiny():
        index = make(kind)
        if len(index):
            index.query(points(20, 9, index.dim), k=5)
    return index
