"""Rows of a file, read here and there.

A mapped file costs a page fault for each row, and the pages around it count as the process's own memory.
"""
import os

from libc.errno cimport EINTR, EIO, errno
from libc.stdint cimport int32_t, int64_t, uint8_t

cdef extern from *:
    """
    #include <fcntl.h>
    #include <sys/uio.h>
    #include <unistd.h>

    /* Whether the bytes were in the system's memory, and are read. */
    static int dci_read_cached(int descriptor, void *out, size_t count, off_t at) {
    #ifdef RWF_NOWAIT
        struct iovec part = {out, count};
        return preadv2(descriptor, &part, 1, at, RWF_NOWAIT) == (ssize_t)count;
    #else
        (void)descriptor, (void)out, (void)count, (void)at;
        return 0;
    #endif
    }

    /* Begin to read, without waiting. */
    static void dci_read_ahead(int descriptor, size_t count, off_t at) {
    #ifdef POSIX_FADV_WILLNEED
        (void)posix_fadvise(descriptor, at, (off_t)count, POSIX_FADV_WILLNEED);
    #else
        (void)descriptor, (void)count, (void)at;
    #endif
    }
    """
    bint read_cached "dci_read_cached"(int descriptor, void *out, size_t count, int64_t at) noexcept nogil
    void read_ahead "dci_read_ahead"(int descriptor, size_t count, int64_t at) noexcept nogil
    Py_ssize_t pread(int descriptor, void *out, size_t count, int64_t at) noexcept nogil


cdef int read_fully(int descriptor, uint8_t *out, Py_ssize_t count, int64_t at) noexcept nogil:
    """Return 0, or what went wrong, as errno."""
    cdef Py_ssize_t done
    while count > 0:
        done = pread(descriptor, out, <size_t>count, at)
        if done < 0:
            if errno == EINTR:
                continue
            return errno
        if done == 0:
            return EIO  # the file has become shorter
        out, count, at = out + done, count - done, at + done
    return 0


def read_rows(int descriptor, int64_t start, const int32_t[::1] ids, uint8_t[:, ::1] out):
    """Read rows of an array in a file; what has to come from the disk is asked for together.

    Parameters
    ----------
    descriptor : int
    start : int
        Byte at which row 0 begins.
    ids : (b,) int32
        Rows, at least 0.
    out : (b, row bytes) uint8, written

    Raises
    ------
    OSError
    """
    cdef Py_ssize_t i, n = ids.shape[0], size = out.shape[1]
    cdef int problem = 0
    waiting = bytearray(n)
    cdef uint8_t[::1] view = waiting
    cdef bint missing = False
    if n == 0 or size == 0:
        return
    with nogil:
        for i in range(n):
            if not read_cached(descriptor, &out[i, 0], <size_t>size, start + ids[i] * <int64_t>size):
                view[i] = missing = True
                read_ahead(descriptor, <size_t>size, start + ids[i] * <int64_t>size)
        if missing:
            for i in range(n):
                if view[i]:
                    problem = read_fully(descriptor, &out[i, 0], size, start + ids[i] * <int64_t>size)
                    if problem:
                        break
    if problem:
        raise OSError(problem, os.strerror(problem))
