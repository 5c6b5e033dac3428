"""An index that is larger than the memory it is asked in: made and saved here, mapped and asked in its own process.

The points are made in blocks, and held while the index is fitted and the truth of a sample of queries is found. The
process that asks is a new one, and the file is out of the system's memory when it opens it, as after a restart: what it
holds is what the kernel counts, its own memory (RssAnon) and pages of files (RssFile).
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from comparisons.data.datasets import ComparisonError
from comparisons.data.mixture import BLOCK, Mixture
from comparisons.harness.machine import status_bytes
from comparisons.harness.results import Row, Run
from comparisons.harness.truth import TIE
from comparisons.knn.adapters import DCI

K = 10
SAMPLE = 300  # queries whose exact answers are known
MORE = 3_000  # queries that are asked after these, for their time
SINGLE = 200
ROOT = Path(__file__).resolve().parents[2]


def measure(run: Run, suite: str, name: str, wanted: float) -> None:
    """Measure a mixture of a size, ``mixture-<n>k-<dim>``."""
    _, thousands, dim = name.split("-")
    shape = int(thousands.removesuffix("k")) * 1000, int(dim)
    context = {"suite": suite, "data": name, "n": shape[0], "dim": shape[1], "wanted": wanted, "rival": "dci", "k": K}
    context |= {"threads": run.threads, "queries": SAMPLE}

    def rows() -> list[Row]:
        with tempfile.TemporaryDirectory(prefix="out-of-core-", dir=run.path and run.path.parent) as folder:
            return [context | row for row in _measured(Path(folder), shape, wanted, run.threads)]

    run.step(f"{suite} | {name} at {wanted}", rows)


def _measured(folder: Path, shape: tuple[int, int], wanted: float, threads: int) -> list[Row]:
    mixture, n = Mixture(shape[1]), shape[0]
    queries = mixture.queries(SAMPLE + MORE)
    path, asked, answers = (folder / name for name in ("index", "queries.npy", "answers.npy"))
    np.save(asked, queries)
    rows: list[Row] = []

    def step(operation: str, work: Callable[[], Any], **more: Any) -> Any:
        print(f"  out_of_core: {n:,} x {shape[1]} | {operation}", file=sys.stderr, flush=True)
        start = time.perf_counter()
        result = work()
        rows.append({"operation": operation, "seconds": [time.perf_counter() - start], **more})
        return result

    points = step("make", lambda: make(mixture, n), bytes=4 * n * shape[1])
    radius = step("truth", lambda: kth_distance(points, queries[:SAMPLE], K), points=n)
    index = DCI.load().DCI(recall=wanted, num_threads=threads, random_state=0)
    step("fit", lambda: index.fit(points), points=n)
    step("save", lambda: index.save(path))
    rows[-1]["bytes"] = path.stat().st_size
    rows[-1]["resident"] = {"peak": status_bytes("VmHWM")}
    evict(path)
    rows += [row | {"bytes": path.stat().st_size} for row in _apart(path, asked, answers, threads)]
    ids = np.load(answers)
    found = points[ids] - queries[:SAMPLE, None]
    distances = np.sqrt(np.einsum("qkd,qkd->qk", found, found))
    rows[-1]["recall"] = float(np.mean(distances <= radius[:, None] * (1 + TIE)))
    return rows


def make(mixture: Mixture, n: int) -> np.ndarray:
    """Return the points of a mixture, made in blocks."""
    points = np.empty((n, mixture.dim), np.float32)
    for at, block in zip(range(0, n, BLOCK), mixture.blocks(n), strict=True):
        points[at : at + len(block)] = block
    return points


def kth_distance(points: np.ndarray, queries: np.ndarray, k: int) -> np.ndarray:
    """Return each query's distance to its true k-th neighbour, in blocks of points."""
    best = np.full((len(queries), k), np.inf, np.float32)
    for at in range(0, len(points), BLOCK):
        block = points[at : at + BLOCK]
        scores = np.einsum("nd,nd->n", block, block) - 2 * (queries @ block.T)
        scores += np.einsum("qd,qd->q", queries, queries)[:, None]  # squared distances, but for rounding
        near = scores <= np.square(best[:, -1:]) * (1 + 1e-3) + 1e-3
        for i in np.flatnonzero(near.any(axis=1)):
            some = np.flatnonzero(near[i])
            if len(some) > 4 * k:
                some = some[np.argpartition(scores[i, some], 4 * k)[: 4 * k]]
            distances = np.linalg.norm(block[some] - queries[i], axis=1)
            best[i] = np.sort(np.concatenate([best[i], distances]))[:k]
    return best[:, -1]


