"""Cython modules of the near field and the far field, over the C kernels of `dci._native`."""
