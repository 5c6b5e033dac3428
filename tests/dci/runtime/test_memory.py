"""Memory on top of the data: at most its own size and 200 MB; one copy where a copy is needed, else none."""

import copy
import io
import itertools
import pickle
import subprocess
import sys
import textwrap
import tracemalloc

import joblib
import numpy as np
import pytest

import dci
from dci._native.rows import prepared

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="ru_maxrss is in kilobytes on Linux only")

SCRIPT = textwrap.dedent("""
    import resource, sys
    import numpy as np
    import dci

    def peak():
        return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss

    n, dim, metric, kind, calls = int(sys.argv[1]), int(sys.argv[2]), *sys.argv[3:]
    rng = np.random.default_rng(0)
    W = rng.standard_normal((6, 12), dtype=np.float32) / 2.4
    V = rng.standard_normal((12, dim), dtype=np.float32)

    def fill(out):  # a little at a time: the peak is to be that of the result
        for start in range(0, len(out), 1000):
            part = out[start : start + 1000]
            if kind == "manifold":
                part[:] = np.tanh(rng.standard_normal((len(part), 6), dtype=np.float32) @ W) @ V
                part += 0.1 * rng.standard_normal(part.shape, dtype=np.float32)
            else:
                rng.standard_normal(out=part, dtype=np.float32)
        return out

    n_queries = 3000 if dim < 500 else 1000  # without SIMD, exact search takes its time
    X, Q = fill(np.empty((n, dim), np.float32)), fill(np.empty((n_queries, dim), np.float32))
    dci.DCI(random_state=0).fit(X[:3000].copy()).query(Q[:10])  # what is loaded when first used
    before = peak()
    if calls == "knn":
        dci.knn(X, 10, metric=metric, random_state=0)
    elif calls == "exact":
        dci.exact(X, Q, 10, metric)
    else:
        index = dci.DCI(metric, random_state=0).fit(X, queries=Q[:500] if calls == "queries" else None)
        index.query(Q, 10)
        index.query(Q[0], 10)
        index.query(Q, 100, recall=0.8)
        index.query(Q, 10, filter=np.arange(0, n, 2))
        index.query(Q[:100], 10, max_candidates=1.0)
        index.query(Q, 10, recall=1.0)
        print(index.stats_.method, end=" ")
    print(peak() - before, X.nbytes)
""")


