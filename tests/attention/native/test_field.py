"""Keys and values in cells against plain NumPy: exact parts, moments, the estimates from them."""

from itertools import pairwise

import numpy as np
import pytest

from attention._native.far_field import Field
from attention._native.near_field import LocalKeys

CLOSURE = 4.0  # the largest variance within a cell that its closure stands for
ALL_NEAR, ALL_FAR = -1.0, 1e30  # thresholds
SCALE = 0.5


def normal(*shape, seed=0, dtype=np.float32):
    return np.random.default_rng(seed).standard_normal(shape).astype(dtype)


def softmax(scores):
    weights = np.exp(scores - scores.max(axis=-1, keepdims=True))
    return weights / weights.sum(axis=-1, keepdims=True)


def exact(queries, keys, values, visible=None):
    scores = SCALE * queries.astype(float) @ keys.T.astype(float)
    return softmax(scores if visible is None else np.where(visible, scores, -np.inf)) @ values


def make(keys, values, cell_of, n_cells, directions=None, **rest):
    references = np.zeros((n_cells + 1, keys.shape[1]), np.float32)
    for c in range(n_cells):
        if (cell_of == c).any():
            references[c] = keys[cell_of == c].mean(0) + 0.1  # near the mean is enough
    return Field(keys, values, cell_of.astype(np.int32), references, *(directions or ()), scale=SCALE, **rest)


def projections(dim, m, seed=5):
    """For keys and for queries, such that the product of both projections is that inside a subspace of m axes."""
    basis, _ = np.linalg.qr(normal(dim, m, seed=seed, dtype=float))
    stretch = np.linspace(0.5, 2, m)
    return (basis * stretch).astype(np.float32), (basis / stretch).astype(np.float32)


def attend(field, queries, threshold, order=None, local=None, wanted=None):
    order = np.arange(len(queries), dtype=np.int32) if order is None else order
    out = np.full((len(queries), field.width), np.nan, np.float32)
    touched, _ = field.attend_rows(queries, order, threshold, out, local, wanted)
    return out, touched


ASSIGNMENTS = {
    "random": lambda n, cells: np.random.default_rng(3).integers(cells + 1, size=n),
    "one cell": lambda n, cells: np.zeros(n, int),
    "the last": lambda n, cells: np.full(n, cells),
    "mostly empty": lambda n, cells: np.where(np.arange(n) % 3, cells - 1, 0),
    "runs": lambda n, cells: np.arange(n) * (cells + 1) // n,
    "in turn": lambda n, cells: np.arange(n) % (cells + 1),
}


