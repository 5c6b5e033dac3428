"""What a call reports about itself."""

import pytest
import torch

from attention import AttentionOptions, HeadReport, Report, dci_attention, functional


def report_of(query, key, value, *args, **kwargs):
    shapes = (query, key, value)
    out, report = dci_attention(*(torch.randn(shape) for shape in shapes), *args, return_report=True, **kwargs)
    assert isinstance(out, torch.Tensor)
    return report


@pytest.mark.parametrize("small", [1 << 22, -1])
def test_one_report_for_each_head_of_keys(small, monkeypatch):
    monkeypatch.setattr(functional, "_SMALL", small)
    assert len(report_of((5, 8), (9, 8), (9, 8)).heads) == 1
    assert len(report_of((2, 6, 5, 8), (2, 6, 9, 8), (2, 6, 9, 8)).heads) == 12
    assert len(report_of((2, 6, 5, 8), (2, 3, 9, 8), (2, 3, 9, 8), enable_gqa=True).heads) == 6
    assert len(report_of((2, 6, 5, 8), (2, 1, 9, 8), (2, 1, 9, 8)).heads) == 2
    assert len(report_of((2, 6, 5, 8), (1, 6, 9, 8), (2, 1, 9, 8)).heads) == 12


@pytest.mark.parametrize("small", [1 << 22, -1])
def test_exact_says_why(small, monkeypatch):
    monkeypatch.setattr(functional, "_SMALL", small)
    shape = (2, 4, 8)
    report = report_of(shape, shape, shape)
    head = report.heads[0]
    assert (head.method, head.keys_touched, head.share, head.error) == ("exact", 4.0, 1.0, 0.0)
    assert head.reason == "fewer than 4096 keys"
    assert head.seconds > 0
    assert report.seconds > 0
    assert report.worst_error == 0.0
    assert report_of(shape, shape, shape, is_causal=True).heads[0].keys_touched == 2.5
    assert report_of(shape, shape, shape, options=AttentionOptions(top_k=4)).heads[0].reason == "fewer than 5 keys"
    some = AttentionOptions(exact_below=3)
    assert report_of((2, 1, 8), shape, shape, options=some).heads[0].reason == "fewer than 3 queries"


def test_masks_say_what_became_of_them(monkeypatch):
    monkeypatch.setattr(functional, "_SMALL", -1)
    shape = (2, 9, 8)
    causal = torch.ones(9, 9, dtype=torch.bool).tril()
    window = report_of(shape, shape, shape, causal & ~causal.tril(-3)).heads[0]
    assert (window.method, window.reason) == ("banded", "a sliding window")
    assert window.keys_touched == pytest.approx((1 + 2 + 7 * 3) / 9)
    other = report_of(shape, shape, shape, causal.flip(0)).heads[0]
    assert (other.method, other.keys_touched, other.reason) == ("exact", 9.0, "a mask without structure")
    blind = report_of(shape, shape, shape, torch.zeros(9, 9, dtype=torch.bool)).heads[0]
    assert (blind.method, blind.keys_touched, blind.reason) == ("exact", 0.0, "nothing to see")
    padded = report_of(shape, shape, shape, (torch.arange(9) > 3).expand(1, 9)).heads[0]
    assert (padded.method, padded.keys_touched) == ("exact", 5.0)


def test_order_is_that_of_batch_and_heads(monkeypatch):
    """A mask that differs along one axis is taken apart along it; reports come together again in order."""
    monkeypatch.setattr(functional, "_SMALL", -1)
    kept = torch.arange(6) < torch.tensor([1, 2, 3])[:, None]
    heads = report_of((2, 3, 5, 8), (2, 3, 6, 8), (2, 3, 6, 8), kept[:, None]).heads
    assert [head.keys_touched for head in heads] == [1, 2, 3, 1, 2, 3]
    heads = report_of((3, 2, 5, 8), (1, 2, 6, 8), (1, 2, 6, 8), kept[:, None, None]).heads
    assert [head.keys_touched for head in heads] == [1, 1, 2, 2, 3, 3]


def test_no_heads():
    report = report_of((0, 5, 8), (0, 5, 8), (0, 5, 8))
    assert report.heads == ()
    assert report.worst_error == 0.0
    assert str(report).startswith("0 heads")


def test_table():
    heads = (
        HeadReport("near+far", 612.34, 0.0374, 0.031, 0.0123, "within tolerance", 0.0412),
        HeadReport("exact", 16384, 1.0, 0.0, 1.5, "does not pay"),
    )
    lines = str(Report(heads, 1.6)).splitlines()
    assert lines[0] == "2 heads, 1600.0 ms, worst error about 0.0310"
    assert lines[1].split() == ["head", "method", "keys", "touched", "share", "error", "bound", "ms", "reason"]
    assert lines[2].split() == ["0", "near+far", "612.3", "0.0374", "0.0310", "0.0412", "12.3", "within", "tolerance"]
    assert len({line.find(word) for line, word in zip(lines[1:], ("reason", "within", "does"), strict=True)}) == 1
    assert Report(heads, 1.6).worst_error == 0.031
