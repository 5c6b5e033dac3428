"""Which shards ids and points belong to, and shards of which some have changed."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import dask.array as da
import numpy as np
import numpy.typing as npt
from dask.delayed import Delayed, delayed

from .._api import validation as check
from .._runtime.fork import Lock
from .._runtime.types import IndexArray
from .._shards.shard import Shard, ShardInfo
from .._store.ids import check_different
from ..errors import InvalidValueError
from .graphs import Shards, literal
from .scheduler import Scheduler

_MEASURE_AGAIN = 1.5  # times as many points, or as few, as when budgets were measured


def infos_of(scheduler: Scheduler, kept: Sequence[Delayed]) -> tuple[ShardInfo, ...]:
    """Return what is known of shards, once they are made."""
    return tuple(scheduler.run([delayed(Shard.info, pure=False)(task) for task in kept]))


def given_ids(ids: Any, n: int) -> IndexArray | None:
    """Return the ids that a fit was given, n different ones."""
    if ids is None:
        return None
    given = check.as_ids(ids.compute() if isinstance(ids, da.Array) else ids, "ids", n)
    check_different(given)
    return given


def allowed_ids(shards: Shards, filter: npt.ArrayLike | None) -> tuple[list[IndexArray | None], int | None]:
    """Ids that a filter allows in each shard, and how many they are; None for all."""
    if filter is None:
        return [None] * len(shards.tasks), None
    n = shards.n
    if check.is_mask(filter):
        if shards.next_id != n or any(info.first_id < 0 for info in shards.infos):
            raise InvalidValueError(
                "filter: expected ids, since those of the points are not 0, …, n - 1, received a mask"
            )
        ids = check.as_filter(filter, n, "filter").ids.astype(np.int64)
    else:
        ids = np.unique(check.as_ids(filter, "filter"))
        missing = ids[owners_of(shards, ids) < 0]
        if len(missing):
            raise InvalidValueError(f"filter: expected ids of the index, received {missing[0]}")
    if len(ids) == n:
        return [None] * len(shards.tasks), None
    parts: list[IndexArray | None] = [
        ids[np.searchsorted(ids, info.first_id) : np.searchsorted(ids, info.last_id, side="right")]
        for info in shards.infos
    ]
    return parts, len(ids)


def owners_of(shards: Shards, ids: IndexArray) -> IndexArray:
    """Return the number of the shard that has each id, -1 where none has."""
    owners = np.full(len(ids), -1, np.int64)
    asked = [number for number, info in enumerate(shards.infos) if info.may_have(ids)]
    shared = literal(ids)
    found = shards.scheduler.run([delayed(Shard.has, pure=False)(shards.tasks[number], shared) for number in asked])
    for number, there in zip(asked, found, strict=True):
        owners[there] = number
    return owners


def smallest_shards(infos: Sequence[ShardInfo], count: int) -> IndexArray:
    """Return a shard for each of so many points, so that the smallest grow until they are like the others."""
    level = -(-(sum(info.n for info in infos) + count) // len(infos))
    order = sorted(range(len(infos)), key=lambda number: (infos[number].n, number))
    room = np.array([max(level - infos[number].n, 0) for number in order])
    return np.repeat(order, room)[:count]


def changed_shards(shards: Shards, changed: dict[int, Delayed], next_id: int) -> Shards:
    """Return the shards of which some have changed; budgets stay as long as they hold."""
    scheduler = shards.scheduler
    kept = dict(zip(changed, scheduler.keep(list(changed.values())), strict=True))
    new = dict(zip(changed, infos_of(scheduler, list(kept.values())), strict=True))
    infos = tuple(new.get(number, info) for number, info in enumerate(shards.infos))
    n = sum(info.n for info in infos)
    stale = not shards.calibrated / _MEASURE_AGAIN < n < shards.calibrated * _MEASURE_AGAIN
    stale = stale or any(info.built != shards.infos[number].built for number, info in new.items())
    return replace(
        shards,
        tasks=tuple(kept.get(number, task) for number, task in enumerate(shards.tasks)),
        infos=infos,
        next_id=next_id,
        calibrated=n if stale else shards.calibrated,
        tables={} if stale else shards.tables,
        lock=Lock(),
    )
