"""Threads, BLAS and forks.

Part of the floor that `attention` stands on, with `dci._geometry` and `dci._native`; imports nothing of the package.
"""
