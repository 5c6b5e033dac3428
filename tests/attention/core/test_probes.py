"""Which heads are tried where planning all of them might waste too much."""

import pytest
import torch

from attention import AttentionOptions
from attention._core import heads
from attention.report import HeadReport


def tried(monkeypatch, n_heads, bearable):
    """Heads that are planned where none of them pays."""
    found = []

    def attend(query, *_):
        found.append(int(query[0, 0, 0]))
        return HeadReport("exact", 0.0, 1.0, 0.0, 0.0, "tried")

    monkeypatch.setattr(heads, "_attend_near_and_far", attend)
    monkeypatch.setattr(heads, "most_probes", lambda *_: bearable)
    query = torch.arange(n_heads).view(-1, 1, 1, 1).expand(-1, 1, 600, 2).float().contiguous()
    key = torch.zeros(n_heads, 600, 2)
    _, reports = heads.attend_heads(query, key, key, None, 1.0, AttentionOptions())
    assert [report.reason == "tried" for report in reports] == [h in found for h in range(n_heads)]
    return sorted(found)


@pytest.mark.parametrize(
    ("n_heads", "bearable", "expected"),
    [(3, 1, [0]), (3, 2, [0, 2]), (3, 3, [0, 1, 2]), (6, 2, [0, 3]), (12, 6, [0, 6]), (12, 1, [0])],
)
def test_of_few_heads_as_many_are_tried_as_may_fail(monkeypatch, n_heads, bearable, expected):
    assert tried(monkeypatch, n_heads, bearable) == expected


def test_no_head_is_tried_where_a_single_plan_would_cost_too_much():
    assert heads.most_probes(3, 2048, 1024, 1024) == 0
    assert heads.most_probes(8, 4096, 4096, 4096) == 0
