"""Metrics as embeddings: the rows of points and queries that are projected.

Euclidean distance and cosine distance project centred rows (unit rows for cosine).  Inner products
come in two forms: "product", where projected inner products are compared, and "lift", where
T_K(x) = [x / c, sqrt(1 - |x|^2 / c^2)] and T_Q(q) = [q / |q|, 0] make the largest inner product the
smallest distance (Mao, Ester & Li 2024, section 4), as directions drawn at random need it.
"""

import math
from copy import copy

import numpy as np
import numpy.typing as npt

from .._native.rows import Rows, inverse_norms, prepared
from .._runtime.types import FloatArray, IdArray
from .quantization import Matrix

_FITS = 2.0**20  # largest magnitude, of points that are scaled to about 1, whose squares leave others their digits


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
    X : (n, d) float32, or Codes
    absmax : float
        Largest |x|.
    metric : {"l2", "ip", "cosine"}
    lifted : bool
        For inner products, the form with T_K and T_Q.
    """

    def __init__(self, X: Matrix, absmax: float, metric: str, lifted: bool) -> None:
        self.metric = metric
        self.absmax = absmax
        self.scale = power_of_two(absmax)
        self.product = metric == "ip" and not lifted
        self.lifted = metric == "ip" and lifted
        row_scale = extra = None
        if metric == "cosine":
            self.scale, row_scale = 1.0, inverse_norms(X)
        if self.lifted:
            norms = _norms(X)
            longest = float(norms.max(initial=0.0)) or 1.0
            self.scale = 1.0 / longest
            extra = np.sqrt(np.maximum(1.0 - np.square(norms / longest), 0.0)).astype(np.float32)
        self.center = sample_mean(Rows(X, self.scale, row_scale, extra))
        self.points = Rows(X, self.scale, row_scale, extra, self.center)
        self.width = self.points.width
        self.of_points = row_scale, extra

    def attach(self, X: Matrix) -> None:
        """Take an array of the same points."""
        row_scale, extra = self.of_points
        self.points = Rows(X, self.scale, row_scale, extra, self.center)

    @classmethod
    def restored(
        cls,
        X: Matrix,
        metric: str,
        lifted: bool,
        absmax: float,
        scale: float,
        center: FloatArray,
        of_points: tuple[FloatArray | None, FloatArray | None],
    ) -> "MetricEmbedding":
        """Return an embedding of parts that another one had."""
        embedding = cls.__new__(cls)
        embedding.metric, embedding.absmax, embedding.scale, embedding.center = metric, absmax, scale, center
        embedding.product, embedding.lifted = metric == "ip" and not lifted, metric == "ip" and lifted
        embedding.of_points = of_points
        embedding.attach(X)
        embedding.width = embedding.points.width
        return embedding

    def with_rows(self, X: Matrix, absmax: float) -> "MetricEmbedding | None":
        """Return the same embedding of an array that begins with the same rows; None if the new ones do not fit it."""
        grown = copy(self)
        row_scale, extra = self.of_points
        new = X[self.points.size :]
        if row_scale is not None:
            row_scale = np.concatenate([row_scale, inverse_norms(new)])
        if extra is not None:
            ratio = _norms(new) * self.scale
            if len(ratio) and ratio.max() > 1.0:
                return None  # T_K is defined up to the longest
            extra = np.concatenate([extra, np.sqrt(1.0 - np.square(ratio)).astype(np.float32)])
        if self.metric != "cosine" and absmax * self.scale > _FITS:
            return None
        grown.of_points = row_scale, extra
        grown.absmax = max(self.absmax, absmax)
        grown.attach(X)
        return grown

    def queries(self, Q: FloatArray, absmax: float) -> Rows:
        """Rows of queries. For inner products they are normalised, which does not change a query's order of points."""
        if self.metric == "l2":
            return Rows(Q, self.scale, None, None, self.center)
        extra = np.zeros(len(Q), np.float32) if self.lifted else None
        return Rows(Q, 1.0, inverse_norms(Q), extra, None if self.product else self.center)


def _norms(rows: Matrix) -> npt.NDArray[np.float64]:
    """Norms of rows, (n,), also where their squares are beyond float32."""
    inverse = inverse_norms(rows).astype(np.float64)
    return np.divide(1.0, inverse, out=np.zeros_like(inverse), where=inverse > 0)
