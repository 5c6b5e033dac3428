"""TBD."""

import pytest

from comparisons.tasks.suites import WORDS as SUITE

pytest.importorskip("torch")


def test_task_words(asked, name):
    asked(SUITE, name)
