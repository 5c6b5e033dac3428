"""Are lines still found by their numbers, among up to 3,600? A full run takes about 5 minutes, after training.

Bars: `comparisons.report.bars_tasks`.
"""

import pytest

from comparisons.tasks.suites import LINES as SUITE

pytest.importorskip("torch")


def test_task_lines(asked, name):
    asked(SUITE, name)
