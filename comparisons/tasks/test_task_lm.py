"""What becomes of a byte-level language model? A full run takes about 5 minutes, after training.

Bars: `comparisons.report.bars_tasks`.
"""

import pytest

from comparisons.tasks.suites import LM as SUITE

pytest.importorskip("torch")


def test_task_lm(asked, name):
    asked(SUITE, name)
