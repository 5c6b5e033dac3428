"""Prioritized Dynamic Continuous Indexing: k-nearest-neighbour search by ranking, for CPUs.

The layers, each calling only what is below it:

    index        DCI, knn, exact: what users call; checks arguments once (_validate, params)
    _answers     from a plan to neighbours: by ranking, exactly, among allowed points
    _engine      fitting: what to project on, how much to look at, whether ranking pays
    calibration  from a wanted recall to a budget
    _ranker      projected points in cells; batches of queries
    _exact_search, _embedding, _subset, directions, _threads, _fork
    _cells, _exact, _rescore, _rows, _kernels      Cython, without the GIL
    csrc/        C kernels, one file an instruction set, chosen at run time

`dci.reference` stands beside them: the published algorithm in plain NumPy.
"""

from . import reference
from ._api.config import show_config
from .errors import DCIError, InvalidTypeError, InvalidValueError, NotFittedError
from .index import DCI, Neighbors, exact, knn

__version__ = "0.1.0"

__all__ = [
    "DCI",
    "DCIError",
    "InvalidTypeError",
    "InvalidValueError",
    "Neighbors",
    "NotFittedError",
    "exact",
    "knn",
    "reference",
    "show_config",
]
