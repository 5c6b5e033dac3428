from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from .._runtime.types import BoolArray, FloatArray, IdArray
from .kernels import Reservoirs
from .rows import Rows

def scan(
    points: Rows,
    ids: IdArray | None,
    start: int,
    stop: int,
    queries: FloatArray,
    reservoirs: Reservoirs,
    squared: bool,
) -> float: ...
def merge(lists: Sequence[Reservoirs]) -> Reservoirs: ...
def uncertain(reservoirs: Reservoirs, k: int, n_points: int, error: npt.NDArray[np.float64]) -> BoolArray: ...
def scan_direct(
    points: Rows,
    ids: IdArray | None,
    start: int,
    stop: int,
    query: FloatArray,
    metric: int,
    absmax: float,
    reservoirs: Reservoirs,
) -> None: ...
