"""The order of rows in which blocks are alike."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from attention._native.kd_order import kd_order


def normal(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def check_permutation(order, n):
    assert order.dtype == np.int32
    np.testing.assert_array_equal(np.sort(order), np.arange(n))


@given(st.integers(0, 400), st.integers(1, 5), st.integers(1, 70), st.integers(1, 1000), st.integers(0, 10))
def test_is_a_permutation(n, dim, leaf, distinct, seed):
    values = np.random.default_rng(seed).integers(distinct, size=(n, dim)).astype(np.float32)
    check_permutation(kd_order(values, leaf), n)


@pytest.mark.parametrize("leaf", [1, 2, 7, 64])
@pytest.mark.parametrize("n", [0, 1, 2, 15, 16, 17, 63, 64, 65, 100, 500])
def test_leaves_of_a_line_are_its_intervals(n, leaf):
    """So all leaves but the last have exactly their size."""
    line = normal(n, 1)
    order = kd_order(line, leaf)
    check_permutation(order, n)
    ranks = np.argsort(np.argsort(line[:, 0]))
    np.testing.assert_array_equal(ranks[order] // leaf, np.arange(n) // leaf)


@pytest.mark.parametrize("n", [0, 1, 63, 64])
def test_what_fits_a_leaf_stays_as_it_is(n):
    np.testing.assert_array_equal(kd_order(normal(n, 3), 64), np.arange(n))


def test_no_coordinates():
    np.testing.assert_array_equal(kd_order(np.empty((100, 0), np.float32), 16), np.arange(100))


def test_ties_keep_their_order_between_leaves():
    order = kd_order(np.zeros((200, 3), np.float32), 16)
    for start in range(0, 200, 16):
        assert set(order[start : start + 16]) == set(range(start, min(start + 16, 200)))


@pytest.mark.parametrize("size", [1e-30, 1.0, 1e30, 3e38])
def test_any_magnitudes(size):
    rows = (normal(300, 4).clip(-1, 1) * size).astype(np.float32)
    check_permutation(kd_order(rows, 64), 300)


@pytest.mark.parametrize("axis", range(4))
def test_the_widest_coordinate_is_cut_first(axis):
    rows = normal(256, 4)
    rows[:, axis] *= 10
    order = kd_order(rows, 64)
    assert rows[order[:128], axis].max() <= rows[order[128:], axis].min()


def test_blocks_are_alike():
    rows = normal(64 * 64, 6)
    blocks = rows[kd_order(rows, 64)].reshape(64, 64, 6)
    assert blocks.var(axis=1).sum(axis=1).mean() < 0.5 * rows.var(axis=0).sum()


def test_is_deterministic():
    rows = normal(1000, 5)
    np.testing.assert_array_equal(kd_order(rows, 64), kd_order(rows.copy(), 64))
