"""TBD."""

import pytest

from comparisons.tasks.suites import LISTOPS as SUITE

pytest.importorskip("torch")


def test_task_listops(asked, name):
    asked(SUITE, name)
