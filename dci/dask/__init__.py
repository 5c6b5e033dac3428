"""An index of more points than a machine holds: shards that Dask distributes.

Dask is an optional extra; only this package imports it.
"""

try:
    import dask.array  # noqa: F401 - so that what is missing is told here
    import distributed  # noqa: F401
except ImportError as error:
    raise ImportError("dci.dask needs Dask's array and distributed: pip install 'dci-attention[dask]'") from error

from .._shards.report import ShardedStats
from .index import ShardedDCI

__all__ = ["ShardedDCI", "ShardedStats"]
