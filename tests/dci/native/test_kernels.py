"""Every instruction set against plain NumPy, at sizes around the tiles' edges."""

import numpy as np
import pytest

from dci._geometry.kmeans import center_panels
from dci._native import cell_search as native_cell_search
from dci._native import cells as native_cells
from dci._native import codes as native_codes
from dci._native import exact_scan as native_exact_scan
from dci._native import kernels as native_kernels
from dci._native import rescore as native_rescore
from dci._native import rows as native_rows

DIMS = (1, 2, 3, 7, 8, 9, 15, 16, 17, 31, 33, 100)
COUNTS = (1, 2, 4, 5, 6, 7, 8, 9, 13, 16, 17)


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


@pytest.mark.parametrize("dim", DIMS)
def test_project_is_an_affine_map_of_centred_rows(dim):
    for n in COUNTS:
        data, directions, center = normal(n, dim), normal(20, dim, seed=1), normal(dim, seed=2)
        panels = native_rows.panels_of(directions)
        bias = normal(panels.shape[0] * 16, seed=3)
        out = np.empty((n, len(bias)), np.float32)
        rows = native_rows.Rows(data, 0.5, row_scale=np.full(n, 3.0, np.float32), center=center)
        native_rows.project(rows, all_ids(n), panels, bias, out)
        expected = (1.5 * data - center) @ directions.T + bias[:20]
        np.testing.assert_allclose(out[:, :20], expected, rtol=1e-4, atol=1e-4)
        np.testing.assert_array_equal(out[:, 20:], np.broadcast_to(bias[20:], (n, 12)))


def test_project_of_no_row_is_the_bias():
    panels, bias = native_rows.panels_of(normal(3, 5)), normal(16, seed=1)
    out = np.empty((2, 16), np.float32)
    native_rows.project(native_rows.Rows(normal(4, 5)), np.array([-1, 2], np.int32), panels, bias, out)
    np.testing.assert_array_equal(out[0], bias)


def test_extra_coordinate_comes_last_and_is_centred():
    data, extra, center = normal(5, 3), normal(5, seed=1), normal(4, seed=2)
    rows = native_rows.Rows(data, 2.0, extra=extra, center=center)
    expected = np.column_stack([2.0 * data, extra]) - center
    np.testing.assert_allclose(native_rows.prepared(rows, all_ids(5)), expected, atol=1e-6)


