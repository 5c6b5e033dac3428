"""An index that changes against a dictionary of vectors and exact search in float64.

The structure is forced, and renewed all the time or never: a few pending points are enough for a fold.
"""

import pickle
from unittest import mock

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import settings
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

import dci
from dci._api.answers import Request
from dci._tuning import living
from tests.dci.store.test_codes import errors

DIM = 5
METRICS = ("l2", "ip", "cosine")
STRUCTURES = (
    {"n_simple": 4, "n_levels": 2, "ranking": "sum"},
    {"n_simple": 4, "n_levels": 1, "ranking": "sum"},
    {"n_simple": 3, "n_composite": 2, "n_levels": 2, "ranking": "max", "directions": "random"},
    {"n_simple": 2, "n_levels": 1, "ranking": "max"},
    {"n_simple": 8, "n_levels": 2, "ranking": "sum", "directions": "random"},
    {},
)
EXPLICIT = st.one_of(st.integers(-20, 60), st.integers(-(2**63), -(2**63) + 2), st.integers(2**62, 2**62 + 5))
SEEDS = st.integers(0, 2**16)


def vectors(count, seed):
    """Of several kinds: noise, a lattice where distances tie, zeros, and some that are much longer."""
    rng = np.random.default_rng(seed)
    kind = seed % 4
    rows = rng.standard_normal((count, DIM))
    if kind == 1:
        rows = rng.integers(-1, 2, (count, DIM)).astype(float)
    elif kind == 2:
        rows *= 20.0
    return rows.astype(np.float32)


def distances_to(query, rows, metric):
    """Distances in float64, and how far float32 may be from them."""
    query, rows = query.astype(np.float64), rows.astype(np.float64)
    norms, norm = np.linalg.norm(rows, axis=1), np.linalg.norm(query)
    if metric == "l2":
        return np.linalg.norm(rows - query, axis=1), 1e-5 * (norms + norm)
    if metric == "ip":
        return rows @ query, 1e-5 * norms * norm
    product = norms * norm
    return 1.0 - np.divide(rows @ query, product, out=np.zeros(len(rows)), where=product > 0), np.full(len(rows), 1e-5)


