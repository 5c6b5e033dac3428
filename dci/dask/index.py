"""The index in shards."""

import secrets
from os import PathLike, fspath
from typing import Any, Self

import dask.array as da
import numpy as np
import numpy.typing as npt
from dask.delayed import delayed

from .._api import validation as check
from .._api.answers import Neighbors, RadiusNeighbors
from .._runtime.fork import Lock
from .._runtime.types import FloatArray, IndexArray
from .._search.radius import within
from .._shards import files, tasks
from .._shards.report import ShardedStats
from .._shards.shard import Batch, Shard
from .._store.ids import check_new, raise_unknown
from ..errors import InvalidValueError, NotFittedError, StorageError
from .blocks import as_array, row_blocks
from .changes import allowed_ids, changed_shards, given_ids, infos_of, owners_of, smallest_shards
from .graphs import Shards, answers, literal, measure, tables_k
from .partition import by_cells, by_chunks
from .scheduler import Scheduler

_QUERY_BYTES = 8 << 20  # of queries that go to the workers at once


class ShardedDCI:
    """An index of the rows of a Dask array, in shards that stay where the array's chunks are.

    Parameters
    ----------
    metric : {"l2", "ip", "cosine"}, or {"euclidean", "inner_product"}
    recall : float in (0, 1]
        Share of the true k nearest neighbours among all points that merged answers find; 1.0, or 1, is exact.
    client : distributed.Client, optional
        Whose workers hold the shards. None is the current client, or without one the threads of this process.
    partition : {"chunks", "cells"}
        A shard of each chunk; or points are first distributed so that near ones are in the same shard: that moves all
        of them once, and queries visit only the shards that may hold their neighbours, as measured.
    shard_bytes : int, optional
        About so many bytes of points in a shard, instead of those of a chunk.
    random_state : int, numpy.random.Generator or None
        The same state gives the same answers, whatever the number of workers and threads.
    num_threads : int, optional
        Of a task; 1 if not given, since a worker runs as many tasks at a time as it has threads.
    verbose : bool
        Show Dask's progress while fitting, adding, saving and loading.

    Attributes
    ----------
    n_points, dim, n_shards : int
    stats_ : ShardedStats

    Notes
    -----
    A shard is the result of a task: where a worker is lost, Dask makes its shards again, from their chunks and from
    what was added since, or from their files after `load`. Points that are added as NumPy arrays are kept by the
    scheduler for that, until the index is saved and loaded. An answer is complete or there is an error.
    Budgets are measured on merged answers: a shard need only find what is in it of the k nearest among all.
    Equal distances go by id; those of points that were added under ids below others of their shard, by when they came.
    Coarse cells stay those of the fit, wherever points come later.
    Memory of a shard is that of a `DCI` of its points. Any number of threads may query at once; one call at a time
    changes an index.

    Examples
    --------
    >>> import dask.array as da
    >>> from dci.dask import ShardedDCI
    >>> X = da.random.default_rng(0).standard_normal((2000, 8), chunks=(500, 8))
    >>> index = ShardedDCI(recall=0.95, random_state=0).fit(X)
    >>> index
    <ShardedDCI l2, 2000 x 8, 4 shards>
    >>> index.query(X[:3].compute(), k=2).indices[:, 0]
    array([0, 1, 2])
    """

    def __init__(
        self,
        metric: str = "l2",
        *,
        recall: float = 0.95,
        client: Any = None,
        partition: str = "chunks",
        shard_bytes: int | None = None,
        random_state: int | np.random.Generator | None = None,
        num_threads: int | None = None,
        verbose: bool = False,
    ) -> None:
        self.metric = metric
        self.recall = recall
        self.client = client
        self.partition = partition
        self.shard_bytes = shard_bytes
        self.random_state = random_state
        self.num_threads = num_threads
        self.verbose = verbose
        self._settings()
        self._writer = Lock()
        self._shards: Shards | None = None  # replaced as a whole

    def _settings(self) -> dict[str, Any]:
        """Return the arguments, checked, as JSON takes them; without those of this process."""
        check.check_random_state(self.random_state)
        return {
            "metric": check.check_metric(self.metric),
            "recall": float(check.check_recall(self.recall)),
            "partition": check.check_choice(self.partition, "partition", ("chunks", "cells")),
            "shard_bytes": None if self.shard_bytes is None else check.check_count(self.shard_bytes, "shard_bytes"),
            "num_threads": 1 if self.num_threads is None else check.check_num_threads(self.num_threads),
        }

    def fit(self, X: Any, ids: Any = None, queries: npt.ArrayLike | None = None) -> Self:
        """Index the rows of X, on the workers.

        Parameters
        ----------
        X : dask array of numbers, shape (n, d)
            Chunks of some columns are put together, empty ones left out.
        ids : (n,) array of int or dask array, optional
            Within 64 bits, different ones; the numbers of the rows if not given.
        queries : (t, d) array of numbers, optional
            A sample of the queries to come; without it, points of X stand for them.

        Returns
        -------
        self

        Raises
        ------
        InvalidValueError, InvalidTypeError
            X has the wrong shape or dtype; a chunk, which is named, has another shape than the array says, or holds NaN
            or infinity. Or there are no workers. The index is what it was then.
        WorkersLostError
            Workers are gone, and with them what the chunks were made from.
        DCIError
            A worker has another version of dci.

        Warns
        -----
        UserWarning
            Sizes of chunks are not known, so they are computed.
        """
        settings = self._settings()
        X = as_array(X, "X")
        scheduler = Scheduler(self.client, bool(self.verbose))
        scheduler.check_workers()
        rows_each = None
        if settings["shard_bytes"] is not None and not np.isnan(X.shape[1]):
            rows_each = max(1, settings["shard_bytes"] // (4 * max(X.shape[1], 1)))
        blocks = row_blocks(X, scheduler, "X", None if settings["partition"] == "cells" else rows_each)
        last = blocks[-1][0]
        n, dim = last.stop, last.dim
        sample = None
        if queries is not None:
            sample = check.as_points(queries, "queries", dim=dim)[0]
            if len(sample) == 0:
                raise InvalidValueError(f"queries: expected at least one row, received {sample.shape}")
        given = given_ids(ids, n)
        seed = int(check.check_random_state(self.random_state).integers(2**63))
        with self._writer:
            if settings["partition"] == "cells":
                n_shards = len(blocks) if rows_each is None else max(1, -(-n // rows_each))
                wanted, coarse = by_cells(blocks, given, settings, sample, seed, n_shards, scheduler)
            else:
                wanted, coarse = by_chunks(blocks, given, settings, sample, seed), None
            kept = scheduler.keep(wanted)
            infos = infos_of(scheduler, kept)
            found = sum(info.n for info in infos)
            if found != n:  # a chunk was distributed twice, on processors that round differently
                raise InvalidValueError(f"X: expected {n} points in all shards, received {found}: fit again")
            next_id = n if given is None else max(int(given.max(initial=-1)) + 1, 0)
            self._put(Shards(scheduler, tuple(kept), infos, coarse, sample, seed, next_id, n, settings))
        return self

    def _put(self, shards: Shards) -> None:
        """Put shards in place, with budgets for an ordinary query."""
        size = min(tables_k(0), shards.n - 1)
        if shards._worth_measuring and shards.settings["recall"] < 1.0 and size not in shards.tables:
            shards.tables[size] = measure(shards, size, min(10, size), shards.settings["recall"])
        self._shards = shards

    def query(
        self, Q: Any, k: int = 10, *, recall: float | None = None, filter: npt.ArrayLike | None = None
    ) -> Neighbors:
        """Find the k nearest points of each query.

        Parameters
        ----------
        Q : (nq, d) or (d,) array of numbers, or dask array of shape (nq, d)
        k : int
        recall : float, optional
            Another recall than the index was fitted for, in (0, 1]; 1.0, or 1, is exact. What was not measured yet (k
            beyond 64) is answered exactly by a call of fewer than 256 queries.
        filter : (n,) bool or (a,) int, optional
            The points that are allowed as answers: their ids, or as long as ids are 0, …, n - 1, a mask.

        Returns
        -------
        Neighbors
            `distances` and `indices`, (nq, k) each, or (k,) for one query; equal distances go by their id. Dask arrays
            with the chunks of Q if that is one, which nothing is computed for yet: they hold on to the shards of now.

        Raises
        ------
        NotFittedError
        InvalidValueError, InvalidTypeError
        WorkersLostError
            Shards are lost and cannot be made again.
        """
        shards = self._fitted("query")
        k = check.check_k(k)
        wanted = shards.settings["recall"] if recall is None else check.check_recall(recall)
        if isinstance(Q, da.Array):
            return self._query_lazily(shards, as_array(Q, "Q"), k, wanted, filter)
        queries, absmax, single = check.as_queries(Q, shards.dim, "Q")
        allowed, n_allowed = allowed_ids(shards, filter)
        choice = shards.choose(k, wanted, len(queries), n_allowed)
        step = max(1, _QUERY_BYTES // (4 * max(shards.dim, 1)))
        found = []
        for start in range(0, max(len(queries), 1), step):
            some = queries[start : start + step]
            visits = None
            if shards.coarse is not None and choice.opened:
                visits = shards.coarse.visits(some, choice.opened)
            task = answers(shards, literal(Batch(some, absmax)), k, choice, allowed, visits)
            found += [part.answer for part in shards.scheduler.run([task])]
        answer = Neighbors(*(np.concatenate(arrays) for arrays in zip(*found, strict=True)))
        return answer.first if single else answer

    def _query_lazily(self, shards: Shards, Q: da.Array, k: int, recall: float, filter: Any) -> Neighbors:
        if not np.isnan(Q.shape[1]) and Q.shape[1] != shards.dim:
            raise InvalidValueError(f"Q: expected shape (nq, {shards.dim}), received {Q.shape}")
        blocks = row_blocks(Q, shards.scheduler, "Q")
        allowed, n_allowed = allowed_ids(shards, filter)
        choice = shards.choose(k, recall, blocks[-1][0].stop, n_allowed)
        distances, indices = [], []
        for block, rows in blocks:
            batch = delayed(tasks.as_batch, pure=False)(rows, shards.dim, block.number)
            visits = None
            if shards.coarse is not None and choice.opened:
                visits = delayed(tasks.route, pure=False)(literal(shards.coarse), batch, choice.opened)
            answer = delayed(tasks.neighbors_of, pure=False)(answers(shards, batch, k, choice, allowed, visits))
            shape = block.stop - block.start, k
            distances.append(da.from_delayed(answer[0], shape, np.float32))
            indices.append(da.from_delayed(answer[1], shape, np.int64))
        return Neighbors(da.concatenate(distances), da.concatenate(indices))

    def query_radius(self, Q: npt.ArrayLike, r: npt.ArrayLike, max_results: int | None = None) -> RadiusNeighbors:
        """Find the points within a radius of each query.

        Parameters
        ----------
        Q : (nq, d) or (d,) array of numbers
        r : float or (nq,) array of float
            Largest distance; for inner products the smallest one.
        max_results : int, optional
            Of a query, the nearest ones.

        Returns
        -------
        RadiusNeighbors
            Of these points, the recall of the index is found, exactly all where `recall` is 1.0.

        Raises
        ------
        NotFittedError
        InvalidValueError, InvalidTypeError
        """
        shards = self._fitted("query_radius")
        queries, _, _ = check.as_queries(Q, shards.dim, "Q")
        radius = check.as_radius(r, len(queries), shards.settings["metric"])
        most = shards.n if max_results is None else min(shards.n, check.check_count(max_results, "max_results"))

        def search(some: FloatArray, k: int) -> Neighbors:
            return self.query(some, k)

        return within(search, queries, radius, max(most, 1), descending=shards.descending)

    def add(self, X: npt.ArrayLike, ids: npt.ArrayLike | None = None) -> IndexArray:
        """Add points: to the smallest shards, or to those of their cells.

        Parameters
        ----------
        X : (m, d) array of numbers
        ids : (m,) array of int, optional
            Theirs, within 64 bits and not in use; assigned if not given, above all that there have been.

        Returns
        -------
        (m,) int64
            The ids.

        Raises
        ------
        InvalidValueError, InvalidTypeError, WorkersLostError
            Nothing has changed then.
        """
        with self._writer:
            shards = self._fitted("add")
            points, _ = check.as_points(X, "X", dim=shards.dim)
            new = np.arange(shards.next_id, shards.next_id + len(points), dtype=np.int64)
            if ids is not None:
                new = check.as_ids(ids, "ids", len(points))
                check_new(new, np.where(owners_of(shards, new) < 0, -1, 0))
            if len(points) == 0:
                return new
            if shards.coarse is None:
                shard_of = smallest_shards(shards.infos, len(points))
            else:
                shard_of = shards.coarse.shards_of(points).astype(np.int64)
            changed = {}
            for number in np.unique(shard_of).tolist():
                some = np.flatnonzero(shard_of == number)
                some = some[np.argsort(new[some], kind="stable")]
                changed[number] = delayed(Shard.with_points, pure=False)(shards.tasks[number], points[some], new[some])
            next_id = max(shards.next_id, int(new.max()) + 1)
            self._put(changed_shards(shards, changed, next_id))
        return new

    def remove(self, ids: npt.ArrayLike, missing: str = "raise") -> int:
        """Remove points.

        Parameters
        ----------
        ids : int or array of int
            Repeated ones count once.
        missing : {"raise", "ignore"}
            What happens to ids that the index does not have.

        Returns
        -------
        int
            How many points were removed.

        Raises
        ------
        UnknownIdError
            The index has no such ids (a KeyError; nothing has changed then).
        InvalidValueError, InvalidTypeError, WorkersLostError
        """
        wanted = np.unique(check.as_ids(ids, "ids"))
        check.check_choice(missing, "missing", ("raise", "ignore"))
        with self._writer:
            shards = self._fitted("remove")
            owners = owners_of(shards, wanted)
            if missing == "raise":
                raise_unknown(wanted[owners < 0])
            changed = {
                number: delayed(Shard.without, pure=False)(shards.tasks[number], wanted[owners == number])
                for number in np.unique(owners[owners >= 0]).tolist()
            }
            if changed:
                self._put(changed_shards(shards, changed, shards.next_id))
        return int(np.count_nonzero(owners >= 0))

    def save(self, directory: str | PathLike[str]) -> None:
        """Write a file for each shard, from the worker that has it, and a manifest.

        Parameters
        ----------
        directory : path or str
            That all workers and this process see; made if there is none. With "://" any URL that fsspec knows. What was
            saved there is replaced at once, when everything is written: a crash at any moment leaves it as it was.

        Raises
        ------
        NotFittedError
        StorageError
            Workers wrote elsewhere: a file is not to be seen here.
        OSError
            As the system says.
        """
        shards = self._fitted("save")
        place, token, path = files.Directory(directory), secrets.token_hex(4), fspath(directory)
        place.create()
        scheduler = shards.scheduler
        entries = scheduler.run([
            delayed(files.save_shard, pure=False)(task, path, files.shard_name(number, token), literal(info))
            for number, (task, info) in enumerate(zip(shards.tasks, shards.infos, strict=True))
        ])  # fmt: skip
        for number, entry in enumerate(entries):
            if not place.has(entry):
                raise StorageError(
                    f"{path}: expected shard {number} in {entry.file}, which a worker has written, found none here: "
                    "expected a directory that all workers share"
                )
        shared = place.write_arrays(
            files.shared_name(token), *files.encode_shared(shards.tables, shards.coarse, shards.sample)
        )
        settings = shards.settings | {"seed": shards.seed}
        manifest = files.Manifest(settings, shards.next_id, shards.calibrated, tuple(entries), shared, token)
        place.write_manifest(manifest)

    @classmethod
    def load(cls, directory: str | PathLike[str], client: Any = None, verbose: bool = False) -> "ShardedDCI":
        """Read what `save` has written, on the workers of a client: others, and other numbers of them, will do.

        Parameters
        ----------
        directory : path or str
            Or URL. Shards that are lost later are read from it again: leave it as it is.
        client : distributed.Client, optional
        verbose : bool

        Raises
        ------
        FileFormatError
            A shard is missing, damaged, or not the one that was saved: it is named.
        OSError, InvalidValueError, DCIError
            As `fit`.
        """
        place, path = files.Directory(directory), fspath(directory)
        manifest = place.read_manifest()
        settings = dict(manifest.settings)
        seed = settings.pop("seed")
        index = cls(**settings, client=client, random_state=seed, verbose=verbose)
        scheduler = Scheduler(client, bool(verbose))
        scheduler.check_workers()
        shared = place.read_arrays(files.shared_name(manifest.token), manifest.shared, "what all shards share")
        tables, coarse, sample = files.decode_shared(*shared)
        kept = scheduler.keep([
            delayed(files.load_shard, pure=False)(path, literal(entry), number, settings["num_threads"])
            for number, entry in enumerate(manifest.shards)
        ])  # fmt: skip
        infos = infos_of(scheduler, kept)
        index._shards = Shards(
            scheduler, tuple(kept), infos, coarse, sample, seed, manifest.next_id, manifest.calibrated, settings, tables
        )
        return index

    @property
    def n_points(self) -> int:
        """Number of points."""
        return 0 if self._shards is None else self._shards.n

    @property
    def dim(self) -> int:
        """Number of coordinates of a point."""
        return 0 if self._shards is None else self._shards.dim

    @property
    def n_shards(self) -> int:
        """Number of shards."""
        return 0 if self._shards is None else len(self._shards.infos)

    def __len__(self) -> int:
        return self.n_points

    def __repr__(self) -> str:
        metric = check.check_metric(self.metric)
        return f"<ShardedDCI {metric}, {self.n_points} x {self.dim}, {self.n_shards} shards>"

    @property
    def stats_(self) -> ShardedStats:
        """What was chosen and measured."""
        shards = self._fitted("stats_")
        choice = shards.choose(min(10, max(shards.n - 1, 1)), shards.settings["recall"], 0)
        visits, candidates = choice.spending or (None, None)
        return ShardedStats(
            n_points=shards.n,
            dim=shards.dim,
            metric=shards.settings["metric"],
            partition=shards.settings["partition"],
            n_shards=len(shards.infos),
            points=tuple(info.n for info in shards.infos),
            n_ranked=sum(info.ranked for info in shards.infos),
            nbytes=sum(info.nbytes for info in shards.infos),
            shards_visited=choice.visited,
            max_visits=visits,
            max_candidates=candidates,
            recall_at_10=choice.recall if shards.tables else None,
        )

    def _fitted(self, what: str) -> Shards:
        if self._shards is None:
            raise NotFittedError(f"{what}: expected a fitted index, received one before fit(X)")
        return self._shards
