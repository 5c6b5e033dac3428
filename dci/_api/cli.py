"""What ``python -m dci`` does, one function a command; what they return is printed."""

import os
import sys
import time
from argparse import Namespace
from contextlib import closing, nullcontext
from typing import Any

import numpy as np
import numpy.typing as npt

from .._store.directory import is_store
from .._store.vectors import answer_lines, check_output, read_ids, read_vectors, write_answers
from ..errors import InvalidValueError
from ..functional import exact
from ..index import DCI
from ..storage import load, verify
from ..storage import open as open_directory
from .answers import Neighbors

Array = npt.NDArray[Any]

_ASKED = 1000  # points that stand for queries where none are given


def fit(args: Namespace) -> str:
    """Index a file of vectors."""
    _check_writable(args.index)
    X = read_vectors(args.data)
    queries = None if args.queries is None else read_vectors(args.queries)
    index = _new(args)
    start = time.perf_counter()
    index.fit(X, queries)
    seconds = time.perf_counter() - start
    index.set_params(verbose=False, num_threads=None)
    index.save(args.index)
    return f"{args.index}: {_described(index)}, fitted in {seconds:.2f} s"


def query(args: Namespace) -> str:
    """Find the nearest points of the rows of a file."""
    if args.out is not None:
        check_output(args.out)
    with _opened(args.index, mmap=True) as index:
        queries = read_vectors(args.queries)
        index.set_params(verbose=args.verbose)
        start = time.perf_counter()
        found = index.query(queries, args.k, recall=args.recall, num_threads=args.threads)
        seconds = time.perf_counter() - start
    if args.out is None:
        return "\n".join(["query,rank,id,distance", *answer_lines(found.distances, found.indices)])
    write_answers(args.out, found.distances, found.indices)
    return f"{args.out}: {len(queries)} queries, {args.k} neighbours each, in {seconds:.2f} s"


def add(args: Namespace) -> str:
    """Add the rows of a file to an index."""
    with _opened(args.index) as index:
        X = read_vectors(args.data)
        given = index.add(X, None if args.ids is None else read_ids(args.ids))
        _keep(index, args.index)
        shown = f", ids {given.min()} to {given.max()}" if len(given) else ""
        return f"{args.index}: added {len(given)} points{shown}; {len(index)} in all"


def remove(args: Namespace) -> str:
    """Remove points from an index."""
    if (args.file is None) == (args.ids is None):
        raise InvalidValueError("ids: expected either a file of them or --ids 1,2,3")
    with _opened(args.index) as index:
        ids = args.ids if args.file is None else read_ids(args.file)
        count = index.remove(ids, "ignore" if args.ignore_missing else "raise")
        _keep(index, args.index)
        return f"{args.index}: removed {count} points; {len(index)} in all"


def info(args: Namespace) -> str:
    """Say what an index is."""
    with _opened(args.index, mmap=True) as index:
        lines = [f"{args.index}: {_described(index)}"]
        facts: dict[str, Any] = {"kind": "directory" if os.path.isdir(args.index) else "file"}
        if not os.path.isdir(args.index):
            facts["size"] = f"{os.path.getsize(args.index):,} bytes"
        facts["memory"] = f"{index.nbytes:,} bytes"
        if index._version is not None:
            stats = index.stats_
            facts |= {name: getattr(stats, name) for name in stats.__dataclass_fields__ if name != "method"}
            facts["method"] = stats.method
        facts |= {f"parameter {name}": value for name, value in index.get_params().items()}
    width = max(map(len, facts))
    lines += [f"  {name:<{width}}  {_short(value)}" for name, value in facts.items() if value not in ("", None)]
    return "\n".join(lines)


def check(args: Namespace) -> str:
    """Check a file, and the recall of its index."""
    if os.path.isdir(args.index):
        with _opened(args.index):
            lines = [f"{args.index}: all checksums match"]
    else:
        verify(args.index)
        lines = [f"{args.index}: all checksums match, and its parts fit each other"]
    if args.data is None and args.queries is None:
        return lines[0]
    with _opened(args.index, mmap=True) as index:
        data = None if args.data is None else read_vectors(args.data)
        queries = _queries(args.queries, data)
        found = index.query(queries, args.k)
        metric = index.stats_.metric
        true = index.query(queries, args.k, recall=1.0) if data is None else exact(data, queries, args.k, metric)
        wanted = index._version.engine.params.recall if index._version else index.recall
    share = _recall(found, true, metric)
    return f"{lines[0]}\n  recall@{args.k} {share:.4f} of {len(queries)} queries; {wanted:g} was asked for"


