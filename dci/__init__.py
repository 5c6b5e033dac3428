"""Prioritized Dynamic Continuous Indexing: k-nearest-neighbour search by ranking, for CPUs.

The rooms, each calling only what is below it:

    dask        ShardedDCI: shards that Dask distributes
    _shards     one shard; budgets over all shards; their files
    index, functional, storage   DCI; knn, exact, merge; load, open: what users call
    _store      points in memory and on disk, ids, journal
    _search     a request goes to ranked or exact search
    _tuning     from data and a wanted recall to a structure and budgets; upkeep as points come and go
    _api        parameters, input validation, answer types
    _geometry   metrics, projection directions, k-means
    _runtime    threads, BLAS, forks
    _native     Cython without the GIL, over C kernels, one file an instruction set, chosen at run time

`dci.reference` stands beside them: the published algorithm in plain NumPy.
"""

from . import reference
from ._api.answers import IndexStats, Neighbors, RadiusNeighbors
from ._api.config import show_config
from .errors import (
    DCIError,
    FileFormatError,
    InvalidTypeError,
    InvalidValueError,
    NotFittedError,
    StorageError,
    UnknownIdError,
    WorkersLostError,
)
from .functional import exact, knn, merge
from .index import DCI
from .storage import DurableDCI, load, open, verify

__version__ = "0.1.0"

__all__ = [
    "DCI",
    "DCIError",
    "DurableDCI",
    "FileFormatError",
    "IndexStats",
    "InvalidTypeError",
    "InvalidValueError",
    "Neighbors",
    "NotFittedError",
    "RadiusNeighbors",
    "StorageError",
    "UnknownIdError",
    "WorkersLostError",
    "exact",
    "knn",
    "load",
    "merge",
    "open",
    "reference",
    "show_config",
    "verify",
]
