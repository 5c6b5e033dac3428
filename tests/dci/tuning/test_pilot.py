"""What fitting finds out before it builds: sooner where ranking is hopeless, and nothing else than before elsewhere."""

import numpy as np
import pytest

import dci
from dci._geometry import directions
from dci._runtime.threads import Work
from dci._search.exact import ExactSearch
from dci._search.ranked import Ranker
from dci._tuning import build, pilot


@pytest.fixture(scope="module")
def curved():
    rng = np.random.default_rng(0)
    hidden = np.tanh(0.3 * rng.standard_normal((8_000, 6)) @ rng.standard_normal((6, 200)))
    return (hidden + 0.02 * rng.standard_normal(hidden.shape)).astype(np.float32)


@pytest.mark.parametrize("num_threads", [1, 3])
def test_noise_is_given_up_after_a_rough_look(monkeypatch, num_threads):
    noise = np.random.default_rng(0).standard_normal((12_000, 128)).astype(np.float32)

    def never(*arguments):
        raise AssertionError("no other directions are wanted")

    monkeypatch.setattr(build, "choose_n_simple", never)
    stats = dci.DCI(random_state=0, num_threads=num_threads).fit(noise).stats_
    assert (stats.method, stats.reason) == ("exact", "ranking was estimated not to pay")


@pytest.mark.parametrize("metric", ["l2", "cosine"])
def test_neighbours_by_bounds_change_nothing(curved, metric, monkeypatch):
    asked = []
    search = ExactSearch.search

    def counted(self, Q, *arguments, **named):
        asked.append(len(Q))
        return search(self, Q, *arguments, **named)

    monkeypatch.setattr(ExactSearch, "search", counted)
    monkeypatch.setattr(pilot, "_MUCH_FASTER", 100.0)  # so few points are compared as fast
    by_bounds = dci.DCI(metric, random_state=0).fit(curved)
    assert by_bounds.stats_.method == "ranked"
    assert sum(asked) < 30, "nearly all neighbours are proven"
    monkeypatch.setattr(pilot, "_bounds", lambda *_: None)
    compared = dci.DCI(metric, random_state=0).fit(curved)
    engines = [index._version.engine for index in (by_bounds, compared)]
    np.testing.assert_array_equal(*(engine.known for engine in engines))
    assert by_bounds.stats_ == compared.stats_


def test_known_coordinates_make_the_same_cells(curved):
    ranker = dci.DCI(random_state=0, n_simple=8).fit(curved)._version.engine.ranker
    coordinates = ranker.project_points(np.arange(len(curved), dtype=np.int32))
    with Work(2) as work:
        plain, known = (
            Ranker(ranker.embedding, ranker.plan, np.random.default_rng(1), work, given).cells.arrays
            for given in (None, coordinates)
        )
    for first, second in zip(plain, known, strict=True):
        np.testing.assert_array_equal(first, second)


@pytest.mark.parametrize(("wants_more", "count"), [(False, 64), (True, 96)])
def test_more_directions_are_fitted_where_the_most_look_best(curved, monkeypatch, wants_more, count):
    look, choose, offered = build.look_roughly, build.choose_n_simple, []

    def chosen(engine, embedding, for_points, *arguments):
        offered.append(for_points.shape[1])
        return choose(engine, embedding, for_points, *arguments)

    monkeypatch.setattr(build, "look_roughly", lambda *given: look(*given)._replace(wants_more=wants_more))
    monkeypatch.setattr(build, "choose_n_simple", chosen)
    assert dci.DCI(random_state=0).fit(curved).stats_.method == "ranked"
    assert offered == [count]


def test_a_start_is_worth_a_round_and_threads_change_nothing(curved):
    rows = curved[:2048] - curved[:2048].mean(0)
    plain = directions.principal_directions(rows, 40, np.random.default_rng(0))
    rough = directions.principal_directions(rows[::4], 40, np.random.default_rng(1), rounds=1)
    started = [directions.principal_directions(rows, 40, np.random.default_rng(0), Work(t), rough) for t in (1, 3)]
    np.testing.assert_array_equal(*started)
    kept = [np.square(rows @ found).sum() for found in (plain, started[0])]
    assert kept[1] >= 0.999 * kept[0]
    np.testing.assert_allclose(started[0].T @ started[0], np.eye(40), atol=1e-4)
