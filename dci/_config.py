"""What runs here."""

from importlib.metadata import PackageNotFoundError, version

from . import _kernels
from ._validate import check_num_threads


def show_config() -> None:
    """Print the version, the instruction sets and the number of threads.

    The instruction set can be chosen with the environment variable DCI_SIMD, the default number of
    threads with DCI_NUM_THREADS.
    """
    try:
        installed = version("dci-attention")
    except PackageNotFoundError:
        installed = "not installed"
    print(f"version: {installed}")
    print(f"instruction set: {_kernels.simd()} (available: {', '.join(_kernels.simd_available())})")
    print(f"threads: {check_num_threads(None)}")
