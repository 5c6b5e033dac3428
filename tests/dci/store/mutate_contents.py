"""Files with whole checksums that hold an index which is none: python tests/dci/store/mutate_contents.py 100000

Meta and sections of indexes of every kind are changed and written again. A file is refused, or what is loaded can be
asked, changed and saved. A crash ends the script; memory and time are limited.
"""

import contextlib
import faulthandler
import os
import resource
import sys
import tempfile
import warnings
from collections import Counter
from pathlib import Path
from unittest import mock

import numpy as np

import dci
from dci._store import codec, container

sys.path.insert(0, str(Path(__file__).parents[3]))  # run as a script, it has its own folder alone

from tests.dci.store.indexes import KINDS, make_calibrated, nothing_is_tiny, points

VALUES = (
    None, True, False, -1, 0, 1, 2, 3, 7, 16, 2**21, 2**27, 2**31 - 1, 2**31, 2**32, 2**62, 2**63 - 1, 2**63, 2**64,
    10**30, 10**400, -(2**63), 1e308, 1e-320, -1.5, 0.5, 1.0, 2.0**-130, 1e30, "", "junk", "auto", "max", "sum", "ip",
    "cosine", "l2", "array", "random", "query", "PCG64", "MT19937", [], [1], [[64, 0]], [[1, 1]], [[0, 0]], {},
    {"a": 1},
)  # fmt: skip
NUMBERS = (0, 1, 2, -1, 15, 16, 255, 2**15 - 1, 2**31 - 1, 2**62, -(2**31), -(2**62), 0.5, 1e-30, 1e30, np.nan, np.inf)


def groups(value):
    """Yield all objects and lists of a JSON value that have entries."""
    if isinstance(value, dict | list) and value:
        yield value
        for inner in value.values() if isinstance(value, dict) else value:
            yield from groups(inner)


def change_meta(meta, rng):
    every = list(groups(meta))
    group = every[rng.integers(len(every))]
    key = list(group)[rng.integers(len(group))] if isinstance(group, dict) else int(rng.integers(len(group)))
    value = copied(VALUES[rng.integers(len(VALUES))])
    what = rng.integers(10)
    if what == 0:
        del group[key]
    elif what == 1 and isinstance(group, dict):
        group["more"] = value
    elif what == 2 and type(group[key]) in (int, float):
        group[key] = group[key] + int(rng.integers(-2, 3))
    else:
        group[key] = value
    return f"meta {key}"


def change_sections(sections, rng):
    names = list(sections)
    name, other = (names[i] for i in rng.integers(len(names), size=2))
    array = sections[name]
    what = rng.integers(13)
    if what == 0:
        del sections[name]
    elif what == 1:
        sections[name], sections[other] = sections[other], array
    elif what == 2:
        sections[("more", "queries", "directions", "gone", "ids", "held_out_rows")[rng.integers(6)]] = array
    elif what == 3:
        dtypes = ["<f4", "<i4", "<i8", "<u4", "<f2", "|u1", "<i2"]
        with np.errstate(all="ignore"):
            sections[name] = array.astype(dtypes[rng.integers(len(dtypes))])
    elif what == 4:
        sections[name] = array[: rng.integers(len(array) + 1)]
    elif what == 5:
        sections[name] = np.concatenate([array, array[: rng.integers(1, 40)]])
    elif what == 6:
        shapes = [(array.size,), (1, array.size), (*array.shape[::-1],), (0, *array.shape[1:]), (*array.shape[:-1], 0)]
        shape = shapes[rng.integers(len(shapes))]
        sections[name] = array.reshape(shape) if np.prod(shape) == array.size else np.empty(shape, array.dtype)
    elif what == 7:
        sections[name] = np.ascontiguousarray(np.roll(array, int(rng.integers(1, 20))))
    elif what == 8:
        sections[name] = np.sort(array.ravel()).reshape(array.shape)
    else:
        flat = array.copy().reshape(-1)
        chosen = slice(None) if what == 9 else rng.integers(flat.size, size=rng.integers(1, 4)) if flat.size else []
        number = NUMBERS[rng.integers(len(NUMBERS))]
        with np.errstate(all="ignore"), warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)
            if what == 10 and flat.size:
                flat[chosen] = flat[rng.integers(flat.size)]
            else:
                flat[chosen] = np.array(number).astype(array.dtype)
        sections[name] = flat.reshape(array.shape)
    return f"section {name} {what}"


