"""Seeded data and the neighbour comparator, shared by all tests; tests that have to be alone."""

import fcntl
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
from hypothesis import settings

from dci.reference import exact_search

sys.path.append(str(Path(__file__).parents[1]))  # `comparisons`, behind whatever `dci` is being tested

settings.register_profile("dci", derandomize=True, deadline=None, database=None)
settings.load_profile("dci")


class Data(NamedTuple):
    """Points and queries of one distribution, read-only."""

    points: np.ndarray
    queries: np.ndarray


def _split(X: np.ndarray, n_queries: int) -> Data:
    X = np.ascontiguousarray(X, dtype=np.float32)
    X.setflags(write=False)
    return Data(X[n_queries:], X[:n_queries])


def make_manifold(n: int, dim: int, latent: int = 6, n_queries: int = 60, seed: int = 0) -> Data:
    """Draw tanh(z W) V: a smooth non-linear manifold of `latent` dimensions, with 5 % noise."""
    rng = np.random.default_rng(seed)
    z = rng.standard_normal((n + n_queries, latent))
    W = rng.standard_normal((latent, 2 * latent)) / np.sqrt(latent)
    V = rng.standard_normal((2 * latent, dim))
    X = np.tanh(z @ W) @ V
    X += 0.05 * X.std() * rng.standard_normal(X.shape)
    return _split(X, n_queries)


def make_gaussian(n: int, dim: int, n_queries: int = 60, seed: int = 1) -> Data:
    """Draw full-rank noise."""
    return _split(np.random.default_rng(seed).standard_normal((n + n_queries, dim)), n_queries)


def make_clustered(n: int, dim: int, n_queries: int = 60, seed: int = 2) -> Data:
    """Draw 20 tight clusters, off the origin."""
    rng = np.random.default_rng(seed)
    centres = 5 + 3 * rng.standard_normal((20, dim))
    X = centres[rng.integers(20, size=n + n_queries)]
    return _split(X + 0.1 * rng.standard_normal(X.shape), n_queries)


