import numpy as np
import numpy.typing as npt

from .cells import Cells

def insert(cells: Cells, new: Cells, use_max: bool) -> Cells: ...
def remove(cells: Cells, positions: npt.NDArray[np.int64], use_max: bool) -> Cells: ...