class TestExact:
    """With a threshold below zero, whatever the cells are."""

    @pytest.mark.parametrize("name", ASSIGNMENTS)
    @pytest.mark.parametrize("directions", [None, 1, 5, 17])
    @pytest.mark.parametrize("n_cells", [1, 7, 16, 33])
    def test_any_cells(self, name, directions, n_cells):
        keys, values, queries = normal(300, 20), normal(300, 11, seed=1), normal(150, 20, seed=2)
        field = make(keys, values, ASSIGNMENTS[name](300, n_cells), n_cells, directions and projections(20, directions))
        field.advance(300)
        out, touched = attend(field, queries, ALL_NEAR)
        np.testing.assert_allclose(out, exact(queries, keys, values), atol=1e-5)
        assert touched == 300 * 150

    def test_scores_lower_than_any_mask(self):
        """Of scores about -1e34 the largest still takes all."""
        keys, values = 1e17 * (1 + np.abs(normal(40, 20))), normal(40, 11, seed=1)
        queries = -1e16 * (1 + np.abs(normal(9, 20, seed=2)))
        field = make(keys, values, np.arange(40) % 8, 7)
        stops = np.full(9, 33)
        field.advance(16)
        out = np.empty((9, 11), np.float32)
        local = LocalKeys(keys, values, stops, 16)
        field.attend_rows(queries, np.arange(9, dtype=np.int32), ALL_NEAR, out, local)
        largest = (queries.astype(float) @ keys[:33].T.astype(float)).argmax(1)
        np.testing.assert_array_equal(out, values[largest])

    @pytest.mark.parametrize("name", ASSIGNMENTS)
    def test_a_threshold_of_zero_leaves_nothing_far(self, name):
        keys, values, queries = normal(300, 20), normal(300, 11, seed=1), normal(150, 20, seed=2)
        field = make(keys, values, ASSIGNMENTS[name](300, 7), 7)
        field.advance(300)
        out, _ = attend(field, queries, 0.0)
        np.testing.assert_allclose(out, exact(queries, keys, values), atol=2e-5)

    @pytest.mark.parametrize("boundary", [0, 1, 100, 299, 300])
    def test_keys_taken_so_far(self, boundary):
        keys, values, queries = normal(300, 5), normal(300, 4, seed=1), normal(20, 5, seed=2)
        field = make(keys, values, ASSIGNMENTS["random"](300, 6), 6)
        field.advance(boundary)
        out, _ = attend(field, queries, ALL_NEAR)
        expected = exact(queries, keys[:boundary], values[:boundary]) if boundary else np.zeros((20, 4))
        np.testing.assert_allclose(out, expected, atol=1e-5)

    @pytest.mark.parametrize("group", [1, 3])
    @pytest.mark.parametrize("boundary", [0, 1, 40, 250, 700])
    def test_the_local_part_ends_at_each_rows_stop(self, group, boundary):
        n, length = 700, 130
        keys, values = normal(n, 9), normal(n, 17, seed=1)
        queries = normal(group * length, 9, seed=2)
        stops = np.sort(np.random.default_rng(0).integers(boundary, n + 1, length)).astype(np.int64)
        stops[0] = max(boundary, 1)
        stops[-3:] = n
        stops.sort()
        field = make(keys, values, ASSIGNMENTS["random"](n, 8), 8)
        field.advance(boundary)
        order = np.random.default_rng(1).permutation(group * length).astype(np.int32)
        out, touched = attend(field, queries, ALL_NEAR, order, LocalKeys(keys, values, stops, boundary))
        visible = np.arange(n) < np.tile(stops, group)[:, None]
        np.testing.assert_allclose(out, exact(queries, keys, values, visible), atol=1e-5)
        assert touched >= visible.sum()

    def test_stops_before_the_boundary_add_nothing(self):
        keys, values, queries = normal(600, 9), normal(600, 3, seed=1), normal(10, 9, seed=2)
        field = make(keys, values, ASSIGNMENTS["random"](600, 8), 8)
        field.advance(500)
        out, _ = attend(field, queries, ALL_NEAR, local=LocalKeys(keys, values, np.full(10, 500), 500))
        np.testing.assert_allclose(out, exact(queries, keys[:500], values[:500]), atol=1e-5)

    def test_only_the_ordered_rows_are_written(self):
        keys, values, queries = normal(100, 4), normal(100, 3, seed=1), normal(30, 4, seed=2)
        field = make(keys, values, ASSIGNMENTS["random"](100, 4), 4)
        field.advance(100)
        order = np.array([29, 3, 17], np.int32)
        out, _ = attend(field, queries, ALL_NEAR, order)
        np.testing.assert_allclose(out[order], exact(queries[order], keys, values), atol=1e-5)
        assert np.isnan(np.delete(out, order, axis=0)).all()
        assert attend(field, queries, ALL_NEAR, order[:0])[1] == 0

    def test_rows_of_wider_arrays(self):
        keys, values, queries = normal(200, 12), normal(200, 12, seed=1), normal(30, 4, seed=2)
        field = make(keys[:, 3:7], values[:, 1:9], ASSIGNMENTS["random"](200, 4), 4)
        field.advance(200)
        out, _ = attend(field, queries, ALL_NEAR)
        np.testing.assert_allclose(out, exact(queries, keys[:, 3:7], values[:, 1:9]), atol=1e-5)

    def test_read_only_arrays(self):
        arrays = normal(50, 4), normal(50, 3, seed=1), normal(30, 4, seed=2)
        for array in arrays:
            array.setflags(write=False)
        field = make(*arrays[:2], ASSIGNMENTS["random"](50, 4), 4)
        field.advance(50)
        np.testing.assert_allclose(attend(field, arrays[2], ALL_NEAR)[0], exact(arrays[2], *arrays[:2]), atol=1e-5)


