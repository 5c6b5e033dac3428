"""How many times faster than exact attention is a whole layer, within the tolerance? A full run takes about 8 minutes.

Bars: `comparisons.bars.FLOORS` and the tolerance.
"""

import pytest

from comparisons.suites_attention import LAYERS as SUITE
from comparisons.suites_attention import PAIR


@pytest.mark.parametrize("method", PAIR)
def test_attention_layers(attended, name, method):
    attended(SUITE, name, method)
