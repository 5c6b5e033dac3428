import numpy as np
import numpy.typing as npt
from typing_extensions import disjoint_base

from dci._runtime.types import FloatArray, IdArray

from .moments import Moments
from .near_field import LocalKeys

@disjoint_base
class Field(Moments):
    lse: FloatArray | None
    apart: float
    def __init__(
        self,
        keys: FloatArray,
        values: FloatArray,
        cell_of: IdArray,
        centers: FloatArray,
        for_keys: FloatArray | None = None,
        for_queries: FloatArray | None = None,
        second_order: bool = True,
        *,
        scale: float,
        keep_far: bool = True,
        strays: IdArray = ...,
    ) -> None: ...
    def attend_rows(
        self,
        queries: FloatArray,
        order: IdArray,
        threshold: float,
        out: FloatArray,
        local: LocalKeys | None = None,
        wanted: npt.NDArray[np.uint8] | None = None,
        reach: float = ...,
        risks: FloatArray | None = None,
    ) -> tuple[int, IdArray]: ...
    def exact_rows(self, queries: FloatArray, rows: IdArray, out: FloatArray, local: LocalKeys) -> None: ...
