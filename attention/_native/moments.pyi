from typing_extensions import disjoint_base

from dci._runtime.types import FloatArray, IdArray

_State = tuple[tuple[float, float], tuple[FloatArray, ...]]

@disjoint_base
class Moments:
    n_keys: int
    n_cells: int
    dim: int
    width: int
    n_directions: int
    counts: IdArray
    def __init__(
        self,
        keys: FloatArray,
        values: FloatArray,
        cell_of: IdArray,
        centers: FloatArray,
        for_keys: FloatArray | None = None,
        for_queries: FloatArray | None = None,
        second_order: bool = True,
    ) -> None: ...
    def state(self) -> _State: ...
    def restore(self, state: _State) -> None: ...
    def reset(self) -> None: ...
    def release(self) -> None: ...
    def advance(self, boundary: int) -> None: ...

def round_up(n: int) -> int: ...
