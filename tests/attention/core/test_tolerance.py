"""The engine keeps the tolerance, is exact at the full budget, and misses no needle."""

import numpy as np
import pytest
import torch

from attention import AttentionOptions, dci_attention
from attention._core import heads
from attention.report import HeadReport
from tests.attention.core.inputs import (
    ALWAYS,
    NEEDLES,
    VISIBLE,
    attend,
    clustered,
    exact,
    gaussian,
    hide_needle,
    off,
    smooth,
)


class TestFullBudget:
    """near=1.0 is exact attention, by other ways."""

    @pytest.mark.parametrize("visible", VISIBLE)
    @pytest.mark.parametrize("n", [512, 1000, 2500])
    @pytest.mark.parametrize(("width", "value_width"), [(8, 8), (32, 5), (17, 40), (64, 64), (1, 1)])
    def test_is_exact(self, visible, n, width, value_width):
        tensors = smooth(n, width, value_width=value_width)
        out, head = attend(*tensors, ALWAYS.replace(near=1.0), **VISIBLE[visible](n))
        torch.testing.assert_close(out, exact(*tensors, **VISIBLE[visible](n)), atol=1e-5, rtol=1e-5)
        assert head.error < 1e-5

    @pytest.mark.parametrize("is_causal", [False, True])
    @pytest.mark.parametrize(("length", "n_keys"), [(64, 2000), (2000, 700), (1, 600), (1500, 1501), (300, 4000)])
    def test_lengths_that_differ(self, is_causal, length, n_keys):
        query, key, value = smooth(n_keys, length=length)
        out, _ = attend(query, key, value, ALWAYS.replace(near=1.0), is_causal=is_causal)
        mask = torch.ones(length, n_keys, dtype=torch.bool).tril() if is_causal else None
        torch.testing.assert_close(out, exact(query, key, value, attn_mask=mask), atol=1e-5, rtol=1e-5)

    @pytest.mark.parametrize("is_causal", [False, True])
    @pytest.mark.parametrize("heads", [(4, 4), (4, 2), (6, 1)])
    def test_grouped_heads(self, is_causal, heads):
        query, key, value = (torch.randn(2, h, 2100, 16) for h in (heads[0], heads[1], heads[1]))
        arguments = {"is_causal": is_causal, "enable_gqa": True}
        out, report = dci_attention(
            query, key, value, options=ALWAYS.replace(near=1.0), return_report=True, **arguments
        )
        torch.testing.assert_close(out, exact(query, key, value, **arguments), atol=1e-5, rtol=1e-5)
        assert {head.method for head in report.heads} == {"near+far"}

    @pytest.mark.parametrize("scale", [0.01, 1.0])
    def test_scale(self, scale):
        tensors = smooth(1000)
        out, _ = attend(*tensors, ALWAYS.replace(near=1.0), scale=scale)
        torch.testing.assert_close(out, exact(*tensors, scale=scale), atol=1e-5, rtol=1e-5)


class TestQueryHeads:
    """Each query head keeps the tolerance, not only all that share keys together."""

    @pytest.mark.parametrize("is_causal", [False, True])
    def test_one_that_is_unlike_the_others(self, is_causal):
        query, key, value = (torch.stack(some, 1) for some in zip(*(smooth(4000, seed=s) for s in (0, 1)), strict=True))
        value = value - value.mean(-2, keepdim=True)
        # The first is diffuse, its output small: of all together, its errors are a small part.
        query = torch.stack([factor * query for factor in (0.2, 2.0, 2.0, 2.0, 2.0)], 2).flatten(1, 2)
        arguments = {"is_causal": is_causal, "enable_gqa": True}
        out, report = dci_attention(query, key, value, options=ALWAYS, return_report=True, **arguments)
        expected = exact(query, key, value, **arguments)
        errors = (out - expected).norm(dim=(-1, -2)) / expected.norm(dim=(-1, -2))
        assert errors.max() <= 1.1 * ALWAYS.tolerance, f"errors {errors}, {report.heads}"
        assert is_causal or {head.method for head in report.heads} == {"near+far"}


