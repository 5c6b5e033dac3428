"""What one head of keys writes for its queries."""

from typing import NamedTuple

from dci._runtime.types import FloatArray


class Output(NamedTuple):
    """Arrays that are written.

    Attributes
    ----------
    rows : (G, L, Ev) float32
    lse : (G * L,) float32, optional
        The logarithm of each query's normaliser, the sum of the exponentials of its scores.
    """

    rows: FloatArray
    lse: FloatArray | None = None
