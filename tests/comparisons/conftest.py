"""Small data and fakes for the tests of the comparisons."""

import sys
from pathlib import Path

import numpy as np
import pytest

sys.path.append(str(Path(__file__).parent))  # `fakes`

from fakes import Partial

from comparisons.data.datasets import Dataset


@pytest.fixture
def line():
    """Points 0, 1, 2, …, 9 and a copy of 2 on a line; queries at 0 and at 2."""
    points = np.array([*range(10), 2], dtype=np.float32)[:, None]
    return Dataset("line", points, np.array([[0], [2]], dtype=np.float32))


@pytest.fixture
def cloud():
    rows = np.random.default_rng(0).standard_normal((360, 5), dtype=np.float32)
    return Dataset("cloud", rows[:300], rows[300:])


@pytest.fixture(autouse=True)
def forget():
    Partial.fitted.clear()
    Partial.queried.clear()
