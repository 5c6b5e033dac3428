"""Long documents found by a pretrained encoder whose attention is swapped: about 12 minutes in full.

Bars: `comparisons.report.bars_tasks`.
"""

import pytest

from comparisons.tasks.pretrained.suites import MINILM as SUITE

pytest.importorskip("torch")


def test_task_minilm(asked, name):
    asked(SUITE, name)
