"""What runs here."""

from .._native import kernels as native_kernels
from .validation import check_num_threads


def show_config() -> None:
    """Print the version, the instruction sets and the number of threads.

    The instruction set can be chosen with the environment variable DCI_SIMD, the default number of
    threads with DCI_NUM_THREADS.
    """
    from .. import __version__  # which this module is imported by

    print(f"version: {__version__}")
    print(f"instruction set: {native_kernels.simd()} (available: {', '.join(native_kernels.simd_available())})")
    print(f"threads: {check_num_threads(None)}")
