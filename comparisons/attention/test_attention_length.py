"""How do attention's time and error grow with the length, to 131,072 tokens? A full run takes about 12 minutes.

Bars: exponent at most 1.4 from 8,192 tokens on, never slower than exact attention, the tolerance.
"""

import pytest

from comparisons.attention.suites import LENGTH as SUITE
from comparisons.attention.suites import PAIR


@pytest.mark.parametrize("method", PAIR)
def test_attention_length(attended, name, method):
    attended(SUITE, name, method)
