"""Exact search over all points, for `dci.exact`, for calibration and where ranking cannot pay."""

import math
from contextlib import nullcontext

import numpy as np

from .._geometry.metric import power_of_two, sample_mean
from .._geometry.quantization import Matrix, stored
from .._native.exact_scan import merge, scan, scan_direct, uncertain
from .._native.kernels import Reservoirs
from .._native.rescore import METRICS
from .._native.rows import Rows, inverse_norms, prepared
from .._runtime.mapped import AROUND, in_order, looked_at, most_bytes
from .._runtime.threads import Work, blocks, even_blocks
from .._runtime.types import BoolArray, DoubleArray, FloatArray, IdArray, IndexArray
from .read_rows import FileRows, Rescore, rescorer

# To measure anew: `python -m comparisons run --suite batch` for queries together, `--suite latency` for single ones.
_FEW = 3  # queries that are answered faster one by one than in a tile
_RESERVOIR_BYTES = 64 << 20  # of all reservoirs of one block of queries
_ROW_BYTES = 2 << 20  # of the coordinates of one block of queries
_SHARED = 512  # queries a thread from which threads share the queries instead of the points
_CENTERED_BY = 256  # rows whose mean is near enough to all: numbers around it lose fewer digits
_STEP = 1_000_000_000  # products between two looks at Ctrl-C


