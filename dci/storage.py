"""Indexes on disk: files that are loaded, and directories that keep what is added all day."""

from collections.abc import Iterable, Mapping, Sequence
from os import PathLike
from typing import Any, Self, cast

import numpy as np
from numpy.random import Generator

from ._geometry.quantization import Coding, stored
from ._native.codes import Codes
from ._runtime.mapped import scatter
from ._runtime.types import FloatArray, IndexArray
from ._store import codec, container
from ._store.directory import Store, is_store
from ._store.reader import decode_random_state
from ._store.records import Array, Operation, Record
from ._tuning.living import Upkeep, Version
from .errors import DCIError, FileFormatError, InvalidValueError, StorageError
from .index import DCI

AnyPath = str | PathLike[str]
Arrays = Mapping[str, Array]
_OPERATIONS = tuple(operation.name.lower() for operation in Operation)  # from 1 on


def load(path: AnyPath, mmap: bool = False) -> DCI:
    """Read an index that `DCI.save` has written.

    Parameters
    ----------
    path : path
    mmap : bool
        Map the file instead of reading it: a large one is open at once, and processes share its memory. The file may be
        replaced or removed meanwhile, but not written to or cut short in place. Checksums of the data are not looked
        at then; `dci.verify` does. Of more than 1 GB of points, queries hold less than that at a time: memory may be
        smaller than the file.

    Returns
    -------
    DCI
        Answers as the one that was saved. Points can be added and removed, which copies a map into memory.

    Raises
    ------
    FileFormatError
        No index, of a newer version, truncated or damaged; says which part.
    OSError
        As the system says.
    """
    index = DCI.__new__(DCI)
    _restore(index, path, mmap)
    return index


def _restore(index: DCI, path: AnyPath, mmap: bool) -> None:
    meta, sections = container.read(path, mmap=mmap)
    content = codec.decode(meta, sections, str(path), data=not mmap)
    if mmap and content.version is not None and content.version.engine.ranker is not None:
        scatter(stored(content.version.points.rows))  # candidates lie anywhere
    index._restore(content)


def verify(path: AnyPath) -> None:
    """Check all checksums of a file and that its parts fit each other.

    Raises
    ------
    FileFormatError
        Says which part is damaged.
    OSError
        As the system says.
    """
    container.verify(path)
    codec.decode(*container.read(path, mmap=True), str(path))


def open(path: AnyPath, *, sync: bool = True, **params: Any) -> "DurableDCI":
    """Open an index in a directory, or make one there: what is added is kept at once.

    Parameters
    ----------
    path : path
        A directory that does not exist yet, is empty, or has been opened before.
    sync : bool
        A change that a call has returned from is on the disk: it is there after a power failure too. Without it, it is
        there after the process was killed.
    **params
        Those of `DCI`, for a new one. Not for one that exists.

    Returns
    -------
    DurableDCI
        To be closed, or used as a context manager. One process at a time may have a directory open.

    Raises
    ------
    StorageError
        Another process has it open.
    FileFormatError
        Something in it is damaged. A torn last change, of which no call had returned, is cut off with a warning.
    InvalidValueError
        `params` for an index that exists.
    """
    if is_store(path):
        if params:
            raise InvalidValueError(f"params: expected none for an index that exists, received {sorted(params)}")
        return DurableDCI._open(Store.open(path), sync)
    index = DCI(**params)
    return DurableDCI._open(Store.create(path, index.save), sync)


