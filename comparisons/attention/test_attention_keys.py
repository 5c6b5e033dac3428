"""Top-k alone against the far field, by the keys that a query touches: a full run takes about 3 minutes."""

from comparisons.attention.suites import TOPK as SUITE


def test_attention_keys(asked, name):
    asked(SUITE, name)