class TestTolerance:
    def check(self, tensors, visible, tolerances, options=ALWAYS):
        """Return the true error over the tolerance and the report for each tolerance, once both keep the promise."""
        arguments = VISIBLE[visible](tensors[1].shape[-2])
        expected = exact(*tensors, **arguments)
        found = []
        for tolerance in tolerances:
            out, head = attend(*tensors, options.replace(tolerance=tolerance), **arguments)
            error = off(out, expected)
            assert error <= (1.1 * tolerance if head.method == "near+far" else 1e-5), f"error {error}, {head}"
            assert head.error <= head.error_bound <= tolerance
            found.append((error / tolerance, head))
        return found

    @pytest.mark.parametrize(("visible", "n"), [("all", 4096), ("causal", 8192), ("prefix", 8192)])
    @pytest.mark.parametrize(("width", "spread"), [(32, 1.0), (32, 3.0), (64, 2.0)])
    def test_smooth(self, visible, n, width, spread):
        for ratio, head in self.check(smooth(n, width, spread=spread), visible, (0.1, 0.2)):
            assert head.method == "near+far"
            assert ratio <= 1
            assert 0.6 < head.error / head.error_bound < 1  # the rows' errors are alike

    @pytest.mark.parametrize("visible", VISIBLE)
    @pytest.mark.parametrize("n_clusters", [20, 40, 200])
    @pytest.mark.parametrize("spread", [1.0, 3.0])
    def test_clustered(self, visible, n_clusters, spread):
        self.check(clustered(4096, spread=spread, n_clusters=n_clusters), visible, (0.02, 0.1))

    @pytest.mark.parametrize("visible", VISIBLE)
    @pytest.mark.parametrize("spread", [0.3, 1.0, 2.0])
    def test_gaussian_noise(self, visible, spread):
        self.check(gaussian(4096, spread=spread), visible, (0.05, 0.2))

    @pytest.mark.slow
    @pytest.mark.parametrize("visible", VISIBLE)
    @pytest.mark.parametrize("make", [smooth, clustered, gaussian])
    @pytest.mark.parametrize(("spread", "seed"), [(0.5, 1), (1.5, 2), (4.0, 3)])
    def test_at_8192(self, visible, make, spread, seed):
        self.check(make(8192, spread=spread, seed=seed), visible, (0.02, 0.05, 0.1, 0.2))

    @pytest.mark.slow
    @pytest.mark.parametrize("n_clusters", [20, 40, 100, 200, 1000])
    @pytest.mark.parametrize("spread", [1.0, 3.0])
    @pytest.mark.parametrize("seed", range(1, 4))
    def test_many_kinds_of_clusters(self, n_clusters, spread, seed):
        self.check(clustered(4096, seed=seed, spread=spread, n_clusters=n_clusters), "all", (0.02, 0.05, 0.1, 0.2))

    def test_approximates_where_it_pays(self):
        _, head = attend(*smooth(8192), ALWAYS.replace(tolerance=0.1))
        assert (head.method, head.reason) == ("near+far", "within the tolerance")
        assert head.share < 0.1

    def test_leaves_noise_to_the_exact_kernel(self):
        tensors = gaussian(2048, spread=2.0)
        out, head = attend(*tensors)
        assert (head.method, head.share, head.error) == ("exact", 1.0, 0.0)
        assert "does not pay" in head.reason
        torch.testing.assert_close(out, exact(*tensors), atol=1e-5, rtol=1e-5)

    @pytest.mark.parametrize(("n_heads", "length", "n_keys", "causal", "planned"), [
        (3, 8192, 8192, False, 1),
        (2, 8192, 8192, False, 0),
        (12, 4096, 4096, False, 1),
        (8, 4096, 4096, False, 0),
        (8, 2048, 16384, False, 1),
        (30, 2048, 4096, False, 0),
        (2, 16384, 16384, True, 1),
        (1, 16384, 16384, False, 1),
    ])  # fmt: skip
    def test_few_plans_are_wasted(self, n_heads, length, n_keys, causal, planned, monkeypatch):
        """As many as a twelfth of the exact time pays for."""
        plans = []

        def wasted(query, *rest):
            plans.append(len(query))
            return HeadReport("exact", 1.0, 1.0, 0.0, 0.0, "does not pay")

        monkeypatch.setattr(heads, "_attend_near_and_far", wasted)
        query = torch.zeros(1, n_heads, length, 2)
        key = torch.zeros(1, n_heads, n_keys, 2)
        _, report = dci_attention(query, key, key, is_causal=causal, return_report=True)
        assert len(plans) == planned
        assert {head.method for head in report.heads} == {"exact"}
        assert len(report.heads) == n_heads
        if not planned:
            assert report.heads[0].reason == "too little work to risk a plan"

    def test_few_heads_are_approximated(self):
        tensors = [part.repeat(1, 3, 1, 1) for part in smooth(8192)]
        _, report = dci_attention(*tensors, options=AttentionOptions(tolerance=0.1), return_report=True)
        assert [head.method for head in report.heads] == ["near+far"] * 3

    def test_heads_are_judged_one_by_one(self):
        pairs = zip(smooth(2048), gaussian(2048, spread=2.0), strict=True)
        query, key, value = (torch.stack(pair, dim=1) for pair in pairs)
        out, report = dci_attention(query, key, value, options=ALWAYS, return_report=True)
        assert [head.method for head in report.heads] == ["near+far", "exact"]
        assert off(out[0, 1], exact(query, key, value)[0, 1]) < 1e-5

    def test_too_few_keys(self):
        tensors = smooth(511)
        out, head = attend(*tensors)
        assert head.method == "exact"
        torch.testing.assert_close(out, exact(*tensors), atol=1e-5, rtol=1e-5)

    def test_too_few_keys_before_any_query(self):
        query, key, value = smooth(600, length=500)
        out, head = attend(query, key, value, is_causal=True)
        assert head.method == "exact"
        mask = torch.ones(500, 600, dtype=torch.bool).tril()
        torch.testing.assert_close(out, exact(query, key, value, attn_mask=mask), atol=1e-5, rtol=1e-5)


