"""Cells that grow: their moments are those of all their keys, and single queries attend as the closure says."""

import numpy as np
import pytest

from attention._native.growing_field import ExactRows, GrowingField
from attention._native.near_field import LocalKeys

ALL, NONE = -1.0, 1e30  # thresholds: every cell is near, none is
N, WIDTH, VALUES, CELLS, M = 900, 20, 13, 7, 5
SCALE = 0.4


@pytest.fixture
def rows():
    rng = np.random.default_rng(3)
    centres = rng.standard_normal((CELLS + 1, WIDTH))
    cell_of = rng.integers(CELLS + 1, size=N).astype(np.int32)
    cell_of[cell_of == 2] = 3  # an empty cell
    key = centres[cell_of] + 0.5 * rng.standard_normal((N, WIDTH)) + 5  # a mean that deviations are small beside
    value = rng.standard_normal((N, VALUES)) + key[:, :VALUES]
    query = rng.standard_normal((40, WIDTH))
    return *(x.astype(np.float32) for x in (key, value, query)), cell_of


def directions():
    rng = np.random.default_rng(4)
    basis = np.linalg.qr(rng.standard_normal((WIDTH, WIDTH)))[0][:, :M].astype(np.float32)
    return basis, basis


def field(key, value, cell_of, parts=(N,), second_order=True, keep_far=True):
    made = GrowingField(CELLS, *directions(), VALUES, second_order, SCALE, keep_far)
    start = 0
    for stop in (*np.cumsum(parts).tolist(), N):
        made.append(key[start:stop], value[start:stop], cell_of[start:stop])
        start = min(stop, N)
    return made


def attend(made, query, threshold, rows=None, local=None):
    out = np.zeros((len(query), VALUES), np.float32)
    risks = np.zeros(len(query), np.float32)
    rows = np.arange(len(query), dtype=np.int32) if rows is None else rows
    touched = made.attend_rows(query, rows, threshold, out, local, risks)
    return out, risks, touched


def exactly(key, value, query):
    scores = SCALE * query.astype(float) @ key.T.astype(float)
    weights = np.exp(scores - scores.max(1, keepdims=True))
    return weights @ value.astype(float) / weights.sum(1, keepdims=True)


def closures(key, value, query, cell_of, second_order):
    """Attention to the closures of all cells, and exactly to the keys of the last."""
    for_keys, for_queries = directions()
    mass, out = np.zeros(len(query)), np.zeros((len(query), VALUES))
    for c in range(CELLS):
        keys, values = (x[cell_of == c].astype(float) for x in (key, value))
        if not len(keys):
            continue
        at = SCALE * query.astype(float)
        gaps = (keys - keys.mean(0)) @ for_keys
        projected = at @ for_queries
        sigma, gamma = gaps.T @ gaps / len(keys), gaps.T @ (values - values.mean(0)) / len(keys)
        variance = np.einsum("ij,jk,ik->i", projected, sigma, projected) * second_order
        shrink = np.minimum(1, 4 / np.maximum(variance, 1e-9)) * second_order
        share = len(keys) * np.exp(at @ keys.mean(0) + shrink * variance / 2)
        mass += share
        out += share[:, None] * (values.mean(0) + shrink[:, None] * (projected @ gamma))
    pinned = np.exp(SCALE * query.astype(float) @ key[cell_of == CELLS].T)
    return (out + pinned @ value[cell_of == CELLS]) / (mass + pinned.sum(1))[:, None]


@pytest.mark.parametrize("parts", [(N,), (1,) * 300, (500, 3, 64), (0, 17, 200)])
def test_near_cells_are_attended_to_exactly(rows, parts):
    key, value, query, cell_of = rows
    made = field(key, value, cell_of, parts)
    assert made.n_keys == N
    np.testing.assert_array_equal(made.counts, np.bincount(cell_of, minlength=CELLS + 1))
    out, _, touched = attend(made, query, ALL)
    np.testing.assert_allclose(out, exactly(key, value, query), atol=2e-5)
    assert touched == N * len(query)


