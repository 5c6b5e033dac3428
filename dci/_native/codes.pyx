"""A matrix of float32 in a half or a quarter of its memory."""
import numpy as np

from cython cimport final
from libc.float cimport FLT_MAX
from libc.math cimport ceil, fabs, frexp, ldexp, rint
from libc.stdint cimport int8_t, uint32_t
from libc.string cimport memcpy

from .kernels cimport table

cdef enum:
    LINE = 64  # bytes of a cache line
    MAX_LINES = 16  # of a row fetched ahead; from there the processor goes on
    MOST = 127  # of a byte

cdef extern from *:
    void prefetch "__builtin_prefetch"(const void *address) noexcept nogil


@final
cdef class Codes:
    """Rows of float16 or int8, read as NumPy reads a matrix of float32.

    ``codes[start:stop]`` is a part of them, of the same memory; ``codes[rows]`` are decoded rows, float32.

    Parameters
    ----------
    array : (n, d) float16 or (n, d + 1) int8
        Not copied. The last byte of a row stands for the row's factor.
    steps : (1,) float32 for float16, (d,) for int8
        What the numbers are multiples of, for int8 times the factor.
    offsets : (d,) float32, for int8 only
        Added to these multiples, which is rounded once.
    """

    def __init__(self, array, steps, offsets=None):
        self.array, self.steps, self.offsets = array, steps, offsets
        self.step = steps
        self.halved = offsets is None
        self.shape = len(array), array.shape[1] - (not self.halved)
        self.lines = min(<Py_ssize_t>MAX_LINES, array.shape[1] * array.itemsize // LINE + 2)
        if self.halved:
            self.halves = array.view(np.uint16)
        else:
            self.bytes, self.offset = array, offsets

    def __len__(self):
        return self.shape[0]

    def __getitem__(self, key):
        if isinstance(key, slice):
            return Codes(self.array[key], self.steps, self.offsets)
        array = np.ascontiguousarray(self.array[key])
        cdef Codes chosen = Codes(array, self.steps, self.offsets)
        cdef Py_ssize_t i, dim = self.shape[1]
        out = np.empty(chosen.shape, np.float32)
        cdef float[:, ::1] view = out
        if out.size:
            with nogil:
                for i in range(view.shape[0]):
                    chosen.decode(i, 0, dim, &view[i, 0])
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
            table().decode_bytes(&self.bytes[i, first], count, factor_of(self.bytes[i, self.bytes.shape[1] - 1]),
                                 &self.step[first], &self.offset[first], out)

    cdef void fetch(self, Py_ssize_t i) noexcept nogil:
        """Prefetch the first cache lines of a row, including the one that its end is in."""
        cdef Py_ssize_t line
        for line in range(self.lines):
            if self.halved:
                prefetch(&self.halves[i, min(line * LINE // 2, self.halves.shape[1] - 1)])
            else:
                prefetch(&self.bytes[i, min(line * LINE, self.bytes.shape[1] - 1)])


cdef float factor_of(int8_t code) noexcept nogil:
    """From 2^-15, for 120, to 1.875, for 7: (1 + c / 8) / 2^e for e * 8 + c."""
    cdef uint32_t bits = <uint32_t>(127 - (code >> 3)) << 23 | <uint32_t>(code & 7) << 20
    cdef float factor
    memcpy(&factor, &bits, sizeof(factor))
    return factor


cdef int8_t code_of(double factor) noexcept nogil:
    """The least factor that is no less, of those up to 1.875."""
    cdef int exponent, eighths
    if not factor > ldexp(1, -15):
        return 120
    if factor > 1.875:
        return 7
    eighths = <int>ceil((frexp(factor, &exponent) * 2 - 1) * 8)  # factor = (1 + eighths / 8) * 2^(exponent - 1)
    return <int8_t>((1 - exponent) * 8 + (eighths if eighths < 8 else -8))


cdef int8_t next_code(int8_t code) noexcept nogil:
    """The next larger factor."""
    return code + 1 if code & 7 < 7 else code - 15


def encode_bytes(const float[:, ::1] rows, const float[::1] steps, const float[::1] offsets, int8_t[:, ::1] out,
                 bint with_factors=False):
    """Rows as bytes, each with the least factor that is enough, to `out`.

    Parameters
    ----------
    rows : (n, d) float32, finite
    steps, offsets : (d,) float32
        Numbers are at most 127 * 1.875 steps away from the offset.
    out : (n, d + 1) int8, written
    with_factors : bool
        Use the factors that are there already.

    Returns
    -------
    float
        At least the largest magnitude of what will be read.
    """
    cdef Py_ssize_t i, k, dim = rows.shape[1]
    cdef double gap, scale, number, needed, largest = 0
    cdef const float *row
    cdef int8_t factor
    cdef double[::1] inverse = 1 / np.asarray(steps, np.float64)
    if dim == 0:
        return 0.0
    with nogil:
        for i in range(rows.shape[0]):
            row = &rows[i, 0]
            factor = out[i, dim]
            if not with_factors:
                needed = 0
                for k in range(dim):
                    needed = max(needed, fabs(<double>row[k] - offsets[k]) * inverse[k])
                factor = code_of(needed / MOST)
            k = 0
            while k < dim:
                scale = <float>(factor_of(factor) * steps[k])  # as it is read
                gap = <double>row[k] - offsets[k]
                number = rint(gap / scale) if scale > 0 else (0 if gap == 0 else 2 * MOST)
                if fabs(number) > MOST and factor >= 0 and factor != 7:  # the steps have few bits
                    factor, k = next_code(factor), 0
                    continue
                if not fabs(number) <= MOST:  # nor is NaN
                    number = MOST if number > 0 else -MOST
                if fabs(offsets[k] + number * scale) > FLT_MAX:  # where the point is less than half a step from it
                    number -= 1 if number > 0 else -1
                largest = max(largest, fabs(offsets[k] + number * scale))
                out[i, k] = <int8_t>number
                k += 1
            out[i, dim] = factor
    return float(np.nextafter(np.float32(largest), np.float32(np.inf))) if 0 < largest < FLT_MAX else largest
