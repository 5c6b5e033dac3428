"""Metrics as embeddings: the rows of points and queries that are projected.

Euclidean distance and cosine distance project centred rows (unit rows for cosine).  Inner products
come in two forms: "product", where projected inner products are compared, and "lift", where
T_K(x) = [x / c, sqrt(1 - |x|^2 / c^2)] and T_Q(q) = [q / |q|, 0] make the largest inner product the
smallest distance (Mao, Ester & Li 2024, section 4), as directions drawn at random need it.
"""

import math
from typing import Any

import numpy as np

from .._native.rows import Rows, inverse_norms, prepared
from .._runtime.types import FloatArray, IdArray


def power_of_two(absmax: float) -> float:
    """Return the power of two that brings `absmax` to about 1, within float32's range."""
    if absmax == 0.0:
        return 1.0
    return 2.0 ** -min(max(math.frexp(absmax)[1], -120), 120)


def sample_mean(rows: Rows, among: IdArray | None = None, size: int = 2048) -> FloatArray:
    """Mean of evenly spaced rows (of `among`, if given), (width,) float32: close enough to that of all rows."""
    n = rows.size if among is None else len(among)
    ids = np.linspace(0, n - 1, min(size, n)).astype(np.int32)
    mean: FloatArray = prepared(rows, ids if among is None else among[ids]).mean(0, dtype=np.float64).astype(np.float32)
    return mean


class MetricEmbedding:
    """Rows of points X, and of any queries, as they are projected.

    Parameters
    ----------
    X : (n, d) float32
    absmax : float
        Largest |x|.
    metric : {"l2", "ip", "cosine"}
    lifted : bool
        For inner products, the form with T_K and T_Q.
    """

    def __init__(self, X: FloatArray, absmax: float, metric: str, lifted: bool) -> None:
        self.metric = metric
        self.absmax = absmax
        self.scale = power_of_two(absmax)
        self.product = metric == "ip" and not lifted
        self.lifted = metric == "ip" and lifted
        row_scale = extra = None
        if metric == "cosine":
            self.scale, row_scale = 1.0, inverse_norms(X)
        if self.lifted:
            inverse = inverse_norms(X).astype(np.float64)
            norms = np.divide(1.0, inverse, out=np.zeros_like(inverse), where=inverse > 0)
            longest = float(norms.max(initial=0.0)) or 1.0
            self.scale = 1.0 / longest
            extra = np.sqrt(np.maximum(1.0 - np.square(norms / longest), 0.0)).astype(np.float32)
        self.center = sample_mean(Rows(X, self.scale, row_scale, extra))
        self.points = Rows(X, self.scale, row_scale, extra, self.center)
        self.width = self.points.width
        self._of_points = row_scale, extra

    def __getstate__(self) -> dict[str, Any]:
        """Leave out the points: their owner pickles them once and returns them with `attach`."""
        return {key: value for key, value in self.__dict__.items() if key != "points"}

    def attach(self, X: FloatArray) -> None:
        """Set the points again after unpickling."""
        row_scale, extra = self._of_points
        self.points = Rows(X, self.scale, row_scale, extra, self.center)

    def queries(self, Q: FloatArray, absmax: float) -> Rows:
        """Rows of queries. For inner products they are normalised, which does not change a query's order of points."""
        if self.metric == "l2":
            return Rows(Q, self.scale, None, None, self.center)
        extra = np.zeros(len(Q), np.float32) if self.lifted else None
        return Rows(Q, 1.0, inverse_norms(Q), extra, None if self.product else self.center)
