"""What one core of this machine can do at most, measured: products, exponentials, copies.

The kernels in C have no wrappers in Python; their table is read where the library has it. `FIELDS` are the fields of
`dci_kernels` in `dci/_native/csrc/kernels.h`, which a test compares.
"""

from __future__ import annotations

import ctypes
import time
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from comparisons.data.datasets import ComparisonError
from comparisons.profile.clock import Amount
from dci._native import kernels

FIELDS = (
    "name", "affine", "scan_sum", "scan_short", "widen", "scan_max", "argmin", "prepare", "decode_halves",
    "decode_bytes", "transpose", "norm2", "absmax_bits", "distance2", "dot", "combine", "exponentials", "largest",
    "take_above", "overlap",
)  # fmt: skip
_ROUNDS, _AT_ONCE = 100, 20  # of a kernel's call; the best round counts
_PRODUCTS = 15  # by PyTorch
_ROWS, _WIDTH, _KEYS = 48, 128, 256  # queries, coordinates and keys of a tile: 0.2 MB
_MATRIX = 1_024
_POINTER, _SIZE = ctypes.c_void_p, ctypes.c_ssize_t


class Limits(NamedTuple):
    """What can be done in a second, at most.

    Attributes
    ----------
    kernel_flops, torch_flops : float
        Of products in float32: by the kernel `affine`, by a large product of PyTorch, 0 without it.
    exps : float
        Of the kernel `exponentials`.
    bytes : float
        Read and written by a copy of more than fits into caches.
    """

    kernel_flops: float
    torch_flops: float
    exps: float
    bytes: float

    @property
    def flops(self) -> float:
        return max(self.kernel_flops, self.torch_flops)

    def seconds(self, amount: Amount) -> float:
        """Return the least time that work can take: its arithmetic or its memory, whichever takes longer."""
        return max(amount.flops / self.flops + amount.exps / self.exps, amount.bytes / self.bytes)

    def better(self, other: Limits) -> Limits:
        return Limits(*map(max, self, other))


def measure(smoke: bool = False) -> Limits:
    """Measure this machine, one thread; `smoke` on little data."""
    megabytes = 4 if smoke else 256
    source = np.ones(megabytes << 18, np.float32)
    target = np.zeros_like(source)
    copied = 2 * source.nbytes / _best(lambda: np.copyto(target, source), 3 if smoke else 7)
    return Limits(_kernel_flops(), _torch_flops(), _exponentials(), copied)


def _kernel(name: str, *arguments: type) -> Callable[..., None]:
    """Return a kernel of the table in use."""

    class Table(ctypes.Structure):
        _fields_ = tuple((field, ctypes.c_char_p if field == "name" else _POINTER) for field in FIELDS)

    try:
        find = ctypes.CDLL(kernels.__file__).dci_find_kernels
    except (OSError, AttributeError) as error:
        raise ComparisonError(f"cannot measure the kernels of dci: this build hides them ({error})") from error
    find.restype, find.argtypes = ctypes.POINTER(Table), (ctypes.c_char_p,)
    found = find(kernels.simd().encode())
    return ctypes.CFUNCTYPE(None, *arguments)(getattr(found.contents, name))


def _kernel_flops() -> float:
    rng = np.random.default_rng(0)
    queries = rng.standard_normal((_ROWS, _WIDTH), dtype=np.float32)
    panels = rng.standard_normal((_KEYS // kernels.LANES, _WIDTH, kernels.LANES), dtype=np.float32)
    bias, out = np.zeros(_KEYS, np.float32), np.empty((_ROWS, _KEYS), np.float32)
    rows = (ctypes.c_void_p * _ROWS)(*(row.ctypes.data for row in queries))
    affine = _kernel("affine", _POINTER, _SIZE, _SIZE, _POINTER, _POINTER, _SIZE, _POINTER, _SIZE)
    of_call = rows, _ROWS, _WIDTH, panels.ctypes.data, bias.ctypes.data, len(panels), out.ctypes.data, _KEYS
    return 2 * _ROWS * _WIDTH * _KEYS / _best(lambda: affine(*of_call), _ROUNDS, _AT_ONCE)


def _exponentials() -> float:
    scores = np.zeros((_ROWS, _KEYS), np.float32)
    shifts, sums = np.ones(_ROWS, np.float32), np.zeros(_ROWS, np.float32)
    kernel = _kernel("exponentials", _POINTER, _SIZE, _SIZE, _SIZE, _POINTER, _POINTER)
    of_call = scores.ctypes.data, _KEYS, _ROWS, _KEYS, shifts.ctypes.data, sums.ctypes.data
    return scores.size / _best(lambda: kernel(*of_call), _ROUNDS, _AT_ONCE)


def _torch_flops() -> float:
    try:
        import torch
    except ImportError:
        return 0.0
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        a, b = torch.ones(_MATRIX, _MATRIX), torch.ones(_MATRIX, _MATRIX)
        return 2 * _MATRIX**3 / _best(lambda: a @ b, _PRODUCTS)
    finally:
        torch.set_num_threads(before)


def _best(call: Callable[[], object], rounds: int, at_once: int = 1) -> float:
    """Return the least processor time of a call, `at_once` of them measured together."""
    call()
    best = np.inf
    for _ in range(rounds):
        begin = time.thread_time()
        for _ in range(at_once):
            call()
        best = min(best, (time.thread_time() - begin) / at_once)
    return float(best)
