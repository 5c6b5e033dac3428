"""What the far field is worth, and what every option does."""

import pytest
import torch

from attention import AttentionOptions, dci_attention
from tests.attention.core.inputs import ALWAYS, VISIBLE, attend, clustered, exact, gaussian, off, smooth


class TestFarField:
    @pytest.mark.parametrize("visible", VISIBLE)
    @pytest.mark.parametrize("make", [smooth, clustered, gaussian])
    @pytest.mark.parametrize("near", [32, 0.05, 0.2])
    def test_never_makes_the_error_larger(self, visible, make, near):
        """Every call finds the same near field, but for "mean", which looks for one of the same size."""
        tensors, arguments = make(2100), VISIBLE[visible](2100)
        expected = exact(*tensors, **arguments)
        errors = {
            far_field: off(attend(*tensors, ALWAYS.replace(near=near, far_field=far_field), **arguments)[0], expected)
            for far_field in ("mean", "covariance", "none")
        }
        assert errors["covariance"] <= 1.01 * errors["none"], errors
        assert errors["mean"] <= 1.01 * errors["none"], errors

    def test_covariances_are_better(self):
        tensors = smooth(4096)
        errors = [
            off(attend(*tensors, ALWAYS.replace(near=64, far_field=f))[0], exact(*tensors))
            for f in ("covariance", "mean", "none")
        ]
        assert errors[0] < 0.6 * errors[1] < 0.6 * errors[2]

    def test_auto_takes_covariances(self):
        tensors = smooth(2048)
        outs = [attend(*tensors, ALWAYS.replace(far_field=f))[0] for f in ("auto", "covariance")]
        assert torch.equal(*outs)

    @pytest.mark.parametrize("far_field", ["mean", "none"])
    @pytest.mark.parametrize("visible", VISIBLE)
    def test_other_estimates_keep_the_tolerance(self, far_field, visible):
        arguments = VISIBLE[visible](4096)
        tensors = smooth(4096, spread=3.0)
        out, _ = attend(*tensors, ALWAYS.replace(tolerance=0.1, far_field=far_field), **arguments)
        assert off(out, exact(*tensors, **arguments)) <= 0.11


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
            ({"far_field": "mean"}, 0.065),
            ({"far_field": "covariance"}, 0.065),
            ({"far_field": "none"}, 0.065),
            ({"near": 1}, 0.3),
            ({"near": 200}, 0.1),
            ({"near": 10**6}, 1e-5),
            ({"near": 0.001}, 0.3),
            ({"near": 0.2}, 0.05),
            ({"near": 1.0}, 1e-5),
            ({"near": 0.2, "far_field": "none"}, 0.5),
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

    def test_near_of_one_is_one_key_and_of_a_whole_share_all_keys(self):
        tensors = smooth(1000)
        one, every = (attend(*tensors, ALWAYS.replace(near=near))[1].keys_touched for near in (1, 1.0))
        assert one < 400
        assert every == 1000

    def test_exact_below_counts_the_keys_that_a_query_sees(self):
        tensors = smooth(2048)
        for bound, n_seen in ((2049, {}), (1025, {"is_causal": True})):
            found = [
                attend(*tensors, AttentionOptions(exact_below=b, near=100), **n_seen)[1] for b in (bound, bound - 1)
            ]
            assert [head.method for head in found] == ["exact", "near+far"]
            assert found[0].reason == f"fewer than {bound} keys"

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