class DurableDCI(DCI):
    """A `DCI` in a directory, made by `dci.open`: a base file and a journal of changes since.

    `add`, `remove`, `update` and `fit` are on the disk when they return. `save` without a path writes a new base and
    starts a new journal; opening replays the journal.

    Notes
    -----
    Copies and pickles are ordinary indexes in memory. After a fork only the parent may change it. What `set_params`
    changes is kept by the next `fit` or `save`.
    """

    _directory: Store | None = None
    _sync: bool = True

    @classmethod
    def _open(cls, directory: Store, sync: bool) -> "DurableDCI":
        try:
            index = cls.__new__(cls)
            _restore(index, directory.base, mmap=False)
            index._replay(directory.replay())
        except BaseException:
            directory.close()
            raise
        index._directory, index._sync = directory, sync
        return index

    def _replay(self, records: Iterable[Record]) -> None:
        """Do again what a journal tells; points that were added one by one, many at a time.

        Those that wait for their place in the structure wait together, so that it is renewed no more often than it was.
        """
        waiting: list[Arrays] = []
        room = count = 0

        def add() -> None:
            if len(waiting) == 1:
                self._apply("add", waiting[0], {})
            elif waiting:
                self._apply("add", _joined(waiting), {})
            waiting.clear()

        for record in records:
            if not 0 < record.operation <= len(_OPERATIONS):
                raise FileFormatError(
                    f"journal: expected operations 1 to {len(_OPERATIONS)}, received {record.operation}"
                )
            name = _OPERATIONS[record.operation - 1]
            if name != "add" or not self._stays(record.arrays, count if waiting else 0):
                add()
                self._apply(name, record.arrays, record.meta)
                continue
            if not waiting:
                room = 0 if self._version is None else self._version.room(len(self._version.points.rows))
                count = 0
            waiting.append(record.arrays)
            count += np.size(record.arrays.get("ids", ()))
            if count > room:
                add()
        add()

    def _stays(self, arrays: Arrays, n_waiting: int) -> bool:
        """Whether points can be kept as those that are there; else all are written anew, and that call stands alone."""
        kept = None if self._version is None else self._version.points.rows
        if not isinstance(kept, Codes):
            return True
        rows = arrays.get("points")
        fits = rows is not None and rows.dtype == np.float32 and rows.shape == (len(rows), kept.shape[1])
        return fits and Coding.of(kept).stays(len(kept) + n_waiting, cast(FloatArray, rows))

    def _apply(self, name: str, arrays: Arrays, meta: Mapping[str, Any]) -> None:
        try:
            if name == "fit":
                self._take_settings(meta, arrays)
                self.fit(arrays["points"], arrays.get("queries"))
            elif name == "add":
                self.add(arrays["points"], self._explicit(arrays["ids"]))
            elif name == "update":
                self.update(arrays["ids"], arrays["points"])
            else:
                self.remove(arrays["ids"])
        except (IndexError, KeyError, TypeError, ValueError, DCIError) as error:
            raise FileFormatError(f"journal: expected changes of this index, received another: {error}") from error

    def _explicit(self, ids: IndexArray) -> IndexArray | None:
        """Return ids that have to be stored, None for the numbers of the rows to come."""
        points = None if self._version is None else self._version.points
        if points is None or points.ids is not None:
            return ids
        return None if np.array_equal(ids, np.arange(len(points.rows), len(points.rows) + len(ids))) else ids

    def _take_settings(self, meta: Mapping[str, Any], arrays: Arrays) -> None:
        """Take the parameters that a fit was called with; a generator goes on as it is."""
        settings = {"store": "float32"} | meta["settings"]  # which older journals do not name
        if settings.get("directions") == "array":
            settings["directions"] = arrays["directions"]
        settings["random_state"] = decode_random_state(settings.get("random_state"))
        if isinstance(settings["random_state"], Generator) and isinstance(self.random_state, Generator):
            del settings["random_state"]
        self.set_params(**settings)

    def _put(self, version: Version, upkeep: Upkeep, operation: str, **arrays: FloatArray | IndexArray) -> None:
        directory = self._directory
        if directory is None:  # the journal is replayed
            super()._put(version, upkeep, operation, **arrays)
            return
        meta: dict[str, Any] = {}
        if operation == "fit":
            content = self._content()
            meta["settings"] = content.settings
            if content.directions is not None:
                arrays["directions"] = content.directions
        before = directory.next_sequence
        try:
            directory.append(_OPERATIONS.index(operation) + 1, meta, arrays, sync=self._sync)
        finally:
            if directory.next_sequence != before:  # it is written, even if Ctrl-C comes now
                super()._put(version, upkeep, operation, **arrays)

    def save(self, path: AnyPath | None = None) -> None:
        """Write an ordinary file, or without a path a new base, so that the journal starts anew."""
        if path is not None:
            super().save(path)
            return
        directory = self._opened()
        self._finish()
        with self._writer:
            position, content = directory.position(), codec.encode(self._content())
        directory.compact(lambda base: container.write(base, *content), position)

    def close(self) -> None:
        """Give the directory back; queries go on."""
        if self._directory is not None:
            self._directory.close()

    def _opened(self) -> Store:
        if self._directory is None:
            raise StorageError("save: expected an open directory, received a copy of an index")
        return self._directory

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def __reduce_ex__(self, protocol: Any) -> Any:
        return _plain, (self.__getstate__(),)


def _joined(additions: Sequence[Arrays]) -> Arrays:
    try:
        return {name: np.concatenate([arrays[name] for arrays in additions]) for name in ("ids", "points")}
    except (KeyError, ValueError) as error:
        raise FileFormatError(f"journal: expected ids and points of one dimension, received others: {error}") from error


def _plain(state: dict[str, Any]) -> DCI:
    index = DCI.__new__(DCI)
    index.__setstate__(state)
    return index