class LivingMachine(RuleBasedStateMachine):
    """Renewed all the time."""

    patches = {"_PENDING": (3, 0.0), "_UNASKED": 0.0}  # noqa: RUF012 - read only
    stores = ("float32",)

    def __init__(self):
        super().__init__()
        self.patched = [mock.patch.object(living, name, value) for name, value in self.patches.items()]
        for patch in self.patched:
            patch.start()
        self.model = {}
        self.used = set()
        self.seen = []

    def teardown(self):
        for patch in self.patched:
            patch.stop()

    @initialize(
        metric=st.sampled_from(METRICS), structure=st.sampled_from(STRUCTURES), recall=st.sampled_from([1.0, 0.9]),
        count=st.integers(0, 20), seed=SEEDS, begin=st.sampled_from(["fit", "add", "empty list"]),
        num_threads=st.sampled_from([1, 2]), data=st.data(),
    )  # fmt: skip
    def start(self, metric, structure, recall, count, seed, begin, num_threads, data):
        self.metric = metric
        store = data.draw(st.sampled_from(self.stores))
        self.index = dci.DCI(metric, recall=recall, store=store, random_state=0, num_threads=num_threads, **structure)
        rows = vectors(count, seed)
        if begin == "fit":
            self.index.fit(rows)
            self.model = dict(enumerate(rows.copy()))
        else:
            if begin == "empty list":
                self.index.fit([])
            self.put(self.index.add(rows).tolist(), rows)
        self.used = set(self.model)

    # what changes

    def put(self, ids, rows):
        assert len(set(ids)) == len(ids) == len(rows)
        for i, row in zip(ids, rows, strict=True):
            self.model.pop(i, None)
            self.model[i] = row.copy()
        self.used |= set(ids)

    def some_ids(self, data, **limits):
        return data.draw(st.lists(st.sampled_from(list(self.model)), unique=True, **limits)) if self.model else []

    @rule(count=st.integers(0, 12), seed=SEEDS)
    def add(self, count, seed):
        rows = vectors(count, seed)
        ids = self.index.add(rows)
        assert ids.dtype == np.int64
        assert not self.used & set(ids.tolist()), "an assigned id that there has been"
        assert np.all(np.diff(ids) > 0)
        self.put(ids.tolist(), rows)
        rows[:] = np.nan  # whatever the caller does with its array

    @rule(data=st.data(), seed=SEEDS)
    def add_with_ids(self, data, seed):
        ids = data.draw(st.lists(EXPLICIT.filter(lambda i: i not in self.model), unique=True, max_size=8))
        rows = vectors(len(ids), seed)
        assert self.index.add(rows, ids=ids).tolist() == ids
        self.put(ids, rows)

    @rule(data=st.data(), ignore=st.booleans())
    def remove(self, data, ignore):
        ids = self.some_ids(data)
        if ignore:
            unknown = [i for i in (77, -77, 2**63 - 1) if i not in self.model]
            assert self.index.remove([*ids, *ids[:2], *unknown], missing="ignore") == len(ids)
        else:
            assert self.index.remove([*ids, *ids[:2]]) == len(ids)
        for i in ids:
            del self.model[i]

    @precondition(lambda self: len(self.model) > 8)
    @rule(data=st.data())
    def remove_most(self, data):
        kept = set(self.some_ids(data, max_size=3))
        ids = [i for i in self.model if i not in kept]
        assert self.index.remove(np.array(ids)) == len(ids)
        for i in ids:
            del self.model[i]

    @rule(data=st.data(), seed=SEEDS)
    def update(self, data, seed):
        ids = self.some_ids(data, max_size=8)
        rows = vectors(len(ids), seed)
        self.index.update(ids, rows)
        self.put(ids, rows)

    @rule(keep=st.booleans())
    def pickle_round_trip(self, keep):
        other = pickle.loads(pickle.dumps(self.index))
        queries = vectors(4, 7)
        expected, received = self.index.query(queries, 3), other.query(queries, 3)
        np.testing.assert_allclose(received.distances, expected.distances, rtol=1e-5)
        assert np.array_equal(other.ids, self.index.ids)
        if keep:
            self.index = other
            self.seen = []

    @rule(data=st.data(), seed=SEEDS)
    def call_badly(self, data, seed):
        rows = vectors(3, seed)
        known = self.some_ids(data, min_size=1, max_size=1)
        wrong = rows.copy()
        wrong[1, 2] = np.nan
        calls = [
            lambda: self.index.add(rows, ids=[900, 901, 900]),
            lambda: self.index.add(rows, ids=[900, 901]),
            lambda: self.index.add(rows, ids=[0.5, 1.0, 2.0]),
            lambda: self.index.add(wrong),
            lambda: self.index.add(rows[:, :4]),
            lambda: self.index.add(rows[0]),
            lambda: self.index.remove([*known, 999]),
            lambda: self.index.remove(known, missing="skip"),
            lambda: self.index.update([*known, 999], rows[: len(known) + 1]),
            lambda: self.index.get([*known, 999]),
            lambda: self.index.query_by_id([*known, 999]),
            lambda: self.index.query(rows, 2, filter=[*known, 999]),
            lambda: self.index.query(rows, 2, filter=np.ones(len(self.model) + 1, bool)),
        ]
        if known:
            calls += [
                lambda: self.index.add(rows, ids=[900, 901, *known]),
                lambda: self.index.update(known * 2, rows[:2]),
                lambda: self.index.update(known, wrong[1:2]),
                lambda: self.index.update(known, rows[:1, :4]),
            ]
        with pytest.raises((ValueError, TypeError, KeyError)):
            data.draw(st.sampled_from(calls))()

    # what asks

    def check(self, queries, k, answer, allowed=None, left_out=None):
        """Compare an answer with the model's."""
        distances, indices = answer
        assert distances.shape == indices.shape == (len(queries), k)
        sign = -1.0 if self.metric == "ip" else 1.0
        for i, query in enumerate(queries):
            ids = [
                j for j in self.model if (allowed is None or j in allowed) and (left_out is None or j != left_out[i])
            ]
            count = min(k, len(ids))
            assert (indices[i, count:] == -1).all()
            assert (distances[i, count:] == sign * np.inf).all()
            found = indices[i, :count].tolist()
            assert len(set(found)) == count, "an id twice, or too few"
            assert set(found) <= set(ids)
            if not ids:
                continue
            true, error = distances_to(query, np.array([self.model[j] for j in ids]), self.metric)
            place = {j: p for p, j in enumerate(ids)}
            own = [place[j] for j in found]
            tolerance = 2 * error.max() + 1e-6
            np.testing.assert_allclose(distances[i, :count], true[own], rtol=1e-5, atol=tolerance)
            np.testing.assert_allclose(sign * true[own], np.sort(sign * true)[:count], rtol=1e-5, atol=tolerance)
            assert (np.diff(sign * distances[i, :count]) >= 0).all()

    @rule(k=st.integers(1, 12), count=st.integers(1, 6), seed=SEEDS, how=st.sampled_from(["own", "exact", "full"]))
    def query(self, k, count, seed, how):
        budget = {"own": {}, "exact": {"recall": 1.0}, "full": {"max_visits": 1.0, "max_candidates": 1.0}}[how]
        queries = vectors(count, seed)
        self.check(queries, k, self.index.query(queries, k, **budget))

    @rule(data=st.data(), k=st.integers(1, 6), seed=SEEDS, mask=st.booleans(), full=st.booleans())
    def query_some(self, data, k, seed, mask, full):
        allowed = self.some_ids(data)
        given_filter = np.isin(self.index.ids, np.array(allowed, np.int64)) if mask else np.array(allowed, np.int64)
        budget = {"max_visits": 1.0, "max_candidates": 1.0} if full else {}
        queries = vectors(4, seed)
        self.check(queries, k, self.index.query(queries, k, filter=given_filter, **budget), allowed=set(allowed))

    @rule(data=st.data(), k=st.integers(1, 6))
    def query_by_id(self, data, k):
        ids = self.some_ids(data, min_size=1, max_size=5)
        if ids:
            queries = np.array([self.model[i] for i in ids])
            self.check(queries, k, self.index.query_by_id(ids, k), left_out=ids)

    @rule(seed=SEEDS, rank=st.integers(0, 40), most=st.sampled_from([None, 1, 5, 100]))
    def query_radius(self, seed, rank, most):
        """Between two distances, so that rounding does not matter."""
        queries = vectors(3, seed)
        sign = -1.0 if self.metric == "ip" else 1.0
        ids = list(self.model)
        rows = np.array([self.model[i] for i in ids], np.float32).reshape(-1, DIM)
        radii, expected = [], []
        for query in queries:
            true, error = distances_to(query, rows, self.metric)
            order = np.argsort(sign * true)
            cut = min(rank, len(ids) - 1)
            while 0 < cut < len(ids) and abs(true[order[cut]] - true[order[cut - 1]]) < 10 * error.max() + 1e-5:
                cut -= 1
            if cut <= 0 or len(ids) == 0:
                radii.append(sign * np.inf)
                expected.append(set(ids))
            else:
                radii.append((true[order[cut]] + true[order[cut - 1]]) / 2)
                expected.append({ids[j] for j in order[:cut]})
        answer = self.index.query_radius(queries, radii, most)
        assert answer.offsets[0] == 0
        assert answer.offsets[-1] == len(answer.indices) == len(answer.distances)
        for i, wanted in enumerate(expected):
            part = slice(answer.offsets[i], answer.offsets[i + 1])
            found = answer.indices[part].tolist()
            assert len(set(found)) == len(found) == min(len(wanted), most or len(wanted))
            assert set(found) <= wanted
            assert (np.diff(sign * answer.distances[part]) >= 0).all()

    @rule(data=st.data())
    def get(self, data):
        ids = self.some_ids(data, max_size=6)
        assert np.array_equal(self.index.get(ids), np.array([self.model[i] for i in ids]).reshape(-1, DIM))
        for i in [*ids, -3, 58, 2**62 + 1]:
            assert (i in self.index) == (i in self.model)

    @rule(seed=SEEDS)
    def look(self, seed):
        """Note what today's version answers, to ask it again later."""
        version = self.index._version
        queries = vectors(3, seed)
        request = Request(queries, float(np.abs(queries).max()), 4, 0.9)
        self.seen = [*self.seen[-2:], (version, request, self.index._ask(version, request))]

    # what holds always

    @invariant()
    def ids_are_those_of_the_model(self):
        if not hasattr(self, "index"):
            return
        assert self.index.ids.tolist() == list(self.model)
        assert len(self.index) == self.index.n_points == len(self.model)
        rows = np.array(list(self.model.values()), np.float32).reshape(-1, DIM)
        self.check_rows(self.index.get(list(self.model)), rows)

    def check_rows(self, found, rows):
        assert np.array_equal(found, rows)

    @invariant()
    def earlier_versions_answer_as_they_did(self):
        for version, request, before in self.seen:
            again = self.index._ask(version, request)
            assert np.array_equal(again.distances, before.distances)
            assert np.array_equal(again.indices, before.indices)