@pytest.mark.parametrize("dim", [*DIMS, 255, 256, 257, 600])
def test_codes_are_decoded_to_the_bit_as_by_the_serial_kernels(dim, simd):
    rng = np.random.default_rng(dim)
    halves = (rng.standard_normal((5, dim)) * np.exp(rng.uniform(-12, 9, (5, dim)))).astype(np.float16)
    every = np.resize(np.arange(1 << 16, dtype=np.uint16).view(np.float16), (-(-(1 << 16) // dim), dim))
    codes = rng.integers(-128, 128, (5, dim + 1)).astype(np.int8)
    codes[:, -1] = [0, 7, 8, 21, 127]
    factors = np.array([1, 1.875, 0.5, 1.625 / 4, 1.875 * 2.0**-15], np.float32)[:, None]
    steps, offsets = np.abs(normal(dim)) * np.float32(0.01), normal(dim, seed=1)
    scale = np.array([2.0**-20], np.float32)
    kinds = [native_codes.Codes(halves, scale), native_codes.Codes(every, scale),
             native_codes.Codes(codes, steps, offsets)]  # fmt: skip
    for rows in kinds:
        ids = all_ids(len(rows))
        found = rows[ids]
        with np.errstate(invalid="ignore"):  # some halves are signalling NaN
            exact = rows.array.astype(np.float64) * rows.steps if rows.offsets is None else None
        if exact is None:
            exact = codes[:, :-1] * (factors * steps).astype(np.float64) + offsets
        np.testing.assert_allclose(found, exact, rtol=1.2e-7, atol=1e-30)
        native_kernels.use_simd("serial")
        np.testing.assert_array_equal(found, rows[ids])
        native_kernels.use_simd(simd)
        prepared = native_rows.prepared(native_rows.Rows(rows, 0.5, center=offsets), ids)
        plain = native_rows.prepared(native_rows.Rows(found, 0.5, center=offsets), ids)
        np.testing.assert_allclose(prepared, plain, rtol=1e-6, atol=1e-6)


def test_bytes_are_the_nearest_with_the_least_factor_that_is_enough():
    steps, offsets = np.array([0.5, 0.25], np.float32), np.array([0.0, 1.0], np.float32)
    rows = np.array([[63.5, 1.0], [64.0, 1.1], [-119.0, 1.0], [0.0, 1.0], [1e-2, 1.0], [3.1, -6.2]], np.float32)
    out = np.empty((6, 3), np.int8)
    largest = native_codes.encode_bytes(rows, steps, offsets, out)
    np.testing.assert_array_equal(out[:4], [[127, 0, 0], [114, 0, 1], [-127, 0, 7], [0, 0, 120]])
    exact = native_codes.Codes(out, steps, offsets)[all_ids(6)]
    assert 119.0 <= np.abs(exact).max() <= largest <= 119.1
    factors = (1 + out[:, -1:] % 8 / 8) * 2.0 ** -(out[:, -1:] // 8)
    assert (np.abs(exact - rows) <= 0.5001 * factors * steps).all()
    assert (np.abs(out[4:, :-1]).max(axis=1) > 127 / 1.14).all()
    again = out.copy()
    native_codes.encode_bytes(rows, 2 * steps, offsets, again, True)
    np.testing.assert_array_equal(again[:, -1], out[:, -1])
    assert (np.abs(again[:, :-1] - out[:, :-1] / 2) <= 0.5).all()


@pytest.mark.parametrize("dim", DIMS)
def test_scan_keeps_the_best_scores(dim):
    for n, n_queries in ((1, 1), (15, 3), (16, 8), (17, 9), (97, 13)):
        data, queries = normal(n, dim), normal(n_queries, dim, seed=1)
        keep = min(5, n)
        reservoirs = native_kernels.Reservoirs(n_queries, keep)
        native_exact_scan.scan(native_rows.Rows(data), None, 0, n, -2 * queries, reservoirs, True)
        scores = np.square(data).sum(1) - 2 * queries @ data.T
        found = native_cell_search.positions(reservoirs, keep)
        expected = np.sort(scores, axis=1)[:, :keep]
        np.testing.assert_allclose(np.take_along_axis(scores, found, axis=1), expected, rtol=1e-4, atol=1e-4)


def test_scan_in_parts_is_the_same_as_at_once_to_the_bit():
    data, queries = normal(1000, 19), -normal(21, 19, seed=1)
    whole, parts = native_kernels.Reservoirs(21, 30), native_kernels.Reservoirs(21, 30)
    native_exact_scan.scan(native_rows.Rows(data), None, 0, 1000, queries, whole, False)
    for start, stop in ((0, 1), (1, 334), (334, 335), (335, 1000)):
        native_exact_scan.scan(native_rows.Rows(data), None, start, stop, queries, parts, False)
    np.testing.assert_array_equal(native_cell_search.positions(whole, 30), native_cell_search.positions(parts, 30))


@pytest.mark.parametrize("count", [1, 8, 9, 16, 17, 50])
def test_scan_of_a_subset_is_that_of_its_rows(count):
    data, queries = normal(200, 20), normal(3, 20, seed=1)
    ids = np.sort(np.random.default_rng(0).choice(200, count, replace=False)).astype(np.int32)
    subset, copy = native_kernels.Reservoirs(3, 10), native_kernels.Reservoirs(3, 10)
    longest = native_exact_scan.scan(native_rows.Rows(data), ids, 0, count, queries, subset, True)
    assert longest == native_exact_scan.scan(native_rows.Rows(data[ids]), None, 0, count, queries, copy, True)
    np.testing.assert_array_equal(native_cell_search.positions(subset, 10), native_cell_search.positions(copy, 10))


def test_equal_scores_keep_the_lowest_positions():
    reservoirs = native_kernels.Reservoirs(2, 7)
    native_exact_scan.scan(native_rows.Rows(np.ones((500, 3), np.float32)), None, 0, 500,
                np.ones((2, 3), np.float32), reservoirs, True)  # fmt: skip
    np.testing.assert_array_equal(native_cell_search.positions(reservoirs, 7), [list(range(7))] * 2)


@pytest.mark.parametrize("m", [1, 7, 16, 33])
def test_pack_short_rounds_each_row_to_steps_of_its_own(m):
    rows = normal(32, m + 2) * np.float32(10.0) ** np.arange(-16, 16, dtype=np.float32)[:, None]
    rows[3], rows[4] = 0.0, 1e-35
    panels, (steps, norms) = np.empty((2, m, 16), np.int16), np.empty((2, 32), np.float32)
    native_rows.pack_short(rows, 1, m + 1, panels, steps, norms)
    unpacked = np.moveaxis(panels, 2, 1).reshape(32, m) * steps[:, None].astype(float)
    expected = rows[:, 1 : m + 1].astype(float)
    largest = np.abs(expected).max(1, keepdims=True)
    assert (np.abs(unpacked - expected) <= largest / 65_000 + 1e-30).all()
    np.testing.assert_allclose(norms, np.square(unpacked).sum(1), rtol=1e-5)
    assert not unpacked[3:5].any()


@pytest.mark.parametrize("n_centers", [1, 2, 7, 8, 15, 16, 17, 40, 129])
def test_nearest_takes_the_first_of_the_nearest(n_centers):
    coordinates, centers = normal(23, 6), normal(n_centers, 6, seed=1)
    centers[-1] = centers[0]
    found, gap = np.empty(23, np.int32), np.empty(23, np.float32)
    native_cells.nearest(coordinates, *center_panels(centers), found, gap)
    squared = np.square(coordinates[:, None] - centers).sum(2)
    np.testing.assert_allclose(gap, squared.min(1), rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(squared[np.arange(23), found], squared.min(1), rtol=1e-4, atol=1e-5)
    if n_centers > 1:
        assert not np.any(found == n_centers - 1)


def max_cells(points):
    """One cell of points for the ranking by the largest gap."""
    n, m = points.shape
    n_panels = -(-n // 16)
    rows = np.full((n_panels * 16, m), np.inf, np.float32)
    rows[:n] = points
    panels = np.ascontiguousarray(np.moveaxis(rows.reshape(1, n_panels, 16, m), 2, 3))
    ids = np.full(len(rows), -1, np.int32)
    ids[:n] = all_ids(n)
    arrays = native_cells.CellArrays(
        panels, np.zeros((1, len(rows)), np.float32), ids, np.array([0, n_panels], np.int32),
        np.array([n], np.int32), *center_panels(np.empty((0, m), np.float32)), 0,
    )  # fmt: skip
    return native_cells.Cells(arrays)


@pytest.mark.parametrize("m", [1, 2, 7, 10, 16, 17])
def test_ranking_by_max(m):
    n, n_queries = 77, 11
    points, queries = normal(n, m), normal(n_queries, m, seed=1)
    cells = max_cells(points)
    reservoirs = native_kernels.Reservoirs(n_queries, 9)
    native_cell_search.search(cells, queries, n, True, reservoirs)
    gaps = np.abs(points - queries[:, None]).max(2)
    found = native_cell_search.positions(reservoirs, 9)
    np.testing.assert_allclose(np.take_along_axis(gaps, found, axis=1), np.sort(gaps, axis=1)[:, :9])


@pytest.mark.parametrize("n_queries", [1, 2, 9])
@pytest.mark.parametrize("dim", DIMS)
def test_a_score_of_nan_is_never_selected(dim, n_queries):
    """Neither by sums nor by the largest gap, though there be room."""
    points, queries = normal(77, dim), normal(n_queries, dim, seed=1)
    missing = np.array([0, 5, 15, 16, 40, 76])
    points[missing, missing % dim] = np.nan
    valid = np.delete(all_ids(77), missing)
    by_sum, by_max = native_kernels.Reservoirs(n_queries, 77), native_kernels.Reservoirs(n_queries, 77)
    native_exact_scan.scan(native_rows.Rows(points), None, 0, 77, queries, by_sum, True)
    native_cell_search.search(max_cells(points), queries, 77, True, by_max)
    for reservoirs in (by_sum, by_max):
        found = np.sort(native_cell_search.positions(reservoirs, 77))
        assert (found[:, : len(missing)] == -1).all()
        np.testing.assert_array_equal(found[:, len(missing) :], np.tile(valid, (n_queries, 1)))


@pytest.mark.parametrize("n_centers", [1, 2, 7, 8, 15, 16, 17, 40, 129])
def test_a_center_of_nan_is_never_the_nearest(n_centers):
    coordinates, centers = normal(23, 6), normal(n_centers, 6, seed=1)
    centers[::2] = np.nan
    found, gap = np.empty(23, np.int32), np.empty(23, np.float32)
    native_cells.nearest(coordinates, *center_panels(centers), found, gap)
    if n_centers == 1:
        assert not found.any()
    else:
        squared = np.square(coordinates[:, None] - centers[1::2]).sum(2)
        np.testing.assert_array_equal(found, 1 + 2 * squared.argmin(1))


@pytest.mark.parametrize("dim", DIMS)
def test_survey_finds_the_first_bad_row_and_the_largest_value(dim):
    data = normal(9, dim)
    assert native_kernels.survey(data) == (-1, np.abs(data).max())
    for bad in (np.nan, np.inf, -np.inf):
        broken = data.copy()
        broken[4, dim - 1] = broken[7, 0] = bad
        assert native_kernels.survey(broken)[0] == 4
    assert native_kernels.survey(np.empty((0, dim), np.float32)) == (-1, 0.0)


@pytest.mark.parametrize("dim", DIMS)
@pytest.mark.parametrize("metric", native_rescore.METRICS)
def test_true_distances_are_those_of_float64(dim, metric):
    data, queries = normal(30, dim), normal(2, dim, seed=1)
    reservoirs = native_kernels.Reservoirs(2, 30)
    native_exact_scan.scan(native_rows.Rows(data), None, 0, 30, queries, reservoirs, True)
    distances, indices = np.empty((2, 31), np.float32), np.empty((2, 31), np.int64)
    true = native_rescore.TrueDistances(data, native_rescore.METRICS.index(metric), 5.0)
    native_rescore.rescore(true, queries, reservoirs, None, None, distances, indices)
    x, q = data.astype(float), queries.astype(float)
    if metric == "l2":
        expected = np.sqrt(np.square(q[:, None] - x).sum(2))
    elif metric == "ip":
        expected = q @ x.T
    else:
        norms = np.linalg.norm(q, axis=1)[:, None] * np.linalg.norm(x, axis=1)
        expected = 1 - q @ x.T / norms
    ordered = np.sort(expected, axis=1)[:, :: -1 if metric == "ip" else 1]
    np.testing.assert_allclose(distances[:, :30], ordered, rtol=1e-6, atol=1e-7)
    np.testing.assert_allclose(np.take_along_axis(expected, indices[:, :30], axis=1), ordered, rtol=1e-6, atol=1e-7)
    assert np.all(indices[:, 30] == -1)
    assert np.all(np.isinf(distances[:, 30]))


def test_ranks_of_wanted_positions():
    rng = np.random.default_rng(0)
    places = np.stack([rng.permutation(50)[:20] for _ in range(9)])
    places[3, 12:] = -1
    wanted = rng.integers(-1, 50, (9, 7))
    own = np.array([-1, places[1, 0], places[2, 5], places[3, 4], 49, *places[5:, 19]])
    ranks = np.full(wanted.shape, 10)
    workspace = np.zeros(50, np.int32)
    native_cell_search.find_ranks(places, wanted, own, ranks, workspace)
    for row, asked, skipped, found in zip(places.tolist(), wanted, own, ranks, strict=True):
        others = [place for place in row if place not in (skipped, -1)]
        for one, rank in zip(asked, found, strict=True):
            if one != skipped:
                assert rank == (min(10, others.index(one)) if one in others else 10)
    assert not workspace.any()