def bench(args: Namespace) -> str:
    """Compare an index of a file's vectors with exact search."""
    X = read_vectors(args.data)
    queries = _queries(args.queries, X)
    index = _new(args)
    times = [time.perf_counter()]
    true = exact(X, queries, args.k, args.metric, num_threads=args.threads)
    times.append(time.perf_counter())
    index.fit(X)
    times.append(time.perf_counter())
    index.query(queries[: min(64, len(queries))], args.k)  # what is calibrated once
    times.append(time.perf_counter())
    found = index.query(queries, args.k)
    times.append(time.perf_counter())
    exact_time, fit_time, first_time, query_time = np.diff(times)
    share = _recall(found, true, index.stats_.metric)
    rows = [
        ("", "build (s)", f"{len(queries)} queries (s)", f"recall@{args.k}"),
        ("exact", "", f"{exact_time:.3f}", "1.0000"),
        (f"dci, {index.stats_.method}", f"{fit_time + first_time:.3f}", f"{query_time:.3f}", f"{share:.4f}"),
    ]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ["  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)) for row in rows]
    reason = f"\n{index.stats_.reason}" if index.stats_.reason else ""
    return f"{args.data}: {len(X)} x {X.shape[1]}, {args.metric}\n" + "\n".join(lines) + reason


def _new(args: Namespace) -> DCI:
    return DCI(
        args.metric, recall=args.recall, store=args.store, random_state=args.seed, num_threads=args.threads,
        verbose=args.verbose,
    )  # fmt: skip


def _opened(path: str, mmap: bool = False) -> Any:
    """Return a context with the index of a file or a directory."""
    if os.path.isdir(path):
        if not is_store(path):
            raise InvalidValueError(f"{path}: expected a file, or a directory made by dci.open")
        return closing(open_directory(path))
    return nullcontext(load(path, mmap=mmap))


def _keep(index: DCI, path: str) -> None:
    if not os.path.isdir(path):  # a directory has kept it already
        index.save(path)


def _check_writable(path: str) -> None:
    """Find out before a long fit whether there is a place for its index."""
    if os.path.isdir(path):
        raise InvalidValueError(f"{path}: expected a file to write or replace, received a directory")
    where = os.path.dirname(os.path.abspath(path))
    if not os.access(where, os.W_OK):
        raise InvalidValueError(f"{path}: expected a directory there that can be written to, received {where}")


def _queries(name: str | None, data: Array | None) -> Array:
    """Rows of a file of queries; without it, evenly spaced rows of the data."""
    if name is not None or data is None:
        return read_vectors(str(name))
    return data[np.linspace(0, len(data) - 1, min(_ASKED, len(data))).astype(np.int64)]


def _recall(found: Neighbors, true: Neighbors, metric: str) -> float:
    """Share of answers that are as near as the last true one; so ties count."""
    mine, its = (-answer.distances if metric == "ip" else answer.distances for answer in (found, true))
    n_true = np.isfinite(its).sum(1)
    if not n_true.any():
        return 1.0
    last = np.where(np.isfinite(its), its, -np.inf).max(1, keepdims=True)
    near = np.isfinite(mine) & (mine <= last + 1e-5 * np.abs(last))
    return float(np.minimum(near.sum(1), n_true).sum() / n_true.sum())


def _described(index: DCI) -> str:
    if index._version is None:
        return "not fitted"
    stats = index.stats_
    return f"{index.n_points} points x {index.dim}, {stats.metric}, {stats.method}"


def _short(value: Any) -> str:
    return f"array of shape {value.shape}" if isinstance(value, np.ndarray) else str(value)


def report(message: str) -> None:
    """Print an error as one line."""
    print(f"dci: {' '.join(message.split())}", file=sys.stderr)
