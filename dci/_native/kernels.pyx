"""The instruction set in use, and operations on whole arrays.

`dci/_native/csrc/kernels.h` states the layout and the numerics of the kernels.
"""
import os

from libc.math cimport INFINITY
from libc.stdlib cimport free, malloc
from libc.string cimport memcpy


cdef extern from "csrc/kernels.h" nogil:
    const Kernels *dci_find_kernels(const char *name)
    const char *dci_kernel_names[]


cdef const Kernels *active = dci_find_kernels(NULL)


cdef const Kernels *table() noexcept nogil:
    return active


def simd_available():
    """Names of the instruction sets that this build and this processor have, best first."""
    names = []
    cdef int i = 0
    while dci_kernel_names[i] != NULL:
        if dci_find_kernels(dci_kernel_names[i]) != NULL:
            names.append(dci_kernel_names[i].decode())
        i += 1
    return names


def simd():
    """Name of the instruction set in use."""
    return active.name.decode()


def use_simd(str name):
    """Use another instruction set from here on (for tests; not while a search is running)."""
    global active
    cdef bytes encoded = name.encode()
    cdef const Kernels *found = dci_find_kernels(encoded)
    if found == NULL:
        raise ValueError(f"DCI_SIMD: expected one of {simd_available()}, received {name!r}")
    active = found


if os.environ.get("DCI_SIMD"):
    use_simd(os.environ["DCI_SIMD"])


def survey(const float[:, ::1] X):
    """Index of the first row with a value that is not finite (-1: none) and the largest |x|.

    Parameters
    ----------
    X : (n, d) float32

    Returns
    -------
    first_bad : int
    absmax : float
        Over the rows before `first_bad`; 0 when there are none.
    """
    cdef Py_ssize_t i, first_bad = -1
    cdef uint32_t bits, largest = 0
    cdef float absmax
    if X.shape[0] and X.shape[1]:
        with nogil:
            for i in range(X.shape[0]):
                bits = active.absmax_bits(&X[i, 0], X.shape[1])
                if bits >= 0x7F800000:
                    first_bad = i
                    break
                if bits > largest:
                    largest = bits
    memcpy(&absmax, &largest, sizeof(float))
    return first_bad, absmax


cdef class Reservoirs:
    """`size` reservoirs that keep the best `keep` of what is pushed into each."""

    def __cinit__(self, Py_ssize_t size, Py_ssize_t keep):
        # Twice as many as are kept: a shrink of 2 c entries costs O(c) and makes room for c.
        cdef Py_ssize_t capacity = 2 * keep + 32
        cdef Py_ssize_t i
        self.item = <Reservoir *>malloc(max(size, 1) * sizeof(Reservoir))
        self.storage = <uint64_t *>malloc(max(size, 1) * capacity * sizeof(uint64_t))
        if self.item == NULL or self.storage == NULL:
            raise MemoryError(f"{size} reservoirs of {capacity} entries")
        for i in range(size):
            self.item[i].entries = self.storage + i * capacity
            self.item[i].keep = keep
            self.item[i].capacity = capacity
        self.clear(size)

    def clear(self, Py_ssize_t size):
        """Empty the first `size`; from here on `size` counts only these."""
        cdef Py_ssize_t i
        self.size = size
        for i in range(size):
            self.item[i].count = 0
            self.item[i].tau = INFINITY

    def __dealloc__(self):
        free(self.item)
        free(self.storage)
