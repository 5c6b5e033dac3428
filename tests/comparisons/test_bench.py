"""The harness: what it chooses, in which order it measures, what it keeps."""

from types import SimpleNamespace

import numpy as np
import pytest
from fakes import Partial

from comparisons.harness import results
from comparisons.harness.results import Run
from comparisons.harness.truth import InvalidAnswerError, recall, recompute
from comparisons.knn import bench as bench_module
from comparisons.knn.bench import Bench, Measurement, Setting, cheapest, finalists, front


def measurement(total, reached):
    return Measurement("rival", {}, {}, reached, [0.0], [total])


@pytest.fixture
def bench(cloud):
    return Bench(cloud, k=5, run=Run(threads=1))


def answer(data, share):
    rival = Partial(1)
    rival.fit(data.points)
    return recompute(data, rival.query(data.queries, 5, share), 5)


def test_cheapest_is_the_fastest_that_reaches_the_recall():
    rows = [measurement(1, 0.8), measurement(3, 0.95), measurement(2, 0.9), measurement(9, 1)]
    assert cheapest(rows, 0.9) is rows[2]
    assert finalists(rows, 0.9, 2) == [rows[2], rows[1]]
    assert cheapest(rows[:1], 0.9) is None


def test_the_front_leaves_out_what_something_beats():
    rows = [measurement(1, 0.5), measurement(3, 0.9), measurement(2, 0.9), measurement(2.5, 0.7), measurement(2, 0.8)]
    assert front(rows) == [rows[0], rows[2]]


def test_medians_and_spread():
    m = Measurement("rival", {"a": 1}, {"b": 2}, 0.9, [1.0, 2.0, 1.0], [1.0, 2.0, 2.0])
    assert (m.build_time, m.query_time, m.total) == (1, 2, 3)
    assert m.spread == pytest.approx(2 / 3)
    assert m.label == "rival a=1 b=2"


def test_sweep_finds_the_least_effort_that_reaches_the_recall(bench, cloud):
    reached = {share: recall(answer(cloud, share), bench.radius) for share in range(10, 101, 10)}
    least = min(share for share, value in reached.items() if value >= 0.8)
    found = bench.sweep(Partial, 0.8, cost="query_time")
    assert [m.build for m in found] == [{"reach": 50}, {"reach": 100}]
    assert found[0].search == {"share": 50}  # cannot reach it: its greatest effort
    assert found[0].recall == pytest.approx(reached[50])
    assert found[0].recall < 0.8
    assert found[1].search == {"share": least}
    assert found[1].recall == pytest.approx(reached[least])
    assert bench.contenders(Partial, 0.8) == [Setting(Partial, {"reach": 100}, {"share": least})]
    assert bench.contenders(Partial, 1.1) == []


def test_sweep_builds_once_a_build_and_bisects(bench):
    bench.warm_up(Partial)
    Partial.fitted.clear()
    Partial.queried.clear()
    bench.sweep(Partial, 0.8, cost="query_time")
    assert Partial.fitted == [{"reach": 50}, {"reach": 100}]
    assert len(Partial.queried) < 5 + 10


def test_a_trace_goes_up_to_the_recall(bench):
    found = bench.trace(Partial, {"reach": 100}, until=0.6)
    recalls = [m.recall for m in found]
    assert recalls == sorted(recalls)
    assert recalls[-2] < 0.6 <= recalls[-1] < 1


def test_interleaving_takes_turns_and_starts_with_another_each_round(bench):
    bench.warm_up(Partial)
    Partial.fitted.clear()
    settings = [Setting(Partial, {"reach": reach}, {"share": reach}) for reach in (50, 100)]
    found = bench.interleave("knn", settings, repeats=2)
    assert [fit["reach"] for fit in Partial.fitted] == [50, 100, 100, 50]
    assert [m.build["reach"] for m in found] == [50, 100]
    assert all(len(m.totals) == 2 for m in found)
    assert found[1].recall == 1.0


def test_settings_that_share_a_build_share_its_construction(bench):
    bench.warm_up(Partial)
    Partial.fitted.clear()
    settings = [Setting(Partial, {"reach": 100}, {"share": share}) for share in (30, 60, 100)]
    found = bench.interleave("pareto", settings, repeats=1)
    assert len(Partial.fitted) == 1
    assert [m.search["share"] for m in found] == [30, 60, 100]
    assert len({m.build_seconds[0] for m in found}) == 1


@pytest.mark.parametrize("batch", [1, 7, 60, 500])
def test_calls_check_what_they_time(bench, batch):
    (row,) = bench.calls("batch", [Setting(Partial)], batch, 9, wanted=0.9)
    assert row["recall"] == 1.0
    assert row["batch"] == min(batch, 60)
    assert 0 < row["median"] <= row["p90"]


@pytest.mark.parametrize(("slow", "busy"), [(0, False), (3, False), (10, True)])
def test_calls_whose_turns_differ_mean_a_busy_machine(bench, monkeypatch, slow, busy):
    """By a clock that runs three times as fast in the first turns, of one call each, and stands still between calls."""
    now, asked = [0.0], []

    def perf_counter():
        asked.append(0)
        at = len(asked) // 2 - 1  # two looks for the fit, two for every call
        now[0] += (3.0 if at < slow else 1.0) * (len(asked) % 2 == 0)
        return now[0]

    bench.warm_up(Partial)
    bench.radius  # noqa: B018 - what is cached is not timed
    monkeypatch.setattr(bench_module, "time", SimpleNamespace(perf_counter=perf_counter))
    monkeypatch.setattr(bench_module, "blocks", lambda count, size: [slice(at, at + 1) for at in range(count)])
    rows = bench.calls("batch", [Setting(Partial)], 10, 20, wanted=0.9)
    assert bool(results.busy(rows)) == busy


@pytest.mark.parametrize(
    "measure",
    [lambda bench, s: bench.interleave("knn", [s], 1), lambda bench, s: bench.calls("batch", [s], 10, 2, 0.9)],
    ids=["interleave", "calls"],
)
def test_invalid_answers_stop_the_run(bench, measure):
    class Liar(Partial):
        def query(self, queries, k, share=100):
            return np.zeros((len(queries), k), dtype=np.int64)

    with pytest.raises(InvalidAnswerError):
        measure(bench, Setting(Liar))


def test_an_interrupted_run_goes_on_where_it_stopped(cloud, tmp_path):
    class Interrupted(Partial):
        def query(self, queries, k, share=100):
            if len(self.fitted) == 3 and share == 100:
                raise KeyboardInterrupt
            return super().query(queries, k, share)

    settings = [Setting(Partial, {"reach": reach}, {"share": reach}) for reach in (50, 100)]
    broken = [settings[0], Setting(Interrupted, {"reach": 100}, {"share": 100})]
    path = tmp_path / "run.json"
    bench = Bench(cloud, 5, Run(path, threads=1))
    bench.warm_up(Partial)
    bench.warm_up(Interrupted)
    Partial.fitted.clear()
    with pytest.raises(KeyboardInterrupt):
        bench.interleave("knn", broken, repeats=2)  # in its second round
    assert Partial.fitted == [{"reach": 50}, {"reach": 100}, {"reach": 100}]
    Partial.fitted.clear()
    found = Bench(cloud, 5, Run(path, threads=1, resume=True)).interleave("knn", settings, repeats=2)
    assert Partial.fitted == [{"reach": 100}, {"reach": 50}]
    assert all(len(m.totals) == 2 for m in found)
