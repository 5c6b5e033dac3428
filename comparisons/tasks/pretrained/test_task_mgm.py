"""Next genera of microbiome samples, by a pretrained model whose attention is swapped: about 10 minutes in full.

Bars: `comparisons.report.bars_tasks`.
"""

import pytest

from comparisons.tasks.pretrained.suites import MGM as SUITE

pytest.importorskip("torch")


def test_task_mgm(asked, name):
    asked(SUITE, name)
