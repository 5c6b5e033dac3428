import numpy as np
import numpy.typing as npt

from .._runtime.types import IdArray

def read_rows(descriptor: int, start: int, ids: IdArray, out: npt.NDArray[np.uint8]) -> None: ...
