"""Shards on disk: a file each, of the format of every index, and a manifest that names them.

The manifest is JSON and comes last, so that a directory holds the shards of one moment or those of the next. Every
shard is in it with the fingerprint of its file, which has the checksums of all its data.
"""

import contextlib
import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from hashlib import blake2b
from typing import Any

import numpy as np

from .._runtime.types import FloatArray
from .._store import codec, container, layout
from .._store.files import replacing, write_all
from ..errors import FileFormatError
from .budgets import Table
from .coarse import Coarse
from .shard import Shard, ShardInfo

MANIFEST, KIND, VERSION = "manifest.json", "dci.shards", 1
_SHARED = "shared"  # the file of what all shards have in common


@dataclass(frozen=True)
class Entry:
    """A file of the manifest.

    Attributes
    ----------
    file : str
    fingerprint : str
        Of the file, 32 hexadecimal digits.
    info : ShardInfo
    """

    file: str
    fingerprint: str
    info: ShardInfo


@dataclass(frozen=True)
class Manifest:
    """What a directory of shards holds.

    Attributes
    ----------
    settings : dict
        Arguments of the index.
    next_id : int
    calibrated : int
        How many points there were when budgets were measured.
    shards : tuple of Entry
    shared : str
        Fingerprint of the file of what all shards have in common.
    token : str
        Tells the files of this save from others.
    """

    settings: dict[str, Any]
    next_id: int
    calibrated: int
    shards: tuple[Entry, ...]
    shared: str
    token: str


class Directory:
    """A directory of the file system, or any place that fsspec knows by its URL.

    Parameters
    ----------
    path : path or str
        Which all workers see; with "://" it is a URL.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = os.fspath(path)
        self.is_url = "://" in self.path
        if self.is_url:
            from fsspec.core import url_to_fs  # an optional package, which Dask brings

            self._system, self._root = url_to_fs(self.path)

    def create(self) -> None:
        """Make it, if there is none."""
        if self.is_url:
            self._system.makedirs(self._root, exist_ok=True)
        else:
            os.makedirs(self.path, exist_ok=True)

    def _at(self, name: str) -> str:
        return f"{self._root.rstrip('/')}/{name}" if self.is_url else os.path.join(self.path, name)

    def write_arrays(self, name: str, meta: dict[str, Any], sections: Mapping[str, Any]) -> str:
        """Write a container; return its fingerprint."""
        if not self.is_url:
            container.write(self._at(name), meta, sections)
            return container.fingerprint(self._at(name)).hex()
        data = container.to_bytes(meta, sections)
        self._system.pipe_file(self._at(name), bytes(data))
        return container.fingerprint_of(data, name).hex()

    def read_arrays(self, name: str, fingerprint: str, what: str) -> container.Content:
        """Read a container, which has to be the one of this fingerprint."""
        try:
            if self.is_url:
                data = self._system.cat_file(self._at(name))
                found = container.fingerprint_of(data, name).hex()
            else:
                found = container.fingerprint(self._at(name)).hex()
            if found == fingerprint:
                return container.from_bytes(data, name=name) if self.is_url else container.read(self._at(name))
        except FileNotFoundError:
            raise FileFormatError(f"{self.path}: expected {what} in {name}, found no such file") from None
        except FileFormatError as error:
            raise FileFormatError(f"{self.path}: expected {what} in {name}, found damage: {error}") from None
        raise FileFormatError(
            f"{self.path}: expected {what} in {name}, of fingerprint {fingerprint}, found another file, of {found}"
        )

    def has(self, entry: Entry) -> bool:
        """Tell whether a shard's file is to be seen from here."""
        try:
            if self.is_url:
                return bool(self._system.exists(self._at(entry.file)))
            return container.fingerprint(self._at(entry.file)).hex() == entry.fingerprint
        except (FileNotFoundError, FileFormatError):
            return False

    def write_manifest(self, manifest: Manifest) -> None:
        """Write the manifest, in place of another at once, and remove the files that only that one named."""
        before = self._names()
        content: dict[str, Any] = {"kind": KIND, "version": VERSION, "format": layout.VERSION} | asdict(manifest)
        content["checksum"] = _checksum(content)
        text = json.dumps(content, indent=1).encode()
        if self.is_url:
            self._system.pipe_file(self._at(MANIFEST), text)
        else:
            with replacing(self._at(MANIFEST)) as descriptor:
                write_all(descriptor, [text])
        for name in before - {entry.file for entry in manifest.shards} - {shared_name(manifest.token)}:
            with contextlib.suppress(OSError):
                self._system.rm_file(self._at(name)) if self.is_url else os.unlink(self._at(name))

    def _names(self) -> set[str]:
        """Files of the manifest that is there."""
        try:
            manifest = self.read_manifest()
        except (FileFormatError, OSError):
            return set()
        return {entry.file for entry in manifest.shards} | {shared_name(manifest.token)}

    def read_manifest(self) -> Manifest:
        """Read the manifest."""
        name = f"{self.path}: {MANIFEST}"
        try:
            if self.is_url:
                text = self._system.cat_file(self._at(MANIFEST))
            else:
                with open(self._at(MANIFEST), "rb") as file:
                    text = file.read()
        except FileNotFoundError:
            raise FileFormatError(f"{name}: expected a manifest of shards, found no such file") from None
        try:
            content = json.loads(text)
            if not isinstance(content, dict) or content.get("kind") != KIND:
                raise FileFormatError(f"{name}: expected kind {KIND!r}, received another")
            if content["version"] > VERSION or content["format"] > layout.VERSION:
                raise FileFormatError(f"{name}: expected a version up to {VERSION}, received a newer one")
            if content.pop("checksum") != _checksum(content):
                raise FileFormatError(f"{name}: checksum does not match: damaged, or edited")
            shards = tuple(
                Entry(entry["file"], entry["fingerprint"], ShardInfo(**entry["info"])) for entry in content["shards"]
            )
            values = {key: content[key] for key in ("settings", "next_id", "calibrated", "shared", "token")}
            return Manifest(shards=shards, **values)
        except (ValueError, KeyError, TypeError) as error:
            if isinstance(error, FileFormatError):
                raise
            raise FileFormatError(f"{name}: expected a manifest of shards, received something else: {error}") from error