@pytest.mark.alone
@pytest.mark.slow  # without SIMD above all
@pytest.mark.parametrize(
    ("n", "dim", "metric", "kind", "calls"),
    [
        (200_000, 64, "l2", "manifold", "query"),
        (200_000, 64, "ip", "manifold", "queries"),
        (30_000, 784, "l2", "manifold", "query"),
        (30_000, 784, "l2", "noise", "query"),
        (200_000, 64, "l2", "manifold", "knn"),
        (200_000, 64, "l2", "manifold", "exact"),
    ],
)
def test_peak_is_within_the_data_and_200_mb(n, dim, metric, kind, calls):
    arguments = [sys.executable, "-P", "-c", SCRIPT, str(n), str(dim), metric, kind, calls]
    run = subprocess.run(arguments, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    *method, grown, size = run.stdout.split()
    assert method == (["ranked" if kind == "manifold" else "exact"] if calls in ("query", "queries") else [])
    assert int(grown) <= int(size) + 200e6


def points(dtype, order="C"):
    X = 100 * np.tanh(np.random.default_rng(0).standard_normal((20_000, 6)))
    return np.asarray(np.tile(X, 10), dtype=dtype, order=order)


@pytest.mark.parametrize("metric", ["l2", "ip", "cosine"])
@pytest.mark.parametrize("options", [{}, {"n_levels": 2}, {"recall": 1.0}], ids=repr)
def test_contiguous_float32_is_not_copied(metric, options):
    X = points("f4")
    index = dci.DCI(metric, random_state=0, **options).fit(X)
    assert np.shares_memory(X, index._version.engine.X)
    assert index._version.engine.X.__array_interface__["data"][0] == X.__array_interface__["data"][0]


@pytest.mark.parametrize("metric", ["l2", "ip", "cosine"])
@pytest.mark.parametrize(("dtype", "order"), [("f8", "C"), ("f4", "F"), ("f2", "C"), ("i2", "C")])
def test_anything_else_is_copied_once(metric, dtype, order):
    X = points(dtype, order)
    index = dci.DCI(metric, random_state=0)
    peaks = []
    for form in (points("f4"), X):
        dci.DCI(metric, random_state=0).fit(form)
        tracemalloc.start()
        index.fit(form)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
        index = dci.DCI(metric, random_state=0)
    one_copy = 4 * X.size
    assert 0.9 * one_copy < peaks[1] - peaks[0] < 1.1 * one_copy


def test_there_is_one_copy_in_the_index():
    X = points("f8")
    index = dci.DCI(random_state=0).fit(X)
    engine = index._version.engine
    assert not np.shares_memory(X, engine.X)
    assert engine.exact.X is engine.X
    before = engine.X.copy()
    X[:] = 0
    np.testing.assert_array_equal(engine.X, before)


def reloaded(index, way, tmp_path):
    if way == "joblib":
        joblib.dump(index, tmp_path / "index")
        return joblib.load(tmp_path / "index")
    if way == "out of band":
        buffers = []
        data = pickle.dumps(index, protocol=5, buffer_callback=buffers.append)
        assert len(data) < 0.2 * index._version.engine.X.nbytes
        return pickle.loads(data, buffers=[bytes(buffer.raw()) for buffer in buffers])
    return {
        "pickle": lambda: pickle.loads(pickle.dumps(index)),
        "copy": lambda: copy.copy(index),
        "deepcopy": lambda: copy.deepcopy(index),
    }[way]()


FITS = [{}, {"n_levels": 1, "n_simple": 8, "ranking": "max"}, {"recall": 1.0}, {"directions": "random", "n_levels": 2}]


CALLS = [{}, {"k": 100}, {"recall": 0.8}, {"max_candidates": 50}, {"filter": np.arange(0, 20_000, 2)}, {"recall": 1.0}]


@pytest.fixture(
    scope="module", params=itertools.product(["l2", "ip", "cosine"], FITS), ids=lambda param: f"{param[0]}-{param[1]!r}"
)
def original(request):
    """Return an index, its answers to `CALLS`, those of another one of the same fit, and the points."""
    metric, options = request.param
    X = points("f4")[:20_000]
    index, again = (dci.DCI(metric, random_state=0, **options).fit(X) for _ in range(2))
    index.query(X[:500], 100)  # calibrates once more
    return index, [index.query(X[:50], **call) for call in CALLS], again.query(X[:9]).indices, X


@pytest.mark.parametrize("way", ["pickle", "out of band", "copy", "deepcopy", "joblib"])
def test_copies_answer_alike_and_hold_the_points_once(way, original, tmp_path):
    index, answers, fitted_again, X = original
    other = reloaded(index, way, tmp_path)
    assert other.stats_ == index.stats_
    for call, answer in zip(CALLS, answers, strict=True):
        for received, expected in zip(other.query(X[:50], **call), answer, strict=True):
            np.testing.assert_array_equal(received, expected)
    if way != "copy":
        assert not np.shares_memory(other._version.engine.X, index._version.engine.X)
    engine = other._version.engine
    if engine.ranker is not None:
        everything = prepared(engine.ranker.embedding.points, np.arange(3))
        np.testing.assert_array_equal(everything, prepared(index._version.engine.ranker.embedding.points, np.arange(3)))
    np.testing.assert_array_equal(other.fit(X).query(X[:9]).indices, fitted_again)  # fitting goes on as before


@pytest.mark.parametrize("metric", ["l2", "ip", "cosine"])
@pytest.mark.parametrize("options", FITS, ids=repr)
@pytest.mark.parametrize("write", ["pickle", "joblib"])
def test_a_pickle_holds_the_points_once(write, options, metric):
    X = points("f4")[:20_000].repeat(2, axis=1)
    index = dci.DCI(metric, random_state=0, **options).fit(X)
    file = io.BytesIO()
    {"pickle": pickle, "joblib": joblib}[write].dump(index, file)
    ranker = index._version.engine.ranker
    panels = 0 if ranker is None else sum(getattr(array, "nbytes", 0) for array in ranker.cells.arrays)
    made = sum(made.visits.nbytes + made.ranks.nbytes for made in index._version.engine.calibrations.values())
    assert X.nbytes < len(file.getvalue()) < 1.15 * X.nbytes + panels + made
