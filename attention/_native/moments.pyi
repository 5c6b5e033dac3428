import numpy as np
import numpy.typing as npt
from typing_extensions import disjoint_base

_Floats = npt.NDArray[np.float32]
_Ids = npt.NDArray[np.int32]

@disjoint_base
class Moments:
    n_keys: int
    n_cells: int
    dim: int
    width: int
    n_directions: int
    counts: _Ids
    def __init__(
        self,
        keys: _Floats,
        values: _Floats,
        cell_of: _Ids,
        centers: _Floats,
        for_keys: _Floats | None = None,
        for_queries: _Floats | None = None,
        second_order: bool = True,
    ) -> None: ...
    def moments(self) -> tuple[tuple[float, float], tuple[_Floats, ...]]: ...
    def restore(self, moments: tuple[tuple[float, float], tuple[_Floats, ...]]) -> None: ...
    def reset(self) -> None: ...
    def release(self) -> None: ...
    def advance(self, boundary: int) -> None: ...

def round_up(n: int) -> int: ...
