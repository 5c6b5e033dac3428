"""Are variables still followed through other variables? A full run takes about 5 minutes, after training.

Bars: `comparisons.report.bars_tasks`.
"""

import pytest

from comparisons.tasks.suites import VARIABLES as SUITE

pytest.importorskip("torch")


def test_task_variables(asked, name):
    asked(SUITE, name)