class TestNeedle:
    def check(self, name, tensors, place, rows, **arguments):
        *tensors, weight = hide_needle(name, tensors, place, rows)
        assert weight > 0.99
        out, head = attend(*tensors, **arguments)
        expected = tensors[2][0, place]
        errors = (out[0, rows] - expected).norm(dim=-1) / expected.norm()
        assert errors.max() < 0.05, f"{errors}, {head}"

    @pytest.mark.slow
    @pytest.mark.parametrize("name", NEEDLES)
    @pytest.mark.parametrize("rows", [[1111], [3, 500, 501, 2000]], ids=len)
    @pytest.mark.parametrize("place", [0, 40_000, 65_535])
    def test_among_65536_keys(self, name, rows, place):
        self.check(name, smooth(65_536, 64, length=2048), place, rows)

    @pytest.mark.slow
    @pytest.mark.parametrize("spread", [0.1, 0.5])
    def test_among_noise(self, spread):
        query, key, value = gaussian(65_536, 64, spread=spread)
        self.check("same norm", (query[:, :2048], key, value), 40_000, [1111])

    @pytest.mark.parametrize("name", NEEDLES)
    @pytest.mark.parametrize(("place", "row"), [(3000, 16_000), (9000, 11_000), (15_999, 16_000), (0, 16_383)])
    def test_behind_a_causal_query(self, name, place, row):
        self.check(name, smooth(16_384, 64), place, [row], is_causal=True)


class TestStrays:
    """A single key that lies far from the others of its cell: no moment of the cell tells what it weighs."""

    N, HALF = 4096, 2048

    def opposite(self, spread, seed):
        """Pairs of near keys with opposite values, in clusters: where a pair is torn apart, a row has a large error."""
        rng = np.random.default_rng(seed)
        centres, means = rng.standard_normal((2, 64, 32), dtype=np.float32)
        of_key, of_query, other = rng.integers(64, size=(3, self.N))
        key = centres[of_key] + 0.5 * rng.standard_normal((self.N, 32), dtype=np.float32)
        way = rng.uniform(0, 0.5, size=(self.N, 1)).astype(np.float32)
        query = (1 - way) * centres[of_query] + way * centres[other]
        query += 0.5 * rng.standard_normal((self.N, 32), dtype=np.float32)
        query *= spread / (query[:512] @ key.T / np.sqrt(32)).std(axis=1).mean()
        value = means[of_key] + rng.standard_normal((self.N, 32), dtype=np.float32)
        near, opposed = (x * rng.standard_normal((self.HALF, 32), dtype=np.float32) for x in (0.05, 0.1))
        key[self.HALF :], value[self.HALF :] = key[: self.HALF] + near, opposed - value[: self.HALF]
        return tuple(torch.from_numpy(x.astype(np.float32))[None] for x in (query, key, value))

    def test_pairs_of_keys_with_opposite_values(self):
        approximated = 0
        for seed in range(4):
            tensors = self.opposite(2.0, seed)
            expected = exact(*tensors)
            for tolerance in (0.02, 0.05, 0.1):
                out, head = attend(*tensors, ALWAYS.replace(tolerance=tolerance))
                assert off(out, expected) <= 1.1 * tolerance, head
                approximated += head.method == "near+far"
        assert approximated > 0


class TestOutliers:
    """Queries unlike the others of their block attend to as few keys as any."""

    N = 4096

    def apart(self, seed):
        """Clusters, and queries between them of which every one attends to few keys of its own."""
        rng = np.random.default_rng(seed)
        centres, means = rng.standard_normal((2, 64, 32), dtype=np.float32)
        of_key, of_query, other = rng.integers(64, size=(3, self.N))
        key, noise, spread = 0.5 * rng.standard_normal((3, self.N, 32), dtype=np.float32)
        way = rng.uniform(0, 0.5, size=(self.N, 1)).astype(np.float32)
        query = (1 - way) * centres[of_query] + way * centres[other] + noise
        key += centres[of_key]
        query *= 4.0 / (query[:512] @ key.T / np.sqrt(32)).std(axis=1).mean()
        return tuple(torch.from_numpy(x)[None] for x in (query, key, means[of_key] + 2 * spread))

    @pytest.mark.parametrize("seed", range(3))
    @pytest.mark.parametrize("tolerance", [0.05, 0.1])
    def test_peaked_heads_touch_few_keys(self, seed, tolerance):
        tensors = self.apart(seed)
        out, head = attend(*tensors, ALWAYS.replace(tolerance=tolerance))
        assert head.method == "near+far"
        assert head.share < 0.2
        assert off(out, exact(*tensors)) <= tolerance