def block_rows(keep: int, width: int, n_lists: int = 1) -> int:
    """Choose the number of queries in a block.

    Many, so that points are read seldom; few enough for their reservoirs to fit their share of memory
    and their rows a cache.
    """
    fitting = min(_RESERVOIR_BYTES // (16 * keep * n_lists + 256), _ROW_BYTES // (4 * width))
    return max(1, min(4096, fitting))


def score_error(metric: str, width: int, norms: FloatArray, longest: float, scale: float) -> DoubleArray:
    """Bound what rounding does to the scores of queries, and to the distances that order the answers.

    Parameters
    ----------
    metric : {"l2", "ip", "cosine"}
    width : int
        d, the number of coordinates.
    norms : (b,) float64
        |q| of the queries as the kernel sees them, times -2 for "l2" and -1 else.
    longest : float
        Largest |x|^2 of the points as the kernel sees them, computed in float32.
    scale : float
        What rows were multiplied by.

    Returns
    -------
    (b,) float64
        Points whose true scores differ by twice as much have different distances in float32, and the
        scores of the kernel differ from the true ones by no more.

    Notes
    -----
    With u = 2^-24 and g(n) = n u / (1 - n u), a sum of n terms rounded in any order errs by at most g(n)
    times the sum of their magnitudes (Higham 2002, section 3.1; products that are rounded count one term
    more, fused ones none), g(n) + u <= g(n + 1), and g(m) + g(n) + g(m) g(n) <= g(m + n).

    * The chain of the kernel: g(d + 1) (|bias| + |x| |q|).  For "l2" the bias is |x|^2, itself wrong by g(d).
    * Preparation.  Factors that are powers of two do not round, so that "ip" has no error here; for "l2"
      the difference to the centre is rounded, by u |x| and u |q|, and the centre is the same for both:
      (2 u + u^2) (|x|^2 + |x| |q|).  For "cosine" the inverse norm and the product with it are
      rounded, by 2 u + u^2 for x and as much for q: 5 u |x| |q| (the norm of q orders nothing).
    * True distances are computed in float64 and rounded to float32; equal ones go by their index.
      Neighbouring floats differ by at most 2 u of their size, or by 2^-149: of products and cosines
      that is 2 u |x| |q|; of distances D <= |x| + |q| / 2, squared, 4 u D^2.  Half of it is added, since
      errors count twice, and a little for float64's own rounding, d 2^-53 <= u / 32.
    * Below the normal range an operation errs by up to 2^-126, also if such numbers count as 0.
    """
    u, tiny = 2.0**-24, 2.0**-126
    terms = 2 * width + 7
    if 2 * terms * u > 1:  # sums so long that float32 says nothing
        return np.full(len(norms), np.inf)
    once, twice = ((n * u / (1 - n * u)) for n in (width + 7, terms))
    x = math.sqrt(longest * (1 + 2 * twice) + width * tiny)  # `longest` is rounded itself
    error = once * norms * x + 8 * (width + 1) * tiny * (1 + norms + x)
    if metric == "l2":
        far, step = x + norms / 2, 2.0**-149 * scale
        error += twice * x * x + 2.1 * u * far * far + step * (1.1 * far + step)
    return np.asarray(error, np.float64)


class ExactSearch:
    """Exact k-NN over the rows of X.

    Parameters
    ----------
    X : (n, d) float32, C-contiguous, finite; or Codes, whose rows as they are decoded are searched exactly
    absmax : float
        Largest |x|.
    metric : {"l2", "ip", "cosine"}

    Attributes
    ----------
    needs_double : bool
        There are rows that only float64 ranks right.
    """

    def __init__(self, X: Matrix, absmax: float, metric: str) -> None:
        self.X = X
        self.absmax = absmax
        self.metric = metric
        self.scale = power_of_two(absmax)
        self.row_scale = inverse_norms(X) if metric == "cosine" else None
        self.needs_double = self._beyond_float32(None)

    def _beyond_float32(self, ids: IdArray | None) -> bool:
        """Whether there are rows that float32 cannot normalise, so that only float64 ranks them right."""
        if self.row_scale is None:
            return False
        factors = self.row_scale if ids is None else self.row_scale[ids]
        limits = np.finfo(np.float32)
        return bool(((factors == limits.max) | ((factors > 0) & (factors < limits.tiny))).any())

    def _rows(self, Q: FloatArray, q_absmax: float, ids: IdArray | None) -> tuple[Rows, Rows, float, float]:
        """Points and queries as the filter sees them, the scale of points, and the factor of the queries."""
        if self.metric == "l2":
            scale = min(self.scale, power_of_two(q_absmax))
            center = sample_mean(Rows(self.X, scale), ids, _CENTERED_BY)
            return Rows(self.X, scale, center=center), Rows(Q, scale, center=center), scale, -2.0
        if self.metric == "cosine":
            return Rows(self.X, 1.0, self.row_scale), Rows(Q, 1.0, inverse_norms(Q)), 1.0, -1.0
        return Rows(self.X, self.scale), Rows(Q, power_of_two(q_absmax)), self.scale, -1.0

    @property
    def _rescore(self) -> Rescore:
        """What finds the nearest among the candidates of some queries."""
        return rescorer(self.X, self.metric, self.absmax, FileRows.of(self.X, self.metric, self.absmax))

    def search(
        self,
        Q: FloatArray,
        q_absmax: float,
        k: int,
        work: Work,
        ids: IdArray | None = None,
        exclude: IdArray | None = None,
    ) -> tuple[FloatArray, IndexArray]:
        """Find the k nearest of all points (of `ids`, ascending), without row exclude[i] for query i.

        X is not copied: a subset costs what a search of an array of its rows would.

        Returns
        -------
        distances : (nq, k) float32
        indices : (nq, k) int64
            Answers that fail the rounding-error check are computed in float64, so that the number of threads does
            not change them.
        """
        with in_order(stored(self.X)) if ids is None else nullcontext():
            return self._search(Q, q_absmax, k, work, ids, exclude)

    def _search(
        self, Q: FloatArray, q_absmax: float, k: int, work: Work, ids: IdArray | None, exclude: IdArray | None
    ) -> tuple[FloatArray, IndexArray]:
        n, nq = len(self.X) if ids is None else len(ids), len(Q)
        distances = np.empty((nq, k), np.float32)
        indices = np.empty((nq, k), np.int64)
        wanted = k + (exclude is not None)
        keep = wanted + max(16, wanted // 4)
        pending = np.arange(nq)
        only_direct = self.needs_double and (ids is None or self._beyond_float32(ids))
        for more in (1, 16, 256):  # where many points are equally far, more of them have to be kept
            if len(pending) <= _FEW or n == 0 or only_direct or (more > 1 and more * keep > n // 4):
                break
            own = None if exclude is None else exclude[pending]
            part = Q if len(pending) == nq else Q[pending]
            near, found, uncertain_rows = self._filtered(part, q_absmax, k, wanted, min(n, more * keep), work, ids, own)
            distances[pending], indices[pending] = near, found
            pending = pending[uncertain_rows]
        for i in pending:
            self._direct(Q, int(i), min(n, wanted), work, ids, exclude, distances, indices)
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
        ids: IdArray | None,
        exclude: IdArray | None,
    ) -> tuple[FloatArray, IndexArray, BoolArray]:
        """Answer by tiles; also tell which answers fail the rounding-error check."""
        n, nq = len(self.X) if ids is None else len(ids), len(Q)
        distances = np.empty((nq, k), np.float32)
        indices = np.empty((nq, k), np.int64)
        uncertain_rows = np.empty(nq, bool)
        points, queries, scale, factor = self._rows(Q, q_absmax, ids)
        n_lists = work.num_threads if nq < _SHARED * work.num_threads else 1
        size = block_rows(keep, points.width, n_lists)

        def answer(block: tuple[int, int]) -> None:
            first, last = block
            tile = prepared(queries, np.arange(first, last)) * np.float32(factor)
            shares = blocks(n, max(1, -(-n // n_lists)))
            step = self._at_once(max(1024, _STEP // (len(tile) * points.width)), ids, work)
            lists = [Reservoirs(len(tile), keep) for _ in shares]
            longest = np.zeros(len(shares))

            def scan_share(share: int) -> None:
                for start, stop in blocks(shares[share][1] - shares[share][0], step):
                    work.tick()
                    start, stop = start + shares[share][0], stop + shares[share][0]
                    norm2 = scan(points, ids, start, stop, tile, lists[share], self.metric == "l2")
                    longest[share] = max(longest[share], norm2)
                    looked_at(stored(self.X), (stop - start) * self._row_bytes(ids))

            inner.run(scan_share, range(len(shares)))
            merged = lists[0] if len(lists) == 1 else merge(lists)
            norms = np.sqrt(np.einsum("ij,ij->i", tile, tile, dtype=np.float64))
            error = score_error(self.metric, points.width, norms, float(longest.max()), scale)
            failed = uncertain(merged, wanted, n, error)
            own = None if exclude is None else exclude[first:last]
            self._rescore(Q[first:last], merged, keep, ids, own, (distances[first:last], indices[first:last]))
            uncertain_rows[first:last] = failed
            work.tick(len(tile) - int(np.count_nonzero(failed)))

        # Threads share the queries where there are many, else the points.
        inner = work if n_lists > 1 else Work(1)
        (Work(1) if n_lists > 1 else work).run(answer, even_blocks(nq, size, work.num_threads))
        return distances, indices, uncertain_rows

    def _direct(
        self,
        Q: FloatArray,
        i: int,
        keep: int,
        work: Work,
        ids: IdArray | None,
        exclude: IdArray | None,
        distances: FloatArray,
        indices: IndexArray,
    ) -> None:
        """Answer one query in float64."""
        metric = METRICS.index(self.metric)
        n, dim = len(self.X) if ids is None else len(ids), self.X.shape[1]
        shares = blocks(n, max(1, -(-n // work.num_threads), min(n, 100_000 // max(dim, 1))))
        lists = [Reservoirs(1, max(keep, 1)) for _ in shares] or [Reservoirs(1, 1)]
        points = Rows(self.X)
        step = self._at_once(max(1, _STEP // (8 * max(dim, 1))), ids, work)

        def scan_share(share: int) -> None:
            first, last = shares[share]
            for start, stop in blocks(last - first, step):
                work.tick()
                scan_direct(points, ids, start + first, stop + first, Q[i], metric, self.absmax, lists[share])
                looked_at(stored(self.X), (stop - start) * self._row_bytes(ids))

        work.run(scan_share, range(len(shares)))
        merged = lists[0] if len(lists) == 1 else merge(lists)
        one, own = slice(i, i + 1), None if exclude is None else exclude[i : i + 1]
        self._rescore(Q[one], merged, max(keep, 1), ids, own, (distances[one], indices[one]))

    def _at_once(self, most: int, ids: IdArray | None, work: Work) -> int:
        """Return how many rows a step may scan, at most so many; fewer where the pages of a map have a limit."""
        held = most_bytes(stored(self.X), work.num_threads)
        return most if held is None else max(1, min(most, held // self._row_bytes(ids)))

    def _row_bytes(self, ids: IdArray | None) -> int:
        """Return the bytes that a row brings into memory."""
        kept = stored(self.X)
        return kept.itemsize * kept.shape[1] if ids is None else AROUND
