"""The suite of an index that changes: what its rows are about, its rival, its table and its bars."""

import numpy as np
import pytest

import dci
from comparisons.data import datasets
from comparisons.data.datasets import Dataset
from comparisons.harness.question import Options
from comparisons.harness.results import Run
from comparisons.harness.truth import InvalidAnswerError
from comparisons.knn import adapters, dynamic, suites
from comparisons.knn.adapters import DCI, HNSWLib
from comparisons.report import bars, tables

OURS = ["fit", "first add", "second add", "remove", "in batches", "in batches, and a query", "one by one"]
OURS += ["churn", "fit anew"]
READS = ["longest read", "longest read, adding"]
KEPT = ["fit as float32", "fit as float16", "fit as int8"]
FILES = ["write", "save", "load", "map", "map and query"]


class Graph:
    """What the suite needs of hnswlib's index."""

    def __init__(self, space, dim):
        self.rows, self.room = np.empty((0, dim), np.float32), 0

    def init_index(self, max_elements, **how):
        self.room = max_elements

    def set_num_threads(self, threads):
        pass

    def resize_index(self, room):
        self.room = room

    def add_items(self, rows):
        assert rows.ndim == 2
        self.rows = np.concatenate([self.rows, rows])
        assert len(self.rows) <= self.room


@pytest.fixture
def small(monkeypatch, cloud):
    monkeypatch.setattr(datasets, "load", lambda name: Dataset(name, cloud.points, cloud.queries))
    monkeypatch.setattr(adapters, "RIVALS", {"dci": DCI, "hnswlib": HNSWLib})
    monkeypatch.setattr(adapters, "installed", lambda rival: rival is DCI)
    monkeypatch.setattr(suites, "load", suites.load.__wrapped__)
    monkeypatch.setattr(suites, "_bench", suites._bench.__wrapped__)


def measured(path=None, repeats=2):
    run = Run(path, threads=1)
    suites.DYNAMIC.run(run, "cloud", Options(smoke=True, repeats=repeats))
    return run.rows()


def test_every_operation_is_measured_once_a_round(small, cloud):
    rows = measured()
    assert sorted(row["operation"] for row in rows) == sorted(OURS + KEPT + READS + FILES)
    assert all(len(row["seconds"]) == 2 and row["rival"] == "dci" for row in rows)
    found = {row["operation"]: row for row in rows}
    assert all(row["beside"] in found for row in rows if "beside" in row)
    sizes = [found[name]["points"] for name in OURS]
    assert sizes == [219, 3, 3, 3, 219, 219, 75, 150, 150]  # 219 + 3 + 3 + 75 are all
    assert [found[name]["points"] for name in KEPT] == [219] * 3
    plain, half, quarter = (found[name]["memory"] for name in KEPT)
    assert plain > half > quarter > cloud.points[:219].nbytes / 4
    assert len({found[name]["bytes"] for name in FILES}) == 1
    for name in READS:
        assert 0 < found[name]["median"] <= found[name]["p99"] <= max(found[name]["seconds"])
    assert found["longest read"]["asked"] == dynamic.LEAST_READS
    assert found["save"]["bytes"] > 219 * cloud.points[0].nbytes
    assert not [bar for bar in bars.bars(rows) if bar.timed]  # little data
    assert all(bar.holds for bar in bars.bars(rows))


def test_an_index_whose_points_were_all_replaced_answers_from_the_new_ones(small):
    found = {row["operation"]: row for row in measured(repeats=1)}
    # Ids outside the second half are an error, and on so few points search is exact.
    assert [found[name]["recall"] for name in ("fit", "in batches", "churn", "fit anew")] == [1.0] * 4


def test_files_are_written_beside_the_results_and_removed(small, tmp_path, monkeypatch):
    saved, save = [], dci.DCI.save
    monkeypatch.setattr(dci.DCI, "save", lambda index, path: (saved.append(path), save(index, path)))
    measured(tmp_path / "run.json", repeats=1)
    assert saved
    assert all(tmp_path in path.parents for path in saved)
    assert [path.name for path in tmp_path.iterdir()] == ["run.json"]


def test_a_loaded_index_that_answers_otherwise_stops_the_run(small, monkeypatch, cloud):
    other = dci.DCI().fit(cloud.points[::-1].copy())
    monkeypatch.setattr(dci, "load", lambda path, mmap=False: other)
    with pytest.raises(InvalidAnswerError, match="the same answers"):
        measured(repeats=1)


def test_hnswlib_is_given_the_same_single_points(small, monkeypatch, cloud):
    made = []

    class Module:
        @staticmethod
        def Index(*shape):  # noqa: N802 - as in hnswlib
            made.append(Graph(*shape))
            return made[-1]

    monkeypatch.setattr(adapters, "installed", lambda rival: True)
    monkeypatch.setattr(HNSWLib, "load", classmethod(lambda cls: Module))
    rows = measured()
    (graph,) = made
    np.testing.assert_array_equal(graph.rows, np.delete(cloud.points, np.arange(222, 225), axis=0))
    (theirs,) = [row for row in rows if row["rival"] == "hnswlib"]
    assert (theirs["operation"], theirs["points"], len(theirs["seconds"])) == ("one by one", 75, 1)
    assert len(tables.of_suite(rows, "dynamic")) == 1 + len(rows)


