"""A matrix of float32 in a half or a quarter of its memory."""
import numpy as np

from cython cimport final
from libc.math cimport rint
from libc.stdint cimport int8_t, uint16_t

from .kernels cimport table

cdef enum:
    LINE = 64  # bytes of a cache line

cdef extern from *:
    void prefetch "__builtin_prefetch"(const void *address) noexcept nogil


@final
cdef class Codes:
    """Rows of float16 or int8, read as NumPy reads a matrix of float32.

    ``codes[start:stop]`` is a part of them, of the same memory; ``codes[rows]`` are decoded rows, float32.

    Parameters
    ----------
    array : (n, d) float16 or int8
        Not copied.
    steps : (1,) float32 for float16, (d,) for int8
        What the numbers are multiples of.
    offsets : (d,) float32, for int8 only
        Added to these multiples, which is rounded once.
    """

    def __init__(self, array, steps, offsets=None):
        self.array, self.steps, self.offsets = array, steps, offsets
        self.shape = array.shape
        self.step = steps
        self.halved = offsets is None
        if self.halved:
            self.halves = array.view(np.uint16)
        else:
            self.bytes, self.offset = array, offsets

    def __len__(self):
        return self.shape[0]

    def __getitem__(self, key):
        if isinstance(key, slice):
            return Codes(self.array[key], self.steps, self.offsets)
        rows = np.ascontiguousarray(self.array[key])
        out = np.empty(rows.shape, np.float32)
        if out.size == 0:
            return out
        cdef float[:, ::1] view = out.reshape(-1, self.shape[1])
        cdef Codes chosen = Codes(rows.reshape(-1, self.shape[1]), self.steps, self.offsets)
        cdef Py_ssize_t i
        with nogil:
            for i in range(view.shape[0]):
                chosen.decode(i, 0, view.shape[1], &view[i, 0])
        return out

    @property
    def base(self):
        """The memory that this is a part of; None if it is its own."""
        return self.array.base

    @property
    def nbytes(self):
        """Bytes of the rows, without steps and offsets."""
        return self.array.nbytes

    cdef void decode(self, Py_ssize_t i, Py_ssize_t first, Py_ssize_t count, float *out) noexcept nogil:
        """Coordinates first:first + count of row i; count > 0."""
        if self.halved:
            table().decode_halves(&self.halves[i, first], count, self.step[0], out)
        else:
            table().decode_bytes(&self.bytes[i, first], count, &self.step[first], &self.offset[first], out)

    cdef void fetch(self, Py_ssize_t i, Py_ssize_t lines) noexcept nogil:
        """Prefetch the first so many cache lines of a row, including the one that its end may be in."""
        cdef Py_ssize_t dim, line
        if self.halved:
            dim = self.halves.shape[1]
            for line in range(min(lines, dim * 2 // LINE + 1)):
                prefetch(&self.halves[i, min(line * LINE // 2, dim - 1)])
        else:
            dim = self.bytes.shape[1]
            for line in range(min(lines, dim // LINE + 1)):
                prefetch(&self.bytes[i, min(line * LINE, dim - 1)])


def encode_bytes(const float[:, ::1] rows, const float[::1] steps, const float[::1] offsets, int8_t[:, ::1] out):
    """The nearest codes within [-127, 127] of rows, to `out`.

    Parameters
    ----------
    rows : (n, d) float32, finite
    steps, offsets : (d,) float32
    out : (n, d) int8, written
        0 where the step is 0.
    """
    cdef double[::1] inverse = np.zeros(steps.shape[0])
    cdef Py_ssize_t i, k
    for k in range(steps.shape[0]):
        inverse[k] = 1 / <double>steps[k] if steps[k] > 0 else 0
    with nogil:
        for i in range(rows.shape[0]):
            for k in range(rows.shape[1]):
                out[i, k] = <int8_t>min(max(rint((<double>rows[i, k] - offsets[k]) * inverse[k]), -127.0), 127.0)
