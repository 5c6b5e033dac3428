"""Prioritized Dynamic Continuous Indexing: k-nearest-neighbour search by ranking, for CPUs.

The layers, each calling only what is below it; a query goes down once and comes back as `Neighbors`:

    index        DCI, knn, exact: what users call
    _api         parameters, input validation, requests and answers
    _search      dispatch, then ranked or exact search
    _tuning      build, pilot, calibration, cost model: from a wanted recall to a structure and its budgets
    _geometry    metrics as embeddings, projection directions, k-means, panels
    _runtime     threads, BLAS, forks
    _native      Cython without the GIL, over C kernels (csrc), one file an instruction set, chosen at run time

`dci.reference` stands beside them: the published algorithm in plain NumPy.
"""

from . import reference
from ._api.answers import IndexStats, Neighbors
from ._api.config import show_config
from .errors import DCIError, FileFormatError, InvalidTypeError, InvalidValueError, NotFittedError, StorageError
from .index import DCI, exact, knn

__version__ = "0.1.0"

__all__ = [
    "DCI",
    "DCIError",
    "FileFormatError",
    "IndexStats",
    "InvalidTypeError",
    "InvalidValueError",
    "Neighbors",
    "NotFittedError",
    "StorageError",
    "exact",
    "knn",
    "reference",
    "show_config",
]
