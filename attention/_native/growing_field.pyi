from typing_extensions import disjoint_base

from dci._runtime.types import FloatArray, IdArray

from .growing_cells import GrowingCells
from .near_field import LocalKeys

@disjoint_base
class ExactRows:
    n_keys: int
    def __init__(self, queries: FloatArray, width: int, scale: float) -> None: ...
    def take(self, keys: FloatArray, values: FloatArray) -> None: ...
    def write(self, out: FloatArray) -> None: ...

@disjoint_base
class GrowingField(GrowingCells):
    def __init__(
        self,
        n_cells: int,
        for_keys: FloatArray,
        for_queries: FloatArray,
        width: int,
        second_order: bool,
        scale: float,
        keep_far: bool,
    ) -> None: ...
    def release(self) -> None: ...
    def attend_rows(
        self,
        queries: FloatArray,
        rows: IdArray,
        threshold: float,
        out: FloatArray,
        local: LocalKeys | None = None,
        risks: FloatArray | None = None,
        most_risks: FloatArray | None = None,
    ) -> int: ...
