"""The constants of the cost model: the fit finds what times were made of, and the command prints a table."""

import numpy as np
import pytest

from comparisons.__main__ import main
from comparisons.knn import costs

SIZES = [
    (n, dim, visits, candidates, width, n_cells)
    for n, dim, width in [(2_000, 16, 8), (50_000, 128, 32), (200_000, 300, 24)]
    for visits, candidates, n_cells in [(300, 20, 70), (2_000, 200, 300), (9_000, 900, 1_000)]
]


def timed(model):
    for n, dim, visits, candidates, width, n_cells in SIZES:
        of = visits, candidates, width, dim, n_cells
        for counts, ns in (
            (costs.exact_counts(n, dim), model.exact_cost(n, dim)),
            (costs.ranked_counts(*of), model.ranked_cost(*of)),
            ({"mask": n}, n * model.constants["mask"]),
        ):
            yield costs.Timed(ns, counts, ns - costs.total(counts, model.constants))


def test_counts_are_those_of_the_model_in_use():
    model = costs.current_model()
    assert set(model.constants) == set(costs.NAMES)
    for n, dim, visits, candidates, width, n_cells in SIZES:
        exact = model.exact_cost(n, dim) - costs.total(costs.exact_counts(n, dim), model.constants)
        assert exact == pytest.approx(0.05 * n)  # what a point costs without its coordinates
        of = visits, candidates, width, dim, n_cells
        ranked = model.ranked_cost(*of) - costs.total(costs.ranked_counts(*of), model.constants)
        assert ranked == pytest.approx(0.05 * visits)


def test_the_constants_of_times_are_found():
    model = costs.current_model()
    found, error = costs.fit(list(timed(model)))
    assert found == pytest.approx(dict(model.constants), rel=1e-6)
    assert error < 1e-9


def test_the_constants_of_slower_times_are_larger():
    model = costs.current_model()
    slow = [one._replace(ns=one.ns + 3 * one.counts.get("cell", 0)) for one in timed(model)]
    assert costs.fit(slow)[0]["cell"] == pytest.approx(model.constants["cell"] + 3)


def test_no_constant_is_negative():
    A = np.array([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]])
    np.testing.assert_allclose(costs.nonnegative(A, np.array([2.0, -1.0, 1.0])), [1.5, 0.0])
    np.testing.assert_allclose(costs.nonnegative(A, -np.ones(3)), [0.0, 0.0])
    np.testing.assert_allclose(costs.nonnegative(A, np.array([2.0, 1.0, 3.0])), [2.0, 1.0])


def test_the_command_prints_every_constant(capsys):
    before = dict(costs.current_model().constants)
    assert main(["calibrate-costs", "--smoke"]) == 0
    out = capsys.readouterr().out
    header, _, *rows = [line for line in out.splitlines() if line.startswith("|")]
    assert [cell.strip() for cell in header.strip("|").split("|")] == ["constant", "now", "measured here", "ratio"]
    assert [row.split(":")[0].strip("| ") for row in rows] == list(costs.NAMES)
    assert all(float(row.split("|")[-2]) >= 0 for row in rows)
    assert costs.current_model().constants == before
