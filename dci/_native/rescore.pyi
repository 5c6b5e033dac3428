import numpy as np
import numpy.typing as npt

from .._runtime.types import FloatArray, IdArray
from .kernels import Reservoirs

METRICS: tuple[str, str, str]

def rescore(
    X: FloatArray,
    Q: FloatArray,
    reservoirs: Reservoirs,
    n_lists: int,
    ids: IdArray | None,
    exclude: IdArray | None,
    metric: int,
    absmax: float,
    distances: FloatArray,
    indices: npt.NDArray[np.int64],
) -> None: ...
