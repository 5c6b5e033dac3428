"""Are the most frequent words still found, which top-k cannot? A full run takes about 5 minutes, after training.

Bars: `comparisons.report.bars_tasks`.
"""

import pytest

from comparisons.tasks.suites import WORDS as SUITE

pytest.importorskip("torch")


def test_task_words(asked, name):
    asked(SUITE, name)
