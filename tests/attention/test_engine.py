"""The engine against exact attention: tolerance, needles, causality, threads, options."""

from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from itertools import pairwise

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from attention import AttentionOptions, InvalidValueError, dci_attention
from attention._core import heads
from attention._core.head import _SEGMENT as SEGMENT
from attention._core.head import ALL_NEAR, Head
from attention._core.planning import make_plan
from attention.reference import topk_attention
from attention.report import HeadReport
from dci._runtime.threads import Work

ALWAYS = AttentionOptions(exact_below=0, num_threads=2)


@pytest.fixture(autouse=True, scope="module")
def one_thread_of_torch():
    """The tests are many small calls: on a busy machine, torch's threads wait for each other."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def attend(query, key, value, options=ALWAYS, **arguments):
    """Output and the report of the only head, which must have been approximated unless said otherwise."""
    out, report = dci_attention(query, key, value, options=options, return_report=True, **arguments)
    return out, report.heads[0]


def exact(query, key, value, **arguments):
    return F.scaled_dot_product_attention(query, key, value, **arguments)


def off(found, expected):
    """Relative L2 error."""
    return float((found - expected).norm() / expected.norm())


def spread_to(query, key, spread):
    """Scale queries until the scores of one have this standard deviation."""
    return query * (spread / (query[:500] @ key[:500].T * query.shape[-1] ** -0.5).std(dim=1).mean())


@lru_cache(8)
def smooth(n, width=32, seed=0, spread=2.0, length=None, value_width=None):
    """Keys and values smooth functions of one latent of 6 dimensions with 5 % noise, queries near keys."""
    generator = torch.Generator().manual_seed(seed)
    latent = torch.randn(n, 6, generator=generator)
    parts = [
        torch.tanh(latent @ torch.randn(6, w, generator=generator) / 6**0.5) for w in (width, value_width or width)
    ]
    key, value = (x + 0.05 * x.std() * torch.randn(x.shape, generator=generator) for x in parts)
    rows = torch.randint(n, (length or n,), generator=generator)
    query = key[rows] + 0.05 * torch.randn(len(rows), width, generator=generator)
    return spread_to(query, key, spread)[None], key[None], value[None]


@lru_cache(8)
def clustered(n, width=32, seed=0, spread=2.0, n_clusters=40):
    generator = torch.Generator().manual_seed(seed)
    centres, means = torch.randn(2, n_clusters, width, generator=generator)
    of_key, of_query = torch.randint(n_clusters, (2, n), generator=generator)
    noise = 0.3 * torch.randn(3, n, width, generator=generator)
    key, query, value = centres[of_key] + noise[0], centres[of_query] + noise[1], means[of_key] + noise[2]
    return spread_to(query, key, spread)[None], key[None], value[None]


@lru_cache(8)
def gaussian(n, width=32, seed=0, spread=1.0):
    query, key, value = torch.randn(3, 1, n, width, generator=torch.Generator().manual_seed(seed))
    return spread_to(query[0], key[0], spread)[None], key, value


@lru_cache(4)
def prefix(n):
    """A mask under which every query sees the first half, and its past."""
    return torch.ones(n, n, dtype=torch.bool).tril() | (torch.arange(n) < n // 2)


VISIBLE = {
    "all": lambda n: {},
    "causal": lambda n: {"is_causal": True},
    "prefix": lambda n: {"attn_mask": prefix(n)},
}


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
    @pytest.mark.parametrize("spread", [0.5, 1.5, 4.0])
    @pytest.mark.parametrize("seed", [1, 2])
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
    def test_few_heads_are_planned_in_vain(self, n_heads, length, n_keys, causal, planned, monkeypatch):
        """As many as a twelfth of the exact time pays for."""
        plans = []

        def in_vain(query, *rest):
            plans.append(len(query))
            return HeadReport("exact", 1.0, 1.0, 0.0, 0.0, "does not pay")

        monkeypatch.setattr(heads, "_near_and_far", in_vain)
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


def hide_needle(name, tensors, place, rows):
    """Put one key at `place` that the queries `rows` give all their mass to; return what they attend to."""
    query, key, value = (x.clone() for x in tensors)
    generator = torch.Generator().manual_seed(7)
    axis = F.normalize(torch.randn(key.shape[-1], generator=generator), dim=0)
    size = key.norm(dim=-1).mean()
    root = key.shape[-1] ** 0.5
    if name == "same norm":  # and the query an outlier
        key[0, place] = size * axis
        query[0, rows] = 30 * root / size * axis
    elif name == "far outside":
        key[0, place] = 10 * size * axis
        query[0, rows] = 4 * root / size * axis
    elif name == "off the others":  # an inlier but for one component
        key[0, place] += 2 * size * axis
        query[0, rows] += 20 * root / size * axis
    elif name == "far off, shared":  # every query sees it a little, these do wholly
        key[0, place] = 5 * size * axis
        query[0] += 0.1 * root / size * axis
        query[0, rows] += 6 * root / size * axis
    weights = torch.softmax(query[0, rows] @ key[0].T / root, dim=-1)
    return query, key, value, weights[:, place].min()


NEEDLES = ("same norm", "far outside", "off the others", "far off, shared")


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


class TestFarField:
    @pytest.mark.parametrize("visible", VISIBLE)
    @pytest.mark.parametrize("make", [smooth, clustered, gaussian])
    @pytest.mark.parametrize("near", [32, 0.05, 0.2])
    def test_never_makes_the_error_larger(self, visible, make, near):
        """Every call finds the same near field, but for order 0, which looks for one of the same size."""
        tensors, arguments = make(2100), VISIBLE[visible](2100)
        expected = exact(*tensors, **arguments)
        errors = {
            order: off(attend(*tensors, ALWAYS.replace(near=near, far_field=order), **arguments)[0], expected)
            for order in (0, 2, False)
        }
        assert errors[2] <= 1.01 * errors[False], errors
        assert errors[0] <= 1.01 * errors[False], errors

    def test_second_order_is_better(self):
        tensors = smooth(4096)
        errors = [
            off(attend(*tensors, ALWAYS.replace(near=64, far_field=f))[0], exact(*tensors)) for f in (2, 0, False)
        ]
        assert errors[0] < 0.6 * errors[1] < 0.6 * errors[2]

    def test_auto_is_second_order(self):
        tensors = smooth(2048)
        outs = [attend(*tensors, ALWAYS.replace(far_field=f))[0] for f in ("auto", 2)]
        assert torch.equal(*outs)

    @pytest.mark.parametrize("far_field", [0, False])
    @pytest.mark.parametrize("visible", VISIBLE)
    def test_other_orders_keep_the_tolerance(self, far_field, visible):
        arguments = VISIBLE[visible](4096)
        tensors = smooth(4096, spread=3.0)
        out, _ = attend(*tensors, ALWAYS.replace(tolerance=0.1, far_field=far_field), **arguments)
        assert off(out, exact(*tensors, **arguments)) <= 0.11


def head_of(query, key, value, stops, options=ALWAYS, plan=None):
    arrays = [x.numpy() for x in (query, key[0], value[0])]
    scale = query.shape[-1] ** -0.5
    plan = plan or make_plan(arrays[0].reshape(-1, query.shape[-1]), arrays[1], len(arrays[1]), scale, options, 1)
    return Head(*arrays, stops, scale, options, plan, Work(1)), plan


def run(head, threshold):
    out = np.full((len(head.query), head.field.width), np.nan, np.float32)
    return out, head.run(threshold, out)


class TestCausality:
    N = 5000

    @pytest.mark.parametrize("threshold", [64.0, 0.1, ALL_NEAR])
    @pytest.mark.parametrize("first", [1, 1024, 2500, 4999])
    @pytest.mark.parametrize("change", ["shifted", "huge", "swapped"])
    @pytest.mark.parametrize("group", [1, 2])
    def test_the_future_changes_nothing_to_the_bit(self, threshold, first, change, group):
        query, key, value = (x.clone() for x in smooth(self.N, 16))
        query = torch.cat([query, query.flip(1)])[:group]
        stops = np.arange(1, self.N + 1)
        head, plan = head_of(query, key, value, stops)
        before, _ = run(head, threshold)
        for x in (key, value):
            later = x[:, first:]
            later.copy_({"shifted": later + 0.5, "huge": later * 1e3, "swapped": later.flip(1)}[change])
        after, _ = run(head_of(query, key, value, stops, plan=plan)[0], threshold)
        before, after = (x.reshape(group, self.N, -1) for x in (before, after))
        np.testing.assert_array_equal(after[:, :first], before[:, :first])
        assert np.isfinite(after).all()
        assert first == self.N - 1 or not np.array_equal(after, before)

    def test_the_future_hidden_behind_stops(self):
        """Some queries in a row see the same keys, others jump."""
        query, key, value = (x.clone() for x in smooth(self.N, 16))
        stops = np.sort(np.random.default_rng(0).integers(1, self.N, self.N // 100)).repeat(100)
        head, plan = head_of(query, key, value, stops)
        before, _ = run(head, 0.1)
        first = int(stops[3000])
        key[:, first:] += 1
        value[:, first:] *= -3
        after, _ = run(head_of(query, key, value, stops, plan=plan)[0], 0.1)
        seen = stops <= first
        assert seen.sum() > 3000
        np.testing.assert_array_equal(after[seen], before[seen])

    @pytest.mark.parametrize("tolerance", [0.05, 0.1])
    def test_with_a_new_plan_outputs_stay_within_tolerance(self, tolerance):
        query, key, value = (x.clone() for x in smooth(self.N, 32))
        first = 4000
        expected = exact(query, key, value, is_causal=True)[:, :first]
        for size in (0.5, 3.0):
            key[:, first:] = size * torch.randn(1, self.N - first, 32)
            value[:, first:] = size * torch.randn(1, self.N - first, 32)
            out, _ = attend(query, key, value, ALWAYS.replace(tolerance=tolerance), is_causal=True)
            assert off(out[:, :first], expected) <= 1.3 * tolerance

    @pytest.mark.parametrize("window", [0, 100, 3000])
    def test_segments(self, window):
        query, key, value = smooth(self.N, 8)
        rng = np.random.default_rng(0)
        for stops in (
            np.arange(1, self.N + 1),
            np.full(self.N, 3000),
            np.sort(rng.integers(1, self.N + 1, self.N)),
            np.r_[np.ones(4000, int), np.full(1000, self.N)],
            np.minimum(np.arange(1, self.N + 1), 2000),
        ):
            head, _ = head_of(query, key, value, stops.astype(np.int64), ALWAYS.replace(window=window))
            segments = head.segments()
            assert [s.start for s in segments] == [0] + [s.stop for s in segments[:-1]]
            assert segments[-1].stop == self.N
            assert all(s.start < s.stop for s in segments)
            assert all(s.boundary == 0 or s.boundary <= stops[s.start] - window for s in segments)
            assert all(a.boundary <= b.boundary for a, b in pairwise(segments))
            local = [stops[s.stop - 1] - s.boundary for s in segments]
            assert len(segments) <= 2 + stops.max() / SEGMENT  # however long the window
            assert max(local) <= window + 2 * SEGMENT or stops.min() == stops.max()


class TestPinned:
    """Keys that always belong to the near field."""

    @pytest.mark.parametrize("sink", [1, 4, 50])
    def test_sinks(self, sink):
        query, key, value = smooth(4096, 64, length=1000)
        for name in NEEDLES:
            *tensors, _ = hide_needle(name, (query, key, value), sink - 1, [77, 500])
            out, _ = attend(*tensors, ALWAYS.replace(near=1, sink=sink))
            torch.testing.assert_close(out[0, [77, 500]], tensors[2][0, [sink - 1] * 2], atol=0.05, rtol=0.05)

    @pytest.mark.parametrize("n_keys", [5, 16, 31])
    def test_sinks_of_fewer_keys_than_cells(self, n_keys):
        query, key, value = smooth(n_keys, length=100)
        plan = make_plan(query[0].numpy(), key[0].numpy(), n_keys, 0.2, ALWAYS, 1)
        assert len(plan.references) == len(plan.centers) + 1
        cells = plan.cells_of(key[0].numpy(), value[0].numpy(), 4, 1)
        assert (cells[:4] == len(plan.centers)).all()
        assert (cells[4:] < len(plan.centers)).all()

    def test_outlying_values_lie_in_no_cell(self):
        query, key, value = (x.clone() for x in smooth(4096))
        far = np.arange(10, 4096, 130)
        value[0, far] *= 50
        _, plan = head_of(query, key, value, None)
        cells = plan.cells_of(key[0].numpy(), value[0].numpy(), 0, 1)
        assert (cells[far] == len(plan.centers)).all()

    @pytest.mark.parametrize("sink", [0, 1, 7])
    def test_sinks_lie_in_no_cell(self, sink):
        query, key, value = smooth(1000)
        _, plan = head_of(query, key, value, None)
        cells = plan.cells_of(key[0].numpy(), value[0].numpy(), sink, 1)
        n_cells = len(plan.centers)
        assert (cells[:sink] == n_cells).all()
        assert (cells[sink:] == n_cells).sum() <= 64 + 1000 // 50

    def test_more_sinks_than_keys(self):
        tensors = smooth(1000)
        out, _ = attend(*tensors, ALWAYS.replace(sink=5000, near=1))
        torch.testing.assert_close(out, exact(*tensors), atol=1e-5, rtol=1e-5)

    @pytest.mark.parametrize("back", [1, 100, 300])
    def test_window(self, back):
        row = 4000
        tensors = hide_needle("same norm", smooth(5000, 64), row - back + 1, [row])[:3]
        out, _ = attend(*tensors, ALWAYS.replace(near=1, window=300), is_causal=True)
        torch.testing.assert_close(out[0, row], tensors[2][0, row - back + 1], atol=0.05, rtol=0.05)

    def test_windows_longer_than_the_sequence(self):
        tensors = smooth(3000)
        out, _ = attend(*tensors, ALWAYS.replace(window=10**6), is_causal=True)
        torch.testing.assert_close(out, exact(*tensors, is_causal=True), atol=1e-5, rtol=1e-5)


class TestRepeatability:
    @pytest.mark.parametrize("visible", VISIBLE)
    @pytest.mark.parametrize("n_heads", [1, 2, 3])
    @pytest.mark.parametrize("options", [{"tolerance": 0.1}, {"near": 0.1}, {"top_k": 20}], ids=str)
    def test_threads(self, visible, n_heads, options):
        query, key, value = (torch.cat([x, x.flip(1), x + 0.1])[:n_heads] for x in smooth(2100))
        outs = [
            attend(query, key, value, ALWAYS.replace(num_threads=n, **options), **VISIBLE[visible](2100))[0]
            for n in (1, 2, 3)
        ]
        assert torch.equal(outs[0], outs[1])
        assert torch.equal(outs[0], outs[2])

    @pytest.mark.parametrize("embedding", ["query", "random"])
    def test_random_state(self, embedding):
        tensors = smooth(3000)
        outs = [attend(*tensors, ALWAYS.replace(random_state=s, embedding=embedding))[0] for s in (3, 3, 4)]
        assert torch.equal(outs[0], outs[1])
        assert not torch.equal(outs[0], outs[2])

    def test_global_seeds_do_not_matter(self):
        tensors, outs = smooth(3000), []
        for seed in (1, 2):
            torch.manual_seed(seed)
            np.random.seed(seed)  # noqa: NPY002 - the global one
            before = torch.get_rng_state()
            outs.append(attend(*tensors)[0])
            assert torch.equal(torch.get_rng_state(), before)
        assert torch.equal(*outs)

    def test_calls_at_once(self):
        jobs = [(smooth(2500, seed=s), visible) for s in range(3) for visible in ("all", "causal")]
        expected = [attend(*tensors, **VISIBLE[visible](2500))[0] for tensors, visible in jobs]

        def work(i):
            tensors, visible = jobs[i % 6]
            return attend(*tensors, **VISIBLE[visible](2500))[0]

        with ThreadPoolExecutor(4) as pool:
            for i, out in enumerate(pool.map(work, range(24))):
                assert torch.equal(out, expected[i % 6])

    def test_inputs_stay(self):
        tensors = smooth(2000)
        before = [x.clone() for x in tensors]
        attend(*tensors, is_causal=True)
        assert all(torch.equal(a, b) for a, b in zip(tensors, before, strict=True))

    def test_strides(self):
        tensors = smooth(2000)
        expected, _ = attend(*tensors)
        wide = [torch.cat([x, x], dim=-1)[..., : x.shape[-1]] for x in tensors]
        assert torch.equal(attend(*wide)[0], expected)
        by_column = [x.mT.contiguous().mT for x in tensors]
        assert torch.equal(attend(*by_column)[0], expected)

    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
    def test_half_precision_is_computed_in_float32(self, dtype):
        tensors = [x.to(dtype) for x in smooth(3000)]
        out, _ = attend(*tensors)
        assert out.dtype == dtype
        assert torch.equal(out, attend(*(x.float() for x in tensors))[0].to(dtype))


def one_axis(x):
    return x * (torch.arange(x.shape[-1]) == 3)


EXTREMES = {
    "constant keys": lambda q, k, v: (q, k[:, :1].expand_as(k), v),
    "zero keys": lambda q, k, v: (q, 0 * k, v),
    "two keys": lambda q, k, v: (q, k[:, torch.arange(k.shape[1]) % 2], v),
    "duplicates": lambda q, k, v: (q, k[:, torch.arange(k.shape[1]) % 100], v),
    "zero queries": lambda q, k, v: (0 * q, k, v),
    "constant queries": lambda q, k, v: (q[:, :1].expand_as(q), k, v),
    "some zero queries": lambda q, k, v: (q * (torch.arange(q.shape[1]) % 2)[:, None], k, v),
    "zero values": lambda q, k, v: (q, k, 0 * v),
    "constant values": lambda q, k, v: (q, k, v[:, :1].expand_as(v)),
    "all zero": lambda q, k, v: (0 * q, 0 * k, 0 * v),
    "huge queries": lambda q, k, v: (1e4 * q, k, v),
    "huge keys": lambda q, k, v: (q, 1e4 * k, v),
    "huge values": lambda q, k, v: (q, k, 1e4 * v),
    "huge queries and keys": lambda q, k, v: (1e4 * q, 1e4 * k, v),
    "tiny queries": lambda q, k, v: (1e-20 * q, k, v),
    "tiny keys": lambda q, k, v: (q, 1e-20 * k, v),
    "tiny values": lambda q, k, v: (q, k, 1e-20 * v),
    "far from the origin": lambda q, k, v: (q, k + 100, v),
    "queries far from the origin": lambda q, k, v: (q + 100, k, v),
    "one long key": lambda q, k, v: (q, torch.cat([k[:, :-1], 1e4 * k[:, -1:]], dim=1), v),
    "one coordinate": lambda q, k, v: (one_axis(q), one_axis(k), v),
}


class TestDegenerate:
    @pytest.mark.parametrize("name", ["query", "key"])
    @pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
    @pytest.mark.parametrize("place", [(0, 0), (1234, 5), (2999, 31)])
    @pytest.mark.parametrize("is_causal", [False, True])
    @pytest.mark.parametrize("embedding", ["query", "random"])
    def test_not_finite(self, name, bad, place, is_causal, embedding):
        tensors = dict(zip(("query", "key", "value"), (x.clone() for x in smooth(3000)), strict=True))
        tensors[name][0, *place] = bad
        with pytest.raises(InvalidValueError, match=f"{name}: expected finite.*received NaN or inf"):
            attend(**tensors, options=ALWAYS.replace(tolerance=0.2, embedding=embedding), is_causal=is_causal)

    @pytest.mark.parametrize("name", ["query", "key"])
    def test_not_finite_for_top_k(self, name):
        tensors = dict(zip(("query", "key", "value"), (x.clone() for x in smooth(3000)), strict=True))
        tensors[name][0, 1234, 5] = torch.nan
        with pytest.raises(InvalidValueError, match=rf"{name[0]}\w*: expected finite"):
            attend(**tensors, options=ALWAYS.replace(top_k=9))

    def test_nan_in_one_value_reaches_all_who_see_it(self):
        """And perhaps others of their segment: 0 × NaN is NaN."""
        query, key, value = (x.clone() for x in smooth(4000))
        value[0, 3000, 3] = torch.nan
        out, _ = attend(query, key, value, ALWAYS.replace(near=1), is_causal=True)
        assert out[0, 3000:, 3].isnan().all()
        assert out[0, : 3000 - 1024].isfinite().all()
        assert out[..., :3].isfinite().all()
        assert out[..., 4:].isfinite().all()

    @pytest.mark.parametrize("name", EXTREMES)
    @pytest.mark.parametrize(("visible", "width"), [("all", 48), ("causal", 32)])  # above 32, moments are projected
    def test_extremes(self, name, visible, width):
        tensors = EXTREMES[name](*smooth(2100, width))
        arguments = VISIBLE[visible](2100)
        expected = exact(*(x.double() for x in tensors), **arguments)
        size = float(expected.norm())
        # Where scores are huge, one key wins by a hair: float32 cannot tell them apart, in PyTorch either.
        rounding = 2 * float((exact(*tensors, **arguments) - expected).norm())
        for tolerance in (0.05, 0.2):
            out, head = attend(*tensors, ALWAYS.replace(tolerance=tolerance), **arguments)
            assert out.isfinite().all()
            assert float((out - expected).norm()) <= 1.1 * tolerance * size + rounding, head

    @pytest.mark.parametrize("name", EXTREMES)
    @pytest.mark.parametrize(("width", "embedding"), [(32, "random"), (48, "query")])
    def test_extremes_with_a_fixed_near_field(self, name, width, embedding):
        query, key, value = EXTREMES[name](*smooth(1200, width))
        for far_field in (0, 2, False):
            for near in (1, 0.3):
                options = ALWAYS.replace(near=near, far_field=far_field, embedding=embedding)
                out, _ = attend(query, key, value, options)
                assert out.isfinite().all(), options
                # Means lie between the values; second order may go beyond, within reason.
                assert out.abs().max() <= (10 if far_field == 2 else 1.001) * value.abs().max(), options

    @pytest.mark.parametrize("name", ["constant keys", "zero keys", "zero queries", "constant values"])
    def test_averages_are_exact_without_a_near_field(self, name):
        tensors = EXTREMES[name](*smooth(3000))
        out, head = attend(*tensors, ALWAYS.replace(tolerance=0.2))
        assert off(out, exact(*tensors)) < 1e-4
        assert head.share < 0.1


class TestTopK:
    OPTIONS = AttentionOptions(top_k=32, num_threads=2)

    @pytest.mark.parametrize("is_causal", [False, True])
    @pytest.mark.parametrize("width", [4, 16])
    @pytest.mark.parametrize("embedding", ["query", "random"])
    def test_on_easy_data_it_is_exact_top_k(self, is_causal, width, embedding):
        """Where weights are equal to 1e-6 either key will do, so outputs are compared, not keys."""
        query, key, value = smooth(1500, width, spread=4.0)
        out, head = attend(query, key, value, self.OPTIONS.replace(embedding=embedding), is_causal=is_causal)
        expected = torch.from_numpy(topk_attention(query, key, value, 32, is_causal=is_causal))
        assert head.method == "top-k"
        assert off(out, expected) < 0.02

    @pytest.mark.parametrize("is_causal", [False, True])
    @pytest.mark.parametrize("k", [600, 1499])
    def test_many_keys(self, is_causal, k):
        query, key, value = smooth(1500, 16)
        out, _ = attend(query, key, value, self.OPTIONS.replace(top_k=k), is_causal=is_causal)
        expected = torch.from_numpy(topk_attention(query, key, value, k, is_causal=is_causal))
        assert off(out, expected) < 1e-3

    @pytest.mark.parametrize("k", [1, 5, 64])
    def test_fewer_visible_than_k(self, k):
        """The first queries see fewer keys than k, and all of these."""
        query, key, value = smooth(1500, 16)
        out, _ = attend(query, key, value, self.OPTIONS.replace(top_k=k), is_causal=True)
        expected = exact(query, key, value, is_causal=True)
        torch.testing.assert_close(out[:, :k], expected[:, :k], atol=1e-5, rtol=1e-5)
        assert out.isfinite().all()

    def test_one_key_is_the_nearest(self):
        query, key, value = smooth(1500, 8, spread=3.0)
        out, _ = attend(query, key, value, self.OPTIONS.replace(top_k=1))
        best = value[0, (query[0] @ key[0].T).argmax(dim=1)]
        assert (out[0] - best).norm(dim=-1).lt(1e-5).float().mean() > 0.95

    def test_more_keys_err_less(self):
        tensors = smooth(3000, 32)
        looks = [attend(*tensors, self.OPTIONS.replace(top_k=k)) for k in (8, 64, 512)]
        errors = [off(out, exact(*tensors)) for out, _ in looks]
        assert errors[0] > errors[1] > errors[2]
        for (_, head), error in zip(looks, errors, strict=True):
            assert 0.5 < head.error / error < 2
        assert [head.keys_touched for _, head in looks] == [8, 64, 512]

    @pytest.mark.parametrize("is_causal", [False, True])
    def test_grouped_heads(self, is_causal):
        query, key, value = smooth(1500, 8, spread=3.0)
        query = torch.cat([query, query.flip(1)])
        out, _ = attend(query, key, value, self.OPTIONS, is_causal=is_causal, enable_gqa=True)
        expected = topk_attention(query, key, value, 32, is_causal=is_causal, enable_gqa=True)
        assert off(out, torch.from_numpy(expected)) < 0.02

    def test_prefix(self):
        query, key, value = smooth(1500, 8, spread=3.0)
        out, head = attend(query, key, value, self.OPTIONS, attn_mask=prefix(1500))
        expected = topk_attention(query, key, value, 32, mask=prefix(1500))
        assert head.method == "top-k"
        assert off(out, torch.from_numpy(expected)) < 0.02


class TestOptions:
    @pytest.mark.parametrize(
        ("options", "most"),
        [
            ({"directions": 1}, 0.08),
            ({"directions": 4}, 0.065),
            ({"directions": 16}, 0.065),
            ({"directions": 1000}, 0.065),
            ({"embedding": "query"}, 0.065),
            ({"embedding": "random"}, 0.065),
            ({"far_field": 0}, 0.065),
            ({"far_field": 2}, 0.065),
            ({"far_field": False}, 0.065),
            ({"near": 1}, 0.3),
            ({"near": 200}, 0.1),
            ({"near": 10**6}, 1e-5),
            ({"near": 0.001}, 0.3),
            ({"near": 0.2}, 0.05),
            ({"near": 1.0}, 1e-5),
            ({"near": 0.2, "far_field": False}, 0.5),
            ({"near": 0.2, "embedding": "random"}, 0.3),
            ({"near": 0.2, "directions": 2, "embedding": "random", "sink": 3, "window": 40}, 0.3),
            ({"sink": 4, "window": 64}, 0.065),
        ],
        ids=str,
    )
    @pytest.mark.parametrize("visible", VISIBLE)
    def test_all_run(self, options, most, visible):
        tensors, arguments = smooth(2100), VISIBLE[visible](2100)
        out, _ = attend(*tensors, ALWAYS.replace(**options), **arguments)
        assert off(out, exact(*tensors, **arguments)) <= most

    def test_near_is_a_size(self):
        tensors = smooth(4096)
        _, base = attend(*tensors, ALWAYS.replace(near=1))
        touched = [attend(*tensors, ALWAYS.replace(near=near))[1].keys_touched for near in (100, 400, 0.25)]
        for found, wanted in zip(touched, (100, 400, 1024), strict=True):
            assert 0.7 * wanted < found - base.keys_touched + 1 < 1.3 * wanted + 20

    def test_lower_tolerances_touch_more(self, monkeypatch):
        monkeypatch.setattr(
            "attention._core.planning.cells_for", lambda *_: 96
        )  # more of them for a lower one, otherwise
        tensors = smooth(8192, spread=3.0)
        touched = [attend(*tensors, ALWAYS.replace(tolerance=t))[1].keys_touched for t in (0.2, 0.1, 0.05, 0.02)]
        assert touched == sorted(touched)
        assert touched[-1] > 1.5 * touched[0]

    def test_a_low_tolerance_touches_more(self):
        tensors = smooth(8192, spread=3.0)
        loose, tight = (attend(*tensors, ALWAYS.replace(tolerance=t))[1].keys_touched for t in (0.1, 0.01))
        assert tight > 1.5 * loose

    def test_report(self):
        query, key, value = (x.expand(3, -1, -1) for x in smooth(3000))
        key = key + torch.zeros(3, 1, 1)
        _, report = dci_attention(query, key, value, options=ALWAYS, return_report=True)
        assert len(report.heads) == 3
        for head in report.heads:
            assert head.method == "near+far"
            assert 0 < head.share < 0.35
            assert head.keys_touched == pytest.approx(3000 * head.share)
            assert 0 < head.error <= 0.05
            assert head.seconds > 0
