"""What workers do, one function a task: each depends on its arguments alone, so that it may run again anywhere."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from .. import __version__
from .._api import validation as check
from .._api.answers import Neighbors
from .._runtime.types import BoolArray, FloatArray, IndexArray
from .._search.merging import merge
from ..errors import DCIError, InvalidValueError
from .coarse import Coarse
from .shard import Batch, Reached, Shard, Spending


@dataclass(frozen=True)
class Block:
    """Consecutive rows of the array that is fitted.

    Attributes
    ----------
    number : int
        Of the chunk.
    start, stop : int
        Rows.
    dim : int
    """

    number: int
    start: int
    stop: int
    dim: int

    def checked(self, rows: Any) -> FloatArray:
        """Return the rows as finite float32, or raise an error that names the chunk."""
        name = f"X, chunk {self.number} (its row 0 is row {self.start} of X)"
        expected = self.stop - self.start, self.dim
        shape = np.shape(rows)
        if shape != expected:
            raise InvalidValueError(f"{name}: expected shape {expected} as the array says, received {shape}")
        return check.as_points(rows, name)[0]


class Piece(NamedTuple):
    """Points on their way to a shard: (m, d) float32, and their ids, (m,) int64."""

    rows: FloatArray
    ids: IndexArray


class Part(NamedTuple):
    """Answers to some of the queries.

    Attributes
    ----------
    n_queries : int
    rows : (m,) int, optional
        Which of them; all if not given.
    answer : Neighbors
        (m, k) each.
    """

    n_queries: int
    rows: IndexArray | None
    answer: Neighbors

    def whole(self, descending: bool) -> Neighbors:
        """Return the answers to all queries, padded where there is none."""
        if self.rows is None:
            return self.answer
        shape = self.n_queries, self.answer.distances.shape[1]
        out = Neighbors(np.full(shape, -np.inf if descending else np.inf, np.float32), np.full(shape, -1, np.int64))
        out.distances[self.rows], out.indices[self.rows] = self.answer
        return out


def version() -> str:
    """Return the version of dci that a worker has."""
    return __version__


def check_version(expected: str) -> None:
    """Refuse to work for a client that has another version."""
    if expected != __version__:
        raise DCIError(f"dci: expected version {expected}, as the client has, on every worker, found {__version__}")


def fit_shard(
    rows: Any, ids: IndexArray | None, block: Block, settings: dict[str, Any], sample: FloatArray | None, wanted: str
) -> Shard:
    """Make a shard of a chunk."""
    check_version(wanted)
    points = block.checked(rows)
    return _fitted(Piece(points, _ids_of(ids, block)), settings, sample)


def split_block(rows: Any, ids: IndexArray | None, block: Block, coarse: Coarse, wanted: str) -> list[Piece]:
    """Distribute the points of a chunk among shards."""
    check_version(wanted)
    points, ids = block.checked(rows), _ids_of(ids, block)
    shard_of = coarse.shards_of(points)
    chosen = [np.flatnonzero(shard_of == number) for number in range(coarse.n_shards)]
    return [Piece(points[some], ids[some]) for some in chosen]


def piece_of(pieces: list[Piece], number: int) -> Piece:
    """Return what goes to a shard."""
    return pieces[number]


def fit_pieces(pieces: Sequence[Piece], settings: dict[str, Any], sample: FloatArray | None) -> Shard:
    """Make a shard of points of several chunks."""
    return _fitted(Piece(*(np.concatenate(arrays) for arrays in zip(*pieces, strict=True))), settings, sample)


def _ids_of(ids: IndexArray | None, block: Block) -> IndexArray:
    return np.arange(block.start, block.stop, dtype=np.int64) if ids is None else ids


def _fitted(piece: Piece, settings: dict[str, Any], sample: FloatArray | None) -> Shard:
    rows, ids = piece
    if np.any(ids[1:] < ids[:-1]):  # so that equal distances go by the ids within a shard as well
        order = np.argsort(ids)
        rows, ids = rows[order], ids[order]
    return Shard(**settings).fit(rows, sample).named(ids)


def sample_rows(rows: Any, block: Block, places: IndexArray) -> FloatArray:
    """Return some rows of a chunk."""
    return np.ascontiguousarray(block.checked(rows)[places])


def make_coarse(samples: Sequence[FloatArray], order: IndexArray, metric: str, n_shards: int, n_cells: int) -> Coarse:
    """Make the first level of samples of all chunks."""
    return Coarse.of(np.concatenate(samples)[order], metric, n_shards, n_cells)


def join_batches(batches: Sequence[Batch]) -> Batch:
    """Put queries of several shards together."""
    ids = np.concatenate([batch.ids for batch in batches if batch.ids is not None])
    queries = np.concatenate([batch.queries for batch in batches])
    return Batch(queries, max(batch.absmax for batch in batches), ids)


def as_batch(queries: Any, dim: int, number: int) -> Batch:
    """Check a chunk of queries."""
    rows, absmax, _ = check.as_queries(queries, dim, f"Q, chunk {number}")
    return Batch(rows, absmax)


def ask(
    shard: Shard,
    batch: Batch,
    visits: BoolArray | None = None,
    *,
    k: int,
    spending: Spending | None,
    allowed: IndexArray | None,
    rows: IndexArray | None,
    number: int,
) -> Part:
    """Find the k nearest points of a shard, the `number`-th, for all queries, or for those that visit it."""
    if visits is not None:
        rows = np.flatnonzero(visits[:, number])
    if rows is None:
        return Part(len(batch.queries), None, shard.nearest(batch, k, spending, allowed))
    ids = None if batch.ids is None else batch.ids[rows]
    some = Batch(np.ascontiguousarray(batch.queries[rows]), batch.absmax, ids)
    return Part(len(batch.queries), rows, shard.nearest(some, k, spending, allowed))


def route(coarse: Coarse, batch: Batch, opened: int) -> BoolArray:
    """Tell which shards queries visit."""
    return coarse.visits(batch.queries, opened)


def merge_parts(parts: Sequence[Part], k: int, descending: bool) -> Part:
    """Merge answers of several shards."""
    answers = [part.whole(descending) for part in parts]
    return Part(parts[0].n_queries, None, merge(answers, k, descending=descending))


def neighbors_of(part: Part) -> Neighbors:
    """Return the answer, of all shards."""
    return part.answer


def reach(shard: Shard, batch: Batch, truth: Neighbors, effort: int, coarse: Coarse | None) -> tuple[Reached, Any]:
    """Find what it takes to reach the true neighbours that a shard holds, and which coarse cells they lie in."""
    found = shard.reach(batch, truth.indices, effort)
    if coarse is None:
        return found, None
    return found, coarse.cells_of(shard.get(truth.indices.flat[found.places]))


def count_allowed(shard: Shard, ids: IndexArray) -> int:
    """Return how many of these ids a shard has."""
    return int(np.count_nonzero(shard.has(ids)))
