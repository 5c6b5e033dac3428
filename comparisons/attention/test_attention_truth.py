"""Is the true error of a head within the tolerance, on whatever data? A full run takes about 15 minutes.

Bars: no head above 1.1 times the tolerance, 99 % within it.
"""

from comparisons.attention.suites import TRUTH as SUITE


def test_attention_truth(asked, name):
    asked(SUITE, name)
