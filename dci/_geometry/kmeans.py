"""Cells: groups of nearby rows, by a few rounds of k-means on a sample."""

from collections.abc import Callable

import numpy as np

from .._native import cells as native_cells
from .._native.rows import multiply, panels_of
from .._runtime.threads import Work, blocks, even_blocks
from .._runtime.types import FloatArray, IdArray

LANES = 16
_BLOCK = 4096
_ROUNDS = 3
_MANY_REGIONS = 12  # from which points find their cell through regions of cells
_FIELD_OF_VIEW = 3  # a region looks at a third of the centres


def make_cells(rows: FloatArray, n_cells: int, num_threads: int = 1) -> FloatArray:
    """Choose the centres of cells for rows, (n_cells, d) float32.

    Parameters
    ----------
    rows : (n, d) float32
        Finite, in random order; the first `n_cells`, at most n, are the first centres.
    n_cells : int
    num_threads : int

    Notes
    -----
    Three rounds of Lloyd's algorithm, O(n * n_cells * d): some 16 rows a cell are enough.
    """
    with Work(num_threads) as work:
        return k_means(np.ascontiguousarray(rows), min(n_cells, len(rows)), work)


def assign_cells(rows: FloatArray, centers: FloatArray, num_threads: int = 1) -> tuple[IdArray, FloatArray]:
    """Find the nearest centre of every row: its index, (n,) int32, and the squared distance to it, (n,) float32."""
    rows = np.ascontiguousarray(rows)
    cell_of, gap = np.empty(len(rows), np.int32), np.empty(len(rows), np.float32)
    panels, bias = center_panels(centers)

    def assign(block: tuple[int, int]) -> None:
        part = slice(*block)
        native_cells.nearest(rows[part], panels, bias, cell_of[part], gap[part])

    with Work(num_threads) as work:
        work.run(assign, blocks(len(rows), _BLOCK))
    return cell_of, gap


def k_means(sample: FloatArray, n_centers: int, work: Work) -> FloatArray:
    """Centres by a few rounds of Lloyd's algorithm from the first rows, (n_centers, M)."""
    sample = np.ascontiguousarray(sample)
    centers = sample[:n_centers].copy()
    if n_centers < 2:
        return centers
    nearest = np.empty(len(sample), np.int32)
    gap = np.empty(len(sample), np.float32)
    for _ in range(_ROUNDS):
        panels, bias = center_panels(centers)

        def assign(block: tuple[int, int], panels: FloatArray = panels, bias: FloatArray = bias) -> None:
            part = slice(*block)
            native_cells.nearest(sample[part], panels, bias, nearest[part], gap[part])

        work.run(assign, even_blocks(len(sample), _BLOCK, work.num_threads))
        order = np.argsort(nearest, kind="stable")
        counts = np.bincount(nearest, minlength=n_centers)
        filled = np.flatnonzero(counts)
        starts = np.concatenate([[0], np.cumsum(counts)[:-1]])[filled]
        sums = np.add.reduceat(sample[order], starts, axis=0, dtype=np.float64)
        centers[filled] = sums / counts[filled, None]
    return centers


def nearest_of(centers: FloatArray, work: Work) -> Callable[[FloatArray, IdArray, FloatArray], None]:
    """How points find their centre.

    Among all; where those are many, one level down from the region they lie in, among the centres
    around it.
    """
    n_regions = round(np.sqrt(len(centers)))
    if n_regions < _MANY_REGIONS:
        panels, bias = center_panels(centers)
        return lambda rows, out, gap: native_cells.nearest(rows, panels, bias, out, gap)
    regions = k_means(centers, n_regions, work)
    squared = np.square(centers).sum(1) - 2.0 * multiply(regions, centers.T)
    around = np.argsort(squared, axis=1)[:, : -(-len(centers) // _FIELD_OF_VIEW)]
    packed = [center_panels(centers[ids]) for ids in around]
    lists = np.stack([panels for panels, _ in packed])
    biases = np.stack([bias for _, bias in packed])
    names = np.zeros(biases.shape, np.int32)
    names[:, : around.shape[1]] = around
    region_panels, region_bias = center_panels(regions)
    return lambda rows, out, gap: native_cells.nearest_by_region(
        rows, region_panels, region_bias, lists, biases, names, out, gap
    )


def center_panels(centers: FloatArray, product: bool = False) -> tuple[FloatArray, FloatArray]:
    """Centres as panels, and what their scores start from."""
    panels = panels_of(centers)
    bias = np.full(panels.shape[0] * LANES, np.inf, np.float32)
    bias[: len(centers)] = 0.0 if product else np.einsum("ij,ij->i", centers, centers)
    return panels, bias