class TestMoments:
    @pytest.mark.parametrize("second_order", [True, False])
    @pytest.mark.parametrize("directions", [None, 4, 16])
    def test_cells_of_one_key_are_exact(self, second_order, directions):
        keys, values, queries = normal(60, 16), normal(60, 8, seed=1), normal(200, 16, seed=2)
        pair = directions and projections(16, directions)
        field = make(keys, values, np.arange(60), 60, pair, second_order=second_order)
        field.advance(60)
        out, touched = attend(field, queries, ALL_FAR)
        np.testing.assert_allclose(out, exact(queries, keys, values), atol=2e-5)
        assert touched == 60 * 200

    @pytest.mark.parametrize("directions", [None, 4])
    def test_cells_of_equal_keys_are_exact(self, directions):
        cells = np.random.default_rng(0).integers(30, size=400)
        keys, values, queries = normal(30, 16)[cells], normal(400, 8, seed=1), normal(200, 16, seed=2)
        field = make(keys, values, cells, 30, directions and projections(16, directions))
        field.advance(400)
        np.testing.assert_allclose(attend(field, queries, ALL_FAR)[0], exact(queries, keys, values), atol=2e-5)

    def test_gaussian_keys_and_linear_values_need_no_near_field(self):
        """exp(s) of Gaussian scores has mean exp(mean + variance / 2): the closure itself."""
        n, dim = 40_000, 3
        keys, slope = normal(n, dim), normal(dim, 5, seed=1)
        values = keys @ slope
        field = make(keys, values, np.zeros(n), 1)
        field.advance(n)
        queries = normal(64, dim, seed=2)
        queries *= np.float32(1.2) / np.linalg.norm(queries, axis=1, keepdims=True) / SCALE
        for alike in (queries[:1].repeat(64, axis=0), queries[0] + 0.05 * normal(64, dim, seed=3)):
            off = attend(field, alike, ALL_FAR)[0] - exact(alike, keys, values)
            assert np.abs(off).max() < 0.03 * np.abs(exact(alike, keys, values)).max()

    @pytest.mark.parametrize("directions", [None, 3])
    @pytest.mark.parametrize("second_order", [True, False])
    @pytest.mark.parametrize("steps", [[300], [1, 2, 300], [100, 200, 300], list(range(1, 301))], ids=len)
    def test_steps_add_up(self, directions, second_order, steps):
        keys, values, queries = normal(300, 6), normal(300, 4, seed=1), normal(100, 6, seed=2)
        cells = ASSIGNMENTS["random"](300, 9)
        fields = [
            make(keys, values, cells, 9, directions and projections(6, directions), second_order=second_order)
            for _ in "ab"
        ]
        fields[0].advance(300)
        for boundary in steps:
            fields[1].advance(boundary)
        np.testing.assert_array_equal(fields[1].counts, np.bincount(cells, minlength=10))
        for threshold in (ALL_FAR, 0.05, ALL_NEAR):
            outs = [attend(field, queries, threshold)[0] for field in fields]
            np.testing.assert_allclose(outs[1], outs[0], atol=1e-5)

    @pytest.mark.parametrize("directions", [None, 3])
    def test_reset(self, directions):
        keys, values, queries = normal(300, 6), normal(300, 4, seed=1), normal(100, 6, seed=2)
        field = make(keys, values, ASSIGNMENTS["random"](300, 9), 9, directions and projections(6, directions))
        field.advance(120)
        before = attend(field, queries, 0.05)[0]
        field.advance(300)
        field.reset()
        assert not np.any(field.counts)
        field.advance(120)
        np.testing.assert_array_equal(attend(field, queries, 0.05)[0], before)

    def test_large_offsets_do_not_cancel(self):
        """Deviations are taken from the references, so keys far off lose nothing."""
        keys, values, queries = normal(400, 6), normal(400, 4, seed=1), 0.3 * normal(64, 6, seed=2)
        cells = np.argsort(np.argsort(keys[:, 0])) // 50
        outs = []
        for offset in (0, 1000):
            field = make(keys + np.float32(offset), values, cells, 8)
            field.advance(400)
            outs.append(attend(field, queries - queries.mean(1, keepdims=True), ALL_FAR)[0])
        np.testing.assert_allclose(outs[1], outs[0], atol=2e-3)

    @pytest.mark.parametrize("threshold", [ALL_FAR, 0.05, ALL_NEAR])
    def test_keys_not_taken_do_not_count(self, threshold):
        keys, values, queries = normal(300, 6), normal(300, 4, seed=1), normal(100, 6, seed=2)
        cells = ASSIGNMENTS["random"](300, 9).astype(np.int32)
        other = np.r_[keys[:200], 9 - keys[200:]], np.r_[values[:200], np.full((100, 4), 1e6, np.float32)]
        outs = []
        for pair in ((keys, values), other):
            field = Field(*pair, cells, normal(10, 6, seed=4), scale=SCALE)
            field.advance(200)
            outs.append(attend(field, queries, threshold)[0])
        np.testing.assert_array_equal(*outs)


