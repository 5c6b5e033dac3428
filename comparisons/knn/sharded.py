"""Shards in worker processes of this machine, beside one index of as many threads; and what merging and asking cost.

The points are made on the workers, block by block, and lie there before anything is timed, as they lie in this process
for the one index. Both are fitted and asked in turns. What a worker holds is what the kernel counts: resident memory
after fitting less that before there were points, as a multiple of its points and structures.
"""

from __future__ import annotations

import gc
import itertools
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

from comparisons.data.datasets import MissingPackageError
from comparisons.data.mixture import BLOCK, Mixture
from comparisons.harness.machine import status_bytes
from comparisons.harness.results import Row, Run
from comparisons.harness.truth import TIE
from comparisons.knn.adapters import DCI
from comparisons.knn.out_of_core import kth_distance, make

K = 10
QUERIES, SAMPLE = 10_000, 1_000  # asked; of these, whose exact answers are known
CELL_SHARDS = 4  # a worker, where queries visit some of them
MERGED = 16  # answers, as the tree merges them at once
MANY = 64  # shards so small that what is left is what asking one costs
TINY = 50  # points of each of those
SINGLE = 5


def measure(run: Run, suite: str, name: str, wanted: float, repeats: int, n_queries: int = QUERIES) -> None:
    """Measure a mixture of a size, ``mixture-<n>k-<dim>``."""
    _, thousands, dim = name.split("-")
    shape = int(thousands.removesuffix("k")) * 1000, int(dim)
    context = {"suite": suite, "data": name, "n": shape[0], "dim": shape[1], "wanted": wanted, "rival": "dci", "k": K}
    context |= {"threads": run.threads, "queries": n_queries}

    def rows() -> list[Row]:
        with workers(run.threads) as client:
            queries = Mixture(shape[1]).queries(n_queries)
            return [context | row for row in _measured(client, shape, queries, wanted, run.threads, repeats)]

    run.step(f"{suite} | {name} at {wanted}", rows)


@contextmanager
def workers(count: int) -> Iterator[Any]:
    """Give a client of so many processes of one thread each."""
    try:
        import distributed
    except ImportError:
        raise MissingPackageError("the suite sharded needs Dask: pip install 'dci-attention[dask]'") from None
    options = {"threads_per_worker": 1, "dashboard_address": ":0", "silence_logs": 50, "memory_limit": 0}
    with (
        distributed.LocalCluster(n_workers=count, **options) as cluster,
        distributed.Client(cluster, set_as_default=False) as client,
    ):
        client.wait_for_workers(count)
        yield client


