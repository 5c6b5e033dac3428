"""Cells with points more, and with points less: new `Cells`, for those who search in the old ones meanwhile."""
import numpy as np

from libc.math cimport INFINITY
from libc.stdint cimport int16_t, int32_t, uint8_t
from libc.string cimport memcpy

from .cells cimport Cells
from .kernels cimport LANES


cdef class Panels:
    """The arrays of cells as bytes, so that one loop serves coordinates of 16 and of 32 bits."""
    cdef uint8_t[:, :, :, ::1] coordinates  # (L, panels, m, 16 * size)
    cdef float[:, ::1] bias, steps
    cdef int32_t[::1] ids, first_panel
    cdef Py_ssize_t size  # bytes of a coordinate
    cdef readonly object arrays

    def __init__(self, Cells like, first_panel):
        old = like.arrays.coordinates
        cdef Py_ssize_t n_panels = first_panel[like.n_cells]
        shape = old.shape[0], n_panels, old.shape[2], LANES
        coordinates = np.empty(shape, old.dtype)
        bias = np.empty((old.shape[0], n_panels * LANES), np.float32)
        steps = np.empty_like(bias) if like.quantized else None
        ids = np.empty(n_panels * LANES, np.int32)
        self.size = old.itemsize
        self.coordinates = coordinates.view(np.uint8)
        self.bias, self.steps, self.ids, self.first_panel = bias, steps, ids, first_panel
        self.arrays = coordinates, bias, steps, ids


cdef class Insertion:
    """Cells that hold the points of others as well, which have the same centres.

    New points take the free lanes of their cell first, then panels of their own: O(n m) bytes are copied, each cell
    by whoever calls `copy` for it.

    Parameters
    ----------
    cells, new : Cells
    use_max : bool
        Ranking is by the largest coordinate, which lanes without a point are put out of reach of by infinite ones.
    """
    cdef Cells cells, new
    cdef Panels out
    cdef bint use_max
    cdef object sizes, first_panel

    def __init__(self, Cells cells, Cells new, bint use_max):
        self.cells, self.new, self.use_max = cells, new, use_max
        self.sizes = cells.arrays.sizes + new.arrays.sizes
        panels = np.diff(cells.arrays.first_panel)
        needed = np.maximum(panels, -(-self.sizes // LANES))
        self.first_panel = np.concatenate([[0], np.cumsum(needed, dtype=np.int64)]).astype(np.int32)
        self.out = Panels(cells, self.first_panel)

    def copy(self, Py_ssize_t start, Py_ssize_t stop):
        """Fill cells start:stop of all."""
        cdef const uint8_t[:, :, :, ::1] old_bytes = self.cells.arrays.coordinates.view(np.uint8)
        cdef const uint8_t[:, :, :, ::1] new_bytes = self.new.arrays.coordinates.view(np.uint8)
        cdef Py_ssize_t c
        with nogil:
            for c in range(start, stop):
                copy_panels(self.cells, old_bytes, self.out, c, self.use_max)
                add_lanes(self.new, new_bytes, self.out, c)

    def result(self):
        """Return the cells, once all are filled."""
        coordinates, bias, steps, ids = self.out.arrays
        return Cells(self.cells.arrays._replace(
            coordinates=coordinates, bias=bias, steps=steps, ids=ids, first_panel=self.first_panel, sizes=self.sizes
        ))


cdef void copy_panels(Cells cells, const uint8_t[:, :, :, ::1] coordinates, Panels out, Py_ssize_t c,
                      bint use_max) noexcept nogil:
    """Copy a cell's panels, and empty those that come behind them."""
    cdef Py_ssize_t start = cells.first_panel[c], n = cells.first_panel[c + 1] - start
    cdef Py_ssize_t first = out.first_panel[c], stop = out.first_panel[c + 1], part, i, k
    cdef Py_ssize_t bytes_each = out.coordinates.shape[2] * out.coordinates.shape[3], lanes = LANES
    cdef float *empty
    for part in range(out.coordinates.shape[0]):
        if n:
            memcpy(&out.coordinates[part, first, 0, 0], &coordinates[part, start, 0, 0], n * bytes_each)
            memcpy(&out.bias[part, first * lanes], &cells.bias[part, start * lanes], n * lanes * sizeof(float))
            if cells.quantized:
                memcpy(&out.steps[part, first * lanes], &cells.steps[part, start * lanes], n * lanes * sizeof(float))
        for i in range((first + n) * lanes, stop * lanes):
            out.bias[part, i] = INFINITY
            if cells.quantized:
                out.steps[part, i] = 0
        for i in range(first + n, stop):
            for k in range(bytes_each):
                out.coordinates[part, i, 0, k] = 0
            if use_max:
                empty = <float *>&out.coordinates[part, i, 0, 0]
                for k in range(bytes_each // <Py_ssize_t>sizeof(float)):
                    empty[k] = INFINITY
    if n:
        memcpy(&out.ids[first * lanes], &cells.ids[start * lanes], n * lanes * sizeof(int32_t))
    for i in range((first + n) * lanes, stop * lanes):
        out.ids[i] = -1


cdef void add_lanes(Cells new, const uint8_t[:, :, :, ::1] coordinates, Panels out, Py_ssize_t c) noexcept nogil:
    """Put a cell's new points into its free lanes."""
    cdef Py_ssize_t to = out.first_panel[c] * <Py_ssize_t>LANES, source, part, size = out.size
    cdef Py_ssize_t lane, into, count = out.coordinates.shape[2]
    for source in range(new.first_panel[c] * <Py_ssize_t>LANES, new.first_panel[c + 1] * <Py_ssize_t>LANES):
        if new.ids[source] < 0:
            continue
        while out.ids[to] >= 0:
            to += 1
        out.ids[to] = new.ids[source]
        lane, into = source % LANES * size, to % LANES * size
        for part in range(out.coordinates.shape[0]):
            out.bias[part, to] = new.bias[part, source]
            if new.quantized:
                out.steps[part, to] = new.steps[part, source]
            copy_lane(
                &coordinates[part, source // LANES, 0, lane], &out.coordinates[part, to // LANES, 0, into], count, size
            )


cdef inline void copy_lane(const uint8_t *source, uint8_t *out, Py_ssize_t count, Py_ssize_t size) noexcept nogil:
    """Copy one point's coordinates, 2 or 4 bytes each, from a lane of a panel to one of another."""
    cdef Py_ssize_t k, lanes = LANES
    if size == sizeof(int16_t):
        for k in range(count):
            (<int16_t *>out)[k * lanes] = (<const int16_t *>source)[k * lanes]
    else:
        for k in range(count):
            (<int32_t *>out)[k * lanes] = (<const int32_t *>source)[k * lanes]


def remove(Cells cells, positions, bint use_max):
    """Return cells without the points at these positions, (r,) int64; coordinates are shared, unless ranked by max."""
    arrays = cells.arrays
    bias, ids, sizes = arrays.bias.copy(), arrays.ids.copy(), arrays.sizes.copy()
    coordinates = arrays.coordinates.copy() if use_max else arrays.coordinates
    cell = np.searchsorted(arrays.first_panel, positions // LANES, side="right") - 1
    np.subtract.at(sizes, cell, 1)
    ids[positions] = -1
    bias[:, positions] = np.inf
    if use_max:
        panel, lane = np.divmod(positions, LANES)
        coordinates[:, panel, :, lane] = np.inf
    return Cells(arrays._replace(coordinates=coordinates, bias=bias, ids=ids, sizes=sizes))
