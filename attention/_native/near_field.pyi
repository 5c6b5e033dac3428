import numpy as np
import numpy.typing as npt
from typing_extensions import disjoint_base

from dci._runtime.types import FloatArray

@disjoint_base
class LocalKeys:
    def __init__(
        self, keys: FloatArray, values: FloatArray, stops: npt.NDArray[np.int64], boundary: int = 0
    ) -> None: ...
