"""TBD."""

import pytest

from comparisons.tasks.suites import LM as SUITE

pytest.importorskip("torch")


def test_task_lm(asked, name):
    asked(SUITE, name)
