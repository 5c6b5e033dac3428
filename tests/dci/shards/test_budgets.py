"""Budgets for all shards, from what it takes to reach each neighbour in the shard that holds it."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dci._shards.budgets import Table
from dci._shards.shard import Reached, Spending


def table_of(seed, n_shards=3, routed=False, width=8):
    rng = np.random.default_rng(seed)
    shape = 64, 32
    visits, ranks = rng.integers(1, 2000, shape[0] * shape[1]), rng.integers(0, 60, shape[0] * shape[1])
    owner = rng.integers(n_shards, size=shape).ravel()
    places = [np.flatnonzero(owner == number) for number in range(n_shards)]
    reached = [Reached(some, visits[some], ranks[some], width, 100, 50_000) for some in places]
    routing = (rng.geometric(0.4, shape) - 1, np.minimum(1 + np.arange(40) / 10, n_shards)) if routed else None
    return Table.of(reached, shape, routing, 64, 0), visits.reshape(shape), ranks.reshape(shape)


@given(st.integers(0, 200), st.sampled_from([0.5, 0.8, 0.95]), st.integers(1, 32), st.booleans())
def test_the_choice_reaches_the_recall_of_all_shards_together(seed, recall, k, routed):
    table, visits, ranks = table_of(seed, routed=routed)
    choice = table.choose(k, recall)
    seen = max(k, 10)
    found = (visits <= choice.spending.visits) & (ranks < choice.spending.candidates)
    if routed:
        found &= table.order < choice.opened
        assert 1 <= choice.visited <= 3
    else:
        assert (choice.opened, choice.visited) == (0, 3.0)
    assert found[:, :seen].mean() >= recall
    assert found[:, :seen].mean() == pytest.approx(choice.recall)


def test_the_number_of_shards_does_not_change_the_choice():
    spent = {table_of(4, n_shards=count)[0].choose(10, 0.9).spending for count in (1, 2, 7)}
    assert len(spent) == 1
    assert isinstance(spent.pop(), Spending)


def test_nothing_reaches_what_was_not_found():
    table, _, _ = table_of(0, width=200)
    table.ranks[:, ::2] = np.iinfo(np.int64).max
    assert table.choose(10, 0.9) is None
    assert table.may_pay(10, 0.9)  # visits alone were not in the way
    table.visits[:] = 50_000
    assert not table.may_pay(10, 0.9)


def test_shards_that_are_searched_exactly_are_chosen_among_too():
    table, _, _ = table_of(1, routed=True, width=0)
    choice = table.choose(10, 0.9)
    assert choice.spending is None
    assert (table.order[:, :10] < choice.opened).mean() >= 0.9
    assert table_of(1, width=0)[0].choose(10, 0.9) is None  # all of all shards: no choice of this table
