"""Is the package that a file is from still told, byte by byte? A full run takes about 5 minutes, after training.

Bars: `comparisons.report.bars_tasks`.
"""

import pytest

from comparisons.tasks.suites import TEXT as SUITE

pytest.importorskip("torch")


def test_task_text(asked, name):
    asked(SUITE, name)
