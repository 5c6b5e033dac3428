"""Which points a shard has: a chunk's, or those of some coarse cells."""

from typing import Any

import numpy as np
from dask.delayed import Delayed, delayed

from .._runtime.types import FloatArray, IndexArray
from .._shards import tasks
from .._shards.coarse import SAMPLE_PER_CELL, Coarse, n_cells_of
from .graphs import literal
from .scheduler import Scheduler

Blocks = list[tuple[tasks.Block, Delayed]]


def by_chunks(
    blocks: Blocks, ids: IndexArray | None, settings: dict[str, Any], sample: FloatArray | None, seed: int
) -> list[Delayed]:
    """Return tasks of shards, one of each chunk."""
    shared = None if sample is None else literal(sample)
    return [
        delayed(tasks.fit_shard, pure=False)(
            rows, _part(ids, block), literal(block), _of_shard(settings, seed, number), shared, tasks.version()
        )
        for number, (block, rows) in enumerate(blocks)
    ]


def by_cells(
    blocks: Blocks,
    ids: IndexArray | None,
    settings: dict[str, Any],
    sample: FloatArray | None,
    seed: int,
    n_shards: int,
    scheduler: Scheduler,
) -> tuple[list[Delayed], Coarse]:
    """Return tasks of shards of near points, and the cells that these go by."""
    n = blocks[-1][0].stop
    n_cells = n_cells_of(n_shards, n)
    rng = np.random.default_rng([seed, 0])
    places = np.sort(rng.choice(n, min(n, SAMPLE_PER_CELL * n_cells), replace=False))
    samples = []
    for block, rows in blocks:
        some = places[np.searchsorted(places, block.start) : np.searchsorted(places, block.stop)] - block.start
        samples.append(delayed(tasks.sample_rows, pure=False)(rows, literal(block), some))
    order = rng.permutation(len(places))
    make = delayed(tasks.make_coarse, pure=False)(samples, order, settings["metric"], n_shards, n_cells)
    # It comes here and is sent with the tasks: made again, on another processor, it could be another one.
    (coarse,) = scheduler.run([make])
    shared, cells = None if sample is None else literal(sample), literal(coarse)
    pieces = [
        delayed(tasks.split_block, pure=False)(rows, _part(ids, block), literal(block), cells, tasks.version())
        for block, rows in blocks
    ]
    shards = [
        delayed(tasks.fit_pieces, pure=False)(
            [delayed(tasks.piece_of, pure=False)(some, number) for some in pieces],
            _of_shard(settings, seed, number),
            shared,
        )
        for number in range(n_shards)
    ]
    return shards, coarse


def _of_shard(settings: dict[str, Any], seed: int, number: int) -> dict[str, Any]:
    """Return the arguments of one shard, with a seed of its own."""
    own = int(np.random.default_rng([seed, 2, number]).integers(2**63))
    return {name: settings[name] for name in ("metric", "recall", "num_threads")} | {"random_state": own}


def _part(ids: IndexArray | None, block: tasks.Block) -> IndexArray | None:
    return None if ids is None else ids[block.start : block.stop]
