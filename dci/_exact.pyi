from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from ._kernels import Reservoirs
from ._rows import Rows
from ._types import BoolArray, FloatArray

def scan(
    points: Rows,
    start: int,
    stop: int,
    queries: FloatArray,
    reservoirs: Reservoirs,
    squared: bool,
    allowed: npt.NDArray[np.uint8] | None = None,
) -> float: ...
def merge(lists: Sequence[Reservoirs]) -> Reservoirs: ...
def uncertain(reservoirs: Reservoirs, k: int, n_points: int, error: npt.NDArray[np.float64]) -> BoolArray: ...
def scan_direct(
    X: FloatArray,
    start: int,
    stop: int,
    query: FloatArray,
    metric: int,
    unit: float,
    reservoirs: Reservoirs,
    allowed: npt.NDArray[np.uint8] | None = None,
) -> None: ...
