"""Versions of points: a model of a dictionary, and that older versions never change."""

import hypothesis.strategies as st
import numpy as np
from hypothesis import settings
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from dci._store import points as points_module
from dci._store.points import Points, PointStore

DIM = 3


def some_rows(count, seed):
    return np.random.default_rng(seed).standard_normal((count, DIM)).astype(np.float32)


class PointsMachine(RuleBasedStateMachine):
    def __init__(self):
        super().__init__()
        self.given = some_rows(4, 0)
        self.given.flags.writeable = False
        self.points = Points.of(self.given, 1.0)
        self.store = PointStore(self.points)
        self.model = {i: self.given[i].copy() for i in range(4)}
        self.used = set(self.model)
        self.old = []

    def publish(self, points):
        self.old.append((self.points, self.points.rows.copy(), self.points.all_ids()))
        self.points = points

    @rule(count=st.integers(0, 40), seed=st.integers(0, 99))
    def add(self, count, seed):
        rows = some_rows(count, seed)
        points = self.store.append(self.points, rows, 1.0, None)
        new = points.all_ids()[len(self.model) :]
        assert not self.used & set(new.tolist())
        self.publish(points)
        self.model |= dict(zip(new.tolist(), rows, strict=True))
        self.used |= set(new.tolist())

    @rule(data=st.data(), seed=st.integers(0, 99))
    def add_with_ids(self, data, seed):
        free = st.one_of(st.integers(-(2**63), 2**62), st.integers(-50, 50)).filter(lambda i: i not in self.model)
        ids = data.draw(st.lists(free, unique=True, max_size=10))
        rows = some_rows(len(ids), seed)
        self.publish(self.store.append(self.points, rows, 1.0, np.array(ids, np.int64)))
        self.model |= dict(zip(ids, rows, strict=True))
        self.used |= set(ids)

    @rule(data=st.data())
    def remove(self, data):
        ids = data.draw(st.lists(st.sampled_from(sorted(self.model)), unique=True)) if self.model else []
        rows = self.store.find(self.points, np.array(ids, np.int64))
        assert (rows >= 0).all()
        self.publish(self.store.remove(self.points, rows))
        for i in ids:
            del self.model[i]

    @rule()
    def compact(self):
        self.store, points = PointStore.compacted(self.points)
        self.publish(points)

    @rule(count=st.integers(1, 9))
    def fail_in_the_middle(self, count):
        self.store.append(self.points, some_rows(count, 1), 1.0, None)  # never published

    @invariant()
    def every_point_is_found(self):
        assert self.points.n_live == len(self.model)
        ids = self.points.all_ids()
        assert sorted(ids.tolist()) == sorted(self.model)
        rows = self.store.find(self.points, ids)
        for i, row in zip(ids.tolist(), rows, strict=True):
            np.testing.assert_array_equal(self.points.rows[row], self.model[i])
        assert np.array_equal(self.points.ids_of(rows), ids)
        missing = np.array([*sorted(self.used - set(self.model))[:20], 2**63 - 1], np.int64)
        assert (self.store.find(self.points, missing) == -1).all()

    @invariant()
    def older_versions_are_as_they_were(self):
        for points, rows, ids in self.old[-3:]:
            np.testing.assert_array_equal(points.rows, rows)
            np.testing.assert_array_equal(points.all_ids(), ids)


TestPoints = PointsMachine.TestCase
TestPoints.settings = settings(max_examples=30, stateful_step_count=25, deadline=None)


class PointsMachineFewLoose(PointsMachine):
    """Ids are sorted again and again."""

    def __init__(self):
        super().__init__()
        self.before, points_module._LOOSE = points_module._LOOSE, 2

    def teardown(self):
        points_module._LOOSE = self.before


TestPointsFewLoose = PointsMachineFewLoose.TestCase
TestPointsFewLoose.settings = TestPoints.settings
