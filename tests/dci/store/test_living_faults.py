"""An index that changes: calls that fail or are interrupted leave it as it was."""

import linecache
import os
import pickle
import sys
from unittest import mock

import numpy as np
import pytest

import dci
from dci._search.exact import ExactSearch
from dci._search.ranked import Ranker
from dci._store import points as points_module
from dci._store.points import PointStore
from dci._tuning import engine as engine_module
from dci._tuning import living
from dci._tuning.engine import Engine
from dci._tuning.living import Upkeep
from tests.dci.store.living import assert_same, changed, fitted, observed, some_rows

LIBRARY = os.path.dirname(dci.__file__)

POINTS_OF_FAILURE = [
    (PointStore, "_reserve"), (PointStore, "append"), (PointStore, "remove"), (PointStore, "compacted"),
    (Ranker, "with_rows"), (Ranker, "without_rows"), (Ranker, "_fill"), (Ranker, "_assign"), (Engine, "settle"),
    (Engine, "neighbours"), (Engine, "on"), (Upkeep, "grown"), (Upkeep, "shrunk"), (Upkeep, "folded"),
    (Upkeep, "renewed"), (Upkeep, "waiting"), (Upkeep, "measured"), (ExactSearch, "__init__"), (living, "build"),
    (living, "_live"), (living, "first_version"), (engine_module, "calibrate"), (points_module, "Points"),
]  # fmt: skip
CHANGES = {
    "add": lambda index: index.add(some_rows(5, 20)),
    "add with ids": lambda index: index.add(some_rows(5, 20), ids=np.arange(2000, 2005)),
    "add many": lambda index: index.add(some_rows(400, 20)),
    "add very many": lambda index: index.add(some_rows(3000, 20)),
    "remove": lambda index: index.remove([10, 1004, 11]),
    "remove half": lambda index: index.remove(index.ids[::-1][:200]),
    "remove most": lambda index: index.remove(index.ids[20:]),
    "update": lambda index: index.update([10, 1004, 11], some_rows(3, 20)),
    "update many": lambda index: index.update(index.ids[:300], some_rows(300, 20)),
}


def failing(original, error, late):
    """A function that fails before, or after, it has done its work."""

    def call(*args, **kwargs):
        if late:
            getattr(original, "__func__", original)(*args, **kwargs)
        raise error

    return staticmethod(call) if isinstance(original, staticmethod) else call


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("kind", ["changed", "fitted"])
def test_failures_change_nothing(change, kind):
    """Wherever memory runs out or Ctrl-C strikes: answers and ids are as before, and the next call works."""
    index = changed() if kind == "changed" else fitted()
    if kind == "fitted" and change in ("remove", "update"):
        index.add(some_rows(1), ids=[1004])
    expected = pickle.loads(pickle.dumps(index))
    before, version = observed(index), index._version
    struck = 0
    for owner, name in POINTS_OF_FAILURE:
        for error, late in ((KeyboardInterrupt, False), (MemoryError, True)):
            with mock.patch.object(owner, name, failing(vars(owner)[name], error, late)):
                try:
                    CHANGES[change](index)
                except (KeyboardInterrupt, MemoryError):
                    struck += 1
            if index._version is not version:  # it did not pass there
                index = pickle.loads(pickle.dumps(expected))
                version = index._version
            assert index.ids.tolist() == before[0].tolist()
    assert struck >= 6
    assert_same(before, observed(index))
    assert_same([np.asarray(CHANGES[change](index))], [np.asarray(CHANGES[change](expected))])
    assert index.ids.tolist() == expected.ids.tolist()
    assert_same([index.get(index.ids)], [expected.get(expected.ids)])
    Q = some_rows(20, 98)
    assert_same(index.query(Q, 5, recall=1.0), expected.query(Q, 5, recall=1.0))
    assert not set(index.add(some_rows(3, 21)).tolist()) & set(expected.ids.tolist())
    assert index.query(some_rows(3, 21), 1, recall=1.0).indices.ravel().tolist() == index.ids[-3:].tolist()


class Striker:
    """Raises KeyboardInterrupt before the n-th line of the library that runs; counts them if there are fewer."""

    def __init__(self, moment):
        self.moment, self.lines = moment, 0

    def __call__(self, frame, event, _):
        name = frame.f_code.co_filename
        if not name.startswith(LIBRARY) or name.endswith("fork.py"):
            return None
        # Leaving a `with` runs its line again, where Python itself looks at no signals.
        if event == "line" and not linecache.getline(name, frame.f_lineno).lstrip().startswith("with "):
            self.lines += 1
            if self.lines == self.moment:
                raise KeyboardInterrupt
        return self

    def __enter__(self):
        self.before = sys.gettrace()
        sys.settrace(self)
        return self

    def __exit__(self, *_):
        sys.settrace(self.before)


@pytest.mark.parametrize("change", ["add with ids", "add many", "remove half", "remove most", "update", "update many"])
def test_interrupted_at_any_line(change):
    """Either all is done or nothing."""
    index = changed()
    first = pickle.dumps(index)
    before = index.ids.tolist()
    with Striker(0) as striker:
        CHANGES[change](index)
    after = index.ids.tolist()
    assert striker.lines > 50
    expected = index.query(some_rows(10, 97), 5, recall=1.0)
    moments = np.unique(np.linspace(1, striker.lines, 80).astype(int)).tolist()
    moments += range(striker.lines - 20, striker.lines)  # where it is put in place
    index = pickle.loads(first)
    rows = index.get(before)
    for moment in moments:
        try:
            with Striker(moment):
                CHANGES[change](index)
        except KeyboardInterrupt:
            pass
        if index.ids.tolist() == after:
            assert_same(expected, index.query(some_rows(10, 97), 5, recall=1.0))
            index = pickle.loads(first)
        else:
            assert index.ids.tolist() == before
            np.testing.assert_array_equal(index.get(before), rows)
    CHANGES[change](index)
    assert index.ids.tolist() == after
    assert_same(expected, index.query(some_rows(10, 97), 5, recall=1.0))


@pytest.mark.parametrize("error", [MemoryError, KeyboardInterrupt])
def test_ids_of_a_failed_call_are_forgotten(error):
    """Ids are written before the call fails; an assigned one must not take them."""
    index = fitted(50)
    with mock.patch.object(Upkeep, "waiting", side_effect=error), pytest.raises(error):
        index.add(some_rows(3, 1), ids=[1000, 1001, 7000])
    assert index.ids.tolist() == list(range(50))
    assert 1000 not in index
    assert index.add(some_rows(3, 1)).tolist() == [50, 51, 52]
    assert index.ids.tolist() == list(range(53))
    assert index.add(some_rows(3, 2), ids=[7000, 1001, 1000]).tolist() == [7000, 1001, 1000]


def test_a_failed_refit_leaves_the_index_as_it_was():
    index = changed()
    before = observed(index)
    with mock.patch.object(Engine, "settle", side_effect=KeyboardInterrupt), pytest.raises(KeyboardInterrupt):
        index.fit(some_rows(300, 30))
    assert_same(before, observed(index))
    index.add(some_rows(300, 31))
