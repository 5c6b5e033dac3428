import numpy as np
import numpy.typing as npt
from typing_extensions import disjoint_base

from .moments import Moments

_Floats = npt.NDArray[np.float32]
_Ids = npt.NDArray[np.int32]

@disjoint_base
class Field(Moments):
    def exact(
        self,
        queries: _Floats,
        rows: _Ids,
        scale: float,
        out: _Floats,
        stops: npt.NDArray[np.int64],
    ) -> None: ...
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
        risks: _Floats | None = None,
    ) -> tuple[int, _Ids]: ...
