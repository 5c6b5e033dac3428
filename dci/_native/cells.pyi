from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from typing_extensions import disjoint_base

from .._runtime.types import FloatArray, IdArray

def nearest(coordinates: FloatArray, centers: FloatArray, bias: FloatArray, out: IdArray, gap: FloatArray) -> None: ...
def nearest_by_region(
    coordinates: FloatArray,
    regions: FloatArray,
    region_bias: FloatArray,
    centers: FloatArray,
    bias: FloatArray,
    names: IdArray,
    out: IdArray,
    gap: FloatArray,
) -> None: ...

class CellArrays(NamedTuple):
    coordinates: FloatArray | npt.NDArray[np.int16]
    bias: FloatArray
    ids: IdArray
    first_panel: IdArray
    sizes: IdArray
    centers: FloatArray
    center_bias: FloatArray
    n_centers: int
    steps: FloatArray | None = None

@disjoint_base
class Cells:
    def __init__(self, arrays: CellArrays) -> None: ...
    @property
    def arrays(self) -> CellArrays: ...
    @property
    def quantized(self) -> bool: ...
    @property
    def n_centers(self) -> int: ...
    @property
    def n_cells(self) -> int: ...
    @property
    def n_composite(self) -> int: ...
    @property
    def n_simple(self) -> int: ...
