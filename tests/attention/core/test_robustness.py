"""The same answers from any threads and strides, and sense at extremes."""

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch

from attention import InvalidValueError
from tests.attention.core.inputs import ALWAYS, VISIBLE, attend, exact, off, smooth


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
        for far_field in ("mean", "covariance", "none"):
            for near in (1, 0.3):
                options = ALWAYS.replace(near=near, far_field=far_field, embedding=embedding)
                out, _ = attend(query, key, value, options)
                assert out.isfinite().all(), options
                # Means lie between the values; covariances may go beyond, within reason.
                assert out.abs().max() <= (10 if far_field == "covariance" else 1.001) * value.abs().max(), options

    @pytest.mark.parametrize("name", ["constant keys", "zero keys", "zero queries", "constant values"])
    def test_averages_are_exact_without_a_near_field(self, name):
        tensors = EXTREMES[name](*smooth(3000))
        out, head = attend(*tensors, ALWAYS.replace(tolerance=0.2))
        assert off(out, exact(*tensors)) < 1e-4
        assert head.share < 0.1
