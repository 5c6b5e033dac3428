"""The profile: its clock, the names that it wraps, the limits, the tables, a run of every workload on little data."""

import re
import types
from pathlib import Path

import pytest

from comparisons.__main__ import main
from comparisons.data.datasets import ComparisonError
from comparisons.harness import results
from comparisons.profile import clock as clocks
from comparisons.profile.clock import REST, Amount, Clock, Replacement, StaleProfileError, counted, stage, watched

ROOT = Path(__file__).parents[2]


@pytest.fixture
def ticking(monkeypatch):
    """A processor whose time is what the test says."""
    now = [0.0]
    monkeypatch.setattr(clocks.time, "thread_time", lambda: now[0])

    def spend(seconds):
        now[0] += seconds

    return spend


def engine(spend):
    """A module of two functions, one of which calls the other."""
    module = types.ModuleType("engine")

    def inner(n):
        spend(n)

    def outer(n):
        spend(1)
        module.inner(n)
        return n

    module.inner, module.outer = inner, outer
    return module


def test_a_stage_counts_without_the_stages_in_it(ticking):
    module, clock = engine(ticking), Clock()
    stages = (
        counted(module, "inner", lambda n: Amount(exps=2 * n)),
        stage(module, "outer", "outside", lambda n: Amount(flops=n)),
        stage(module, "inner", ": inside"),
    )
    with watched(clock, stages), clock.running():
        ticking(0.5)
        assert module.outer(4) == 4
    assert clock.seconds == {REST: 0.5, "outside": 1, "outside: inside": 4}
    assert clock.work == {"outside": Amount(flops=4), "outside: inside": Amount(exps=8)}


def test_a_stage_may_be_asked_for_inside_another_alone(ticking):
    module, clock = engine(ticking), Clock()
    stages = stage(module, "inner", "inside", inside="outside"), stage(module, "outer", "outside")
    with watched(clock, stages), clock.running():
        module.inner(3)
        module.outer(4)
    assert clock.seconds == {REST: 3, "outside": 1, "inside": 4}


def test_steps_of_a_generator_are_a_stage(ticking):
    module, clock = engine(ticking), Clock()

    def steps(n):
        ticking(n)
        got = yield n
        ticking(got)
        return got

    module.steps = steps
    with watched(clock, (stage(module, "steps", "steps", lambda n: Amount(flops=n)),)), clock.running():
        running = module.steps(3)
        assert next(running) == 3
        ticking(10)
        with pytest.raises(StopIteration) as end:
            running.send(5)
    assert end.value.value == 5
    assert clock.seconds == {REST: 10, "steps": 8}
    assert clock.work == {"steps": Amount(flops=3)}


def test_what_is_called_again_takes_no_time(ticking):
    clock = Clock()
    with clock.running(), clock.within("stage"):
        ticking(1)
        with clock.within(None):
            ticking(10)
        clock.take_apart(": whole", {": part": (10.0, Amount(bytes=5.0))})
    assert clock.seconds == {REST: 0, "stage": 1}
    assert clock.shares == {"stage: whole": {"stage: part": 10.0}}
    assert clock.work == {"stage: part": Amount(bytes=5.0)}


def test_originals_come_back_also_after_an_error(ticking):
    module = engine(ticking)
    originals = dict(vars(module))
    with pytest.raises(ZeroDivisionError), watched(Clock(), (stage(module, "outer", "x"), stage(module, "outer", "y"))):
        raise ZeroDivisionError
    assert vars(module) == originals


def test_nothing_is_counted_while_nothing_runs(ticking):
    module, clock = engine(ticking), Clock()
    with watched(clock, (stage(module, "outer", "outside", lambda n: Amount(flops=n)),)):
        module.outer(1)
    assert not clock.seconds
    assert not clock.work


def test_a_name_that_is_gone_is_an_error_and_nothing_is_replaced(ticking):
    module = engine(ticking)
    originals = dict(vars(module))
    gone = Replacement(module, "renamed", lambda clock, original: original)
    with (
        pytest.raises(StaleProfileError, match="engine has no function 'renamed' any more"),
        watched(Clock(), (stage(module, "outer", "x"), gone)),
    ):
        pass
    assert vars(module) == originals


# ------------------------------------------------------------------------------------------------- with PyTorch


@pytest.fixture(scope="module")
def profiled(tmp_path_factory):
    """The profile of every workload on little data, and what was printed."""
    pytest.importorskip("torch")
    pytest.importorskip("threadpoolctl")
    from comparisons.data import heads
    from comparisons.profile import workloads
    from comparisons.report import page_profile

    with pytest.MonkeyPatch.context() as patch:
        made = heads.load("smooth-64-diffuse", workloads.SMOKE_LENGTH)
        load = heads.load
        patch.setattr(heads, "load", lambda name, length: made if name.startswith("heads") else load(name, length))
        path = tmp_path_factory.mktemp("profile") / "run.json"
        document = path.with_name("page.md")
        document.write_text(f"before\n\n{page_profile.BEGIN}\nformer figures\n{page_profile.END}\nafter\n")
        assert main(["profile", "--smoke", "--out", str(path), "--page", str(document)]) == 0
    return results.read(path), document.read_text()


