"""What it costs `dci`, on half of the processors, that other software keeps the other half busy.

The others multiply matrices, without a pause, through PyTorch (which brings MKL, or another BLAS) or NumPy (OpenBLAS):
in another process, or on a thread of the same one. Alone and beside them, `dci` has the same number of threads.
"""

from __future__ import annotations

import contextlib
import gc
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from comparisons.data.datasets import MissingPackageError, optional
from comparisons.harness.results import Row
from comparisons.knn.adapters import DCI
from comparisons.knn.bench import Bench

BESIDE = ("alone", "torch process", "torch thread", "NumPy process", "NumPy thread")
SIZE = 1024  # of the matrices: a product takes some 20 ms a thread
LIMITED = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
ROOT = Path(__file__).resolve().parents[2]


def half() -> int:
    """Return how many threads each side gets."""
    return max(1, (os.cpu_count() or 2) // 2)


def measure(bench: Bench, suite: str, wanted: float, repeats: int) -> None:
    """Fit and ask alone and beside each of the others, once a round, who begins changing from round to round."""
    bench.warm_up(DCI)
    for turn in range(repeats):
        shift = turn % len(BESIDE)
        for beside in (*BESIDE[shift:], *BESIDE[:shift]):
            key = f"round {turn} at {wanted}: {beside}"
            bench.step(suite, key, wanted, lambda beside=beside, turn=turn: _rows(bench, wanted, beside, turn))


def _rows(bench: Bench, wanted: float, beside: str, turn: int) -> list[Row]:
    library, _, kind = beside.partition(" ")
    data, threads = bench.data, half()
    index = DCI.load().DCI(recall=wanted, num_threads=threads, random_state=turn)
    try:
        with _half_of_blas(), busy(library, kind) if kind else contextlib.nullcontext():
            fitted = _seconds(lambda: index.fit(data.points))
            index.query(data.queries, bench.k)  # measures budgets
            asked = _seconds(lambda: index.query(data.queries, bench.k))
    except MissingPackageError as error:
        print(f"  {beside}: left out, {error}", file=sys.stderr)
        return []
    taken = {"fit": fitted, "query": asked}
    return [
        {
            "rival": "dci",
            "threads": threads,
            "operation": f"{what}, {beside}",
            "seconds": [seconds],
            "beside": f"{what}, {BESIDE[0]}",
        }
        for what, seconds in taken.items()
    ]


def _half_of_blas() -> contextlib.AbstractContextManager[Any]:
    return optional("threadpoolctl", "the harness").threadpool_limits(half())


def _seconds(work: Callable[[], Any]) -> float:
    gc.collect()
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


@contextlib.contextmanager
def busy(library: str, kind: str) -> Iterator[None]:
    """Multiply matrices meanwhile, in another process or on another thread of this one."""
    if library == "torch":
        optional("torch", "the suite 'beside'")
    if kind == "process":
        python_path = os.pathsep.join(filter(None, [os.environ.get("PYTHONPATH"), str(ROOT)]))
        environ = {**os.environ, "PYTHONPATH": python_path, **dict.fromkeys(LIMITED, str(half()))}
        command = [sys.executable, "-m", "comparisons.knn.beside", library]
        with subprocess.Popen(command, env=environ, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
            try:
                assert process.stdout is not None
                process.stdout.readline()  # it is at it
                yield
            finally:
                process.kill()
        return
    stop, begun = threading.Event(), threading.Event()
    thread = threading.Thread(target=multiply, args=(library, stop, begun))
    thread.start()
    try:
        begun.wait()
        yield
    finally:
        stop.set()
        thread.join()


def multiply(library: str, stop: threading.Event, begun: threading.Event) -> None:
    """Multiply matrices until told to stop."""
    if library == "torch":
        torch = optional("torch", "the suite 'beside'")
        before = torch.get_num_threads()
        torch.set_num_threads(half())
        a: Any = torch.rand(SIZE, SIZE)
        out: Any = torch.empty_like(a)
    else:
        a = np.random.default_rng(0).random((SIZE, SIZE), dtype=np.float32)
        out = np.empty_like(a)
    try:
        while not stop.is_set():
            if library == "torch":
                torch.mm(a, a, out=out)
            else:
                np.matmul(a, a, out=out)
            begun.set()
    finally:
        begun.set()
        if library == "torch":
            torch.set_num_threads(before)


if __name__ == "__main__":
    begun = threading.Event()
    threading.Thread(target=multiply, args=(sys.argv[1], threading.Event(), begun), daemon=True).start()
    begun.wait()
    print("begun", flush=True)
    sys.stdin.read()  # until the process that started this one ends
