"""Keys far from the others of their cell: no moment tells what one of them weighs, so each of them is scored."""
import numpy as np

from libc.stdint cimport int32_t

from dci._native.kernels cimport LANES

from dci._native.rows import panels_of


cdef class Strays:
    """Some keys in panels, and the cells that they are in.

    Parameters
    ----------
    keys : (S, E) float32
    ids : (n,) int32, ascending
        Which of the keys.
    cell_of : (S,) int32
        Cell of each key.
    """

    def __init__(self, keys, ids, cell_of):
        self.ids = np.ascontiguousarray(ids, dtype=np.int32)
        self.cells = np.ascontiguousarray(cell_of[ids], dtype=np.int32)
        self.panels = panels_of(np.ascontiguousarray(keys[ids], dtype=np.float32))
        self.width = self.panels.shape[0] * LANES
        self.no_bias = np.zeros(max(self.width, LANES), np.float32)
        self.taken = np.zeros(1, np.int32)  # how many are before the boundary

    def advance(self, Py_ssize_t boundary):
        """Take the keys before `boundary` alone."""
        self.taken[0] = int(np.searchsorted(np.asarray(self.ids), boundary))

    cdef Py_ssize_t choose(self, const float *scores, float least, int32_t *chosen, float *panels) noexcept nogil:
        """Copy the strays before the boundary that score at least so much to panels of their own; return how many.

        What is left of the last panel are copies of its last key.
        """
        cdef Py_ssize_t dim = self.panels.shape[1], j, k, lane, panel, count = 0
        for j in range(self.taken[0]):
            if scores[j] >= least:
                chosen[count] = <int32_t>j
                count += 1
        for j in range((count + LANES - 1) // LANES * LANES):
            lane = chosen[j if j < count else count - 1] % LANES
            panel = chosen[j if j < count else count - 1] // LANES
            for k in range(dim):
                panels[(j // LANES * dim + k) * LANES + j % LANES] = self.panels[panel, k, lane]
        return count
