"""Arithmetic at the documented limit of 2^31 - 1 points, which no test could hold in memory."""

import re
from pathlib import Path

import pytest

import dci
from dci._native.kernels import LANES
from dci._tuning.build import _n_cells

MOST = 2**31 - 1


@pytest.mark.parametrize("n_levels", [2, 3, 8, 60, 1000])
@pytest.mark.parametrize("n", [1, 17, 10**6, 2**27, 2**30, MOST])
def test_positions_fit_their_32_bits(n, n_levels):
    n_cells = _n_cells(n, n_levels) + 1  # one for outliers
    most_panels = (n + n_cells * (LANES - 1)) // LANES  # where each cell fills its last panel by one point
    assert most_panels * LANES < 2**32
    assert most_panels < 2**31


def test_lists_of_candidates_count_in_the_size_of_memory():
    """What int32 would count 2 k + 32 entries with wraps from k = 2^30 on."""
    header = (Path(dci.__file__).parent / "_native" / "csrc" / "kernels.h").read_text()
    assert re.search(r"ptrdiff_t count, keep, capacity;", header)
    assert not re.search(r"int32_t (most|i\b)", header)
