"""TBD."""

import pytest

from comparisons.tasks.suites import LINES as SUITE

pytest.importorskip("torch")


def test_task_lines(asked, name):
    asked(SUITE, name)