def evict(path: Path) -> None:
    """Take a file out of the system's memory, as far as the system follows."""
    if hasattr(os, "posix_fadvise"):
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        finally:
            os.close(descriptor)


def _apart(path: Path, asked: Path, answers: Path, threads: int) -> list[Row]:
    command = [sys.executable, "-m", "comparisons.knn.out_of_core", str(path), str(asked), str(answers), str(threads)]
    python_path = os.pathsep.join(filter(None, [os.environ.get("PYTHONPATH"), str(ROOT)]))
    environ = {**os.environ, "PYTHONPATH": python_path}
    done = subprocess.run(command, env=environ, capture_output=True, text=True, check=False)
    if done.returncode:
        raise ComparisonError(f"asking the mapped index failed: {' '.join(done.stderr.split())[-300:]}")
    rows: list[Row] = json.loads(done.stdout.splitlines()[-1])
    return rows


# ------------------------------------------------------------------------------------ the process that asks


class Resident:
    """The most that this process has held since it began, and of what kind, looked at a hundred times a second."""

    def __init__(self) -> None:
        self.most = {"RssAnon": 0, "RssFile": 0}
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> Resident:
        self._thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._done.set()
        self._thread.join()

    def now(self) -> dict[str, int]:
        """Return the peak of all (the kernel's own), and the most of each kind that was seen."""
        for kind in self.most:
            self.most[kind] = max(self.most[kind], status_bytes(kind))
        return {"peak": status_bytes("VmHWM"), "anon": self.most["RssAnon"], "file": self.most["RssFile"]}

    def _watch(self) -> None:
        while not self._done.wait(0.01):
            self.now()


def ask(path: str, queries: np.ndarray, threads: int) -> tuple[list[Row], np.ndarray]:
    """Map an index and ask it; return what everything took, and the answers to the sample."""
    import dci

    rows: list[Row] = []
    with Resident() as resident:

        def step(operation: str, work: Callable[[], Any], count: int = 0) -> Any:
            start = time.perf_counter()
            result = work()
            row = {"operation": operation, "seconds": [time.perf_counter() - start], "resident": resident.now()}
            rows.append(row | ({"asked": count} if count else {}))
            return result

        index = step("map", lambda: dci.load(path, mmap=True))
        step("map again", lambda: dci.load(path, mmap=True))  # what it looks at is in the system's memory by now
        index.set_params(num_threads=threads)
        sample, more, single = queries[:SAMPLE], queries[SAMPLE:], []
        step("first answer", lambda: index.query(queries[-1], K), 1)
        for query in more[:SINGLE]:
            start = time.perf_counter()
            index.query(query, K)
            single.append(time.perf_counter() - start)
        rows.append(
            {"operation": "one by one", "seconds": [statistics.median(single)], "resident": resident.now(), "asked": 1}
        )
        step("batch", lambda: index.query(more, K), len(more))
        step("batch again", lambda: index.query(more, K), len(more))
        ids = step("sample", lambda: index.query(sample, K), len(sample)).indices
    return rows, ids


if __name__ == "__main__":
    made, ids = ask(sys.argv[1], np.load(sys.argv[2]), int(sys.argv[4]))
    np.save(sys.argv[3], ids)
    print(json.dumps(made))
