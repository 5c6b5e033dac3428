"""TBD."""

import pytest

from comparisons.tasks.suites import VARIABLES as SUITE

pytest.importorskip("torch")


def test_task_variables(asked, name):
    asked(SUITE, name)
