"""Names of array types."""

import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.float32]
IdArray = npt.NDArray[np.int32]
BoolArray = npt.NDArray[np.bool_]
