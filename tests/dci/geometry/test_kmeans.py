"""Means by cell, and centres."""

import numpy as np
import pytest

from dci._geometry.kmeans import assign_cells, cell_means, make_cells


@pytest.mark.parametrize("n_cells", [1, 5, 40])
@pytest.mark.parametrize("n", [0, 1, 30])
def test_cell_means(n, n_cells):
    rng = np.random.default_rng(0)
    rows = rng.standard_normal((n, 3)).astype(np.float32)
    cell_of = rng.integers(n_cells, size=n).astype(np.int32)
    filled, means = cell_means(rows, cell_of, n_cells)
    assert filled.tolist() == sorted(set(cell_of.tolist()))
    assert means.dtype == np.float32
    assert means.shape == (len(filled), 3)
    for cell, mean in zip(filled, means, strict=True):
        np.testing.assert_allclose(mean, rows[cell_of == cell].astype(float).mean(0), rtol=1e-6, atol=1e-7)


def test_centers_are_the_means_of_separated_clusters():
    rng = np.random.default_rng(0)
    means = 100 * np.eye(4, 6)
    rows = (means[np.arange(400) % 4] + rng.standard_normal((400, 6))).astype(np.float32)
    centers = np.empty(0)

    def rounds():
        nonlocal centers
        centers = yield from make_cells(rows, 4)

    assert list(rounds()) == [400 * 4 * 6] * 3
    cell_of, gap = assign_cells(rows, centers)
    np.testing.assert_allclose(centers, means, atol=0.5)
    np.testing.assert_array_equal(cell_of, np.arange(400) % 4)
    np.testing.assert_allclose(gap, np.square(rows - centers[cell_of]).sum(1), rtol=1e-2, atol=1e-2)
