"""The suites over a fake rival, the tables, the recommendation, the bars."""

from dataclasses import replace

import pytest
from fakes import Partial, row

from comparisons.data import datasets, heads
from comparisons.data.datasets import ComparisonError, Dataset
from comparisons.harness.question import Options
from comparisons.harness.results import Run
from comparisons.knn import adapters, suites
from comparisons.knn.suites import SUITES
from comparisons.report import bars, tables


@pytest.fixture
def small(monkeypatch, cloud):
    """Every data set is the cloud with 15 neighbours' worth of points; the rivals are two."""
    monkeypatch.setattr(datasets, "load", lambda name: Dataset(name, cloud.points, cloud.queries))
    monkeypatch.setattr(adapters, "RIVALS", {"dci": adapters.DCI, "partial": Partial})
    monkeypatch.setattr(suites, "load", suites.load.__wrapped__)
    monkeypatch.setattr(suites, "_bench", suites._bench.__wrapped__)


def measured(name, data="cloud", options=None, rivals=("dci", "partial")):
    suite, run = SUITES[name], Run(threads=1)
    replace(suite, rivals=rivals).run(run, data, options or Options(smoke=True, repeats=2))
    return run.rows()


@pytest.mark.parametrize("name", ["knn", "construction", "growth", "dimension", "pareto"])
def test_rivals_are_swept_and_then_take_turns(small, name):
    rows = measured(name)
    final = [r for r in rows if r["suite"] == name]
    assert {r["rival"] for r in final} == {"dci", "partial"}
    assert all(len(r["build_seconds"]) == 2 for r in final)
    assert all(r["recall"] >= 0.9 for r in final if r["wanted"] == 0.9)
    assert any(r["suite"] == ("trace" if name == "pareto" else "sweep") for r in rows)
    assert all({"data", "n", "dim", "queries", "k", "threads", "build", "search"} <= r.keys() for r in rows)


@pytest.mark.parametrize(("name", "sizes"), [("latency", {1}), ("batch", {10, 60})])
def test_calls_are_measured_by_size(small, name, sizes):
    rows = [r for r in measured(name) if r["suite"] == name]
    assert {r["batch"] for r in rows} == sizes
    assert len(tables.of_suite(rows, name)) == 1 + len(rows)


def test_sensitivity_changes_one_parameter_at_a_time(small):
    rows = measured("sensitivity", rivals=("dci",))
    assert [set(r["build"]) - {"recall"} for r in rows if r["k"] == 10] == [
        set(),
        *2 * [{"n_simple"}],
        *2 * [{"ranking"}],
    ]
    assert {r["k"] for r in rows} == {1, 10}


def test_calibration_asks_one_index_for_several_recalls(small):
    rows = measured("calibration", rivals=("dci",))
    assert [r["search"]["recall"] for r in rows] == list(suites.CALIBRATED)
    assert len({r["build_seconds"][0] for r in rows}) == 1
    assert all(bar.holds for bar in bars.bars(rows))


def test_what_the_user_says_counts(small):
    rows = measured("knn", options=Options(recall=0.7, rivals=("dci",), repeats=1, smoke=True))
    assert {(r["wanted"], r["rival"]) for r in rows} == {(0.7, "dci")}


def test_suites_are_named_on_the_command_line():
    assert [suite.name for suite in suites.named("pareto, knn,pareto")] == ["pareto", "knn"]
    assert len(suites.named("all")) == len(SUITES)
    names = [suite.name for suite in suites.named("knn,tasks")]
    assert names[0] == "knn"
    assert names[1:] == [name for name in SUITES if name.startswith("task_")]
    with pytest.raises(ComparisonError, match="unknown suite 'speed': expected some of knn"):
        suites.named("knn,speed")


def test_every_full_suite_names_data_that_there_is():
    for suite in SUITES.values():
        for name in suite.data + suite.smoke_data:
            if suite.name.startswith("attention"):
                heads.check(name)
            elif suite.name.startswith("task"):
                suite.read(name, False)
            elif suite.name in ("out_of_core", "sharded"):
                assert suite.read(name, False) == name
            else:
                assert name in datasets.DATASETS or name.startswith(("glove-", "manifold-20k-", "manifold-2k-"))


# ------------------------------------------------------------------------------------- tables and words


def test_tables_align_and_keep_every_cell():
    lines = tables.markdown([["data", "n"], ["a", "1,000"]]).splitlines()
    assert lines == ["| data | n     |", "|------|-------|", "| a    | 1,000 |"]


