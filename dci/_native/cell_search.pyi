import numpy as np
import numpy.typing as npt

from .._runtime.types import FloatArray, IdArray
from .cells import Cells
from .kernels import Reservoirs

def search(
    cells: Cells,
    queries: FloatArray,
    max_visits: int,
    use_max: bool,
    reservoirs: Reservoirs,
    allowed: npt.NDArray[np.uint8] | None = None,
    sizes: IdArray | None = None,
) -> None: ...
def allowed_lanes(cells: Cells, allowed: npt.NDArray[np.uint8]) -> tuple[npt.NDArray[np.uint8], IdArray]: ...
def positions(reservoirs: Reservoirs, keep: int) -> npt.NDArray[np.int64]: ...
def find_ranks(
    places: npt.NDArray[np.int64],
    wanted: npt.NDArray[np.int64],
    own: npt.NDArray[np.int64],
    ranks: npt.NDArray[np.int64],
    workspace: IdArray,
) -> None: ...
def count_below(scores: FloatArray, limits: FloatArray) -> npt.NDArray[np.int64]: ...
