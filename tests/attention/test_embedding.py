"""The distance between T_Q(q) and T_K(k) orders keys as q · k does, at any scale."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from attention.embedding import embed_keys, embed_queries
from attention.errors import InvalidTypeError, InvalidValueError

SCALES = [0.0, 1e-300, 1e-38, 1e-30, 1e-8, 1.0, 1e8, 1e30, 1e38, 1e300]
KINDS = ["normal", "equal", "some zero", "lattice", "one long"]


@st.composite
def pairs(draw):
    """Queries and keys of one dtype, each of a scale of its own."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    dtype = np.dtype(draw(st.sampled_from(["f4", "f8"])))
    n, d = draw(st.integers(1, 30)), draw(st.integers(1, 10))
    keys = rng.standard_normal((n, d))
    kind = draw(st.sampled_from(KINDS))
    if kind == "equal":
        keys[:] = keys[0]
    elif kind == "some zero":
        keys[rng.random(n) < 0.5] = 0
    elif kind == "lattice":
        keys = rng.integers(-2, 3, (n, d)).astype(float)
    elif kind == "one long":
        keys[0] *= 1e6
    queries = rng.standard_normal((5, d))
    usable = [s for s in SCALES if dtype == np.float64 or s == 0 or 1e-31 < s < 1e31]
    q_scale, k_scale = draw(st.sampled_from(usable)), draw(st.sampled_from(usable))
    return (queries * q_scale).astype(dtype), (keys * k_scale).astype(dtype)


def unit_scaled(rows):
    """Rows in float64 with the largest magnitude 1: the order of inner products stays."""
    rows = rows.astype(np.float64)
    return rows / (np.abs(rows).max() or 1.0)


@given(pair=pairs())
def test_order_of_distances_is_the_order_of_inner_products(pair):
    queries, keys = pair
    lifted_queries, lifted_keys = embed_queries(queries), embed_keys(keys)
    assert lifted_queries.dtype == lifted_keys.dtype == keys.dtype
    assert lifted_keys.shape == (len(keys), keys.shape[1] + 1)
    apart = lifted_queries[:, None].astype(np.float64) - lifted_keys[None]
    distances = np.square(apart).sum(axis=-1)

    queries, keys = unit_scaled(queries), unit_scaled(keys)
    products = queries @ keys.T
    lengths = np.linalg.norm(queries, axis=1, keepdims=True) * (np.linalg.norm(keys, axis=1).max() or 1.0)
    cosines = np.divide(products, lengths, out=np.zeros_like(products), where=lengths > 0)
    near_tie = 64 * np.finfo(pair[0].dtype).eps
    np.testing.assert_allclose(distances, np.where(lengths > 0, 2 - 2 * cosines, 1.0), rtol=0, atol=near_tie)
    for distance, cosine in zip(distances, cosines, strict=True):
        in_order = cosine[np.argsort(distance, kind="stable")]
        assert (np.diff(in_order) <= near_tie).all(), "keys changed places that are no near-tie"


@given(pair=pairs())
def test_rows_are_of_norm_one(pair):
    for lifted in (embed_queries(pair[0]), embed_keys(pair[1])):
        norms = np.linalg.norm(lifted.astype(np.float64), axis=1)
        assert (np.isclose(norms, 1, atol=1e-6) | (norms == 0)).all()
    assert (embed_keys(pair[1])[:, -1] >= 0).all()


def test_zeros():
    np.testing.assert_array_equal(embed_keys(np.zeros((3, 2))), [[0, 0, 1]] * 3)
    np.testing.assert_array_equal(embed_queries(np.zeros((3, 2))), np.zeros((3, 3)))
    assert embed_keys(np.zeros((0, 2))).shape == (0, 3)
    assert embed_queries(np.zeros((0, 2), np.float32)).dtype == np.float32


def test_each_set_of_keys_has_its_own_c():
    keys = np.random.default_rng(0).standard_normal((2, 3, 4, 5))
    keys[1] *= 100
    lifted = embed_keys(keys)
    for i in np.ndindex(2, 3):
        np.testing.assert_allclose(lifted[i], embed_keys(keys[i]))


def test_larger_c():
    keys = np.array([[3.0, 4.0]])
    np.testing.assert_allclose(embed_keys(keys, c=10), [[0.3, 0.4, 0.75**0.5]])
    np.testing.assert_allclose(embed_keys(keys, c=5.0), [[0.6, 0.8, 0]])
    np.testing.assert_allclose(embed_keys(keys * 1e-200, c=1e200), [[0, 0, 1]], atol=1e-300)


@pytest.mark.parametrize("c", [4.9, 0, -1, np.inf, np.nan])
def test_c_must_hold_every_key(c):
    with pytest.raises(InvalidValueError, match=r"c: expected .* at least max ‖k‖ = 5.0, received"):
        embed_keys([[3.0, 4.0]], c=c)


@pytest.mark.parametrize("embed", [embed_keys, embed_queries])
def test_bad_input(embed):
    with pytest.raises(InvalidValueError, match=r"expected shape \(…, n, d\), received \(3,\)"):
        embed(np.zeros(3))
    with pytest.raises(InvalidTypeError, match="expected real numbers, received dtype complex128"):
        embed(np.zeros((2, 2), complex))
    with pytest.raises(InvalidValueError, match="expected finite numbers"):
        embed([[np.nan, 1.0]])
