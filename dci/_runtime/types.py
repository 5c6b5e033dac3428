"""Names of array types."""

import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.float32]
DoubleArray = npt.NDArray[np.float64]
IdArray = npt.NDArray[np.int32]  # rows of points, as the kernels take them
IndexArray = npt.NDArray[np.int64]  # rows of points, as answers give them; positions and counts
BoolArray = npt.NDArray[np.bool_]
