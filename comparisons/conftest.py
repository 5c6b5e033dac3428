"""Options and fixtures of the benchmark suites.

A suite's file names its `SUITE`; its tests take `name` (a data set) and `rival`, and are made for all that the suite
looks at. The harness measures once a session; pytest-benchmark then times the best setting of each rival, which is what
--benchmark-compare, --benchmark-autosave and --benchmark-histogram see. Ratios come from the harness, where the rivals
take turns. Recall, parameters, versions, CPU and instruction set are in ``extra_info``. Bars on recall, error and
memory are asserted; all bars, those on time too, are listed at the end.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from itertools import cycle
from pathlib import Path

import pytest

from comparisons.data.datasets import ComparisonError, MissingPackageError
from comparisons.harness.question import Options, Suite
from comparisons.harness.results import Row, Run, busy
from comparisons.knn import suites
from comparisons.knn.adapters import RIVALS, Adapter, installed
from comparisons.knn.bench import THREADS, Bench, Measurement, Setting
from comparisons.report import bars, tables

RUN = pytest.StashKey[Run]()


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("comparisons")
    group.addoption("--smoke", action="store_true", help="little data, under a minute")
    group.addoption(
        "--results", type=Path, metavar="JSON", help="keep every step here; goes on with a file that exists"
    )


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    suite = getattr(metafunc.module, "SUITE", None)
    if suite and "rival" in metafunc.fixturenames:
        metafunc.parametrize("rival", suite.rivals)
    if suite and "name" in metafunc.fixturenames:
        metafunc.parametrize("name", suite.names(metafunc.config.getoption("--smoke")), scope="session")


@pytest.fixture(scope="session")
def options(pytestconfig: pytest.Config) -> Options:
    smoke = bool(pytestconfig.getoption("--smoke"))
    return Options(smoke=smoke, repeats=1 if smoke else 3)


@pytest.fixture(scope="session")
def run(pytestconfig: pytest.Config):
    """Give the session's run: in memory, or in the file of --results."""
    try:
        run = Run(
            pytestconfig.getoption("--results"), THREADS, resume=True, command=" ".join(["pytest", *sys.argv[1:]])
        )
    except ComparisonError as error:
        pytest.exit(f"comparisons: {error}", returncode=2)
    pytestconfig.stash[RUN] = run
    yield run
    run.finish()


@pytest.fixture
def measured(benchmark, run: Run, options: Options) -> Callable[[Suite, str], list[Row]]:
    """Return a function that measures a suite on a data set, if the run has not yet, and returns the rows."""

    def measure(suite: Suite, name: str) -> list[Row]:
        suite.run(run, name, options)
        rows = run.rows(suite.name, data=name)
        benchmark.group = f"{suite.name}, {name}"
        benchmark.extra_info.update(environment=run.content["sessions"][-1], rows=rows, busy=bool(busy(rows)))
        return rows

    return measure


@pytest.fixture
def asked(benchmark, options: Options, measured) -> Callable[[Suite, str], None]:
    """Return a function that times the measuring itself, where there is no rival, and asserts the bars."""

    def judge(suite: Suite, name: str) -> None:
        check(benchmark.pedantic(measured, (suite, name)))

    return judge


@pytest.fixture
def timed(benchmark, run: Run, options: Options, measured) -> Callable[..., None]:
    """Return a function that measures a suite, times one rival's best setting, and asserts the bars with `dci`'s."""

    def judge(suite: Suite, name: str, rival: str, what: str = "total") -> None:
        if not installed(RIVALS[rival]):
            pytest.skip(f"{rival} is not installed")
        rows = measured(suite, name)
        row = pick([row for row in rows if row["rival"] == RIVALS[rival].name], what)
        if row is None:
            pytest.skip(f"no setting of {rival} reaches the recall on {name}")
        benchmark.extra_info.update(row, rows=[other for other in rows if other["rival"] == row["rival"]])
        data, k, rounds = suites.load(name, options.smoke), row["k"], 1 if options.smoke else 3
        bench, setting = Bench(data, k, run), Setting(RIVALS[rival], row["build"], row["search"])

        def fit() -> Adapter:
            index = setting.rival(bench.threads, **setting.build)
            index.fit(data.points)
            return index

        with bench.limits():
            if what == "fit":
                benchmark.pedantic(fit, rounds=rounds)
            elif what == "total":
                benchmark.pedantic(lambda: fit().query(data.queries, k, **setting.search), rounds=rounds)
            else:
                index, size = fit(), row["batch"]
                starts = cycle(range(0, len(data.queries), size))
                some = lambda: ((data.queries[(start := next(starts)) : start + size], k), setting.search)  # noqa: E731
                benchmark.pedantic(index.query, setup=some, rounds=5 if options.smoke else max(5, 1_000 // size))
        if rival == "dci":
            check(rows)

    return judge


@pytest.fixture
def attended(benchmark, run: Run, options: Options, measured) -> Callable[[Suite, str, str], None]:
    """Return a function that measures a suite of attention, times one rival, and asserts the bars with `dci`'s."""

    def judge(suite: Suite, name: str, method: str) -> None:
        rows = measured(suite, name)
        from comparisons.attention.bench import AttentionBench

        rival = suite.known()[method]
        row = max((row for row in rows if row["length"] <= 16_384), key=lambda row: row["length"])
        bench = AttentionBench(run, suite.name, name, row["length"], row.get("layer"), row["heads"])
        query, key, value = bench.tensors()

        def attend() -> None:
            some = rival(run.threads, bench.causal)
            some.fit(query, key, value)
            some.attend(query)

        benchmark.extra_info.update(length=row["length"], heads=row["heads"], rival=rival.name)
        with bench.limits():
            benchmark.pedantic(attend, rounds=1 if options.smoke else 3)
        if method == "dci":
            check(rows)

    return judge


def pick(rows: list[Row], what: str) -> Row | None:
    """Return the row to time: of the largest batches, the usual k and a common recall, the fastest."""
    if what == "batch":
        return max(rows, key=lambda row: row["batch"], default=None)
    enough = [row for row in rows if row["k"] == suites.K and row["recall"] >= (row["wanted"] or suites.RECALL) - 0.02]
    cost = (lambda row: row["median"]) if what == "single" else (lambda row: Measurement.of(row).total)
    return min(enough, key=cost, default=None)


def check(rows: list[Row]) -> None:
    """Assert the bars on anything but time."""
    missed = [bar for bar in bars.bars(rows) if not bar.holds and not bar.timed]
    assert not missed, str(missed)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """List all bars: a time that was missed is a result, not a failure."""
    run = config.stash.get(RUN, None)
    if run and not config.getoption("--smoke") and (judged := tables.judged(run.rows())):
        terminalreporter.section("asked, and reached")
        terminalreporter.write_line(tables.markdown(judged))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item):
    """Skip, with its one line, what needs a package that is not installed."""
    try:
        return (yield)
    except MissingPackageError as error:
        pytest.skip(str(error))
