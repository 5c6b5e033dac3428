import numpy as np
import numpy.typing as npt
from typing_extensions import disjoint_base

_Floats = npt.NDArray[np.float32]
_Ids = npt.NDArray[np.int32]

@disjoint_base
class Field:
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
    def moments(self) -> tuple[float, tuple[_Floats, ...]]: ...
    def restore(self, moments: tuple[float, tuple[_Floats, ...]]) -> None: ...
    def reset(self) -> None: ...
    def exact(
        self,
        queries: _Floats,
        rows: _Ids,
        scale: float,
        out: _Floats,
        stops: npt.NDArray[np.int64],
    ) -> None: ...
    def release(self) -> None: ...
    def advance(self, boundary: int) -> None: ...
    def attend(
        self,
        queries: _Floats,
        order: _Ids,
        scale: float,
        threshold: float,
        keep_far: bool,
        out: _Floats,
        stops: npt.NDArray[np.int64] | None = None,
        boundary: int = 0,
        wanted: npt.NDArray[np.uint8] | None = None,
        reach: float = ...,
        local_keys: _Floats | None = None,
        local_values: _Floats | None = None,
    ) -> tuple[int, _Ids]: ...
