"""Rows of an array as the kernels see them: scaled, centred and extended on the way, never copied.

Every pass over the user's data goes through `Rows`, so that a metric is a choice of scale, centre
and extra coordinate, and only ever a few rows exist in that form. Rows that are kept as `Codes` are
decoded on the way.
"""
import numpy as np

from cython cimport final
from libc.float cimport FLT_MAX
from libc.math cimport fabsf, sqrt
from libc.stdint cimport int16_t, int32_t
from libc.stdlib cimport free, malloc

from .codes cimport Codes
from .kernels cimport LANES, table

cdef enum:
    GROUP = 24  # rows that go through the kernel together: whole tiles of 6 and of 8 rows
    # To measure anew: `python -m comparisons run --suite latency,construction`.
    MAX_LINES = 16  # cache lines of a row fetched ahead; from there the processor goes on
    IN_FLIGHT = 64  # cache lines fetched ahead in all
    PART = 256  # coordinates of a row that are decoded together

cdef extern from *:
    void prefetch "__builtin_prefetch"(const void *address) noexcept nogil

cdef float SMALLEST = 1e-30  # a row whose coordinates are all less is packed as zeros


@final
cdef class Rows:
    """Row i stands for [data[i] * scale * row_scale[i], extra[i]] - center.

    Parameters
    ----------
    data : (n, d) float32, or Codes
    scale : float
    row_scale : (n,) float32, optional
    extra : (n,) float32, optional
        One more coordinate a row (the lift of inner products to distances).
    center : (d,) or (d + 1,) float32, optional
    """

    def __init__(self, data, float scale=1.0, row_scale=None, extra=None, center=None):
        self.coded = isinstance(data, Codes)
        if self.coded:
            self.codes = data
        else:
            self.data = data
        self.scale = scale
        self.row_scale = row_scale
        self.extra = extra
        self.size, self.dim = data.shape
        self.width = self.dim + (extra is not None)
        self.center = np.zeros(self.width, np.float32) if center is None else center
        self.lines = self.codes.lines if self.coded else min(<Py_ssize_t>MAX_LINES, self.dim // 16 + 1)

    cdef const float *row(self, Py_ssize_t i, float *room) noexcept nogil:
        """A row as it is: neither scaled nor centred. Codes are decoded into `room`, of d floats."""
        if not self.coded:
            return &self.data[i, 0]
        self.codes.decode(i, 0, self.dim, room)
        return room

    cdef void prepare(self, Py_ssize_t i, float *out) noexcept nogil:
        cdef Py_ssize_t dim = self.dim, k, first, count
        cdef float scale = self.scale
        cdef float part[PART]
        if self.row_scale is not None:
            scale *= self.row_scale[i]
        if self.coded:
            for k in range((dim + PART - 1) // PART):
                first = k * PART
                count = min(dim - first, <Py_ssize_t>PART)
                self.codes.decode(i, first, count, part)
                table().prepare(part, count, scale, &self.center[first], out + first)
        else:
            table().prepare(&self.data[i, 0], dim, scale, &self.center[0], out)
        if self.extra is not None:
            out[dim] = self.extra[i] - self.center[dim]

    cdef void fetch(self, Py_ssize_t i) noexcept nogil:
        """Prefetch the first cache lines of a row, including the one that its end may be in."""
        cdef Py_ssize_t line
        if self.coded:
            self.codes.fetch(i)
            return
        for line in range(self.lines):
            prefetch(&self.data[i, min(line * 16, self.dim - 1)])


def prepared(Rows rows, ids):
    """The rows of these ids as an array, (len(ids), width) float32."""
    cdef const int32_t[::1] chosen = np.ascontiguousarray(ids, dtype=np.int32)
    out = np.empty((chosen.shape[0], rows.width), np.float32)
    cdef float[:, ::1] view = out
    cdef Py_ssize_t i
    if out.size:
        with nogil:
            for i in range(chosen.shape[0]):
                rows.prepare(chosen[i], &view[i, 0])
    return out


def inverse_norms(data):
    """1 / |data[i]|, (n,) float32; 0 for a zero row, the largest float where it would be more.

    Parameters
    ----------
    data : (n, d) float32, or Codes
    """
    out = np.zeros(len(data), np.float32)
    cdef Rows rows = Rows(data)
    cdef float[::1] view = out
    cdef float[::1] room = np.empty(rows.dim, np.float32)
    cdef const float *row
    cdef double norm2
    cdef Py_ssize_t i
    if rows.dim == 0:
        return out
    with nogil:
        for i in range(rows.size):
            row = rows.row(i, &room[0])
            norm2 = table().dot(row, row, rows.dim)
            if norm2 > 0:
                view[i] = <float>min(1 / sqrt(norm2), <double>FLT_MAX)
    return out


def project(Rows rows, const int32_t[::1] ids, const float[:, :, ::1] panels,
            const float[::1] bias, float[:, ::1] out):
    """out[i] = bias + row ids[i] . panels: coordinates of rows along the directions in `panels`.

    Parameters
    ----------
    ids : (b,) int32; a negative id gives a row of `bias`
    panels : (p, width, 16) float32
    bias : (p * 16,) float32
    out : (b, p * 16) float32
    """
    cdef Py_ssize_t n = ids.shape[0], width = rows.width
    cdef Py_ssize_t ahead = IN_FLIGHT // rows.lines
    cdef Py_ssize_t first, i, j, k, count
    cdef float *workspace
    cdef const float *group[GROUP]
    if n == 0:
        return
    workspace = <float *>malloc(min(n, <Py_ssize_t>GROUP) * width * sizeof(float))
    if workspace == NULL:
        raise MemoryError("rows of a projection")
    with nogil:
        for j in range(min(n, <Py_ssize_t>GROUP)):
            group[j] = workspace + j * width
        for first in range((n + GROUP - 1) // GROUP):
            i = first * GROUP
            count = min(<Py_ssize_t>GROUP, n - i)
            for j in range(count):
                if i + j + ahead < n and ids[i + j + ahead] >= 0:
                    rows.fetch(ids[i + j + ahead])
                if ids[i + j] >= 0:
                    rows.prepare(ids[i + j], workspace + j * width)
                else:
                    for k in range(width):
                        workspace[j * width + k] = 0
            table().affine(group, count, width, &panels[0, 0, 0], &bias[0], panels.shape[0],
                           &out[i, 0], out.shape[1])
    free(workspace)


def pack(const float[:, ::1] coordinates, Py_ssize_t start, Py_ssize_t stop, float[:, :, ::1] out):
    """Columns start:stop of rows of coordinates as panels, out[p, k, lane] = row p * 16 + lane.

    Lanes past the last row are 0.
    """
    cdef Py_ssize_t n = coordinates.shape[0], dim = stop - start, i, k, p
    with nogil:
        for p in range(n // LANES):
            table().transpose(&coordinates[p * LANES, start], coordinates.shape[1], dim,
                              &out[p, 0, 0])
        if n % LANES:
            p = n // LANES
            for k in range(dim):
                for i in range(LANES):
                    out[p, k, i] = 0
                for i in range(n % LANES):
                    out[p, k, i] = coordinates[p * LANES + i, start + k]


def pack_short(const float[:, ::1] coordinates, Py_ssize_t start, Py_ssize_t stop,
               int16_t[:, :, ::1] out, float[::1] steps, float[::1] norms):
    """Columns start:stop of rows as panels of int16, each row in steps of its own.

    Parameters
    ----------
    coordinates : (p * 16, >= stop) float32
    out : (p, stop - start, 16) int16, written
    steps : (p * 16,) float32, written
        What a row's integers are multiples of: 1 / 32767 of its largest coordinate.
    norms : (p * 16,) float32, written
        Squared norms of the rows as they are packed.
    """
    cdef Py_ssize_t n = coordinates.shape[0], i, k, p, lane
    cdef const float *row
    cdef float largest, step, inverse, norm
    cdef int32_t number
    with nogil:
        for i in range(n):
            p, lane, row, largest, norm = i // LANES, i % LANES, &coordinates[i, start], 0, 0
            for k in range(stop - start):
                largest = max(largest, fabsf(row[k]))
            if largest < SMALLEST:
                largest = 0
            step = largest / 32767
            inverse = 1 / step if largest > 0 else 0
            for k in range(stop - start):
                number = <int32_t>(row[k] * inverse + <float>32768.5) - 32768
                out[p, k, lane] = <int16_t>number
                norm += <float>(number * number)
            steps[i] = step
            norms[i] = norm * step * step


def panels_of(coordinates):
    """All rows of an array as panels, (ceil(n / 16), d, 16) float32."""
    coordinates = np.ascontiguousarray(coordinates, dtype=np.float32)
    n, dim = coordinates.shape
    out = np.zeros((-(-n // LANES), dim, LANES), np.float32)
    if n:
        pack(coordinates, 0, dim, out)
    return out


def multiply(a, b):
    """a @ b in float32 by the kernels.

    BLAS would be as fast, but its threads keep spinning after each call, on the processors that
    our own threads need.

    Parameters
    ----------
    a : (n, d) float32
    b : (d, m) float32

    Returns
    -------
    (n, m) float32
    """
    a = np.ascontiguousarray(a, dtype=np.float32)
    panels = panels_of(b.T)
    out = np.empty((a.shape[0], panels.shape[0] * LANES), np.float32)
    if out.size:
        project(Rows(a), np.arange(a.shape[0], dtype=np.int32), panels,
                np.zeros(out.shape[1], np.float32), out)
    return out[:, : b.shape[1]]
