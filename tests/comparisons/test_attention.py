"""Attention's rivals, harness, suites and bars, on little data."""

import math
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from attention.reference import dense_attention, topk_attention
from comparisons.__main__ import main
from comparisons.attention import bench as attention_bench
from comparisons.attention import ranking
from comparisons.attention import suites as attention_suites
from comparisons.attention.adapters import RIVALS, Exact, Textbook
from comparisons.attention.bench import AttentionBench, Contender
from comparisons.data import heads
from comparisons.data.heads import Heads
from comparisons.harness.question import Options
from comparisons.harness.results import Run
from comparisons.knn import adapters
from comparisons.knn.suites import SUITES
from comparisons.report import bars, tables

LENGTH = 300
OURS = [suite for suite in SUITES.values() if suite.name.startswith("attention")]


@pytest.fixture(scope="module")
def few():
    rows = np.random.default_rng(0).standard_normal((3, 2, LENGTH, 16), dtype=np.float32)
    return Heads("few", *rows)


def attended(rival, few, causal=False, **settings):
    query, key, value = map(torch.from_numpy, (few.query, few.key, few.value))
    some = rival(1, causal, **settings)
    some.fit(query, key, value)
    return some.attend(query).numpy(), some


# ----------------------------------------------------------------------------------------------------- rivals


@pytest.mark.parametrize("key", RIVALS)
def test_every_rival_attends_under_each_setting_of_its_grid(few, key):
    rival = RIVALS[key]
    pytest.importorskip(rival.module)
    for settings in rival.grid(LENGTH, 16):
        out, some = attended(rival, few, **settings)
        assert out.shape == few.value.shape
        assert np.isfinite(out).all()
        assert len(some.touched()) == 2
        assert all(touched > 0 for touched in some.touched())
    assert np.abs(out).max() < 2 * np.abs(few.value).max()


EVERYTHING = {
    "exact": {},
    "textbook": {},
    "dci": {"tolerance": 0.05},
    "exact-topk": {"k": LENGTH},
    "dci-topk": {"top_k": LENGTH},
    "iceformer": {"top_k": LENGTH},
    "ivf": {"nlist": 4, "nprobe": 4, "k": LENGTH},
    "lsh": {"bits": 64, "k": LENGTH},
    "reformer": {"chunk": LENGTH, "rounds": 1},
    "window": {"window": 2 * LENGTH},
}


