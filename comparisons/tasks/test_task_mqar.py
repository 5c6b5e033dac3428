"""TBD."""

import pytest

from comparisons.tasks.suites import MQAR as SUITE

pytest.importorskip("torch")


def test_task_mqar(asked, name):
    asked(SUITE, name)
