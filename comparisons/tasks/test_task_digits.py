"""How many of 64 digits are still named right, pixel by pixel? A full run takes about 5 minutes, after training.

Bars: `comparisons.report.bars_tasks`.
"""

import pytest

from comparisons.tasks.suites import DIGITS as SUITE

pytest.importorskip("torch")


def test_task_digits(asked, name):
    asked(SUITE, name)