def test_rows_are_exact_without_a_place_for_normalisers():
    """`lse` is None until it is set."""
    keys, values, queries = normal(300, 6), normal(300, 4, seed=1), normal(40, 6, seed=2)
    field = make(keys, values, ASSIGNMENTS["random"](300, 9), 9)
    rows, out = np.arange(3, 40, 4, dtype=np.int32), np.empty((10, 4), np.float32)
    assert field.lse is None
    field.exact_rows(queries, rows, out, LocalKeys(keys, values, np.full(40, 300)))
    np.testing.assert_allclose(out, exact(queries[rows], keys, values), atol=1e-5)


def closure(queries, keys, values, cell_of, n_cells, directions, second_order=True, apart=None):
    """The far field of one block of queries, by the formulas; some may stand apart."""
    queries = SCALE * queries.astype(float)
    for_keys, for_queries = directions or (np.eye(keys.shape[1]),) * 2
    apart = np.zeros(len(queries), bool) if apart is None else apart
    block = queries if apart.all() else queries[~apart]
    mean = block.mean(0)
    gaps = (queries - mean) @ for_queries
    cell_keys, cell_values, bias, shrink, slopes = [], [], [], [], []
    own_scores = []
    for c in range(n_cells):
        inside, carried = keys[cell_of == c].astype(float), values[cell_of == c].astype(float)
        off = (inside - inside.mean(0)) @ for_keys * second_order
        sigma = for_queries @ (off.T @ off / len(off))  # (E, m)
        gamma = (carried - carried.mean(0)).T @ off / len(off)  # (Ev, m)
        lift = sigma @ (for_queries.T @ mean)
        own = max(mean @ lift, 0.0)  # variance of the mean query's scores
        spread = max(np.einsum("ie,em,im->", block - mean, sigma, (block - mean) @ for_queries) / len(block), 0.0)
        variances = np.einsum("ie,em,im->i", queries, sigma, queries @ for_queries)
        own_scores.append(queries @ inside.mean(0) + np.log(len(inside)) + np.clip(variances, 0, CLOSURE) / 2)
        factor = min(1.0, CLOSURE / max(own + spread, 1e-30))
        shrink.append(factor)
        cell_keys.append(inside.mean(0) + factor * lift)
        cell_values.append(carried.mean(0) + factor * gamma @ (for_queries.T @ mean))
        bias.append(np.log(len(inside)) + factor * (spread - own) / 2)
        slopes.append(gamma)
    scores = queries @ np.array(cell_keys).T + bias
    weights = softmax(np.where(apart[:, None], np.array(own_scores).T, scores))
    shares = weights.mean(0) * shrink
    trust = np.minimum(1, 2 * np.minimum(weights, weights.mean(0)).sum(1))
    return weights @ np.array(cell_values) + trust[:, None] * gaps @ np.einsum("c,cvm->mv", shares, np.array(slopes))


