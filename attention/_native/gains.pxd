from .moments cimport Moments
from .workspace cimport Workspace

cdef enum:
    CLOSURE = 4  # the largest variance of scores within a cell that its closure may stand for

cdef float gain(Moments cells, Py_ssize_t c, float variance, float spread) noexcept nogil
cdef float doubt(Moments cells, float gain) noexcept nogil
cdef void score_apart(Moments cells, Workspace w, Py_ssize_t b) noexcept nogil
cdef void weigh_apart(Moments cells, float *gains, float *doubts, const float *variances) noexcept nogil
