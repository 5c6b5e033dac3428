from typing import final

import numpy as np
import numpy.typing as npt

from .._runtime.types import FloatArray, IdArray
from .codes import Codes

@final
class Rows:
    def __init__(
        self,
        data: FloatArray | Codes,
        scale: float = 1.0,
        row_scale: FloatArray | None = None,
        extra: FloatArray | None = None,
        center: FloatArray | None = None,
    ) -> None: ...
    @property
    def size(self) -> int: ...
    @property
    def width(self) -> int: ...

def prepared(rows: Rows, ids: npt.NDArray[np.integer]) -> FloatArray: ...
def inverse_norms(data: FloatArray | Codes) -> FloatArray: ...
def project(rows: Rows, ids: IdArray, panels: FloatArray, bias: FloatArray, out: FloatArray) -> None: ...
def pack(coordinates: FloatArray, start: int, stop: int, out: FloatArray) -> None: ...
def pack_short(
    coordinates: FloatArray,
    start: int,
    stop: int,
    out: npt.NDArray[np.int16],
    steps: FloatArray,
    norms: FloatArray,
) -> None: ...
def panels_of(coordinates: npt.NDArray[np.floating]) -> FloatArray: ...
def multiply(a: npt.NDArray[np.floating], b: npt.NDArray[np.floating]) -> FloatArray: ...
