"""A run on disk: one JSON file, written after every step, so that an interrupted run goes on where it stopped.

A run is a dictionary of steps; a step is a list of rows; a row is a flat dictionary that says all about one
measurement: its suite, data, rival, arguments, recall and the seconds of every repeat. Tables, plots and bars read rows
and nothing else.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from comparisons.data.datasets import ComparisonError
from comparisons.harness import machine

Row = dict[str, Any]
FORMAT = 1
REPEATED = ("build_seconds", "query_seconds", "seconds")  # lists of a row, one entry a repeat
IDENTITY = ("suite", "data", "n", "dim", "queries", "k", "wanted", "rival", "build", "search", "batch")
IDENTITY += ("method", "options", "length", "layer", "keys")  # attention's
IDENTITY += ("operation",)  # those of an index that changes
SAME = ("threads", "cpu", "versions", "instruction_set")  # what a resumed run must share with its beginning
BUSY_SPREAD = 0.2  # (slowest - fastest) / median above which the machine was busy …
BUSY_SECONDS = 0.02  # … unless the two are as near as this


class Run:
    """What one run has measured so far.

    Parameters
    ----------
    path : Path, optional
        The file; without one the run lives in memory.
    threads : int
    resume : bool
        Go on with the file if there is one; otherwise an existing file is an error.
    command : str
        Kept for the report.
    """

    def __init__(self, path: Path | None = None, threads: int = 2, resume: bool = False, command: str = "") -> None:
        self.path, self.threads = path, threads
        self.content: dict[str, Any] = {"format": FORMAT, "complete": False, "sessions": [], "data": {}, "steps": {}}
        session = {"command": command, **machine.environment(threads)}
        if path is not None and path.exists():
            if not resume:
                raise ComparisonError(f"{path} exists: --resume goes on with it, --out names another file")
            self.content = read(path)
            self._must_match(session)
        self.content["sessions"].append(session)
        self.content["complete"] = False
        self.save()  # what cannot be written is said before anything is measured

    def step(self, key: str, make: Callable[[], list[Row]]) -> list[Row]:
        """Return the rows kept under `key`, or make and keep them."""
        if key not in self.content["steps"]:
            self.content["steps"][key] = plain(make())
            self.save()
        return self.content["steps"][key]

    def same_data(self, name: str, checksum: str) -> None:
        """Note a data set's checksum; a resumed run must see the same data."""
        if self.content["data"].setdefault(name, checksum) != checksum:
            raise ComparisonError(f"{self.path}: the data set {name} has changed since this run began: start another")

    def finish(self) -> None:
        """Mark the run as complete."""
        self.content["complete"] = True
        self.save()

    def save(self) -> None:
        """Write the file whole or not at all."""
        if self.path is None:
            return
        partial = self.path.with_name(self.path.name + ".partial")
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            partial.write_text(_lines(self.content))
            os.replace(partial, self.path)
        except OSError as error:
            raise ComparisonError(f"cannot write {self.path}: {error.strerror}") from error

    def rows(self, *suites: str, **where: Any) -> list[Row]:
        """Return the merged rows of some suites (of all without names) whose entries equal `where`."""
        found = merge(row for rows in self.content["steps"].values() for row in rows)
        return select(found, *suites, **where)

    def _must_match(self, session: dict[str, Any]) -> None:
        for name in SAME:
            began, now = self.content["sessions"][0].get(name), session[name]
            if began != now:
                raise ComparisonError(f"{self.path} cannot go on: {name} was {began} and is {now} now")


def _lines(content: dict[str, Any]) -> str:
    """Return JSON with a line for every step."""
    steps = ",\n".join(f"{json.dumps(key)}: {json.dumps(rows)}" for key, rows in content["steps"].items())
    rest = json.dumps({name: value for name, value in content.items() if name != "steps"}, indent=1)
    return f'{rest.removesuffix("}").rstrip()},\n "steps": {{\n{steps}\n }}\n}}\n'


def read(path: Path) -> dict[str, Any]:
    """Read a run's file, or say in one line why not."""
    try:
        content = json.loads(path.read_text())
        if content["format"] != FORMAT:
            raise ValueError(f"format {content['format']}, expected {FORMAT}")
        if not content["sessions"] or not all(isinstance(rows, list) for rows in content["steps"].values()):
            raise ValueError("no rows")
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ComparisonError(f"cannot read {path} as a run of comparisons: {error!r}") from error
    return content


def new_path(suite: str) -> Path:
    """Return a new file's name for a run of a suite, in ``results/``."""
    return Path("results") / f"{suite}-{time.strftime('%Y%m%d-%H%M%S')}.json"


def latest_unfinished(suite: str) -> Path:
    """Return the newest interrupted run of a suite in ``results/``."""
    for path in sorted(Path("results").glob(f"{suite}-2*.json"), reverse=True):
        if not read(path)["complete"]:
            return path
    raise ComparisonError(f"nothing to resume: results/ holds no unfinished run of {suite!r} (--out names a file)")


def identity(row: Row) -> str:
    """Return what two rows share if they are repeats of one measurement."""
    return json.dumps([row.get(name) for name in IDENTITY], sort_keys=True)


def merge(rows: Iterable[Row]) -> list[Row]:
    """Join the repeats of each measurement: their seconds are appended, the least recall counts."""
    found: dict[str, Row] = {}
    for row in rows:
        earlier = found.setdefault(identity(row), row)
        if earlier is not row:
            joined = {name: [*earlier[name], *row[name]] for name in REPEATED if name in row}
            if "recall" in row:
                joined["recall"] = min(earlier["recall"], row["recall"])
            found[identity(row)] = earlier | joined
    return list(found.values())


def select(rows: Iterable[Row], *suites: str, **where: Any) -> list[Row]:
    """Return the rows of some suites (of all without names) whose entries equal `where`."""
    return [
        row
        for row in rows
        if (not suites or row.get("suite") in suites) and all(row.get(name) == value for name, value in where.items())
    ]


def busy(rows: Iterable[Row]) -> list[Row]:
    """Return the rows whose repeats differ so much that the machine was doing something else."""
    return [row for row in rows if _spread(row) > 1]


def _spread(row: Row) -> float:
    """Return slowest less fastest as a multiple of what a quiet machine does; of calls, what the suite says."""
    if "spread" in row:
        return row["spread"] / BUSY_SPREAD
    repeats = [row[name] for name in REPEATED if name in row]
    totals = sorted(map(sum, zip(*repeats, strict=True)))
    return (totals[-1] - totals[0]) / max(BUSY_SECONDS, BUSY_SPREAD * totals[len(totals) // 2]) if totals else 0.0


def plain(value: Any) -> Any:
    """Return a value as JSON keeps it: arrays as lists, what JSON does not know as text."""
    return json.loads(json.dumps(value, default=lambda other: getattr(other, "tolist", other.__str__)()))
