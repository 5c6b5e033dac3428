"""Exact search over all points, for `dci.exact`, for calibration and where ranking cannot pay."""

import math

import numpy as np
import numpy.typing as npt

from . import _exact
from ._kernels import Reservoirs
from ._rescore import METRICS, rescore
from ._rows import Rows, inverse_norms, prepared
from ._threads import Work, blocks, even_blocks
from ._types import FloatArray, IdArray

_FEW = 3  # queries that are answered faster one by one than in a tile
_RESERVOIR_BYTES = 64 << 20  # of all reservoirs of one block of queries
_ROW_BYTES = 2 << 20  # of the coordinates of one block of queries
_SHARED = 512  # queries a thread from which threads share the queries instead of the points
_STEP = 1_000_000_000  # products between two looks at Ctrl-C


def power_of_two(absmax: float) -> float:
    """Return the power of two that brings `absmax` to about 1, within float32's range."""
    if absmax == 0.0:
        return 1.0
    return 2.0 ** -min(max(math.frexp(absmax)[1], -120), 120)


def sample_mean(rows: Rows, size: int = 2048) -> FloatArray:
    """Mean of evenly spaced rows, (width,) float32: near enough to centre on."""
    ids = np.linspace(0, rows.size - 1, min(size, rows.size)).astype(np.int32)
    mean: FloatArray = prepared(rows, ids).mean(0, dtype=np.float64).astype(np.float32)
    return mean


