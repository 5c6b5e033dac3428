"""Cells in panels."""

import numpy as np

from dci._native import panels
from dci._native.panels import lay_out


def test_cells_are_laid_out_in_64_bits():
    sizes = np.array([3, 0, 17, 1, 16])
    first_panel, position = lay_out(sizes)
    assert first_panel.tolist() == [0, 1, 1, 3, 4, 5]
    assert position.tolist() == [*range(3), *range(16, 33), 48, *range(64, 80)]
    for array in lay_out(sizes.astype(np.int32)):
        assert array.dtype == np.int64, "panels times lanes would wrap"


def test_cells_are_counted_in_parts(monkeypatch):
    monkeypatch.setattr(panels, "_AT_ONCE", 7)
    for count in (0, 1, 7, 40):
        cell_of = np.random.default_rng(0).integers(0, 5, count).astype(np.int32)
        np.testing.assert_array_equal(panels.sizes_of(cell_of, 6), np.bincount(cell_of, minlength=6))