def rows_of(run, name):
    return [row for row in run["steps"][name] if row["operation"] != "whole"]


def test_every_workload_has_its_stages(profiled):
    from comparisons.profile import workloads

    run, _ = profiled
    expected = {
        "heads-4k": {"plan", "plan: cells", "queries ordered", "search: far cells", "run: near keys", "check"},
        "causal-16k": {"search: recent keys", "search: linear forms", "sample: exact rows", "cells: moments"},
        "step": {"step: cells", "step: recent keys", "append", "queries remembered"},
        "fold": {"sample", "search: cells", "search: near keys", "cells: keys added", "plan: directions"},
        "fit-manifold": {"directions", "cells: centres", "cells: points assigned", "calibration: true neighbours"},
        "batch-manifold": {"search: points scanned", "search: cells chosen", "search: candidates compared"},
        "single-manifold": {"search: points scanned", "search: queries projected"},
    }
    for workload in workloads.WORKLOADS:
        names = {row["operation"] for row in rows_of(run, workload.name)}
        assert expected.get(workload.name, set()) <= names, workload.name


def test_every_stage_is_run(profiled):
    from comparisons.profile import attention_stages, knn_stages

    run, _ = profiled
    seen = {row["operation"] for name in run["steps"] for row in run["steps"][name]}
    replacements = (*attention_stages.CALL, *attention_stages.DECODING, *knn_stages.FIT, *knn_stages.query(1))
    titles = {replacement.title for replacement in replacements}
    assert not {title for title in titles if not any(name.endswith(title) for name in seen)}


def test_stages_take_time_and_do_work(profiled):
    run, _ = profiled
    for name in ("heads-4k", "step", "fit-manifold", "batch-manifold"):
        stages = rows_of(run, name)
        assert all(row["seconds"][0] >= 0 for row in stages)
        assert sum(row["flops"] for row in stages) > 0
    cells = next(row for row in rows_of(run, "heads-4k") if row["operation"] == "run: far cells")
    assert cells["exps"] > 0


def test_the_page_has_a_table_for_every_workload(profiled):
    from comparisons.profile import workloads

    _, text = profiled
    assert text.startswith("before\n\n<!-- profile: made by")
    assert text.endswith("<!-- profile: end -->\nafter\n")
    assert "former figures" not in text
    assert [line[4:] for line in text.splitlines() if line.startswith("### ")] == [w.title for w in workloads.WORKLOADS]
    assert "| all " in text


def test_results_are_written_again_without_measuring(profiled, tmp_path):
    from comparisons.report import page_profile

    document = tmp_path / "page.md"
    document.write_text("no marks")
    with pytest.raises(ComparisonError, match="expected the lines"):
        page_profile.write([profiled[0]], document)
    document.write_text(f"{page_profile.BEGIN}{page_profile.END}")
    page_profile.write([profiled[0]], document)
    assert document.read_text().count("### ") > 10


def test_the_better_of_the_limits_before_and_after_counts(profiled):
    from comparisons.report import page, page_profile

    before, after = (profiled[0]["steps"][f"limits {when}"][0] for when in ("before", "after"))
    found = page_profile.limits_of(page.latest([profiled[0]]))
    assert found.exps == max(before["exps"], after["exps"])
    assert found.bytes == max(before["bytes"], after["bytes"])


def test_unknown_workloads_are_one_line_and_code_2(capsys):
    pytest.importorskip("torch")
    assert main(["profile", "--workloads", "speed"]) == 2
    assert "unknown workload 'speed': expected some of heads-4k" in capsys.readouterr().err


def test_the_table_of_kernels_is_that_of_the_header():
    from comparisons.profile.limits import FIELDS

    header = (ROOT / "dci/_native/csrc/kernels.h").read_text()
    struct = header.rpartition("typedef struct {")[2].partition("} dci_kernels;")[0]
    struct = re.sub(r"/\*.*?\*/", "", struct, flags=re.DOTALL)
    assert re.findall(r"\(\*(\w+)\)|\*(name);", struct) == [("", n) if n == "name" else (n, "") for n in FIELDS]


def test_the_least_time_is_that_of_arithmetic_or_of_memory():
    from comparisons.profile.limits import Limits

    limits = Limits(kernel_flops=10, torch_flops=20, exps=4, bytes=5)
    assert limits.seconds(Amount(flops=40, exps=4, bytes=5)) == 3
    assert limits.seconds(Amount(flops=40, exps=4, bytes=50)) == 10
    assert limits.better(Limits(30, 0, 1, 6)) == Limits(30, 20, 4, 6)
