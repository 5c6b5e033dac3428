"""The suite of `dci` beside busy software: others are busy as long as they should be; ratios and bars."""

import threading

import pytest

from comparisons.data import datasets
from comparisons.data.datasets import Dataset, MissingPackageError
from comparisons.harness.question import Options
from comparisons.harness.results import Run
from comparisons.knn import beside, suites
from comparisons.report import bars, tables


@pytest.fixture
def small(monkeypatch, cloud):
    monkeypatch.setattr(datasets, "load", lambda name: Dataset(name, cloud.points, cloud.queries))
    monkeypatch.setattr(suites, "load", suites.load.__wrapped__)
    monkeypatch.setattr(suites, "_bench", suites._bench.__wrapped__)
    monkeypatch.setattr(beside, "SIZE", 64)


def measured(repeats=2):
    run = Run(threads=2)
    suites.BESIDE.run(run, "cloud", Options(smoke=True, repeats=repeats))
    return run.rows()


def test_every_neighbour_is_met_once_a_round(small):
    rows = measured()
    names = {f"{what}, {who}" for what in ("fit", "query") for who in beside.BESIDE}
    assert {row["operation"] for row in rows} == names
    assert all(len(row["seconds"]) == 2 and row["threads"] == beside.half() for row in rows)
    assert not bars.bars(rows)  # little data
    table = tables.of_suite(rows, "beside")
    assert len(table) == 1 + len(names)
    assert [line[4] for line in table if line[2].endswith("alone")] == ["1.00"] * 2


def test_without_torch_its_part_is_left_out(small, monkeypatch, capsys):
    def missing(module, needed_for, package=None):
        if module == "torch":
            raise MissingPackageError("no torch")
        return datasets.optional(module, needed_for, package)

    monkeypatch.setattr(beside, "optional", missing)
    assert {row["operation"].partition(", ")[2] for row in measured(1)} == {"alone", "NumPy process", "NumPy thread"}
    assert "torch thread: left out, no torch" in capsys.readouterr().err


@pytest.mark.parametrize("library", ["NumPy", "torch"])
def test_the_thread_is_busy_until_the_end(small, library):
    if library == "torch":
        pytest.importorskip("torch")
    before = threading.active_count()
    with beside.busy(library, "thread"):
        assert threading.active_count() == before + 1
    assert threading.active_count() == before


def test_bars():
    def one(operation, seconds):
        context = {"suite": "beside", "data": "glove", "n": 390_000, "wanted": 0.9, "rival": "dci", "threads": 1}
        beside = operation.partition(",")[0] + ", alone"
        return context | {"operation": operation, "seconds": [seconds], "beside": beside}

    rows = [one("fit, alone", 1.0), one("fit, torch thread", 1.29), one("query, alone", 2.0),
            one("query, torch thread", 2.61)]  # fmt: skip
    found = bars.bars(rows)
    assert [(bar.reached, bar.holds, bar.timed) for bar in found] == [("1.29 x", True, True), ("1.30 x", False, True)]
