from typing_extensions import disjoint_base

from dci._runtime.types import FloatArray, IdArray

@disjoint_base
class Strays:
    def __init__(self, keys: FloatArray, ids: IdArray, cell_of: IdArray) -> None: ...
    def advance(self, boundary: int) -> None: ...
