from typing import final

from .._runtime.types import BoolArray, DoubleArray, FloatArray, IdArray, IndexArray
from .codes import Codes
from .kernels import Reservoirs

METRICS: tuple[str, str, str]

@final
class TrueDistances:
    def __init__(self, X: FloatArray | Codes, metric: int, absmax: float) -> None: ...

def rescore(
    points: TrueDistances,
    Q: FloatArray,
    reservoirs: Reservoirs,
    ids: IdArray | None,
    exclude: IdArray | None,
    distances: FloatArray,
    indices: IndexArray,
) -> None: ...
def rescore_bounded(
    points: TrueDistances,
    Q: FloatArray,
    reservoirs: Reservoirs,
    first: int,
    exclude: IdArray | None,
    bounds: DoubleArray,
    distances: FloatArray,
    indices: IndexArray,
) -> BoolArray: ...
