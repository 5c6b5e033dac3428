"""TBD."""

import pytest

from comparisons.tasks.suites import TEXT as SUITE

pytest.importorskip("torch")


def test_task_text(asked, name):
    asked(SUITE, name)
