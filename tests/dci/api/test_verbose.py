"""Progress bars of verbose=True, silence otherwise, and show_config."""

import re

import numpy as np
import pytest

import dci
from dci._native import kernels as native_kernels

N = 20_000  # from so many queries on there is a bar


@pytest.fixture(scope="module")
def data():
    rng = np.random.default_rng(0)
    hidden = np.tanh(rng.standard_normal((N, 5), dtype=np.float32) @ rng.standard_normal((5, 40), dtype=np.float32))
    return hidden + 0.02 * rng.standard_normal((N, 40), dtype=np.float32)


def bars(capsys):
    """Last state of each bar."""
    captured = capsys.readouterr()
    assert captured.out == ""
    return [line.split("\r")[-1].strip() for line in captured.err.strip("\n").split("\n") if line.strip()]


def assert_finished(bar, title, unit):
    assert bar.startswith(f"{title}: 100%"), bar
    assert re.search(rf"[\d.]+[kM]?{unit}/s", bar), bar


@pytest.mark.parametrize("num_threads", [1, 2])
@pytest.mark.parametrize("options", [{}, {"n_levels": 2, "n_simple": 8}, {"n_levels": 1, "n_simple": 8}], ids=repr)
def test_fit_shows_a_bar(data, options, num_threads, capsys):
    dci.DCI(random_state=0, verbose=True, num_threads=num_threads, **options).fit(data)
    (bar,) = bars(capsys)
    assert_finished(bar, "fit", "points")


@pytest.mark.parametrize("noise", ["recall=1.0", "full rank"])
def test_fit_shows_a_bar_where_search_is_exact(data, noise, capsys):
    X = np.random.default_rng(0).standard_normal((N, 100), dtype=np.float32) if noise == "full rank" else data
    index = dci.DCI(random_state=0, recall=1.0 if noise == "recall=1.0" else 0.9, verbose=True).fit(X)
    assert index.stats_.method == "exact"
    assert all(bar.startswith("fit: ") for bar in bars(capsys))


@pytest.mark.parametrize(
    "call", [{}, {"k": 100}, {"recall": 1.0}, {"max_candidates": 30}, {"filter": np.arange(0, N, 2)}], ids=repr
)
def test_large_batches_show_a_bar(data, call, capsys):
    index = dci.DCI(random_state=0, verbose=True).fit(data)
    bars(capsys)
    index.query(data, **call)
    (bar,) = bars(capsys)
    assert_finished(bar, "query", "queries")


def test_small_batches_show_none(data, capsys):
    index = dci.DCI(random_state=0, verbose=True).fit(data)
    bars(capsys)
    index.query(data[: N // 2])
    index.query(data[0])
    assert bars(capsys) == []


def test_knn_shows_two_bars(data, capsys):
    dci.knn(data, 5, random_state=0, verbose=True)
    fit, query = bars(capsys)
    assert_finished(fit, "fit", "points")
    assert_finished(query, "query", "queries")


def test_results_are_the_same(data):
    loud, silent = (dci.DCI(random_state=0, verbose=verbose).fit(data).query(data) for verbose in (True, False))
    np.testing.assert_array_equal(loud.indices, silent.indices)


def test_silent_otherwise(data, capsys):
    index = dci.DCI(random_state=0).fit(data)
    index.query(data)
    dci.knn(data, 5, random_state=0)
    dci.exact(data, data[:100], 5)
    assert capsys.readouterr() == ("", "")


def test_show_config(capsys, monkeypatch):
    for threads in ("1", "3"):
        monkeypatch.setenv("DCI_NUM_THREADS", threads)
        assert dci.show_config() is None
        printed, errors = capsys.readouterr()
        assert errors == ""
        lines = dict(line.split(": ", 1) for line in printed.splitlines())
        assert lines["threads"] == threads
        assert lines["instruction set"].split()[0] == native_kernels.simd()
        assert all(name in lines["instruction set"] for name in native_kernels.simd_available())
        assert lines["version"] == dci.__version__
