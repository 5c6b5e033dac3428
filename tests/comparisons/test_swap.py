"""A contender in the place of PyTorch's attention, and the rows that come of it."""

import math

import pytest
import torch
from torch.nn import functional

from comparisons.attention.adapters import RIVALS
from comparisons.attention.bench import Contender
from comparisons.tasks import contenders, rows
from comparisons.tasks.swap import swap

LENGTH = 96
ALL = [contenders.EXACT, contenders.ours(0.05), contenders.ours(0.05, forced=True)]


@pytest.fixture(scope="module")
def heads():
    return torch.randn(3, 2, 4, LENGTH, 8, generator=torch.Generator().manual_seed(0)).unbind()


def attend(*heads, **named):
    with torch.no_grad():
        return functional.scaled_dot_product_attention(*heads, **named)


@pytest.mark.parametrize("causal", [False, True])
def test_every_contender_takes_the_place_and_gives_it_back(heads, causal):
    original = functional.scaled_dot_product_attention
    exact = attend(*heads, is_causal=causal)
    for contender in [*ALL, *contenders.rivals(LENGTH, causal)]:
        with swap(contender, 1, judge=True) as usage:
            out = attend(*heads, is_causal=causal)
        assert functional.scaled_dot_product_attention is original
        assert out.shape == exact.shape
        (call,) = usage.calls
        assert call.shape == (8, LENGTH, LENGTH, 8)
        assert 0 < call.touched <= 1.0
        assert len(call.errors) == 8
        true = ((out - exact).flatten(2).norm(dim=-1) / exact.flatten(2).norm(dim=-1)).flatten()
        torch.testing.assert_close(torch.tensor(call.errors), true, rtol=1e-3, atol=1e-6)


def test_it_gives_the_place_back_after_an_error(heads):
    original = functional.scaled_dot_product_attention
    with pytest.raises(RuntimeError, match="model"), swap(contenders.EXACT, 1):
        raise RuntimeError("model")
    assert functional.scaled_dot_product_attention is original


def test_scales_and_shared_heads_are_honoured(heads):
    query, key, value = heads
    named = {"scale": 0.7, "enable_gqa": True, "is_causal": True}
    exact = attend(query, key[:, :2], value[:, :2], **named)
    for contender in (contenders.TEXTBOOK, Contender(RIVALS["exact-topk"], {"k": LENGTH}), contenders.ours(0.05)):
        with swap(contender, 1):
            out = attend(query, key[:, :2], value[:, :2], **named)
        torch.testing.assert_close(out, exact, rtol=1e-4, atol=1e-5)


def test_what_a_rival_cannot_do_goes_to_pytorch_and_is_told(heads):
    query, key, value = heads
    with swap(Contender(RIVALS["window"], {"window": 4}), 1) as usage:
        one = attend(query[..., -1:, :], key, value)
        masked = attend(query, key, value, attn_mask=torch.ones(LENGTH, LENGTH, dtype=torch.bool))
    torch.testing.assert_close(one, attend(query[..., -1:, :], key, value))
    torch.testing.assert_close(masked, attend(query, key, value))
    assert [dict(call.reasons) for call in usage.calls] == [{"fewer queries than keys": 8}, {"a mask": 8}]


def test_what_a_mask_leaves_in_a_band_is_exact():
    sample = torch.arange(4_096) // 64
    band = (sample[:, None] == sample) & torch.ones(4_096, 4_096, dtype=torch.bool).tril()
    some = torch.randn(3, 1, 2, 4_096, 8).unbind()
    with swap(contenders.ours(0.05), 1, judge=True) as usage:
        attend(*some, attn_mask=band)
    assert usage.calls[0].approximated == 0
    assert dict(usage.calls[0].reasons) == {"a sliding window": 2}
    assert max(usage.calls[0].errors) < 1e-5


def test_layers_of_pytorch_are_reached():
    layer = torch.nn.MultiheadAttention(8, 2, batch_first=True)
    with swap(contenders.EXACT, 1) as usage:
        layer(*torch.randn(3, 1, 5, 8), need_weights=False)
    assert [call.shape for call in usage.calls] == [(2, 5, 5, 4)]


def test_touched_is_a_share_of_what_causal_queries_see(heads):
    for causal, share in ((False, 3 / LENGTH), (True, (6 + 3 * (LENGTH - 3)) / (LENGTH * (LENGTH + 1) / 2))):
        with swap(Contender(RIVALS["exact-topk"], {"k": 3}), 1) as usage:
            attend(*heads, is_causal=causal)
        assert math.isclose(usage.calls[0].touched, share)


def test_a_row_has_costs_and_the_place_of_the_worst_error(heads):
    def model():
        attend(*heads, is_causal=True)
        return attend(heads[0] * 9, *heads[1:], is_causal=True)

    out, row = rows.measure(Contender(RIVALS["window"], {"window": 8}), 1, model)
    assert out.shape == heads[0].shape
    assert row["method"] == "window and sinks"
    assert row["options"] == {"window": 8}
    assert not row["forced"]
    assert len(row["call_errors"]) == 2
    assert row["worst"] == max(row["call_errors"]) == row["call_errors"][row["worst_call"]]
    assert 0 < row["attention_seconds"] < row["seconds"][0]
    assert row["peak_bytes"] >= 0
    assert rows.measure(contenders.ours(0.1, forced=True), 1, model)[1]["forced"]


def test_the_time_of_mlps_is_told_apart():
    mlps = [torch.nn.Linear(64, 64), torch.nn.Linear(64, 64)]
    x = torch.randn(2_000, 64, generator=torch.Generator().manual_seed(0))
    _, row = rows.measure(contenders.EXACT, 1, lambda: mlps[1](mlps[0](x)).softmax(-1), mlps=mlps)
    assert 0 < row["mlp_seconds"] < row["seconds"][0]
    assert row["attention_seconds"] == 0
    assert not any(mlp._forward_hooks or mlp._forward_pre_hooks for mlp in mlps)
    assert "mlp_seconds" not in rows.measure(contenders.EXACT, 1, lambda: mlps[0](x))[1]


def test_short_runs_are_repeated_and_medians_count():
    def timed(seconds):
        return {"seconds": [seconds], "attention_seconds": seconds / 2, "accuracy": seconds}

    for first, most, expected in ((1.0, 3, [1.0, 3.0, 2.0]), (1.0, 1, [1.0]), (rows.ENOUGH, 3, [rows.ENOUGH])):
        more = iter([timed(3.0), timed(2.0)])
        row = rows.repeated(timed(first), lambda more=more: next(more), most)
        assert row["seconds"] == expected
        assert row["attention_seconds"] == sorted(expected)[len(expected) // 2] / 2
        assert row["accuracy"] == first


def test_rows_of_accuracy_and_of_perplexity():
    assert rows.accuracy("answers right", 0.9, 0.96, 100)["kept"] == 0.9 / 0.96
    row = rows.perplexity(math.log(10.1), math.log(10), 0.99, 50)
    assert math.isclose(row["growth"], 0.01)
    assert row["kept"] == 0.99
