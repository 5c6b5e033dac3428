"""Error against time of every approximation of attention at 16,384 tokens: a full run takes about 3 minutes."""

from comparisons.attention.suites import RIVALS as SUITE


def test_attention_rivals(asked, name):
    asked(SUITE, name)
