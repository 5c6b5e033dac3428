"""Points kept as float16 or int8: answers are those of the decoded points, and nothing is cut off."""

import copy
import pickle
from unittest import mock

import numpy as np
import pytest

import dci
from dci._api.answers import Request
from dci._geometry.quantization import Coding, is_recoded
from dci._runtime.threads import Work
from dci._search.dispatch import answer
from dci._search.exact import ExactSearch
from dci._tuning.living import Upkeep
from tests.dci.store.indexes import points

STORES = ["float16", "int8"]
METRICS = ["l2", "ip", "cosine"]
DIM = 6
STRUCTURES = {
    "auto": {},
    "cells": {"n_simple": 4},
    "flat": {"n_simple": 4, "n_levels": 1},
    "max": {"n_simple": 3, "n_composite": 2, "ranking": "max"},
    "random": {"directions": "random"},
}


def kept(index):
    return index._version.points.rows


def steps_of(rows):
    """What numbers of int8 are multiples of, (n, d)."""
    code = rows.array[:, -1:].astype(np.int64)
    return (1 + code % 8 / 8) * 2.0 ** -(code // 8) * rows.steps


def decoded(rows):
    """What codes stand for, in float64."""
    if rows.offsets is None:
        return rows.array.astype(np.float64) * rows.steps
    return rows.array[:, :-1] * steps_of(rows) + rows.offsets


def errors(rows):
    """How far codes may be from what they were made of, (n, d)."""
    half = 0.5001 * steps_of(rows) if rows.offsets is not None else 2.0**-11 * np.abs(decoded(rows))
    return half + 2.0**-24 * float(rows.steps[0]) + 1e-7 * np.abs(decoded(rows)) + 2e-45


def fitted(store, n=900, **params):
    return dci.DCI(store=store, random_state=0, **params).fit(points(n))


def ask(engine, **options):
    queries = points(25, 7)
    with Work(1) as work:
        return answer(engine, Request(queries, float(np.abs(queries).max()), 5, **options), work)


@pytest.mark.parametrize("structure", STRUCTURES)
@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("store", STORES)
def test_answers_are_those_of_the_decoded_points_at_the_same_budgets(store, metric, structure):
    engine = fitted(store, metric=metric, **STRUCTURES[structure])._version.engine
    D = engine.X[np.arange(len(engine.X))]
    plain = engine.on(D)
    plain.exact = ExactSearch(D, engine.exact.absmax, metric)
    budgets = [{}, {"recall": 0.8}, {"max_candidates": 20, "max_visits": 300}, {"max_visits": 100}]
    for options in budgets:
        for found, expected in zip(ask(engine, **options), ask(plain, **options), strict=True):
            np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("store", STORES)
def test_exact_answers_are_those_of_dci_exact(store, metric):
    index = fitted(store, metric=metric, n_simple=4)
    D, Q = index.get(index.ids), points(40, 7)
    for wanted in ({"recall": 1.0}, {"max_candidates": 1.0, "max_visits": 1.0}):
        found, expected = index.query(Q, 7, **wanted), dci.exact(D, Q, 7, metric)
        np.testing.assert_array_equal(found.indices, expected.indices)
        np.testing.assert_array_equal(found.distances, expected.distances)
    single = index.query(Q[0], 7, recall=1.0)
    np.testing.assert_array_equal(single.indices, expected.indices[0])
    own = index.query_by_id([3, 5], 4)
    assert not np.isin(own.indices, [[3], [5]]).any(axis=1).all()


@pytest.mark.parametrize("store", STORES)
def test_rows_are_read_as_numpy_reads_a_matrix(store):
    rows = kept(fitted(store))
    true = decoded(rows)
    everything = rows[np.arange(len(rows))]
    assert rows.shape == everything.shape == (900, DIM)
    assert everything.dtype == np.float32
    assert (np.abs(everything - true) <= np.spacing(np.abs(everything))).all()
    some = np.array([5, 899, 5])
    np.testing.assert_array_equal(rows[some], everything[some])
    np.testing.assert_array_equal(rows[100:200][np.arange(100)], everything[100:200])
    assert rows[100:200].base is rows.base or rows[100:200].base is rows.array
    assert rows[some[:0]].shape == (0, DIM)


@pytest.mark.parametrize("scale", [1e-42, 1e-30, 1.0, 1e30, 3e38])
@pytest.mark.parametrize("store", STORES)
def test_rounding_is_to_the_nearest_number_at_any_magnitude(store, scale):
    rng = np.random.default_rng(1)
    X = (rng.uniform(-1, 1, (500, DIM)) * scale).astype(np.float32)
    X[:, 2] = 0.25 * scale  # constant
    index = dci.DCI(store=store, recall=1).fit(X)
    rows, D = kept(index), index.get(index.ids).astype(np.float64)
    assert (np.abs(D - X) <= errors(rows)).all()
    if store == "int8":
        assert (D[:, 2] == X[:, 2]).all()
        away = np.abs(X.astype(np.float64) - rows.offsets).max(axis=1)
        assert (steps_of(rows).max(axis=1) <= 4 * 1.13 * away / 127 + 2e-45).all(), "as fine as a byte allows"
    assert np.isfinite(D).all()
    assert np.abs(D).max() <= index._version.points.absmax


@pytest.mark.parametrize("store", STORES)
def test_points_take_a_half_or_a_quarter(store):
    plain, small = fitted("float32", n=4000, recall=1), fitted(store, n=4000, recall=1)
    expected = 4000 * {"float16": 2 * DIM, "int8": DIM + 1}[store]
    assert kept(small).nbytes == expected
    assert kept(plain).nbytes == 4000 * 4 * DIM
    assert small.nbytes <= expected + 100
    assert kept(small).base is None, "the array that was fitted is not kept"


def test_float32_is_not_copied():
    X = points(900)
    assert np.shares_memory(kept(dci.DCI(store="float32").fit(X)), X)


@pytest.mark.parametrize("store", [*STORES, "float32"])
@pytest.mark.parametrize("n", [0, 1, 2, 3])
def test_few_points(store, n):
    X = points(n) if n else np.empty((0, DIM), np.float32)
    index = dci.DCI(store=store).fit(X)
    assert index.query(points(4, 1), 3).indices.shape == (4, 3)
    assert index.add(points(5, 2)).tolist() == list(range(n, n + 5))
    assert np.allclose(index.get(index.ids), np.concatenate([X, points(5, 2)]), atol=0.1)
    assert index.stats_.store == store


@pytest.mark.parametrize("store", STORES)
def test_an_empty_index_takes_the_range_of_what_comes(store):
    index = dci.DCI(store=store)
    X = points(2000, 3)
    for start, stop in ((0, 1), (1, 2), (2, 10), (10, 500), (500, 2000)):
        index.add(X[start:stop])
    D = index.get(index.ids)
    assert (np.abs(D - X) <= 8 * errors(kept(index))).all()
    same = dci.exact(X, X[:200], 10).indices
    found = index.query(X[:200], 10).indices
    assert np.mean([len(np.intersect1d(a, b)) / 10 for a, b in zip(same, found, strict=True)]) > 0.9


@pytest.mark.parametrize("far", [20.0, 1e3, 1e30])
def test_points_beyond_the_range_are_not_cut_off_and_the_others_stay_where_they_were(far):
    index = fitted("int8", n_simple=4)
    before, codes = index.get(index.ids), kept(index)
    new = points(3, 5)
    new[:, 1] = [far, -far, 0.0]
    index.add(new)
    after = index.get(index.ids)
    assert is_recoded(codes, kept(index)) == (far > 100)
    assert (np.abs(after[900:] - new) <= errors(kept(index))[900:]).all()
    if far < 1e5:
        np.testing.assert_array_equal(after[:900], before)
    else:  # what is 2^15 times as near has the smallest factor that there is
        assert (np.abs(after[:900] - before) <= errors(kept(index))[:900]).all()
    found, expected = index.query(new, 3, recall=1.0), dci.exact(after, new, 3)
    np.testing.assert_array_equal(found.indices, expected.indices)
    assert np.abs(after).max() <= index._version.points.absmax


def test_float16_takes_numbers_beyond_its_own():
    X = points(300) * np.float32(1000.0)
    index = dci.DCI(store="float16").fit(X)
    index.add(X * np.float32(1e5))
    both = np.concatenate([X, X * np.float32(1e5)])
    D = index.get(index.ids)
    assert np.isfinite(D).all()
    assert (np.abs(D - both) <= errors(kept(index))).all()


@pytest.mark.parametrize("store", STORES)
def test_rows_are_seldom_written_anew(store):
    rng = np.random.default_rng(0)
    X = (rng.standard_normal((3000, 30)) * np.linspace(1, 100, 3000)[:, None]).astype(np.float32)
    index, seen = dci.DCI(store=store, recall=1), []
    index.add(X[:1])
    for row in X[1:]:
        before = kept(index)
        index.add(row[None])
        seen.append(is_recoded(before, kept(index)))
    assert np.count_nonzero(seen) <= 12
    assert (np.abs(index.get(index.ids) - X) <= 3 * errors(kept(index))).all()


@pytest.mark.parametrize("store", STORES)
def test_what_fails_changes_nothing_and_can_be_done_again(store):
    index = fitted(store, n_simple=4)
    index.add(points(3, 1))
    before, found = index.get(index.ids), index.query(points(9, 4), 5)
    far = points(4, 2) * np.float32(1e6)
    with mock.patch.object(Upkeep, "grown", side_effect=MemoryError), pytest.raises(MemoryError):
        index.add(far)
    with pytest.raises(dci.InvalidValueError):
        index.add(np.full((2, DIM), np.nan))
    np.testing.assert_array_equal(index.get(index.ids), before)
    near = points(4, 3) * np.float32(0.1)
    index.add(near)
    np.testing.assert_array_equal(index.get(index.ids)[:903], before)
    for a, b in zip(index.query(points(9, 4), 5), dci.exact(index.get(index.ids), points(9, 4), 5), strict=True):
        np.testing.assert_array_equal(a, b)
    index.add(far)
    assert np.allclose(index.get(index.ids[-4:]), far, rtol=0.02, atol=0.02 * np.abs(far).max())
    assert found.indices.shape == (9, 5)


@pytest.mark.parametrize("store", STORES)
def test_earlier_versions_keep_their_codes(store):
    index = fitted(store)
    version, before = index._version, kept(index)[np.arange(900)]
    index.add(points(40, 1) * np.float32(1e4))
    index.remove(np.arange(0, 900, 2))
    np.testing.assert_array_equal(version.points.rows[np.arange(900)], before)


@pytest.mark.parametrize("store", STORES)
def test_files_maps_pickles_and_copies_hold_the_same_codes(store, tmp_path):
    index = fitted(store, n_simple=4, metric="cosine")
    index.add(points(20, 1) * np.float32(3))
    index.remove([1, 2])
    index.save(tmp_path / "index.dci")
    others = [dci.load(tmp_path / "index.dci"), dci.load(tmp_path / "index.dci", mmap=True)]
    others += [pickle.loads(pickle.dumps(index)), copy.deepcopy(index)]
    for other in others:
        np.testing.assert_array_equal(kept(other).array, kept(index).array)
        for a, b in zip(other.query(points(30, 4), 5), index.query(points(30, 4), 5), strict=True):
            np.testing.assert_array_equal(a, b)
        assert other.store == store
        assert other.stats_ == index.stats_
        other.add(points(4, 8) * np.float32(100))
        assert len(other) == len(index) + 4


@pytest.mark.parametrize("store", STORES)
def test_a_journal_is_replayed_to_the_same_codes(store, tmp_path):
    X = points(700, 3)
    with dci.open(tmp_path / "living", store=store, n_simple=3, random_state=0) as index:
        index.fit(X[:300])
        for i in range(300, 330):
            index.add(X[i : i + 1] * np.float32(1 + 0.1 * (i - 300)))
        index.update([4, 5], X[330:332])
        index.add(X[332:])
        expected, ids = kept(index), index.ids
        found = index.query(X[:20], 4)
    with dci.open(tmp_path / "living") as again:
        np.testing.assert_array_equal(kept(again).array, expected.array)
        np.testing.assert_array_equal(kept(again).steps, expected.steps)
        np.testing.assert_array_equal(again.ids, ids)
        np.testing.assert_array_equal(again.query(X[:20], 4).indices, found.indices)


@pytest.mark.parametrize(("store", "error"), [("int4", ValueError), ("FLOAT16", ValueError), (np.int8, TypeError)])
def test_other_stores_are_refused(store, error):
    with pytest.raises(error, match="store: expected one of .*float32.*float16.*int8.*received"):
        dci.DCI(store=store)
    index = dci.DCI()
    with pytest.raises(error):
        index.set_params(store=store)
    assert index.store == "float32"


def test_another_store_counts_from_the_next_fit_on():
    index = fitted("float32")
    index.set_params(store="int8")
    index.add(points(3, 1))
    assert kept(index).dtype == np.float32
    assert Coding.of(kept(index.fit(points(900)))).dtype == np.int8


def test_all_pairs():
    X = points(400)
    small, plain = dci.knn(X, 5, store="float16"), dci.knn(X, 5)
    assert np.mean(small.indices == plain.indices) > 0.95
    assert not (small.indices == np.arange(400)[:, None]).any()