def test_the_table_shows_each_rivals_best_and_who_misses_the_recall():
    rows = [
        row(rival="faiss IVF", query=2.0),
        row(rival="faiss IVF", query=1.0, search={"nprobe": 3}),
        row(rival="faiss flat", query=1.5),
        row(),
        row("sweep", rival="faiss IVF", query=0.1, recall=0.5),
        row("sweep", rival="faiss LSH", recall=0.4, query=3.0),
        row("sweep", rival="faiss LSH", recall=0.6, query=3.0, search={"more": 1}),
    ]
    table = tables.equal_recall(rows)
    assert [line[1] for line in table[1:]] == ["dci", "faiss IVF", "faiss flat", "faiss LSH"]
    assert [line[3] for line in table[1:]] == ["0.950", "0.950", "0.950", "0.600 (not 0.9)"]
    assert table[2][2] == "size=4 nprobe=3"
    assert table[2][7] == "3.67 x"
    assert tables.summary(rows)[1] == ["cloud 1,000 x 8", "0.9", "0.950", "300 ms (100 ms + 200 ms)", "3.7 x", "5.3 x"]


def test_the_recommendation_is_the_fastest_that_reaches_the_recall():
    text = tables.recommendation([row(), row(rival="faiss IVF", query=1.0)], "cloud")
    assert "use dci: 300 ms in total. Next comes faiss IVF size=4 with 3.7 x the time." in text


def test_the_recommendation_names_a_rival_that_wins():
    rows = [row(query=2.0), row(rival="faiss IVF"), row(rival="faiss flat", query=1.0, build=0, recall=1.0)]
    text = tables.recommendation(rows, "cloud")
    assert "use faiss IVF size=4" in text
    assert "dci takes 7.0 x as long: 2.1 s." in text


def test_the_recommendation_counts_near_times_as_equal():
    assert "dci and faiss IVF size=4 are equally fast" in tables.recommendation(
        [row(), row(rival="faiss IVF", query=0.21)], "cloud"
    )


def test_the_recommendation_says_when_a_long_construction_pays_off():
    rows = [row(query=1.0), row("sweep", rival="hnswlib", build=10.0, query=0.5)]
    assert "more than about 200,000 queries, hnswlib size=4 pays off" in tables.recommendation(rows, "cloud")


def test_the_recommendation_says_when_dci_misses_or_the_machine_was_busy():
    rows = [row(recall=0.7), row(rival="faiss IVF", query=[1.0, 2.0])]
    text = tables.recommendation(rows, "cloud")
    assert "use faiss IVF" in text
    assert "dci reaches 0.700 only." in text
    assert "The machine was busy" in text
    assert "nothing reaches this recall" in tables.recommendation(rows[:1], "cloud")


# --------------------------------------------------------------------------------------------------- bars


def held(rows):
    return [bar.holds for bar in bars.bars(rows) if bar.timed]


def test_bars_on_total_time():
    rows = [row(data="glove", recall=0.9), row(data="glove", rival="faiss flat", query=3.0)]
    assert held(rows) == [True]  # 10 times, 6 asked
    rows.append(row(data="glove", rival="faiss IVF", query=0.9))
    assert held(rows) == [True, False]  # 3.3 times, 4 asked
    assert held([row(), row(rival="faiss flat")]) == []  # nothing is asked of other data


def test_a_pareto_win_is_a_win_at_every_setting():
    def traced(rival="dci", **other):
        return row("pareto", rival, data="glove", **other)

    rows = [traced(recall=0.6), traced(recall=0.99, query=0.5)]
    slow = traced("faiss IVF", recall=0.8, query=0.6)
    assert held([*rows, slow]) == [True]
    assert held([*rows, slow, traced("faiss IVF", recall=0.7, query=0.4)]) == [False]  # dci's 0.99 takes 0.6
    assert held([*rows, slow, traced("faiss IVF", recall=0.3, query=0.01)]) == [True]  # below one half
    assert held([*rows, traced("faiss IVF", recall=1.0, query=0.6)]) == [True]  # 0.99 is enough
    assert held([rows[0], slow]) == [False]  # dci does not get there


def test_bars_on_growth_latency_and_recall():
    grown = [row("growth", data=f"glove-{n}k", n=n * 1000, query=0.01 * n**0.5) for n in (25, 50, 100)]
    assert held(grown) == [True]
    assert held([r | {"query_seconds": [r["n"] / 1e6]} for r in grown]) == [False]
    single = {"suite": "latency", "data": "glove", "batch": 1, "recall": 0.9}
    assert held([single | {"rival": "dci", "median": 1e-4}, single | {"rival": "faiss IVF", "median": 2e-4}]) == [True]
    assert held([single | {"rival": "dci", "median": 3e-4}, single | {"rival": "faiss IVF", "median": 2e-4}]) == [False]
    recalls = [bar for bar in bars.bars([row(recall=0.88)]) if not bar.timed]
    assert [bar.holds for bar in recalls] == [False]


def test_bars_on_memory():
    rows = [{"suite": "memory", "data": "glove", "growth_bytes": 3e8, "data_bytes": 1e8}]
    assert held(rows) == [True]
    assert held([rows[0] | {"growth_bytes": 3.1e8}]) == [False]
