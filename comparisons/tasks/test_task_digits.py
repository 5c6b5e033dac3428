"""TBD."""

import pytest

from comparisons.tasks.suites import DIGITS as SUITE

pytest.importorskip("torch")


def test_task_digits(asked, name):
    asked(SUITE, name)