def _measured(
    client: Any, shape: tuple[int, int], queries: np.ndarray, wanted: float, threads: int, repeats: int
) -> Iterator[Row]:
    import dask.array as da

    from dci.dask import ShardedDCI

    n = shape[0]
    points = make(Mixture(shape[1]), n)
    radius = kth_distance(points, queries[:SAMPLE], K)
    client.run(_warm_up)
    before = client.run(status_bytes, "VmRSS")
    X = _persisted(client, shape, threads)
    if not np.array_equal(X[-1].compute(scheduler=client), points[-1]):
        raise AssertionError("the workers made other points")

    def of_one(seed: int) -> Any:
        return DCI.load().DCI(recall=wanted, num_threads=threads, random_state=seed)

    def of_shards(seed: int, **options: Any) -> Any:
        return ShardedDCI(recall=wanted, client=client, random_state=seed, **options)

    ways: dict[str, tuple[Callable[[int], Any], Any]] = {"one": (of_one, points), "sharded": (of_shards, X)}
    for turn in range(repeats):
        for way in sorted(ways, reverse=turn % 2 == 1):
            make_index, where = ways[way]
            gc.collect()
            index = make_index(turn)
            used = _processor_seconds(client)
            fit, _ = _timed(lambda index=index, where=where: index.fit(where))
            asked, found = _timed(lambda index=index: index.query(queries, K))
            row = {"operation": way, "build_seconds": [fit], "query_seconds": [asked], "points": n}
            row |= {"processor": _processor_seconds(client) - used}
            row |= {"recall": _recall(points, queries, found.indices, radius)}
            if way == "sharded":
                held = [now - before[worker] for worker, now in client.run(status_bytes, "VmRSS").items()]
                row |= {"memory": sum(held) / index.stats_.nbytes, "visited": index.stats_.shards_visited}
            yield row
            del index
    cells = of_shards(0, partition="cells", shard_bytes=-(-points.nbytes // (CELL_SHARDS * threads)))
    fit, _ = _timed(lambda: cells.fit(X))
    asked, found = _timed(lambda: cells.query(queries, K))
    yield {
        "operation": "cells", "build_seconds": [fit], "query_seconds": [asked], "points": n,
        "recall": _recall(points, queries, found.indices, radius),
        "visited": cells.stats_.shards_visited / cells.n_shards, "shards": cells.n_shards,
    }  # fmt: skip
    yield from _costs(client, da, of_shards, len(queries))


def _costs(client: Any, da: Any, of_shards: Callable[..., Any], n_queries: int) -> Iterator[Row]:
    """Measure what the model of docs/sharding.md stands on: merging, a task, and moving answers."""
    import dci

    rng = np.random.default_rng(0)
    answers = [
        dci.Neighbors(
            np.sort(rng.random((n_queries, K), np.float32), axis=1),
            rng.permutation(n_queries * K).reshape(n_queries, K) + part * n_queries * K,
        )
        for part in range(MERGED)
    ]
    taken = min(_timed(lambda: dci.merge(answers, K))[0] for _ in range(3))
    yield {"operation": "merge", "seconds": [taken], "asked": n_queries, "each": taken / (MERGED * n_queries * K)}
    tiny = da.from_array(rng.standard_normal((MANY * TINY, 8)).astype(np.float32), chunks=(TINY, -1))
    index = of_shards(0).fit(tiny)
    query = rng.standard_normal(8)
    index.query(query, K)
    single = float(np.median([_timed(lambda: index.query(query, K))[0] for _ in range(SINGLE)]))
    yield {"operation": "one query", "seconds": [single], "asked": 1, "shards": MANY, "each": single / MANY}
    size = 64 << 20
    future = client.submit(np.zeros, size, np.uint8)
    client.gather(client.submit(len, future))
    taken = min(_timed(lambda: client.gather(future, direct=True))[0] for _ in range(3))
    yield {"operation": "move", "seconds": [taken], "bytes": size, "each": taken / size}


def _persisted(client: Any, shape: tuple[int, int], count: int) -> Any:
    """Return the points as a Dask array of a chunk for each worker, which lie there."""
    import dask
    import dask.array as da

    bounds = [round(part * shape[0] / count) for part in range(count + 1)]
    chunks = [
        da.from_delayed(dask.delayed(_rows)(shape, start, stop), (stop - start, shape[1]), np.float32)
        for start, stop in itertools.pairwise(bounds)
    ]
    X = client.persist(da.concatenate(chunks))
    import distributed

    with client.as_current():
        distributed.wait(X)
    return X


def _rows(shape: tuple[int, int], start: int, stop: int) -> np.ndarray:
    """Return rows of a mixture of a size."""
    mixture, rows = Mixture(shape[1]), np.empty((stop - start, shape[1]), np.float32)
    for number in range(start // BLOCK, -(-stop // BLOCK)):
        first = number * BLOCK
        block = mixture.block(number, min(BLOCK, shape[0] - first))
        some = block[max(start - first, 0) : stop - first]
        at = max(first - start, 0)
        rows[at : at + len(some)] = some
    return rows


def _processor_seconds(client: Any) -> float:
    """Return what this process and the workers have taken of processors: what others do hardly changes it."""
    return time.process_time() + sum(client.run(time.process_time).values())


def _warm_up() -> None:
    import dci.dask

    rng = np.random.default_rng(0)
    points = rng.standard_normal((5000, 16)).astype(np.float32)
    dci.DCI(n_levels=2, num_threads=1, random_state=0).fit(points).query(points[:100])


def _timed(work: Callable[[], Any]) -> tuple[float, Any]:
    start = time.perf_counter()
    result = work()
    taken = time.perf_counter() - start
    print(f"  sharded: {taken:.3f} s", file=sys.stderr, flush=True)
    return taken, result


def _recall(points: np.ndarray, queries: np.ndarray, ids: np.ndarray, radius: np.ndarray) -> float:
    found = points[ids[:SAMPLE]] - queries[:SAMPLE, None]
    return float(np.mean(np.sqrt(np.einsum("qkd,qkd->qk", found, found)) <= radius[:, None] * (1 + TIE)))
