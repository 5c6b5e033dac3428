"""Options and fixtures of the benchmark suites."""

import pytest

from comparisons import machine
from comparisons.datasets import ComparisonError
from comparisons.harness import THREADS


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--smoke", action="store_true", help="small subsets, under a minute, no bars on time")


@pytest.fixture(scope="session")
def smoke(pytestconfig: pytest.Config) -> bool:
    """Whether this is a smoke run."""
    return bool(pytestconfig.getoption("--smoke"))


@pytest.fixture(scope="session")
def environment() -> dict:
    """Versions, CPU, instruction set and threads, looked up once."""
    return machine.environment(THREADS)


@pytest.fixture(autouse=True)
def recorded_environment(request: pytest.FixtureRequest, environment: dict) -> None:
    """Put the environment next to every benchmark's result."""
    if "benchmark" in request.fixturenames:
        request.getfixturevalue("benchmark").extra_info["environment"] = environment


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item):
    """Skip, with its one line, what needs a package that is not installed."""
    try:
        return (yield)
    except ComparisonError as error:
        pytest.skip(str(error))
