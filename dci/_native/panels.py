"""Where the rows of cells lie in panels of `LANES` rows: every cell starts a panel."""

import numpy as np
import numpy.typing as npt

from .kernels import LANES

IdArray = npt.NDArray[np.int32]
IndexArray = npt.NDArray[np.int64]

_AT_ONCE = 1 << 19  # points: 2 ms


def sizes_of(cell_of: IdArray, n_cells: int) -> IndexArray:
    """Numbers of points of each cell, (n_cells,): in parts, since NumPy lets no other thread in while it counts."""
    sizes = np.zeros(n_cells, np.int64)
    for start in range(0, len(cell_of), _AT_ONCE):
        sizes += np.bincount(cell_of[start : start + _AT_ONCE], minlength=n_cells)
    return sizes


def lay_out(sizes: IndexArray) -> tuple[IndexArray, IndexArray]:
    """First panel of each cell and of the end, (cells + 1,), and the position of each point in order of cells, (n,).

    Positions are kept as uint32, panels as int32: both suffice for 2^31 points in 2^27 cells.
    """
    first_panel = np.concatenate([[0], np.cumsum(-(-sizes // LANES), dtype=np.int64)])
    start_of = np.cumsum(sizes, dtype=np.int64) - sizes
    return first_panel, np.arange(sizes.sum()) + np.repeat(first_panel[:-1] * LANES - start_of, sizes)
