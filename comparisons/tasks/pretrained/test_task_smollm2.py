"""What does a pretrained language model lose when its attention is swapped? A full run takes about an hour.

Bars: `comparisons.report.bars_tasks`.
"""

import pytest

from comparisons.tasks.pretrained.suites import SMOLLM2 as SUITE

pytest.importorskip("torch")


def test_task_smollm2(asked, name):
    asked(SUITE, name)
