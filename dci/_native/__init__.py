"""Cython modules without the GIL, over C kernels in ``csrc``, one file an instruction set, chosen at run time.

Part of the floor that `attention` stands on, with `dci._geometry` and `dci._runtime`; imports nothing of the package.
"""
