import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.float32]
IdArray = npt.NDArray[np.int32]

class Field:
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
    def moments(self) -> tuple[float, tuple[FloatArray, ...]]: ...
    def restore(self, moments: tuple[float, tuple[FloatArray, ...]]) -> None: ...
    def reset(self) -> None: ...
    def exact(
        self,
        queries: FloatArray,
        rows: IdArray,
        scale: float,
        out: FloatArray,
        stops: npt.NDArray[np.int64],
    ) -> None: ...
    def release(self) -> None: ...
    def advance(self, boundary: int) -> None: ...
    def attend(
        self,
        queries: FloatArray,
        order: IdArray,
        scale: float,
        threshold: float,
        keep_far: bool,
        out: FloatArray,
        stops: npt.NDArray[np.int64] | None = None,
        boundary: int = 0,
        wanted: npt.NDArray[np.uint8] | None = None,
        reach: float = ...,
        local_keys: FloatArray | None = None,
        local_values: FloatArray | None = None,
    ) -> tuple[int, IdArray]: ...
