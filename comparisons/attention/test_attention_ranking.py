"""How much attention mass do ranking and bucketing recall at equal keys examined? A full run takes about 2 minutes.

Bars: at 1 % of the keys at least 1.3 times what IVF recalls, and twice what LSH does, median over heads.
"""

from comparisons.attention.suites import RANKING as SUITE


def test_attention_ranking(asked, name):
    asked(SUITE, name)
