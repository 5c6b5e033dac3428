from typing import overload

import numpy as np
import numpy.typing as npt
from typing_extensions import disjoint_base

from .._runtime.types import BoolArray, FloatArray

@disjoint_base
class Codes:
    def __init__(
        self,
        array: npt.NDArray[np.float16] | npt.NDArray[np.int8],
        steps: FloatArray,
        offsets: FloatArray | None = None,
    ) -> None: ...
    @property
    def array(self) -> npt.NDArray[np.float16] | npt.NDArray[np.int8]: ...
    @property
    def steps(self) -> FloatArray: ...
    @property
    def offsets(self) -> FloatArray | None: ...
    @property
    def shape(self) -> tuple[int, int]: ...
    @property
    def base(self) -> object: ...
    @property
    def nbytes(self) -> int: ...
    def __len__(self) -> int: ...
    @overload
    def __getitem__(self, key: slice) -> Codes: ...
    @overload
    def __getitem__(self, key: npt.NDArray[np.integer] | BoolArray) -> FloatArray: ...

def encode_bytes(
    rows: FloatArray, steps: FloatArray, offsets: FloatArray, out: npt.NDArray[np.int8], with_factors: bool = False
) -> float: ...