@pytest.mark.parametrize("second_order", [True, False])
@pytest.mark.parametrize("parts", [(N,), (1,) * 300, (500, 3, 64)])
def test_far_cells_are_attended_to_by_their_closures(rows, parts, second_order):
    key, value, query, cell_of = rows
    made = field(key, value, cell_of, parts, second_order)
    out, risks, touched = attend(made, query, NONE)
    assert np.isfinite(risks).all()
    assert touched == (CELLS + (cell_of == CELLS).sum()) * len(query)
    expected = closures(key, value, query, cell_of, second_order)
    # Slopes that cannot matter at this threshold are left out: none matter, then.
    if not second_order:
        np.testing.assert_allclose(out, expected, atol=1e-4)
    small = attend(made, query, 0.02)[0]
    assert np.linalg.norm(small - exactly(key, value, query)) <= 0.02 * np.linalg.norm(small)


def test_slopes_are_part_of_the_closure(rows):
    """With one cell that is not near, and whose slopes matter."""
    key, value, query, cell_of = rows
    one = np.where(cell_of == CELLS, CELLS, 0).astype(np.int32)
    made = field(0.3 * key, value, one)
    out, _, touched = attend(made, query, 2.0)
    assert touched == (CELLS + (one == CELLS).sum()) * len(query)
    expected = closures(0.3 * key, value, query, one, True)
    assert np.linalg.norm(out - expected) <= 0.02 * np.linalg.norm(expected - expected.mean(0))


@pytest.mark.parametrize("threshold", [ALL, 0.1, NONE])
def test_a_query_does_not_depend_on_the_others(rows, threshold):
    key, value, query, cell_of = rows
    made = field(key, value, cell_of)
    stops = np.array([20, 30], np.int64)
    together, risks, _ = attend(made, query, threshold, local=LocalKeys(key[:40], value[:40], stops))
    for i in (0, 1, 7, 39):
        local = LocalKeys(key[:40], value[:40], stops)
        alone, risk, _ = attend(made, query, threshold, np.array([i], np.int32), local)
        np.testing.assert_array_equal(alone[i], together[i])
        assert risk[i] == risks[i]


def test_copies_grow_apart(rows):
    key, value, query, cell_of = rows
    made = GrowingField(CELLS, *directions(), VALUES, True, SCALE, True)
    made.append(key[:500], value[:500], cell_of[:500])
    other = made.copy()
    before = attend(made, query, 0.1)[0]
    np.testing.assert_array_equal(attend(other, query, 0.1)[0], before)
    other.append(key[500:], value[500:], cell_of[500:])
    np.testing.assert_array_equal(attend(made, query, 0.1)[0], before)
    np.testing.assert_allclose(attend(other, query, ALL)[0], exactly(key, value, query), atol=2e-5)
    made.append(-key[500:], value[500:], cell_of[500:])
    again = exactly(np.concatenate([key[:500], -key[500:]]), value, query)
    np.testing.assert_allclose(attend(made, query, ALL)[0], again, atol=2e-5)


def test_exact_rows_take_keys_in_parts(rows):
    key, value, query, _ = rows
    exact = ExactRows(query, VALUES, SCALE)
    for start, stop in ((0, 1), (1, 300), (300, N)):
        exact.take(key[start:stop], value[start:stop])
    assert exact.n_keys == N
    out = np.empty((len(query), VALUES), np.float32)
    exact.write(out)
    np.testing.assert_allclose(out, exactly(key, value, query), atol=2e-5)


def test_no_keys_give_zeros(rows):
    made = GrowingField(CELLS, *directions(), VALUES, True, SCALE, True)
    for threshold in (ALL, 0.1):
        np.testing.assert_array_equal(attend(made, rows[2], threshold)[0], 0)