class FoldingMachine(LivingMachine):
    """Never built anew if it can be helped: many folds and removals on one structure."""

    patches = {  # noqa: RUF012 - read only
        "_PENDING": (2, 0.0), "_UNASKED": 0.0, "_BUILD_AGAIN": 1e9, "_MEASURE_AGAIN": 1e-3, "_MOST_GONE": 1.0,
        "_SHRUNK": 0.0,
    }  # fmt: skip


class WaitingMachine(LivingMachine):
    """What comes may wait for queries."""

    patches = {"_PENDING": (2, 0.0), "_UNASKED": 1.0}  # noqa: RUF012 - read only


class RoundingMachine(LivingMachine):
    """Points are rounded when they come, and again where others leave the range."""

    stores = ("float16", "int8")

    def check_rows(self, found, rows):
        kept = self.index._version.points.rows
        order = self.index._version.store.find(self.index._version.points, np.array(list(self.model), np.int64))
        assert (np.abs(found - rows) <= errors(kept)[order]).all()
        self.model = dict(zip(self.model, found, strict=True))


class RoundingFoldingMachine(RoundingMachine):
    patches = FoldingMachine.patches


TestLiving = LivingMachine.TestCase
TestLiving.settings = settings(max_examples=40, stateful_step_count=30, deadline=None)
TestFolding = FoldingMachine.TestCase
TestFolding.settings = settings(max_examples=40, stateful_step_count=30, deadline=None)
TestWaiting = WaitingMachine.TestCase
TestWaiting.settings = settings(max_examples=40, stateful_step_count=30, deadline=None)
TestRounding = RoundingMachine.TestCase
TestRounding.settings = settings(max_examples=30, stateful_step_count=30, deadline=None)
TestRoundingFolding = RoundingFoldingMachine.TestCase
TestRoundingFolding.settings = TestRounding.settings
