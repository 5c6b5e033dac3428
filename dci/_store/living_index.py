"""What an index holds, and how that changes: fit, add, remove, update, save."""

from dataclasses import replace
from numbers import Integral
from os import PathLike
from typing import Any, Self, cast

import numpy as np
import numpy.typing as npt

from .._api import validation as check
from .._api.params import Params
from .._geometry.quantization import Coding
from .._runtime.blas import one_blas_thread
from .._runtime.fork import Lock
from .._runtime.threads import Work
from .._runtime.types import FloatArray, IndexArray
from .._tuning.build import build
from .._tuning.living import Upkeep, Version, first_version
from ..errors import InvalidValueError, NotFittedError
from . import codec, container
from .ids import check_different, check_new, raise_unknown
from .points import Points, PointStore
from .reader import decode_random_state, encode_random_state

# To measure anew: `python -m comparisons run --suite dynamic`.
_MANY = 1024  # queries that are worth putting pending points into the structure first
_KEPT_QUERIES = 4096  # of the sample that was given, for building anew
PARAMETERS = codec.SETTINGS
STRUCTURE = codec.STRUCTURE


class LivingIndex:
    """Points that come and go, and the structure that follows them.

    One call at a time changes an index, in any thread. A `Version` is made aside and put in place at last, so that
    whoever searches sees the one before or the one after, and that a call which fails has changed nothing.
    """

    random_state: int | np.random.Generator | None
    num_threads: int | None
    verbose: bool
    _measures = True  # budgets, on these points alone

    def _start_empty(self) -> None:
        self._writer = Lock()
        # Replaced as a whole: a call that has it sees no other.
        self._state: tuple[Version, Upkeep] | tuple[None, None] = None, None

    @property
    def _version(self) -> Version | None:
        return self._state[0]

    def get_params(self, deep: bool = True) -> dict[str, Any]:
        """Return the arguments of the constructor by name, as they were given.

        Parameters
        ----------
        deep : bool
            Without effect, since no parameter has parameters; scikit-learn passes it.
        """
        return {name: getattr(self, name) for name in PARAMETERS}

    def set_params(self, **params: Any) -> Self:
        """Change arguments of the constructor.

        What is fitted stays as it is until the next `fit`; `num_threads` and `verbose` count for queries at once.

        Parameters
        ----------
        **params
            Arguments of the constructor; others keep their values.

        Returns
        -------
        self

        Raises
        ------
        InvalidValueError, InvalidTypeError
            A name is unknown or a value cannot be used; nothing is changed then.
        """
        unknown = sorted(set(params) - set(PARAMETERS))
        if unknown:
            raise InvalidValueError(f"set_params: expected names among {PARAMETERS}, received {unknown}")
        self._check_params(self.get_params() | params)
        for name, value in params.items():
            setattr(self, name, value)
        return self

    def fit(self, X: npt.ArrayLike, queries: npt.ArrayLike | None = None) -> Self:
        """Index the rows of X.

        Parameters
        ----------
        X : (n, d) array of numbers, n >= 0
            Converted to C-contiguous float32 if it is anything else.
        queries : (t, d) array of numbers, optional
            A sample of the queries to come; without it, points of X stand for them.

        Returns
        -------
        self

        Raises
        ------
        InvalidValueError, InvalidTypeError
            X or `queries` has the wrong shape or dtype, or holds NaN or infinity.
        """
        points, absmax = check.as_points(X, "X")
        if len(points) >= 2**31:
            raise InvalidValueError(f"X: expected fewer than 2^31 rows, received {len(points)}")
        sample = None
        if queries is not None:
            sample = check.as_points(queries, "queries", dim=points.shape[1])
            if len(sample[0]) == 0:
                raise InvalidValueError(f"queries: expected at least one row, received {sample[0].shape}")
        with self._writer:
            upkeep, version = self._first(points, absmax, sample)
            sampled = {} if upkeep.queries is None else {"queries": upkeep.queries[0]}
            self._put(version, upkeep, "fit", points=points, **sampled)
        return self

    def _first(self, X: FloatArray, absmax: float, sample: tuple[FloatArray, float] | None) -> tuple[Upkeep, Version]:
        """Fit, but put nothing in place."""
        params = self._check_params(self.get_params())
        if isinstance(params.directions, str) and params.directions == "query" and sample is None:
            raise InvalidValueError(
                'directions="query": expected fit(X, queries=...) with a sample of queries, received none'
            )
        if not isinstance(params.directions, str):  # used again, when the caller's array may have changed
            params = replace(params, directions=params.directions.copy())
        _check_directions(params.directions, X)
        rng = check.check_random_state(self.random_state)
        n = len(X)
        coding = Coding.fitted(params.store, X)
        kept, made = coding.encoded(X)
        points = Points.of(kept, max(absmax, made))
        # Points pass twice: when they are assigned to cells and when they are copied there.
        with one_blas_thread(), Work(self._threads(), 2 * n, "fit", "points", self.verbose) as work:
            engine = build(X, absmax, sample, params, rng, work, None if kept is X else points, self._measures)
            work.finish()
        if sample is not None:  # the caller's array may change, and only so many are looked at
            chosen = np.linspace(0, len(sample[0]) - 1, min(_KEPT_QUERIES, len(sample[0]))).astype(np.int64)
            sample = sample[0][chosen], sample[1]
        return Upkeep(params, sample, self._measures), first_version(points, PointStore(points), engine)

    def add(self, X: npt.ArrayLike, ids: npt.ArrayLike | None = None) -> IndexArray:
        """Add points, to a fitted index or to an empty one.

        Parameters
        ----------
        X : (m, d) array of numbers
            Copied.
        ids : (m,) array of int, optional
            Theirs, within 64 bits and not in use; assigned if not given, above all that there have been.

        Returns
        -------
        (m,) int64
            The ids.

        Raises
        ------
        InvalidValueError, InvalidTypeError
            X or `ids` cannot be used; nothing has changed then.

        Notes
        -----
        The first call copies the points that are there: from then on the array that was fitted is not used any more.
        New points are found at once; the structure follows by itself. Amortised, adding a point takes the time of
        fitting a few. After many additions without a query in between, the next query (or `save`) takes as long as a
        part of a fit. Queries of other threads go on meanwhile and see all of the new points or none.
        """
        version = self._version
        dim = version.points.rows.shape[1] if version else 0
        points, absmax = check.as_points(X, "X", dim=dim or None)  # fitted on an empty list, an index has none yet
        wanted = None if ids is None else check.as_ids(ids, "ids", len(points))
        with self._writer:
            return self._add(points, absmax, wanted, gone=None)

    def _add(self, rows: FloatArray, absmax: float, ids: IndexArray | None, gone: IndexArray | None) -> IndexArray:
        """Add rows, in place of the rows `gone` if these are given."""
        version, upkeep = self._state
        width = rows.shape[1]
        is_new = version is None or version.points.rows.shape[1] == 0
        if version is None or upkeep is None or is_new:
            upkeep, version = self._first(np.empty((0, width), np.float32), 0.0, None)
        store, points = version.store, version.points
        if points.rows.shape[1] != width:  # another thread has fitted
            raise InvalidValueError(f"X: expected shape (m, {points.rows.shape[1]}), received {rows.shape}")
        if len(points.rows) + len(rows) >= 2**31:
            raise InvalidValueError(f"X: expected fewer than 2^31 rows in all, received {len(rows)} more")
        if ids is not None and gone is None:
            check_new(ids, store.find(points, ids))
        if len(rows) == 0 and not is_new:
            return np.empty(0, np.int64)
        if gone is not None:
            version = upkeep.shrunk(version, store.remove(points, gone), gone)
        grown = store.append(version.points, rows, absmax, ids)
        given = grown.ids_from(len(points.rows))
        waiting = upkeep.waiting(version, grown)
        if waiting is None:
            rng = check.check_random_state(self.random_state)
            with one_blas_thread(), Work(self._threads()) as work:
                waiting = upkeep.grown(version, grown, rng, work)
        if is_new:
            self._put(version, upkeep, "fit", points=np.empty((0, width), np.float32))
        self._put(waiting, upkeep, "add" if gone is None else "update", ids=given, points=rows)
        return given

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
        InvalidValueError, InvalidTypeError

        Notes
        -----
        One call takes O(n) however many ids it is given, and a part of their memory is given back some calls later.
        """
        wanted = np.unique(check.as_ids(ids, "ids"))
        check.check_choice(missing, "missing", ("raise", "ignore"))
        with self._writer:
            version, upkeep = self._fitted("remove"), cast(Upkeep, self._state[1])
            rows = version.store.find(version.points, wanted)
            if missing == "raise":
                raise_unknown(wanted[rows < 0])
            found, rows = wanted[rows >= 0], rows[rows >= 0]
            if len(rows) == 0:
                return 0
            rng = check.check_random_state(self.random_state)
            with one_blas_thread(), Work(self._threads()) as work:
                points = version.store.remove(version.points, rows)
                version = upkeep.renewed(upkeep.shrunk(version, points, rows), rng, work)
            self._put(version, upkeep, "remove", ids=found)
        return len(rows)

    def update(self, ids: npt.ArrayLike, X: npt.ArrayLike) -> None:
        """Give points other coordinates, as if they were removed and added again under the same ids, at once.

        Parameters
        ----------
        ids : (m,) array of int
            Different ones, all of the index.
        X : (m, d) array of numbers

        Raises
        ------
        UnknownIdError
            The index has no such ids; nothing has changed then.
        InvalidValueError, InvalidTypeError
        """
        version = self._fitted("update")
        points, absmax = check.as_points(X, "X", dim=version.points.rows.shape[1])
        wanted = check.as_ids(ids, "ids", len(points))
        with self._writer:
            rows = self._rows_of(self._fitted("update"), wanted)
            check_different(wanted)
            self._add(points, absmax, wanted, gone=rows)

    def _put(self, version: Version, upkeep: Upkeep, operation: str, **arrays: FloatArray | IndexArray) -> None:
        """Put a changed version in place; indexes with a journal write down what was done."""
        self._state = version, upkeep

    def _catch_up(self, version: Version, n_queries: int) -> Version:
        """Return a version of the same points for so many queries: one that answers them faster, if that pays.

        Pending points are put into the structure, budgets that have become too large are measured, also those that
        waited as long as nobody asked; unless somebody changes the index right now. To build anew is left to those who
        change it: a query does not wait for that.
        """
        version.demand.queries += n_queries
        fold = (n_queries >= _MANY or version.is_behind()) and version.can_fold()
        if (fold or (self._measures and version.wants_measuring())) and self._writer.try_enter():
            try:
                now, upkeep = self._state
                if now is version and upkeep is not None:  # nobody was faster
                    rng = check.check_random_state(self.random_state)
                    with one_blas_thread(), Work(self._threads()) as work:
                        version = upkeep.caught_up(version, rng, work, fold=fold)
                    self._state = version, upkeep
            finally:
                self._writer.__exit__(None, None, None)
        return version

    def _finish(self) -> None:
        """Do what was left to the next query: what is written now may be read many times."""
        version = self._version
        if version is not None:
            self._catch_up(version, 1)

    @property
    def ids(self) -> IndexArray:
        """Ids of all points in the order in which they came, (n,) int64, a copy."""
        version = self._version
        return np.empty(0, np.int64) if version is None else version.points.all_ids()

    def __contains__(self, id: object) -> bool:
        version = self._version
        if version is None or (isinstance(id, Integral) and not -(2**63) <= int(id) < 2**63):
            return False
        return bool(version.store.find(version.points, check.as_ids(cast(int, id), "id", 1))[0] >= 0)

    def get(self, ids: npt.ArrayLike) -> FloatArray:
        """Return points.

        Parameters
        ----------
        ids : int or (m,) array of int

        Returns
        -------
        (m, d) or, for one id, (d,) float32
            As they are kept: `store` may have rounded them.

        Raises
        ------
        UnknownIdError
            Names the ids that are missing; a KeyError.
        """
        version = self._fitted("get")
        rows = self._rows_of(version, check.as_ids(ids, "ids"))
        found = version.points.rows[rows]
        return found[0] if np.ndim(ids) == 0 else found

    def _rows_of(self, version: Version, ids: IndexArray) -> IndexArray:
        """Rows of ids, which have to be there."""
        rows = version.store.find(version.points, ids)
        raise_unknown(ids[rows < 0])
        return rows

    def save(self, path: str | PathLike[str]) -> None:
        """Write the index to a file, which `dci.load` reads.

        Parameters
        ----------
        path : path
            Replaced at once where there is a file: a crash at any moment leaves the old one or the new one.

        Raises
        ------
        OSError
            As the system says; a file that was there is as it was.
        InvalidTypeError
            `random_state` is a generator that cannot be written.

        Notes
        -----
        `docs/file-format.md` describes the format. Other threads may query and add meanwhile: the version of when the
        call began is written.
        """
        self._finish()
        container.write(path, *codec.encode(self._content()))

    def _content(self) -> codec.Index:
        """Return all that the index is made of."""
        settings, directions = self.get_params(), None
        if not isinstance(settings["directions"], str):
            directions, _ = check.as_points(settings["directions"], "directions")
            settings["directions"] = "array"
        settings = {key: value.item() if isinstance(value, np.generic) else value for key, value in settings.items()}
        settings["random_state"] = encode_random_state(settings["random_state"])
        version, upkeep = self._state
        return codec.Index(settings, directions, version, None if upkeep is None else upkeep.queries)

    def _restore(self, content: codec.Index) -> None:
        """Become the index that was written."""
        settings = dict(content.settings)
        if content.directions is not None:
            settings["directions"] = content.directions
        settings["random_state"] = decode_random_state(settings["random_state"])
        self.__init__(**settings)  # type: ignore[misc]
        if content.version is not None:
            self._state = content.version, Upkeep(content.version.engine.params, content.queries, self._measures)

    def __getstate__(self) -> dict[str, Any]:
        self._finish()
        # The file's format, which holds the points once; an array, for those who pickle buffers out of band.
        return {"data": np.frombuffer(container.to_bytes(*codec.encode(self._content())), np.uint8)}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self._restore(codec.decode(*container.from_bytes(memoryview(state["data"])), "pickle"))

    @property
    def nbytes(self) -> int:
        """Memory of the points, their ids and the structure, in bytes."""
        _, sections = codec.encode(codec.Index({}, None, self._version, None))
        return sum(array.nbytes for array in sections.values())

    @property
    def n_points(self) -> int:
        """Number of points."""
        return self._shape()[0]

    @property
    def dim(self) -> int:
        """Number of coordinates of a point."""
        return self._shape()[1]

    def __len__(self) -> int:
        return self.n_points

    @staticmethod
    def _check_params(params: dict[str, Any]) -> Params:
        checked = Params.checked(params)
        check.check_random_state(params["random_state"])
        check.check_num_threads(params["num_threads"])
        return checked

    def _threads(self, num_threads: int | None = None) -> int:
        return check.check_num_threads(self.num_threads if num_threads is None else num_threads)

    def _shape(self) -> tuple[int, int]:
        version = self._version
        return (0, 0) if version is None else (version.points.n_live, version.points.rows.shape[1])

    def _fitted(self, what: str = "query") -> Version:
        version = self._version
        if version is None:
            raise NotFittedError(f"{what}: expected a fitted index, received one before fit(X)")
        return version


def _check_directions(directions: str | FloatArray, points: FloatArray) -> None:
    if not isinstance(directions, str) and directions.shape[1] != points.shape[1]:
        raise InvalidValueError(
            f"directions: expected rows of X's {points.shape[1]} coordinates, received shape {directions.shape}"
        )