class TestClosure:
    """One block against the formulas."""

    @pytest.mark.parametrize("n_queries", [1, 2, 17, 63, 64])
    @pytest.mark.parametrize("m", [None, 1, 5, 12])
    @pytest.mark.parametrize("second_order", [True, False])
    @pytest.mark.parametrize("size", [0.3, 1.0, 4.0])
    def test_one_block(self, n_queries, m, second_order, size):
        dim, width, n_cells = 12, 7, 10
        keys, queries = normal(500, dim), size * (0.7 * normal(1, dim, seed=3) + 0.5 * normal(n_queries, dim, seed=2))
        values = np.tanh(keys @ normal(dim, width, seed=1))
        cells = np.argsort(np.argsort(keys[:, 0])) // 50
        pair = m and projections(dim, m)
        field = make(keys, values, cells, n_cells, pair, second_order=second_order)
        field.advance(500)
        out, _ = attend(field, queries, ALL_FAR)
        np.testing.assert_allclose(out, closure(queries, keys, values, cells, n_cells, pair, second_order), atol=1e-3)

    @pytest.mark.parametrize("m", [None, 5])
    @pytest.mark.parametrize("odd", [1, 3, 64])
    def test_queries_that_stand_apart(self, m, odd):
        """By their own variances; all of a block, where the others are none."""
        keys, pair = normal(500, 12), m and projections(12, m)
        values = np.tanh(keys @ normal(12, 7, seed=1))
        cells = np.argsort(np.argsort(keys[:, 0])) // 50
        queries = 0.1 * normal(64, 12, seed=2)
        queries[:odd] = 8 * normal(odd, 12, seed=3)
        field = make(keys, values, cells, 10, pair)
        field.advance(500)
        field.apart = 0.5
        out = np.full((64, field.width), np.nan, np.float32)
        _, left = field.attend_rows(queries, np.arange(64, dtype=np.int32), ALL_FAR, out, reach=1e-3)
        assert len(left) == 0
        expected = closure(queries, keys, values, cells, 10, pair, apart=np.arange(64) < odd)
        np.testing.assert_allclose(out, expected, atol=1e-3)
        shared = closure(queries, keys, values, cells, 10, pair)
        assert np.abs(expected - shared)[:odd].max() > 0.003

    def test_lower_thresholds_for_queries_that_stand_apart(self):
        keys, values, queries = normal(500, 12), normal(500, 7, seed=1), 0.1 * normal(64, 12, seed=2)
        queries[:9] = 3 * normal(9, 12, seed=3)
        field = make(keys, values, np.argsort(np.argsort(keys[:, 0])) // 50, 10)
        field.advance(500)
        order, out = np.arange(64, dtype=np.int32), np.empty((64, 7), np.float32)
        touched = []
        for field.apart in (1.0, 0.5, 0.01):
            touched.append(field.attend_rows(queries, order, 1.0, out, reach=1e-3)[0])
        assert touched == sorted(touched)
        assert touched[0] < touched[-1]

    def test_variances_reach_beyond_the_closure(self):
        """Otherwise the test above would not see how they are shrunk."""
        queries = SCALE * 4.0 * (0.7 * normal(1, 12, seed=3) + 0.5 * normal(64, 12, seed=2))
        assert np.square(queries).sum(1).mean() > 2 * CLOSURE
        assert np.square(queries / 4 * 0.3).sum(1).mean() < 0.5 * CLOSURE

    def test_beats_the_means_alone(self):
        keys = normal(2000, 8)
        values, queries = np.tanh(keys @ normal(8, 6, seed=1)), 1.5 * normal(1, 8, seed=2) + 0.3 * normal(64, 8, seed=3)
        cells = np.argsort(np.argsort(keys[:, 0])) // 100
        errors = []
        for second_order in (False, True):
            field = make(keys, values, cells, 20, second_order=second_order)
            field.advance(2000)
            errors.append(np.linalg.norm(attend(field, queries, ALL_FAR)[0] - exact(queries, keys, values)))
        assert errors[1] < 0.5 * errors[0]

    def test_the_last_cell_is_always_near(self):
        keys, values, queries = normal(200, 6), normal(200, 4, seed=1), normal(64, 6, seed=2)
        cells = np.where(np.arange(200) < 150, 50, np.arange(200) - 150)
        field = make(keys, values, cells, 50)  # cells of one key, and 150 always near
        field.advance(200)
        out, touched = attend(field, queries, ALL_FAR)
        np.testing.assert_allclose(out, exact(queries, keys, values), atol=2e-5)
        assert touched == 64 * 200

    def test_without_the_far_field_only_near_keys_count(self):
        keys, values, queries = normal(200, 6), normal(200, 4, seed=1), normal(64, 6, seed=2)
        cells = np.where(np.arange(200) < 150, 50, np.arange(200) - 150)
        field = make(keys, values, cells, 50, keep_far=False)
        field.advance(200)
        out, _ = attend(field, queries, ALL_FAR)
        np.testing.assert_allclose(out, exact(queries, keys[:150], values[:150]), atol=1e-5)

    def test_nothing_near_and_no_far_field_is_zero(self):
        field = make(normal(20, 6), normal(20, 4, seed=1), np.arange(20), 20, keep_far=False)
        field.advance(20)
        assert not np.any(attend(field, normal(64, 6, seed=2), ALL_FAR)[0])

    @pytest.mark.parametrize("keep_far", [True, False])
    def test_lower_thresholds_touch_more_and_err_less(self, keep_far):
        keys = normal(3000, 8)
        values, queries = np.tanh(keys @ normal(8, 6, seed=1)), 3 * normal(64, 8, seed=2)
        cells = np.argsort(np.argsort(keys[:, 0])) // 50
        field = make(keys, values, cells, 60, keep_far=keep_far)
        field.advance(3000)
        looks = [attend(field, queries, t) for t in (1e9, 0.3, 0.1, 0.03, 0.01, 1e-3, 0.0)]
        touched = [count for _, count in looks]
        errors = [np.linalg.norm(out - exact(queries, keys, values)) for out, _ in looks]
        assert touched == sorted(touched)
        assert touched[0] == 60 * 64
        assert touched[-1] == 64 * (3000 + 60)
        assert len(set(touched)) > 4
        assert all(b < 1.1 * a for a, b in pairwise(errors))
        assert errors[-1] < 1e-4 * errors[0]


class TestBlocks:
    """A row's result depends on its block of 64, and on nothing else that is done at the same time."""

    def field(self, directions=None):
        keys = normal(800, 10)
        values = np.tanh(keys @ normal(10, 6, seed=1))
        field = make(keys, values, np.argsort(np.argsort(keys[:, 0])) // 50, 16, directions)
        field.advance(800)
        return field

    @pytest.mark.parametrize("threshold", [ALL_FAR, 0.05, ALL_NEAR])
    @pytest.mark.parametrize("directions", [None, 4])
    @pytest.mark.parametrize("blocks", [1, 3, 20])
    def test_calls_may_be_cut_between_blocks(self, threshold, directions, blocks):
        field = self.field(directions and projections(10, directions))
        queries = 2 * normal(64 * 20 + 9, 10, seed=2)
        order = np.random.default_rng(0).permutation(len(queries)).astype(np.int32)
        whole, _ = attend(field, queries, threshold, order)
        parts = np.full_like(whole, np.nan)
        for start in range(0, len(order), 64 * blocks):
            field.attend_rows(queries, order[start : start + 64 * blocks], threshold, parts)
        np.testing.assert_allclose(parts, whole, atol=2e-6)

    @pytest.mark.parametrize("threshold", [ALL_FAR, 0.05, ALL_NEAR])
    def test_repeats_to_the_bit(self, threshold):
        field, queries = self.field(), 2 * normal(300, 10, seed=2)
        np.testing.assert_array_equal(attend(field, queries, threshold)[0], attend(field, queries, threshold)[0])
        np.testing.assert_array_equal(attend(self.field(), queries, threshold)[0], attend(field, queries, threshold)[0])

    @pytest.mark.parametrize("threshold", [ALL_FAR, 0.05, ALL_NEAR])
    @pytest.mark.parametrize("local", [False, True])
    def test_wanted_rows_are_as_if_all_were(self, threshold, local):
        keys = normal(800, 10)
        values = np.tanh(keys[:, :6])
        field = make(keys, values, np.argsort(np.argsort(keys[:, 0])) // 50, 16)
        boundary = 600 if local else 800
        field.advance(boundary)
        queries = 2 * normal(300, 10, seed=2)
        stops = np.linspace(boundary, 800, 300).astype(np.int64)
        beside = LocalKeys(keys, values, stops, boundary) if local else None
        everything, touched = attend(field, queries, threshold, local=beside)
        wanted = (np.random.default_rng(0).random(300) < 0.1).astype(np.uint8)
        some, fewer = attend(field, queries, threshold, local=beside, wanted=wanted)
        np.testing.assert_allclose(some[wanted == 1], everything[wanted == 1], atol=2e-6)
        assert fewer < touched or threshold == ALL_FAR

    def test_neighbours_in_a_block_need_not_be_alike(self):
        """What a block shares costs accuracy, not sense."""
        field, queries = self.field(), np.concatenate([normal(32, 10), np.full((32, 10), 30, np.float32)])
        out, _ = attend(field, queries, ALL_FAR)
        assert np.isfinite(out).all()
        assert np.abs(out).max() < 30


class TestExtremes:
    @pytest.mark.parametrize("threshold", [ALL_FAR, 0.05, ALL_NEAR])
    @pytest.mark.parametrize("size", [1e-20, 1e-4, 1e4, 1e10])
    def test_magnitudes(self, threshold, size):
        keys, values, queries = size * normal(400, 8), normal(400, 5, seed=1), normal(100, 8, seed=2)
        field = make(keys.astype(np.float32), values, ASSIGNMENTS["random"](400, 10), 10)
        field.advance(400)
        out, _ = attend(field, queries.astype(np.float32), threshold)
        assert np.isfinite(out).all()
        if threshold == ALL_NEAR and size <= 1e4:
            np.testing.assert_allclose(out, exact(queries, keys.astype(np.float32), values), atol=2e-3)

    @pytest.mark.parametrize("threshold", [ALL_FAR, 0.05, ALL_NEAR])
    def test_zero_queries_average_the_values(self, threshold):
        keys, values = normal(400, 8), normal(400, 5, seed=1)
        field = make(keys, values, ASSIGNMENTS["random"](400, 10), 10)
        field.advance(400)
        out, _ = attend(field, np.zeros((70, 8), np.float32), threshold)
        np.testing.assert_allclose(out, np.tile(values.mean(0), (70, 1)), atol=1e-5)

    @pytest.mark.parametrize("threshold", [ALL_FAR, 0.05, ALL_NEAR])
    def test_zero_values(self, threshold):
        field = make(normal(400, 8), np.zeros((400, 5), np.float32), ASSIGNMENTS["random"](400, 10), 10)
        field.advance(400)
        assert not np.any(attend(field, normal(70, 8, seed=2), threshold)[0])

    @pytest.mark.parametrize("threshold", [ALL_FAR, 0.05, ALL_NEAR])
    def test_scores_far_below_zero(self, threshold):
        keys = normal(400, 1) - 500
        field = make(keys, normal(400, 5, seed=1), np.argsort(np.argsort(keys[:, 0])) // 40, 10)
        field.advance(400)
        queries = np.full((70, 1), 2, np.float32)
        out, _ = attend(field, queries, threshold)
        assert np.isfinite(out).all()
        expected = exact(queries, keys, normal(400, 5, seed=1))
        assert np.linalg.norm(out - expected) < 0.6 * np.linalg.norm(expected)
