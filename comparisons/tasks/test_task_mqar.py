"""How much of associative recall is kept, to 32,768 tokens? A full run takes about 5 minutes, after training.

Bars: `comparisons.report.bars_tasks`.
"""

import pytest

from comparisons.tasks.suites import MQAR as SUITE

pytest.importorskip("torch")


def test_task_mqar(asked, name):
    asked(SUITE, name)
