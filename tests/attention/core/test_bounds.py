"""Sums over all rows from a few of them: unbiased, and rarely above their bound, whatever the tails."""

import numpy as np
import pytest

from attention._core.bounds import CONFIDENCE, estimate_sum, row_probabilities

N, DRAWN, TRIALS = 4096, 128, 1000

TAILS = {
    "even": lambda rng: 1 + 0 * rng.random(N),
    "normal": lambda rng: np.square(rng.standard_normal((N, 32))).sum(1),
    "one direction": lambda rng: np.square(rng.standard_normal(N)),
    "log-normal": lambda rng: np.exp(rng.standard_normal(N)),
}


def trials(squares, suspected):
    """Share of trials whose sum is within the bounds, and mean estimate over the sum."""
    rng = np.random.default_rng(1)
    chances = row_probabilities(suspected, np.ones(N))
    found = []
    for _ in range(TRIALS):
        drawn = rng.choice(N, DRAWN, p=chances)
        found.append(estimate_sum(squares[drawn], chances[drawn]))
    total, upper, lower = np.array(found).T
    true = squares.sum()
    return (upper >= true * (1 - 1e-12)).mean(), (lower <= true * (1 + 1e-12)).mean(), total.mean() / true


@pytest.mark.parametrize("tail", TAILS)
@pytest.mark.parametrize("proxy", ["nothing", "the error", "something else"])
def test_bounds_hold_as_often_as_they_say(tail, proxy):
    rng = np.random.default_rng(0)
    squares = TAILS[tail](rng)
    suspected = {"nothing": np.ones(N), "the error": squares, "something else": rng.random(N) + 1e-3}[proxy]
    above, below, mean = trials(squares, suspected)
    assert above >= CONFIDENCE - 0.02
    assert below >= CONFIDENCE - 0.03
    assert mean == pytest.approx(1, abs=0.02)


def test_rare_rows_that_are_suspected_are_seen():
    """Five of 4,096 rows hold almost all of the sum: even draws miss them, draws by suspicion do not."""
    squares = np.full(N, 1e-6)
    squares[:5] = 1.0
    for factor in (1, 10):  # the suspicion need not be right, but must stand out
        suspected = np.where(np.arange(N) < 5, 1.0, 1e-3 / factor)
        above, _, mean = trials(squares, suspected)
        assert above >= CONFIDENCE - 0.02
        assert mean == pytest.approx(1, abs=0.05)
    assert trials(squares, np.ones(N))[0] < 0.5


class TestProbabilities:
    def test_sum_to_one_and_spare_exact_rows(self):
        rng = np.random.default_rng(0)
        risks = rng.random(1000).astype(np.float32) * (rng.random(1000) < 0.3)
        chances = row_probabilities(risks, rng.random(1000, dtype=np.float32))
        assert chances.sum() == pytest.approx(1, abs=1e-12)
        assert ((chances > 0) == (risks > 0)).all()

    @pytest.mark.parametrize("bad", [np.inf, 1e38])
    def test_any_size(self, bad):
        risks = np.ones(100, np.float32)
        risks[3] = bad
        sizes = np.zeros(100, np.float32)
        chances = row_probabilities(risks, sizes)
        assert chances.sum() == pytest.approx(1, abs=1e-12)
        assert (chances > 0).all()

    def test_nothing_suspected(self):
        assert not row_probabilities(np.zeros(10), np.ones(10)).any()
