"""Cells: groups of nearby rows, by a few rounds of k-means on a sample."""

from collections.abc import Callable, Generator

import numpy as np
import numpy.typing as npt

from .._native.cells import nearest, nearest_by_region
from .._native.kernels import LANES
from .._native.rows import multiply, panels_of
from .._runtime.threads import Work, blocks, even_blocks
from .._runtime.types import FloatArray, IdArray

Nearest = Callable[[FloatArray, IdArray, FloatArray], None]  # rows, their centres and distances, which are written

# To measure anew: `python -m comparisons run --suite construction`.
BLOCK = 4096  # rows that one task projects or assigns
_ROUNDS = 3  # of Lloyd's algorithm
_MANY_REGIONS = 12  # from which points find their cell through regions of cells
_FIELD_OF_VIEW = 3  # a region looks at a third of the centres


def make_cells(rows: FloatArray, n_cells: int, num_threads: int = 1) -> Generator[int, None, FloatArray]:
    """Choose the centres of cells for rows, (n_cells, d) float32, one round after the other.

    Parameters
    ----------
    rows : (n, d) float32
        Finite, in random order; the first `n_cells`, at most n, are the first centres.
    n_cells : int
    num_threads : int

    Yields
    ------
    int
        The multiply-adds of a round.

    Notes
    -----
    Three rounds of Lloyd's algorithm, O(n * n_cells * d): some 16 rows a cell are enough.
    """
    rows = np.ascontiguousarray(rows)
    centers = rows[:n_cells].copy()
    for _ in range(_ROUNDS if len(centers) > 1 else 0):
        with Work(num_threads) as work:
            _improve(centers, rows, work)
        yield len(rows) * centers.size
    return centers


def assign_cells(rows: FloatArray, centers: FloatArray, num_threads: int = 1) -> tuple[IdArray, FloatArray]:
    """Find the nearest centre of every row: its index, (n,) int32, and the squared distance to it, (n,) float32."""
    rows = np.ascontiguousarray(rows)
    cell_of, gap = np.empty(len(rows), np.int32), np.empty(len(rows), np.float32)
    panels, bias = center_panels(centers)

    def assign(block: tuple[int, int]) -> None:
        part = slice(*block)
        nearest(rows[part], panels, bias, cell_of[part], gap[part])

    with Work(num_threads) as work:
        work.run(assign, blocks(len(rows), BLOCK))
    return cell_of, gap


def k_means(sample: FloatArray, n_centers: int, work: Work) -> FloatArray:
    """Centres by a few rounds of Lloyd's algorithm from the first rows, (n_centers, M)."""
    sample = np.ascontiguousarray(sample)
    centers = sample[:n_centers].copy()
    for _ in range(_ROUNDS if n_centers > 1 else 0):
        _improve(centers, sample, work)
    return centers


def _improve(centers: FloatArray, sample: FloatArray, work: Work) -> None:
    """Do one round of Lloyd's algorithm."""
    cell_of = np.empty(len(sample), np.int32)
    gap = np.empty(len(sample), np.float32)
    panels, bias = center_panels(centers)

    def assign(block: tuple[int, int]) -> None:
        part = slice(*block)
        nearest(sample[part], panels, bias, cell_of[part], gap[part])

    work.run(assign, even_blocks(len(sample), BLOCK, work.num_threads))
    filled, means = cell_means(sample, cell_of, len(centers))
    centers[filled] = means  # a cell that lost all its rows keeps its centre


def cell_means(rows: FloatArray, cell_of: IdArray, n_cells: int) -> tuple[npt.NDArray[np.intp], FloatArray]:
    """Mean row of each cell that has rows.

    Parameters
    ----------
    rows : (n, d) float32
    cell_of : (n,) int32
        The cell of each row, less than `n_cells`.
    n_cells : int

    Returns
    -------
    filled : (f,) intp
        Cells that have rows, ascending.
    means : (f, d) float32
        Summed in float64.
    """
    order = np.argsort(cell_of, kind="stable")
    counts = np.bincount(cell_of, minlength=n_cells)
    filled = np.flatnonzero(counts)
    starts = np.concatenate([[0], np.cumsum(counts)[:-1]])[filled]
    sums = np.add.reduceat(rows[order], starts, axis=0, dtype=np.float64)
    return filled, (sums / counts[filled, None]).astype(np.float32)


def nearest_of(centers: FloatArray, work: Work) -> Nearest:
    """Return a function that finds the nearest centre of each row and the squared distance to it.

    Few centres are all compared. Many are grouped in regions: a row is compared with the centres around its region,
    so that its nearest centre may be missed.
    """
    n_regions = round(np.sqrt(len(centers)))
    if n_regions < _MANY_REGIONS:
        panels, bias = center_panels(centers)
        return lambda rows, out, gap: nearest(rows, panels, bias, out, gap)
    regions = k_means(centers, n_regions, work)
    squared = np.square(centers).sum(1) - 2.0 * multiply(regions, centers.T)
    around = np.argsort(squared, axis=1)[:, : -(-len(centers) // _FIELD_OF_VIEW)]
    packed = [center_panels(centers[ids]) for ids in around]
    lists = np.stack([panels for panels, _ in packed])
    biases = np.stack([bias for _, bias in packed])
    names = np.zeros(biases.shape, np.int32)
    names[:, : around.shape[1]] = around
    region_panels, region_bias = center_panels(regions)
    return lambda rows, out, gap: nearest_by_region(rows, region_panels, region_bias, lists, biases, names, out, gap)


def center_panels(centers: FloatArray, product: bool = False) -> tuple[FloatArray, FloatArray]:
    """Pack centres as panels, with the bias of their scores: (p, M, 16) and (p * 16,) float32."""
    panels = panels_of(centers)
    bias = np.full(panels.shape[0] * LANES, np.inf, np.float32)
    bias[: len(centers)] = 0.0 if product else np.einsum("ij,ij->i", centers, centers)
    return panels, bias
