"""Projection directions: random as in the papers, or fitted to the points and the queries.

A choice is a pair (for points, for queries) of (width, M) matrices; a projected point and a
projected query are compared in M coordinates.  All but `product_directions` use one matrix twice.
"""

import numpy as np

from .._native.rows import multiply
from .._runtime.blas import eigh, qr, svd
from .._runtime.threads import Work, even_blocks
from .._runtime.types import FloatArray

# Of the subspace iteration, as Halko, Martinsson & Tropp 2011 recommend; to measure anew: the tests of
# `principal_directions` bound the spread that is lost, `python -m comparisons run --suite construction` the time.
_OVERSAMPLING = 8
_ROUNDS = 3
_WORTH_THREADS = 10_000_000  # products: a fifth of a millisecond


def random_directions(width: int, count: int, rng: np.random.Generator) -> FloatArray:
    """`count` independent directions, uniform on the unit sphere (Li & Malik 2016), (width, count)."""
    matrix = rng.standard_normal((width, count))
    matrix /= np.maximum(np.linalg.norm(matrix, axis=0), np.finfo(float).tiny)
    return matrix.astype(np.float32)


def principal_directions(
    sample: FloatArray,
    count: int,
    rng: np.random.Generator,
    work: Work | None = None,
    start: FloatArray | None = None,
    rounds: int = _ROUNDS,
) -> FloatArray:
    """Find the directions of largest spread of centred rows, best first, (width, count).

    Parameters
    ----------
    sample : (s, width) float32
    count : int, at most width
    work : Work, optional
        Whose threads share products.
    start : (width, some) float32, optional
        Directions to begin with, which have been worth a round.
    rounds : int
        One tells the larger spreads from the smaller ones.

    Notes
    -----
    Subspace iteration on the sample itself (Halko, Martinsson & Tropp 2011): O(s * width * count)
    where an eigendecomposition of the covariance would take O(width^3).  The columns are
    orthonormal whatever the rank of the sample.
    """
    width = sample.shape[1]
    size = min(width, count + _OVERSAMPLING)
    if 2 * size >= width:
        gram = _shared(sample.T, sample, work)
        return eigh(gram)[1][:, ::-1][:, :count]
    transposed = np.ascontiguousarray(sample.T)
    basis = rng.standard_normal((width, size)).astype(np.float32)
    if start is not None:
        basis[:, : start.shape[1]] = np.sqrt(np.float32(width)) * start[:, :size]
    basis = orthonormal(basis)
    for _ in range(rounds - (start is not None)):
        basis = orthonormal(_shared(transposed, _shared(sample, basis, work), work))
    image = _shared(sample, basis, work)
    vectors = eigh(multiply(image.T, image))[1][:, ::-1]
    return multiply(basis, vectors[:, :count])


def _shared(a: FloatArray, b: FloatArray, work: Work | None) -> FloatArray:
    """Multiply, each thread some of the rows of `a`; the result does not depend on how many there are."""
    if work is None or work.num_threads == 1 or a.size * b.shape[1] < _WORTH_THREADS:
        return multiply(a, b)
    out = np.empty((len(a), b.shape[1]), np.float32)

    def share(block: tuple[int, int]) -> None:
        part = slice(*block)
        out[part] = multiply(a[part], b)

    work.run(share, even_blocks(len(a), len(a), work.num_threads))
    return out


def orthonormal(columns: FloatArray) -> FloatArray:
    """Orthonormal columns of the same span: by the Gram matrix, by QR where its rank is too low."""
    scaled = columns / max(float(np.abs(columns).max(initial=0.0)), float(np.finfo(np.float32).tiny))
    values, vectors = eigh(multiply(scaled.T, scaled))
    if values[0] < 1e-4 * values[-1] or values[-1] == 0.0:
        return qr(scaled)
    return multiply(scaled, vectors / np.sqrt(values))


def difference_directions(
    points: FloatArray, queries: FloatArray, count: int, rng: np.random.Generator, work: Work | None = None
) -> FloatArray:
    """Find the directions that keep most of q - x: those of largest E[(u . (q - x))^2], (width, count).

    Parameters
    ----------
    points : (s, width) float32
        Centred rows.
    queries : (t, width) float32
        Rows centred with the same mean.
    """
    stacked = np.concatenate([points / np.sqrt(len(points)), queries / np.sqrt(len(queries))])
    return principal_directions(stacked.astype(np.float32), count, rng, work)


def product_directions(points: FloatArray, queries: FloatArray, count: int) -> tuple[FloatArray, FloatArray]:
    """Directions (for points, for queries) with the least E[(q . x - q' . x')^2], (width, count) each.

    With E[q q^T] = A A^T and E[x x^T] = B B^T the error is |A^T (I - W) B|^2 for q'.x' = q^T W x;
    the best W of rank `count` comes from the singular vectors of A^T B (Eckart & Young 1936).

    Parameters
    ----------
    points : (s, width) float32
        Centred rows (a shift of x changes all q . x of a query alike).
    queries : (t, width) float32
    """
    root_q, inverse_q = _square_root(queries)
    root_x, inverse_x = _square_root(points)
    left, values, right = svd(multiply(root_q, root_x))
    scale = np.sqrt(values[:count])
    for_queries = multiply(inverse_q, left[:, :count]) * scale
    for_points = multiply(inverse_x, right[:count].T) * scale
    return for_points.astype(np.float32), for_queries.astype(np.float32)


def score_directions(points: FloatArray, queries: FloatArray, count: int) -> tuple[FloatArray, FloatArray]:
    """Coordinates in which distances are differences of inner products, (width, count) each.

    For points, |x' - y'|^2 is the mean of (q . x - q . y)^2 over the queries, but for what the best `count`
    directions leave out; for queries likewise over the centred points. Both share the singular vectors of
    `product_directions`.

    Parameters
    ----------
    points : (s, width) float32
        Centred rows.
    queries : (t, width) float32
    """
    root_q, _ = _square_root(queries)
    root_x, _ = _square_root(points)
    left, _, right = svd(multiply(root_q, root_x))
    return multiply(root_q, left[:, :count]), multiply(root_x, right[:count].T)


def _square_root(rows: FloatArray) -> tuple[np.ndarray, np.ndarray]:
    """Symmetric square root of the second moment of rows, and its (pseudo-)inverse."""
    values, vectors = eigh(multiply(rows.T, rows) / max(len(rows), 1))
    floor = 1e-6 * max(values[-1], 1e-30)  # so that the inverse is a float32
    root = np.sqrt(np.maximum(values, floor))
    return multiply(vectors * root, vectors.T), multiply(vectors / root, vectors.T)
