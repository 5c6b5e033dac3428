"""No later key changes an output; keys that are always near are."""

from itertools import pairwise

import numpy as np
import pytest
import torch

from attention._core.head import _SEGMENT as SEGMENT
from attention._core.head import ALL_NEAR, Head
from attention._core.planning import make_plan
from dci._runtime.threads import Work
from tests.attention.core.inputs import ALWAYS, NEEDLES, attend, exact, hide_needle, off, smooth


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
        cells = plan.cells_of(key[0].numpy(), value[0].numpy(), 4, 1)[0]
        assert (cells[:4] == len(plan.centers)).all()
        assert (cells[4:] < len(plan.centers)).all()

    def test_outlying_values_lie_in_no_cell(self):
        query, key, value = (x.clone() for x in smooth(4096))
        far = np.arange(10, 4096, 130)
        value[0, far] *= 50
        _, plan = head_of(query, key, value, None)
        cells = plan.cells_of(key[0].numpy(), value[0].numpy(), 0, 1)[0]
        assert (cells[far] == len(plan.centers)).all()

    @pytest.mark.parametrize("sink", [0, 1, 7])
    def test_sinks_lie_in_no_cell(self, sink):
        query, key, value = smooth(1000)
        _, plan = head_of(query, key, value, None)
        cells = plan.cells_of(key[0].numpy(), value[0].numpy(), sink, 1)[0]
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