def test_the_table_says_what_is_seen_beside_what_and_that_hnswlib_is_missing(small):
    rows = measured(repeats=1)
    table = tables.of_suite(rows, "dynamic")
    assert len(table) == 2 + len(rows)
    assert len({len(line) for line in table}) == 1
    assert table[-1][1:4] == ["one by one", "hnswlib", "not installed, or not asked for"]
    changed = tables.dynamic(large(add=0.002))
    assert [line[6] for line in changed[1:4]] == ["", "10.0% of fit", "2.0% of fit"]
    assert [line[4:7] for line in changed if line[1] == "in batches"] == [["130 ms", "3,000,000", "1.30 x fit"]]
    assert [line[3:7] for line in changed if line[1] == "save"] == [["80.0 MB", "100 ms", "800 MB", "80.0% of write"]]
    assert [line[3:9] for line in changed if line[1] == "longest read"] == [
        ["200 queries", "1 ms", "", "", "", "100 µs, 99 %: 500 µs"]
    ]
    assert [line[3:6] for line in changed if line[1] == "map and query"] == [["80.0 MB", "10 ms", ""]]


# --------------------------------------------------------------------------------------------------- bars


def large(
    add=0.002,
    remove=0.001,
    batches=0.13,
    single=0.1,
    churned=0.1,
    recall=0.9,
    save=0.1,
    mapped=0.01,
    wait=0.01,
    **other,
):
    """Make the rows of much data, whose fit takes 100 ms."""

    def one(operation, seconds, rival="dci", **more):
        context = {"suite": "dynamic", "data": "glove", "n": 390_000, "queries": 10_000, "wanted": 0.9}
        return context | {"rival": rival, "operation": operation, "seconds": [seconds]} | more

    asked = {"query_seconds": [0.1], "recall": 0.9}
    kept = {
        "float32": {"memory": 2e8, "reachable": 1.0},
        "float16": {"memory": other.get("half", 1.5e8), "reachable": 0.999},
        "int8": {"memory": 1e8, "reachable": 0.85, "recall": other.get("kept", 0.85)},
    }
    kept["int8"]["query_seconds"] = [other.get("smaller", 0.1)]
    return [
        one("fit", 0.1, points=390_000, **asked),
        one("first add", 0.01, points=3_900, beside="fit"),
        one("second add", add, points=3_900, beside="fit"),
        one("remove", remove, points=3_900, beside="fit"),
        one("in batches", batches, points=390_000, beside="fit", **asked),
        one("in batches, and a query", 0.2, points=390_000, beside="fit"),
        one("one by one", single, points=7_800),
        one("one by one", 1.0, rival="hnswlib", points=7_800),
        one("churn", 1.0, points=195_000, beside="fit anew", query_seconds=[churned], recall=recall),
        one("fit anew", 0.05, points=195_000, **asked),
        one("longest read", 0.001, asked=200, median=1e-4, p99=5e-4),
        one("longest read, adding", wait, asked=900, median=2e-4, p99=6e-3),
        *(one(f"fit as {store}", 0.1, points=390_000, **(asked | more)) for store, more in kept.items()),
        one("save", save, bytes=80_000_000, beside="write"),
        one("write", 0.125, bytes=80_000_000),
        one("map and query", mapped, bytes=80_000_000),
    ]


def missed(**other):
    return [bar.asked for bar in bars.bars(large(**other)) if not bar.holds]


def test_bars_on_an_index_that_changes():
    (first,) = missed()
    assert first == "1 %, first add, which copies what is there: at most 3% of a fit"  # it takes 10 %
    for made_worse, words in (
        ({"add": 0.0031}, "second add"),
        ({"remove": 0.0021}, "remove"),
        ({"batches": 0.151}, "in batches"),
        ({"single": 0.157}, "50,000 points a second"),
        ({"churned": 0.106}, "after churn"),
        ({"recall": 0.889}, "churn: recall"),
        ({"save": 0.17}, "save"),
        ({"mapped": 0.1}, "mmap"),
        ({"wait": 0.0111}, "a query while"),
        ({"smaller": 0.101}, "int8: queries"),
        ({"kept": 0.839}, "fit as int8: recall"),
        ({"half": 2e8}, "float16: less memory"),
    ):
        (_, also) = sorted(missed(**made_worse), key=lambda asked: asked != first)
        assert words in also
    assert missed(recall=0.891) == [first]


def test_a_slow_disk_is_no_fault_of_save():
    slow = [row | {"seconds": [1.0]} if row["operation"] == "write" else row for row in large(save=1.25)]
    assert [bar.holds for bar in bars.bars(slow) if "save" in bar.asked] == [True]


def test_only_recall_is_asserted_and_the_rival_is_shown():
    found = bars.bars(large())
    assert [bar.asked.partition(":")[0] for bar in found if not bar.timed] == ["in batches", "churn", *KEPT]
    assert [bar.reached for bar in found if "one by one" in bar.asked] == ["78,000 (hnswlib 7,800)"]
    few = bars.bars([row | {"queries": 300} for row in large(recall=0.86)])
    assert all(bar.holds for bar in few if not bar.timed)
