"""A sum over all rows of a head, from a few of them: which rows to look at, and how large the sum may be.

Errors of rows have heavy tails: a few rows, where clusters meet or a single key weighs most, can hold most of a
head's error. So rows are drawn with probabilities that follow what the kernels suspect of them, every row having a
chance, and the bound of the sum allows for the skewness that is left.
"""

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

DoubleArray = npt.NDArray[np.float64]

CONFIDENCE = 0.99  # of the bound, for a head
_QUANTILE = 2.326  # of the normal distribution, for that
# To measure these anew, compare bounds with true errors: python -m comparisons run --suite attention_truth
_TAIL = 12  # largest values that a tail is fitted to
# Of the probability: the same for every row, by suspected squared error, by squared norm of the output.
_EVEN, _BY_RISK, _BY_SIZE = 0.2, 0.6, 0.2


class Estimate(NamedTuple):
    """A sum over all rows, and what it is above and below with `CONFIDENCE` each."""

    total: float
    upper: float
    lower: float


def row_probabilities(risks: npt.ArrayLike, sizes: npt.ArrayLike) -> DoubleArray:
    """Return how often to look at each row, (n,), of sum 1.

    Parameters
    ----------
    risks : (n,) array
        Suspected squared error; rows without any are exact and are not looked at.
    sizes : (n,) array
        Squared norm of the output.
    """
    suspected = np.asarray(risks, dtype=np.float64)
    inexact = suspected > 0
    even = inexact / max(int(inexact.sum()), 1)
    norms = np.where(inexact, np.asarray(sizes, dtype=np.float64), 0.0)
    out: DoubleArray = _EVEN * even
    for share, weights in ((_BY_RISK, suspected), (_BY_SIZE, norms)):
        total = weights.sum()
        out += share * (weights / total if 0 < total < np.inf else even)
    return out


def estimate_sum(values: npt.ArrayLike, probabilities: npt.ArrayLike) -> Estimate:
    """Estimate a sum over all rows from rows that were drawn, with replacement, with these probabilities.

    Parameters
    ----------
    values, probabilities : (n,) array, n >= 2
        Of the drawn rows.

    Notes
    -----
    The estimate is that of Hansen & Hurwitz (1943). Its bounds are those of the central limit theorem adjusted for
    skewness (Chen 1995, Journal of the American Statistical Association 90:767-772; Singh, Singh & Engelhardt 1997,
    EPA/600/R-97/006), the upper one at least the mean with the largest values replaced by a Pareto tail that is fitted
    to them (Hill 1975, Annals of Statistics 3:1163-1174), one standard error above: what was drawn of a heavy tail is
    mostly too little. They do not cover rows whose share of the sum is far beyond what the drawn ones let expect.
    """
    shares = np.asarray(values, dtype=np.float64) / np.asarray(probabilities, dtype=np.float64)
    mean, deviation = float(shares.mean()), float(shares.std(ddof=1))
    if deviation == 0.0:
        return Estimate(mean, mean, mean)
    root = np.sqrt(len(shares))
    skewness = float(((shares - mean) ** 3).mean()) / deviation**3 / (6 * root)
    z, off = _QUANTILE, deviation / float(root)
    correction = skewness * (1 + 2 * z**2)
    second = 4 * skewness**2 * (z + 2 * z**3)
    upper = max(mean + off * (z + max(0.0, correction) + second), _with_tail(shares))
    return Estimate(mean, upper, mean - off * (z + max(0.0, -correction) + second))


def _with_tail(shares: DoubleArray) -> float:
    """Mean of values of which the largest are replaced by what a Pareto tail through them has; 0.0 if it has none."""
    ordered = np.sort(shares)[::-1]
    if len(ordered) <= 2 * _TAIL or not ordered[_TAIL] > 0:
        return 0.0
    start = float(ordered[_TAIL])
    index = min(0.95, float(np.log(ordered[:_TAIL] / start).mean()))
    mean = (float(ordered[_TAIL:].sum()) + _TAIL * start / (1 - index)) / len(ordered)
    return mean * (1 + index / float(np.sqrt(_TAIL)))