def copied(value):
    if isinstance(value, dict):
        return {key: copied(inner) for key, inner in value.items()}
    return [copied(inner) for inner in value] if isinstance(value, list) else value


def mutate(meta, sections, rng):
    """Change one to three things; return the content and what was done."""
    meta, sections = copied(meta), dict(sections)
    done = []
    for _ in range(rng.choice([1, 1, 1, 2, 3])):
        if sections and rng.integers(2):
            done.append(change_sections(sections, rng))
        elif meta:
            done.append(change_meta(meta, rng))
    return meta, sections, done


def use(index, path):
    """Ask, change and save an index, each of which has to work or to be refused as what a caller may not do."""
    repr(index)
    index.get_params()
    version = index._version
    dim = version.points.rows.shape[1] if version else 0
    if version is not None and 0 < dim < 100 and version.points.next_id < 2**62:  # above, no ids can be assigned
        queries = points(9, 8, dim)
        ask(index, queries)
        n = len(index)
        added = index.add(points(300, 2, dim))
        assert len(index) == n + 300
        index.remove(added[:40])
        index.remove(index.ids[:5])
        index.update(index.ids[-3:], points(3, 4, dim))
        ask(index, queries)
    index.save(path)
    assert len(dci.load(path)) == len(index)


def ask(index, queries):
    n = len(index)
    ids = index.ids
    assert len(ids) == n
    live = set(ids.tolist())
    for options in ({}, {"recall": 1.0}, {"recall": 0.5}, {"max_candidates": 5, "max_visits": 40}, {"max_visits": 7}):
        for some in (queries, queries[0]):
            found = index.query(some, 3, **options)
            assert live.issuperset(set(found.indices.ravel().tolist()) - {-1})
    if n:
        index.query(queries, 3, filter=np.arange(n) % 2 == 0)
        index.query(queries, 3, filter=ids[:4])
        index.query_by_id(ids[:5], 3)
    index.query_radius(queries, 2.0)
    index.stats_  # noqa: B018
    index.nbytes  # noqa: B018


def load(path, mmap):
    """Return an index, None if the file is refused."""
    try:
        return dci.load(path, mmap=mmap)
    except dci.FileFormatError:
        return None


def run(count, seed=0, progress=lambda count: None):
    rng = np.random.default_rng(seed)
    outcomes = Counter()
    contents = {kind: codec.encode(make_calibrated(kind)._content()) for kind in KINDS}
    assert any(meta.get("calibrations") for meta, _ in contents.values())
    kinds = list(KINDS)
    with (
        tempfile.TemporaryDirectory() as directory,
        nothing_is_tiny(),
        mock.patch.object(os, "fsync"),
    ):
        path, again = os.path.join(directory, "mutated.dci"), os.path.join(directory, "again.dci")
        for i in range(count):
            kind = kinds[rng.integers(len(kinds))]
            meta, sections, done = mutate(*contents[kind], rng)
            try:
                container.write(path, meta, sections)
            except dci.InvalidValueError:
                outcomes["not written"] += 1  # too large for JSON
                continue
            faulthandler.dump_traceback_later(60, exit=True)
            try:
                if load(path, mmap=False) is None:
                    index = load(path, mmap=True)  # points that are not looked at
                    outcome = "refused" if index is None else "refused but for a map"
                else:
                    index, outcome = dci.load(path, mmap=bool(i % 2)), "loaded"
                if outcome == "loaded":
                    use(index, again)
                elif index is not None:
                    with contextlib.suppress(Exception):  # their numbers may be none: only a crash counts
                        use(index, again)
            except BaseException as error:
                raise AssertionError(f"mutation {i} of {kind!r}: {done}") from error
            outcomes[outcome] += 1
            progress(outcomes.total())
    faulthandler.cancel_dump_traceback_later()
    return outcomes


if __name__ == "__main__":
    resource.setrlimit(resource.RLIMIT_AS, (6 << 30, 6 << 30))
    faulthandler.enable()
    warnings.simplefilter("ignore", RuntimeWarning)
    numbers = [int(text) for text in sys.argv[1:3]]
    count, seed = numbers + [300, 0][len(numbers) :]
    outcomes = run(count, seed, lambda tried: tried % 1000 or print(f"{tried:8d} tried", file=sys.stderr, flush=True))
    for what, number in sorted(outcomes.items()):
        print(f"{number:8d} {what}")