def block_rows(keep: int, width: int, n_lists: int = 1) -> int:
    """Choose the number of queries in a block.

    Many, so that points are read seldom; few enough for their reservoirs to fit their share of memory
    and their rows a cache.
    """
    fitting = min(_RESERVOIR_BYTES // (16 * keep * n_lists + 256), _ROW_BYTES // (4 * width))
    return max(1, min(4096, fitting))


class ExactSearch:
    """Exact k-NN over the rows of X.

    Parameters
    ----------
    X : (n, d) float32, C-contiguous, finite
    absmax : float
        Largest |x|.
    metric : {"l2", "ip", "cosine"}
    """

    def __init__(self, X: FloatArray, absmax: float, metric: str) -> None:
        self.X = X
        self.absmax = absmax
        self.metric = metric
        self.scale = power_of_two(absmax)
        self.row_scale = inverse_norms(X) if metric == "cosine" else None
        # Rows so short that float32 cannot normalise them: only float64 ranks them right.
        longest = 0.0 if self.row_scale is None else self.row_scale.max(initial=0.0)
        self._only_direct = bool(longest == np.finfo(np.float32).max)

    def unit(self, q_absmax: float) -> float:
        """Return the factor that inner products with such queries are compared with."""
        return self.scale * power_of_two(q_absmax)

    def _rows(self, Q: FloatArray, q_absmax: float) -> tuple[Rows, Rows, float]:
        """Points and queries as the filter sees them, and the factor of the queries."""
        if self.metric == "l2":
            scale = min(self.scale, power_of_two(q_absmax))
            center = sample_mean(Rows(self.X, scale))
            return Rows(self.X, scale, center=center), Rows(Q, scale, center=center), -2.0
        if self.metric == "cosine":
            return Rows(self.X, 1.0, self.row_scale), Rows(Q, 1.0, inverse_norms(Q)), -1.0
        return Rows(self.X, self.scale), Rows(Q, power_of_two(q_absmax)), -1.0

    def search(
        self,
        Q: FloatArray,
        q_absmax: float,
        k: int,
        work: Work,
        allowed: npt.NDArray[np.uint8] | None = None,
        exclude: IdArray | None = None,
    ) -> tuple[FloatArray, npt.NDArray[np.int64]]:
        """Find the k nearest of all points (of those with `allowed`), without row exclude[i] for query i.

        Returns
        -------
        distances : (nq, k) float32
        indices : (nq, k) int64
        """
        n, nq = len(self.X), len(Q)
        distances = np.empty((nq, k), np.float32)
        indices = np.empty((nq, k), np.int64)
        wanted = k + (exclude is not None)
        keep = wanted + max(16, wanted // 4)
        pending = np.arange(nq)
        for more in (1, 16, 256):  # where many points are equally far, doubt remains until more of them are kept
            if len(pending) <= _FEW or n == 0 or self._only_direct or (more > 1 and more * keep > n // 4):
                break
            own = None if exclude is None else exclude[pending]
            part = Q if len(pending) == nq else Q[pending]
            near, ids, doubt = self._filtered(part, q_absmax, k, wanted, min(n, more * keep), work, allowed, own)
            distances[pending], indices[pending] = near, ids
            pending = pending[doubt]
        for i in pending:
            self._direct(Q, q_absmax, int(i), min(n, wanted), work, allowed, exclude, distances, indices)
        work.tick(len(pending))
        return distances, indices

    def _filtered(
        self,
        Q: FloatArray,
        q_absmax: float,
        k: int,
        wanted: int,
        keep: int,
        work: Work,
        allowed: npt.NDArray[np.uint8] | None,
        exclude: IdArray | None,
    ) -> tuple[FloatArray, npt.NDArray[np.int64], npt.NDArray[np.bool_]]:
        """Answer by tiles; also tells which answers rounding leaves in doubt."""
        n, nq = len(self.X), len(Q)
        distances = np.empty((nq, k), np.float32)
        indices = np.empty((nq, k), np.int64)
        doubtful = np.empty(nq, bool)
        points, queries, factor = self._rows(Q, q_absmax)
        n_allowed = n if allowed is None else int(np.count_nonzero(allowed))
        n_lists = work.num_threads if nq < _SHARED * work.num_threads else 1
        size = block_rows(keep, points.width, n_lists)
        rounding = 2.0**-24 * (8 + 2 * math.sqrt(points.width))
        metric, unit = METRICS.index(self.metric), self.unit(q_absmax)

        def answer(block: tuple[int, int]) -> None:
            first, last = block
            tile = prepared(queries, np.arange(first, last)) * np.float32(factor)
            shares = blocks(n, max(1, -(-n // n_lists)))
            step = max(1024, _STEP // (len(tile) * points.width))
            lists = [Reservoirs(len(tile), keep) for _ in shares]
            longest = np.zeros(len(shares))

            def scan(share: int) -> None:
                for start, stop in blocks(shares[share][1] - shares[share][0], step):
                    work.tick()
                    start, stop = start + shares[share][0], stop + shares[share][0]
                    norm2 = _exact.scan(points, start, stop, tile, lists[share], self.metric == "l2", allowed)
                    longest[share] = max(longest[share], norm2)

            inner.run(scan, range(len(shares)))
            merged = lists[0] if len(lists) == 1 else _exact.merge(lists)
            norms = np.sqrt(np.einsum("ij,ij->i", tile, tile, dtype=np.float64))
            error = rounding * (norms * math.sqrt(longest.max()) + longest.max())
            doubt = _exact.uncertain(merged, wanted, n_allowed, error)
            rescore(
                self.X, Q[first:last], merged, 1, None,
                None if exclude is None else exclude[first:last],
                metric, unit, distances[first:last], indices[first:last],
            )  # fmt: skip
            doubtful[first:last] = doubt
            work.tick(len(tile) - int(np.count_nonzero(doubt)))

        # Threads share the queries where there are many, else the points.
        inner = work if n_lists > 1 else Work(1)
        (Work(1) if n_lists > 1 else work).run(answer, even_blocks(nq, size, work.num_threads))
        return distances, indices, doubtful

    def _direct(
        self,
        Q: FloatArray,
        q_absmax: float,
        i: int,
        keep: int,
        work: Work,
        allowed: npt.NDArray[np.uint8] | None,
        exclude: IdArray | None,
        distances: FloatArray,
        indices: npt.NDArray[np.int64],
    ) -> None:
        """Answer one query in float64."""
        metric, unit = METRICS.index(self.metric), self.unit(q_absmax)
        n, dim = self.X.shape
        shares = blocks(n, max(1, -(-n // work.num_threads), min(n, 100_000 // max(dim, 1))))
        lists = [Reservoirs(1, max(keep, 1)) for _ in shares] or [Reservoirs(1, 1)]

        def scan(share: int) -> None:
            first, last = shares[share]
            for start, stop in blocks(last - first, max(1, _STEP // (8 * dim))):
                work.tick()
                _exact.scan_direct(self.X, start + first, stop + first, Q[i], metric, unit, lists[share], allowed)

        work.run(scan, range(len(shares)))
        rescore(
            self.X, Q[i : i + 1], lists[0] if len(lists) == 1 else _exact.merge(lists), 1, None,
            None if exclude is None else exclude[i : i + 1],
            metric, unit, distances[i : i + 1], indices[i : i + 1],
        )  # fmt: skip
