"""A run on disk: what it keeps, when it goes on, what it refuses."""

import json
import re

import numpy as np
import pytest
from fakes import row

from comparisons.data.datasets import ComparisonError
from comparisons.harness import results
from comparisons.harness.results import Run, busy, merge, plain, read, select


def test_a_step_is_made_once_and_kept_on_disk(tmp_path):
    path, made = tmp_path / "deep" / "run.json", []
    run = Run(path, command="first")
    for _ in range(2):
        assert run.step("a", lambda: made.append(1) or [{"x": np.float32(0.5)}]) == [{"x": 0.5}]
    assert made == [1]
    content = read(path)
    assert content["steps"] == {"a": [{"x": 0.5}]}
    assert not content["complete"]
    assert content["sessions"][0]["versions"]["numpy"] == np.__version__
    assert [file.name for file in path.parent.iterdir()] == ["run.json"]

    again = Run(path, resume=True, command="second")
    assert again.step("a", lambda: pytest.fail("was measured already")) == [{"x": 0.5}]
    again.finish()
    assert [session["command"] for session in read(path)["sessions"]] == ["first", "second"]
    assert read(path)["complete"]


def test_a_run_is_not_overwritten(tmp_path):
    path = tmp_path / "run.json"
    Run(path).finish()
    with pytest.raises(ComparisonError, match="exists: --resume"):
        Run(path)


def test_a_run_goes_on_under_its_own_conditions_only(tmp_path):
    path = tmp_path / "run.json"
    run = Run(path, threads=2)
    run.same_data("cloud", "abc")
    run.finish()
    with pytest.raises(ComparisonError, match="threads was 2 and is 1 now"):
        Run(path, threads=1, resume=True)
    with pytest.raises(ComparisonError, match="cloud has changed"):
        Run(path, threads=2, resume=True).same_data("cloud", "def")


@pytest.mark.parametrize(
    "content", ["", "{", "[]", "{}", '{"format": 99}', '{"format": 1, "sessions": [], "steps": {}}']
)
def test_what_is_no_run_is_one_clear_line(tmp_path, content):
    path = tmp_path / "run.json"
    path.write_text(content)
    with pytest.raises(ComparisonError, match="cannot read") as caught:
        read(path)
    assert "\n" not in str(caught.value)


def test_the_latest_unfinished_run_is_found(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ComparisonError, match="nothing to resume"):
        results.latest_unfinished("knn")
    for name, done in (("knn-20260101-000000", False), ("knn-20260102-000000", True), ("pareto-20260103-0", False)):
        run = Run(tmp_path / "results" / f"{name}.json")
        run.finish() if done else run.save()
    assert results.latest_unfinished("knn").name == "knn-20260101-000000.json"
    assert re.fullmatch(r"results/knn-\d{8}-\d{6}\.json", str(results.new_path("knn")))


def test_repeats_are_joined_and_nothing_else():
    rows = [
        row(build=1, query=2, recall=0.95),
        row(build=3, query=4, recall=0.94),
        row(build=5, k=1),
        row(suite="pareto"),
    ]
    joined = merge(rows)
    assert len(joined) == 3
    assert (joined[0]["build_seconds"], joined[0]["query_seconds"]) == ([1, 3], [2, 4])
    assert joined[0]["recall"] == 0.94
    assert rows[0]["build_seconds"] == [1]  # not changed
    assert select(joined, "knn", k=1) == [joined[1]]


def test_a_spread_of_more_than_a_fifth_means_a_busy_machine():
    quiet, noisy = row(query=[1.0, 1.1]), row(query=[1.0, 1.5])
    assert busy([quiet, noisy, {"suite": "memory"}]) == [noisy]
    assert not busy([row(query=[0.001, 0.003], build=[0, 0])])  # milliseconds always differ
    assert busy([{"seconds": [1.0, 2.0]}])
    assert busy([{"batch": 1, "spread": 0.3}])
    assert not busy([{"batch": 1, "spread": 0.1}])


def test_notes_of_numpy_types_become_plain():
    notes = {"share": np.float32(0.5), "budget": np.int64(3), "order": np.arange(2), "type": np.dtype("f4")}
    assert plain(notes) == {"share": 0.5, "budget": 3, "order": [0, 1], "type": "float32"}
    assert json.dumps(plain(notes))
