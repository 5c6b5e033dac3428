"""What do near, far_field, directions and embedding change, one at a time? A full run takes about 2 minutes."""

from comparisons.attention.suites import SENSITIVITY as SUITE


def test_attention_sensitivity(asked, name):
    asked(SUITE, name)