@pytest.mark.parametrize("key", EVERYTHING)
@pytest.mark.parametrize("causal", [False, True])
def test_at_full_effort_it_is_exact(few, key, causal):
    rival = RIVALS[key]
    pytest.importorskip(rival.module)
    if causal and not rival.causal_too:
        pytest.skip("bidirectional only")
    settings = EVERYTHING[key]
    if key == "reformer":  # a chunk meets itself and its neighbours, which are itself again: any weights but these
        settings = {"chunk": LENGTH // 3, "rounds": 1}
    out, _ = attended(rival, few, causal, **settings)
    np.testing.assert_allclose(out, dense_attention(few.query, few.key, few.value, is_causal=causal), atol=1e-4)


def test_chunks_and_rounds_of_reformer_come_together_at_any_length(few):
    odd = Heads("odd", few.query[:, :257], few.key[:, :257], few.value[:, :257])
    errors = []
    for rounds in (1, 16):
        out, _ = attended(RIVALS["reformer"], odd, chunk=32, rounds=rounds)
        exact = dense_attention(odd.query, odd.key, odd.value)
        errors.append(np.linalg.norm(out - exact) / np.linalg.norm(exact))
    assert errors[1] < errors[0]


def test_the_ceiling_is_exact_top_k(few):
    out, some = attended(RIVALS["exact-topk"], few, k=7)
    np.testing.assert_allclose(out, topk_attention(few.query, few.key, few.value, 7), atol=1e-5)
    assert some.touched() == [7.0, 7.0]


def test_a_window_sees_its_keys_and_the_sinks_only(few):
    out, _ = attended(RIVALS["window"], few, causal=True, window=20)
    at, keys = np.arange(LENGTH)[:, None], np.arange(LENGTH)
    mask = (keys <= at) & ((keys >= at - 20) | (keys < 4))
    np.testing.assert_allclose(out, dense_attention(few.query, few.key, few.value, mask), atol=1e-5)


def test_random_features_get_better_with_their_number(few):
    calm = Heads("calm", few.query / 2, few.key / 2, few.value)
    exact = dense_attention(calm.query, calm.key, calm.value)
    errors = []
    for count in (16, 4_096):
        out, _ = attended(RIVALS["performer"], calm, features=count)
        errors.append(np.linalg.norm(out - exact) / np.linalg.norm(exact))
    assert errors[1] < 0.3 * errors[0]


def test_a_landmark_for_each_token_is_exact(few):
    calm = Heads("calm", few.query / 4, few.key / 4, few.value)
    out, _ = attended(RIVALS["nystrom"], calm, landmarks=LENGTH)
    np.testing.assert_allclose(out, dense_attention(calm.query, calm.key, calm.value), atol=0.02)


# ---------------------------------------------------------------------------------------------------- harness


class Wrong(Exact):
    """Exact attention, times 1.1."""

    name = "wrong"
    order: list = []  # noqa: RUF012

    def fit(self, query, key, value):
        Wrong.order.append(self.settings.get("who", "wrong"))
        super().fit(query, key, value)

    def attend(self, query):
        return 1.1 * super().attend(query)


@pytest.fixture
def bench(few, monkeypatch):
    monkeypatch.setattr(attention_bench, "load", lambda name, length, layer=None: few)
    Wrong.order.clear()
    return AttentionBench(Run(threads=1), "attention_rivals", "few", LENGTH)


def test_errors_are_against_exact_attention(bench):
    exact, textbook, wrong = bench.compare([Contender(Exact), Contender(Textbook), Contender(Wrong, label="mine")], 3)
    assert exact["error"] == 0
    assert textbook["worst"] < 1e-5
    assert wrong["method"] == "mine"
    assert wrong["errors"] == pytest.approx([0.1, 0.1], rel=1e-3)
    assert all(len(row["seconds"]) == 3 for row in (exact, textbook, wrong))
    assert {"suite", "data", "length", "heads", "dim", "threads", "options", "keys", "notes", "build"} <= exact.keys()


def test_exact_attention_is_computed_where_it_is_no_contender(bench):
    (wrong,) = bench.compare([Contender(Wrong)], 1, sample=50)
    assert wrong["error"] == pytest.approx(0.1, rel=1e-3)
    assert "torch exact" not in {row["method"] for row in bench.run.rows()}


def test_contenders_take_turns(bench):
    bench.compare([Contender(Wrong, {"who": who}) for who in "ab"], 2)
    assert "".join(Wrong.order[-4:]) == "abba"


@pytest.mark.parametrize(("each", "calls"), [(3e-4, 35), (1e-2, 1)])
def test_short_calls_are_repeated_and_averaged(bench, monkeypatch, each, calls):
    """By a clock that only attending moves."""
    now, attend = [0.0], Exact.attend

    def ticking(self, query):
        now[0] += each
        return attend(self, query)

    monkeypatch.setattr(Exact, "attend", ticking)
    monkeypatch.setattr(attention_bench, "_warm", {Exact})
    monkeypatch.setattr(attention_bench, "time", SimpleNamespace(perf_counter=lambda: now[0]))
    (row,) = bench.compare([Contender(Exact)], 1)
    assert row["seconds"] == pytest.approx([each])
    assert now[0] == pytest.approx(calls * each)


def test_what_cannot_be_causal_or_sampled_is_left_out(few, bench):
    contenders = [Contender(RIVALS["nystrom"], {"landmarks": 32}), Contender(Exact)]
    causal = AttentionBench(Run(threads=1), "attention_rivals", "few-causal", LENGTH)
    assert [row["method"] for row in causal.compare(contenders, 1)] == ["torch exact"]
    assert [row["method"] for row in bench.compare(contenders, 1, sample=50)] == ["torch exact"]


def test_a_step_is_measured_once_and_threads_are_put_back(bench):
    before = torch.get_num_threads()
    bench.compare([Contender(Wrong)], 1)
    count = len(Wrong.order)
    bench.compare([Contender(Wrong)], 1)
    assert len(Wrong.order) == count
    assert torch.get_num_threads() == before


# ---------------------------------------------------------------------------------------------------- ranking


def test_examined_keys_are_whole_cells_and_a_share_of_the_last():
    held = np.array([[2, 4, 10]])
    gains = np.array([[0.5, 0.1, 0.4]])
    np.testing.assert_allclose(ranking._partly(held, gains, [1, 2, 3, 10]), [0.25, 0.5, 0.55, 1.0])


def test_all_keys_hold_all_mass_and_none_more_than_the_ceiling(few):
    pytest.importorskip("faiss")
    rows = ranking.rows(few, (0.05, 0.3, 1.0), threads=1)
    ceiling = {row["keys"]: row["mass"] for row in rows if row["method"] == "exact top-k"}
    for row in rows:
        assert all(mass <= most + 1e-5 for mass, most in zip(row["mass"], ceiling[row["keys"]], strict=True))
        if row["keys"] == 1.0:
            assert row["mass"] == pytest.approx([1, 1], abs=1e-4)
            assert row["top"] == pytest.approx([1, 1], abs=1e-4)
    assert {"dci", "dci, 10% ranked", "dci random directions", "faiss IVF", "LSH buckets"} < {r["method"] for r in rows}


def test_the_best_setting_of_each_head_counts():
    rows = [{"method": "ivf", "mass": [0.1, 0.5]}, {"method": "ivf", "mass": [0.3, 0.2]}, {"method": "x", "mass": [1]}]
    assert bars.recalled(rows, "ivf") == {(None, 0): 0.3, (None, 1): 0.5}


# ----------------------------------------------------------------------------------------------------- suites


@pytest.fixture
def small(monkeypatch):
    """Every head is noise, of the length that is asked for; smoke runs have 320 tokens."""

    def noise(name, length, layer=None):
        rows = np.random.default_rng(layer or 0).standard_normal((3, 4, length, 16), dtype=np.float32)
        return Heads(heads.split(name)[0], *rows)

    monkeypatch.setattr(attention_bench, "load", noise)
    monkeypatch.setattr(attention_suites, "SMOKE_LENGTH", 320)


@pytest.mark.parametrize("suite", OURS, ids=lambda suite: suite.name)
def test_suites_leave_rows_tables_and_bars(small, suite):
    pytest.importorskip("faiss")
    if suite.name == "attention_decoding":
        pytest.importorskip("attention.decoding.key_value_index")
    run = Run(threads=1)
    for name in suite.smoke_data:
        suite.run(run, name, Options(smoke=True, repeats=1))
    rows = run.rows(suite.name)
    assert {row["data"] for row in rows} == set(suite.smoke_data)
    assert all({"method", "options", "length", "heads", "keys"} <= row.keys() for row in rows)
    assert len(tables.of_suite(rows, suite.name)) > 1
    list(bars.bars(rows))
    steps = len(run.content["steps"])
    suite.run(run, suite.smoke_data[0], Options(smoke=True, repeats=1))
    assert len(run.content["steps"]) == steps


def test_rivals_are_chosen_by_their_keys(small):
    run = Run(threads=1)
    attention_suites.RIVALS.run(run, "heads", Options(rivals=("window", "dci"), smoke=True))
    assert {row["method"] for row in run.rows()} == {"torch exact", "dci_attention", "window and sinks"}


def test_what_is_not_installed_is_left_out(small, monkeypatch):
    monkeypatch.setattr(adapters, "installed", lambda rival: rival.package != "faiss-cpu")
    run = Run(threads=1)
    attention_suites.RIVALS.run(run, "heads", Options(smoke=True))
    assert not {"faiss IVF", "faiss LSH"} & {row["method"] for row in run.rows()}


def test_lengths_and_repeats():
    assert [attention_suites._repeats(n, Options(repeats=3)) for n in (128, 8_192, 16_384, 32_768)] == [15, 6, 3, 1]
    assert attention_suites._repeats(128, Options(smoke=True)) == 1


def test_the_command_measures_a_users_heads(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    rows = np.random.default_rng(0).standard_normal((3, 2, 100, 8))
    np.savez("mine.npz", query=rows[0], key=rows[1], value=rows[2])
    command = ["run", "--suite", "attention_layers", "--data", "mine.npz", "--threads", "1", "--smoke"]
    assert main([*command, "--out", "run.json"]) == 0
    assert "| mine.npz | 2,560" in capsys.readouterr().out
    assert main([*command, "--rivals", "annoy"]) == 2
    assert "unknown rival 'annoy': expected some of exact, textbook, dci" in capsys.readouterr().err
    assert main(["run", "--suite", "attention_layers", "--data", "none.npz"]) == 2
    assert "unknown heads 'none.npz'" in capsys.readouterr().err


# ------------------------------------------------------------------------------------------------------- bars


def row(suite, method="torch exact", seconds=1.0, worst=0.0, length=16_384, data="heads", **other):
    options = {"tolerance": float(method.split()[-1])} if method.startswith("dci") else {}
    return {
        "suite": f"attention_{suite}",
        "data": data,
        "method": method,
        "options": options,
        "seconds": [seconds],
        "worst": worst,
        "error": worst,
        "length": length,
        "heads": 12,
        "keys": 0.05,
        "notes": {},
        **other,
    }


def held(rows):
    return {bar.asked: bar.holds for bar in bars.bars(rows)}


def test_bars_on_layers_are_on_their_median():
    def layers(*seconds):
        ours = [row("layers", "dci_attention 0.05", s, 0.054, layer=at) for at, s in enumerate(seconds)]
        return [*(row("layers", layer=at) for at in range(len(seconds))), *ours]

    floor = "16,384 at 0.05: torch exact / ours, median of layers, at least 5"
    assert held(layers(0.1, 0.19, 0.5))[floor]
    assert not held(layers(0.1, 0.21, 0.5))[floor]
    assert held(layers(0.1))["16,384 at 0.05: worst head's error at most 0.055"]
    wrong = [*layers(0.1), row("layers", "dci_attention 0.05", 0.1, 0.056, layer=1)]
    assert not held(wrong)["16,384 at 0.05: worst head's error at most 0.055"]
    assert floor not in held([dict(one, data="mine") for one in layers(0.1)])
    assert set(bars.FLOORS) <= {(data, length) for data in attention_suites.LAYERS.data
                                for length in attention_suites.LAYER_LENGTHS.get(data, (16_384, 65_536))}  # fmt: skip


def test_bars_on_truth():
    def truth(*errors):
        return [row("truth", "dci_attention 0.05", errors=list(errors))]

    each = "no approximated head's error above 1.1 x the tolerance"
    all_of_them = "at least 99% of the approximated heads within the tolerance"
    good = held(truth(*[0.04] * 99, 0.054))
    assert good[each]
    assert good[all_of_them]
    assert not held(truth(0.04, 0.056))[each]
    assert not held(truth(*[0.04] * 98, 0.051, 0.052))[all_of_them]
    assert held(truth())[each]


def test_bars_on_length():
    def grown(power, factor):
        lengths = (128, 8_192, 32_768, 131_072)
        exact = [row("length", seconds=1e-9 * n**2, length=n) for n in lengths]
        ours = [row("length", "dci_attention 0.1", 1e-9 * factor * n**power, 0.1, n) for n in lengths]
        return exact + ours

    exponent = "at 0.1: exponent of time from 8,192 on at most 1.4"
    slower = "at 0.1: at most 10 % or 30 µs slower than torch exact, at any length"
    assert held(grown(1.2, 1))[exponent]
    assert not held(grown(1.5, 1))[exponent]
    assert held(grown(2, 1.09))[slower]
    assert not held(grown(2, 1.11))[slower]
    assert held([row("length", seconds=1e-5, length=9), row("length", "dci_attention 0.1", 3e-5, length=9)])[slower]
    assert exponent not in held([dict(one, data="noise") for one in grown(2, 1)])


def test_bars_on_decoding():
    def decoded(seconds, keys):
        return [row("decoding", length=32_768), row("decoding", "dci_attention 0.1", seconds, length=32_768, keys=keys)]

    assert all(held(decoded(0.12, 0.09)).values())
    assert list(held(decoded(0.13, 0.11)).values()) == [True, False, False]


def test_bars_on_ranking_are_on_the_median_head():
    def recalled(method, *mass, keys=0.01, **other):
        return {"suite": "attention_ranking", "data": "heads", "method": method, "keys": keys, "mass": mass, **other}

    rows = [recalled("dci", 0.6, 0.6, 0.6), recalled("faiss IVF", 0.5, 0.4, 0.1), recalled("faiss IVF", 0.1, 0.1, 0.45)]
    (ivf,) = bars.bars([*rows, recalled("faiss IVF", 1, 1, 1, keys=0.1)])
    assert ivf.holds  # 1.2, 1.5 and 1.33
    assert math.isclose(float(ivf.reached.split()[0]), 1.33)
    (ivf,) = bars.bars([*rows, recalled("faiss IVF", 0.1, 0.5, 0.1)])
    assert not ivf.holds
    assert held([rows[0], recalled("LSH buckets", 0.3, 0.3, 0.5)]) == {
        "1% of the keys examined: attention mass of dci / LSH buckets, median of heads, at least 2": True
    }


def test_every_full_suite_names_its_minutes_in_its_file():
    from pathlib import Path

    folder = Path(attention_suites.__file__).parent
    for suite in OURS:
        text = (folder / f"test_{suite.name}.py").read_text()
        assert f"{suite.minutes} minutes" in text
        assert replace(suite, minutes=suite.minutes) == suite
