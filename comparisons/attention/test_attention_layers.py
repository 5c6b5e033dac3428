"""How many times faster than exact attention is a whole layer, within the tolerance? A full run takes about 8 minutes.

Bars: `comparisons.report.bars.FLOORS` and the tolerance.
"""

import pytest

from comparisons.attention.suites import LAYERS as SUITE
from comparisons.attention.suites import PAIR


@pytest.mark.parametrize("method", PAIR)
def test_attention_layers(attended, name, method):
    attended(SUITE, name, method)