def shard_name(number: int, token: str) -> str:
    """Return the name of a shard's file."""
    return f"shard-{number:05d}-{token}.dci"


def shared_name(token: str) -> str:
    """Return the name of the file of what all shards have in common."""
    return f"{_SHARED}-{token}.dci"


def save_shard(shard: Shard, path: str, name: str, info: ShardInfo) -> Entry:
    """Write a shard, on the worker that has it."""
    return Entry(name, Directory(path).write_arrays(name, *codec.encode(shard._content())), info)


def load_shard(path: str, entry: Entry, number: int, num_threads: int) -> Shard:
    """Read a shard, which has to be the one that was written."""
    what = f"shard {number}"
    meta, sections = Directory(path).read_arrays(entry.file, entry.fingerprint, what)
    shard = Shard.__new__(Shard)
    shard._restore(codec.decode(meta, sections, f"{path}: {entry.file}"))
    shard.set_params(num_threads=num_threads)
    if shard.info().n != entry.info.n:
        raise FileFormatError(f"{path}: expected {what} of {entry.info.n} points, received {shard.info().n}")
    return shard


def encode_shared(
    tables: Mapping[int, Table], coarse: Coarse | None, sample: FloatArray | None
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return what `Directory.write_arrays` takes, of what all shards have in common."""
    meta: dict[str, Any] = {"tables": {}, "coarse": None}
    sections: dict[str, Any] = {} if sample is None else {"queries": sample}
    for k, table in tables.items():
        meta["tables"][str(k)] = {"shape": list(table.shape), "dim": table.dim, "effort": table.effort}
        sections |= {
            f"{k}.visits": table.visits, f"{k}.ranks": table.ranks, f"{k}.order": table.order,
            f"{k}.visited": np.asarray(table.visited, np.float64).view(np.int64),
        }  # fmt: skip
    if coarse is not None:
        meta["coarse"] = {"metric": coarse.metric, "n_shards": coarse.n_shards, "scale": coarse.scale}
        sections |= {"centers": coarse.centers, "shard_of": coarse.shard_of}
    return meta, sections


def decode_shared(
    meta: Mapping[str, Any], sections: Mapping[str, Any]
) -> tuple[dict[int, Table], Coarse | None, FloatArray | None]:
    """Return what was encoded; files whose fingerprint holds are what was written."""
    tables = {}
    for k, about in meta["tables"].items():
        numbers = tuple(sections[f"{k}.{name}"] for name in ("visits", "ranks", "order"))
        visited = np.asarray(sections[f"{k}.visited"]).view(np.float64)
        tables[int(k)] = Table(numbers, visited, tuple(about["shape"]), about["dim"], about["effort"])
    about = meta["coarse"]
    coarse = None if about is None else Coarse(sections["centers"], sections["shard_of"], **about)
    return tables, coarse, sections.get("queries")


def _checksum(content: Mapping[str, Any]) -> str:
    text = json.dumps(content, sort_keys=True, separators=(",", ":"))
    return blake2b(text.encode(), digest_size=16).hexdigest()
