"""Are nested operations on lists still computed? A full run takes about 5 minutes, after training.

Bars: `comparisons.report.bars_tasks`.
"""

import pytest

from comparisons.tasks.suites import LISTOPS as SUITE

pytest.importorskip("torch")


def test_task_listops(asked, name):
    asked(SUITE, name)
