import numpy as np
import numpy.typing as npt

def similar_order(coordinates: npt.NDArray[np.float32], leaf: int) -> npt.NDArray[np.int32]: ...
