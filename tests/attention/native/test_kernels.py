"""The kernels of softmax, on every instruction set against plain NumPy, at sizes around the tiles' edges.

They have no wrappers: `Field` reaches `affine`, `largest`, `exponentials`, `combine` and `take_above`.
"""

import numpy as np
import pytest

from attention._native.far_field import Field
from dci._native import kernels as native_kernels


@pytest.fixture(params=native_kernels.simd_available(), autouse=True)
def simd(request):
    before = native_kernels.simd()
    native_kernels.use_simd(request.param)
    yield request.param
    native_kernels.use_simd(before)


def normal(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def all_ids(n):
    return np.arange(n, dtype=np.int32)


WIDTHS = (1, 3, 15, 16, 17, 64, 100)
LENGTHS = (1, 2, 15, 16, 17, 31, 33, 200)


def softmax(scores):
    weights = np.exp(scores - scores.max(axis=-1, keepdims=True))
    return weights / weights.sum(axis=-1, keepdims=True)


def cells_of(n, n_cells, seed=0):
    return np.random.default_rng(seed).integers(n_cells + 1, size=n).astype(np.int32)  # the last are always near


def attended(keys, values, queries, cells, n_cells, threshold):
    field = Field(keys, values, cells, np.zeros((n_cells + 1, keys.shape[1]), np.float32), scale=0.5)
    field.advance(len(keys))
    out = np.full((len(queries), values.shape[1]), np.nan, np.float32)
    return out, field.attend_rows(queries, all_ids(len(queries)), threshold, out)[0]


@pytest.mark.parametrize("dim", WIDTHS)
@pytest.mark.parametrize("width", WIDTHS)
def test_softmax_over_cells_is_exact_attention(dim, width):
    """`affine`, `largest`, `exponentials` and `combine`, one after the other."""
    for n in LENGTHS:
        keys, values, queries = normal(n, dim), normal(n, width, seed=1), normal(9, dim, seed=2)
        out, touched = attended(keys, values, queries, cells_of(n, 5), 5, -1.0)
        expected = softmax(0.5 * queries.astype(float) @ keys.T) @ values
        np.testing.assert_allclose(out, expected, rtol=1e-5, atol=1e-5)
        assert touched == n * 9


@pytest.mark.parametrize("n", range(1, 40))
@pytest.mark.parametrize("n_queries", [1, 5, 64, 65])
def test_softmax_over_any_number_of_keys(n, n_queries):
    keys, values, queries = normal(n, 7), normal(n, 3, seed=1), normal(n_queries, 7, seed=2)
    out, _ = attended(keys, values, queries, cells_of(n, 2), 2, -1.0)
    np.testing.assert_allclose(out, softmax(0.5 * queries @ keys.T) @ values, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("n", [1, 16, 17, 200])
@pytest.mark.parametrize("place", ["first", "last", "even", "every"])
@pytest.mark.parametrize("size", [80.0, 1e4])
def test_softmax_of_scores_far_apart(n, place, size):
    """Nothing overflows, and the largest is found wherever it is."""
    scores = np.zeros(n)
    high = {"first": slice(1), "last": slice(n - 1, n), "even": slice(None, None, 2), "every": slice(None)}
    scores[high[place]] = size
    values = normal(n, 5)
    for sign in (1, -1):
        keys = (sign * scores[:, None]).astype(np.float32)
        cells = np.arange(n, dtype=np.int32) // 16  # from small to large scores, and the other way
        out, _ = attended(keys, values, np.full((3, 1), 2, np.float32), cells, 13, -1.0)
        np.testing.assert_allclose(out, np.tile(softmax(sign * scores) @ values, (3, 1)), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("n", LENGTHS)
@pytest.mark.parametrize("place", ["first", "last"])
def test_a_query_of_nan_attends_to_nan_and_leaves_the_others_alone(n, place):
    keys, values, queries = normal(n, 3), normal(n, 5, seed=1), normal(9, 3, seed=2)
    expected, _ = attended(keys, values, queries, cells_of(n, 2), 2, -1.0)
    lost = 0 if place == "first" else 8
    queries[lost, 1] = np.nan
    out, _ = attended(keys, values, queries, cells_of(n, 2), 2, -1.0)
    assert np.isnan(out[lost]).all()
    np.testing.assert_array_equal(np.delete(out, lost, 0), np.delete(expected, lost, 0))


@pytest.mark.parametrize("n", LENGTHS)
@pytest.mark.parametrize("payload", [0x7FC00000, 0xFFC00000, 0x7FC00001, 0x7FFFFFFF], ids=hex)
def test_one_score_of_nan_is_enough(n, payload):
    """Wherever it is, with any bits, among scores of any size."""
    values, queries = normal(n, 5), np.full((3, 1), 2, np.float32)
    for place in (0, n // 2, n - 1):
        keys = np.linspace(-200, 30, n, dtype=np.float32)[:, None]
        keys[place] = np.array([payload], np.uint32).view(np.float32)
        out, _ = attended(keys, values, queries, np.zeros(n, np.int32), 1, -1.0)
        assert np.isnan(out).all()


@pytest.mark.parametrize("n", LENGTHS[1:])
def test_a_score_of_minus_infinity_weighs_nothing(n):
    keys, values = normal(n, 1), normal(n, 5, seed=1)
    keys[::2], values[::2] = -np.inf, 3e38
    out, _ = attended(keys, values, np.full((3, 1), 2, np.float32), np.zeros(n, np.int32), 1, -1.0)
    np.testing.assert_allclose(out, np.tile(softmax(keys[1::2, 0]) @ values[1::2], (3, 1)), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("n_cells", [1, 2, 15, 16, 17, 31, 32, 33, 100])
def test_cells_with_a_share_above_the_threshold_are_attended_to(n_cells):
    """`take_above`: a query's heavy cells, wherever they lie, and no others."""
    dim, each = n_cells, 3
    rng = np.random.default_rng(n_cells)
    cells = np.repeat(all_ids(n_cells), each)
    keys = (20 * np.eye(dim, dtype=np.float32))[cells]  # a query gives its mass to the cells it names
    keys += 0.01 * normal(len(keys), dim)
    values = normal(len(keys), 4, seed=1)
    named = [rng.choice(n_cells, size, replace=False) for size in (1, min(2, n_cells), min(5, n_cells), n_cells)]
    for ids in named:
        queries = np.zeros((1, dim), np.float32)
        queries[0, ids] = 3
        out, touched = attended(keys, values, queries, cells, n_cells, 1e-3)
        assert touched == each * len(ids) + n_cells
        np.testing.assert_allclose(out, softmax(0.5 * queries @ keys.T) @ values, rtol=1e-5, atol=1e-5)
        _, touched = attended(keys, values, queries, cells, n_cells, 1e6)
        assert touched == n_cells


@pytest.mark.parametrize("dim", WIDTHS)
@pytest.mark.parametrize("n_cells", [1, 15, 17, 64])
def test_estimates_of_cells_without_spread_are_exact(dim, n_cells):
    """`combine` over the cells, with weights that differ."""
    cells = np.sort(np.random.default_rng(dim).integers(n_cells, size=150)).astype(np.int32)
    keys, values, queries = normal(n_cells, dim)[cells], normal(150, dim, seed=1), normal(70, dim, seed=2)
    out, touched = attended(keys, values, queries, cells, n_cells, 1e9)
    np.testing.assert_allclose(out, softmax(0.5 * queries @ keys.T) @ values, rtol=2e-5, atol=2e-5)
    assert touched == 70 * n_cells