def make_duplicates(n: int, dim: int, n_queries: int = 60, seed: int = 3) -> Data:
    """Draw points of a small integer lattice, each about four times: distances tie exactly."""
    rng = np.random.default_rng(seed)
    distinct = rng.integers(-3, 4, size=((n + n_queries) // 4, dim))
    return _split(distinct[rng.integers(len(distinct), size=n + n_queries)], n_queries)


@pytest.fixture(scope="session")
def manifold() -> Data:
    return make_manifold(1500, 24)


@pytest.fixture(scope="session")
def large_manifold() -> Data:
    return make_manifold(20_000, 64, n_queries=150)


@pytest.fixture(scope="session")
def gaussian() -> Data:
    return make_gaussian(700, 12)


@pytest.fixture(scope="session")
def noise() -> Data:
    return make_gaussian(4000, 128)


@pytest.fixture(scope="session")
def duplicates() -> Data:
    return make_duplicates(600, 5)


@pytest.fixture(scope="session", params=["manifold", "gaussian", "clustered", "duplicates"])
def data(request: pytest.FixtureRequest) -> Data:
    """Every distribution in turn, small."""
    return {
        "manifold": lambda: make_manifold(1500, 24),
        "gaussian": lambda: make_gaussian(700, 12),
        "clustered": lambda: make_clustered(900, 17),
        "duplicates": lambda: make_duplicates(600, 5),
    }[request.param]()


@pytest.fixture(scope="session", params=["l2", "ip", "cosine"])
def metric(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def no_grad() -> Iterator[None]:
    """PyTorch from a seed, and without gradients."""
    import torch

    torch.manual_seed(0)
    with torch.no_grad():
        yield


def _all_distances(X: np.ndarray, Q: np.ndarray, metric: str) -> np.ndarray:
    """Distances of shape (nq, n) in float64, from the oracle."""
    table = np.empty((len(Q), len(X)))
    if table.size:
        distances, indices = exact_search(X, Q, len(X), metric)
        np.put_along_axis(table, indices, distances, axis=1)
    return table


def check_neighbours(
    result: tuple[np.ndarray, np.ndarray],
    X: np.ndarray,
    Q: np.ndarray,
    k: int,
    metric: str = "l2",
    *,
    allowed: np.ndarray | None = None,
    rtol: float = 1e-4,
    atol: float = 2e-6,
) -> None:
    """Assert that a result holds the k nearest points of every query, as `dci.DCI.query` returns them.

    The distances of the returned ids are computed again in float64. At every rank they must be those
    of the exact answer up to float32's rounding, so ids may differ from it only between near-tied
    distances. `allowed` is a mask; `atol` is relative to the size of the numbers that enter a distance.
    """
    distances, indices = result
    X, Q = np.asarray(X, dtype=np.float32), np.asarray(Q, dtype=np.float32)
    shape = (k,) if Q.ndim == 1 else (len(Q), k)
    assert distances.shape == indices.shape == shape
    assert distances.dtype == np.float32
    assert indices.dtype == np.int64
    distances, indices, Q = np.atleast_2d(distances), np.atleast_2d(indices), np.atleast_2d(Q)

    sign = -1 if metric == "ip" else 1
    allowed = np.ones(len(X), dtype=bool) if allowed is None else allowed
    keys = sign * _all_distances(X, Q, metric)
    keys[:, ~allowed] = np.inf
    count = min(k, int(allowed.sum()))
    assert (indices[:, count:] == -1).all(), "padding: expected ids of -1"
    assert (distances[:, count:] == sign * np.inf).all(), "padding: expected infinite distances"

    found, received = indices[:, :count], sign * distances[:, :count].astype(np.float64)
    assert ((found >= 0) & (found < len(X))).all(), "id out of range"
    assert allowed[found].all(), "id that the filter forbids"
    assert (np.diff(np.sort(found, axis=1), axis=1) > 0).all(), "repeated id"

    expected = np.sort(keys, axis=1)[:, :count]
    actual = np.take_along_axis(keys, found, axis=1)
    norms = np.linalg.norm(Q.astype(np.float64), axis=1)
    largest = np.linalg.norm(X.astype(np.float64), axis=1).max(initial=0)
    scale = {"l2": norms, "ip": norms * largest, "cosine": np.ones_like(norms)}[metric]
    tolerance = rtol * np.abs(expected) + atol * scale[:, np.newaxis]
    assert (np.abs(actual - expected) <= tolerance).all(), "not the nearest points"
    with np.errstate(over="ignore"):
        actual = actual.astype(np.float32)  # distances beyond float32 are infinite
    close = (received == actual) | (np.abs(received - actual) <= tolerance)
    assert close.all(), "distances are not those of the ids"
    assert (received[:, :-1] <= received[:, 1:]).all(), "not in order"


@pytest.fixture(scope="session")
def assert_neighbours() -> Callable[..., None]:
    """Return the comparator; a fixture, so that no test module has to import another."""
    return check_neighbours


def measure_recall(result: tuple[np.ndarray, np.ndarray], X: np.ndarray, Q: np.ndarray, metric: str = "l2") -> float:
    """Share of returned points at most as far as the exact k-th neighbour (ties count)."""
    indices = result[1]
    table = _all_distances(X, Q, metric) * (-1 if metric == "ip" else 1)
    worst = np.sort(table, axis=1)[:, [indices.shape[1] - 1]]
    hits = np.take_along_axis(table, indices, axis=1) <= worst + 1e-6 * np.abs(worst)
    return float((hits & (indices >= 0)).mean())


@pytest.fixture(scope="session")
def recall_of() -> Callable[..., float]:
    return measure_recall


@contextmanager
def turn(directory: Path, alone: bool) -> Iterator[None]:
    """Wait until no test is alone, or, to be alone, until none is running.

    Who waits to be alone keeps the gate: those that run finish, and none begins.
    """
    with (directory / "gate").open("w") as gate, (directory / "running").open("w") as running:
        fcntl.flock(gate, fcntl.LOCK_EX)
        fcntl.flock(running, fcntl.LOCK_EX if alone else fcntl.LOCK_SH)
        fcntl.flock(gate, fcntl.LOCK_UN)
        try:
            yield
        finally:
            fcntl.flock(running, fcntl.LOCK_UN)  # a process that the test forked may still have the file


@pytest.fixture
def take_turn() -> Callable[[Path, bool], AbstractContextManager[None]]:
    return turn


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Iterator[None]:
    """Take turns with the other workers of pytest-xdist, in the parent of their temporary directories."""
    if not hasattr(item.config, "workerinput"):
        return (yield)
    directory = item.config._tmp_path_factory.getbasetemp().parent
    with turn(directory, item.get_closest_marker("alone") is not None):
        return (yield)
