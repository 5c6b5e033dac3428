from typing import Self

import numpy as np
import numpy.typing as npt
from typing_extensions import disjoint_base

from dci._runtime.types import FloatArray, IdArray

@disjoint_base
class GrowingCells:
    n_cells: int
    dim: int
    width: int
    n_directions: int
    n_keys: int
    counts: IdArray
    def __init__(
        self, n_cells: int, for_keys: FloatArray, for_queries: FloatArray, width: int, second_order: bool = True
    ) -> None: ...
    def copy(self) -> Self: ...
    def reserve(self, more: npt.NDArray[np.integer]) -> None: ...
    def append(self, keys: FloatArray, values: FloatArray, cell_of: IdArray) -> None: ...
