"""Threads, forks and signals."""

import os
import signal
import sys
import textwrap
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from threadpoolctl import threadpool_limits

import dci
from dci._runtime import blas
from tests.processes import run_script, succeed

OPTIONS = [
    {},
    {"n_levels": 1, "n_composite": 2, "n_simple": 8, "directions": "random", "ranking": "max"},
    {"n_levels": 2, "n_simple": 8, "directions": "principal", "ranking": "sum"},
    {"recall": 1.0},
]


def same(first, second):
    np.testing.assert_array_equal(first.indices, second.indices)
    np.testing.assert_array_equal(first.distances, second.distances)


@pytest.mark.parametrize("options", OPTIONS, ids=repr)
def test_results_do_not_depend_on_num_threads(large_manifold, options):
    X, Q = large_manifold
    expected = None
    for num_threads in (1, 2, 3):
        index = dci.DCI(random_state=0, num_threads=num_threads, **options).fit(X)
        results = [
            index.query(Q, 10, max_candidates=200),
            index.query(Q[0], 10, max_candidates=200),
            index.query(Q[:1], 10, max_candidates=200, num_threads=2),
            index.query(Q, 10, recall=1.0, num_threads=3),
        ]
        expected = expected or results
        for received, wanted in zip(results, expected, strict=True):
            same(received, wanted)


def test_functions_do_not_depend_on_num_threads(manifold, metric, monkeypatch):
    results = []
    for num_threads in ("1", "2", "3"):
        monkeypatch.setenv("DCI_NUM_THREADS", num_threads)
        results.append((dci.exact(*manifold, 10, metric), dci.knn(manifold.points, 5, recall=1.0)))
    for exact, graph in results[1:]:
        same(exact, results[0][0])
        same(graph, results[0][1])


@pytest.mark.parametrize("options", OPTIONS, ids=repr)
def test_many_threads_query_one_index(manifold, options):
    X, Q = manifold
    index = dci.DCI(random_state=0, num_threads=2, **options).fit(X)
    calls = [
        lambda: index.query(Q, 10, max_candidates=100),
        lambda: index.query(Q[5], 7),
        lambda: index.query(Q[:7], 3, recall=1.0),
        lambda: index.query(Q, 5, filter=np.arange(0, len(X), 3)),
    ]
    expected = [call() for call in calls]
    together = threading.Barrier(8)

    def work(which):
        together.wait(timeout=60)
        return [calls[which % 4]() for _ in range(10)]

    with ThreadPoolExecutor(8) as pool:
        for which, results in enumerate(pool.map(work, range(8))):
            for result in results:
                same(result, expected[which % 4])


def test_many_threads_fit_their_own(manifold):
    X, Q = manifold

    def work(seed):
        return dci.DCI(random_state=seed % 2, num_threads=2).fit(X).query(Q, 5)

    with ThreadPoolExecutor(4) as pool:
        results = list(pool.map(work, range(8)))
    for seed, result in enumerate(results):
        same(result, results[seed % 2])


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs os.fork")
def test_works_after_fork():
    script = """
        import os, warnings
        import numpy as np
        import dci

        warnings.simplefilter("ignore", DeprecationWarning)  # of forking with threads
        X = np.tanh(np.random.default_rng(0).standard_normal((5000, 32), dtype=np.float32))
        index = dci.DCI(random_state=0, num_threads=2).fit(X)  # threads have run
        before = index.query(X[:200], 5)
        child = os.fork()
        after = index.query(X[:200], 5)
        again = dci.DCI(random_state=0, num_threads=2).fit(X).query(X[:200], 5)
        exact = dci.exact(X, X[:50], 1, "l2")
        right = (
            np.array_equal(before.indices, after.indices)
            and np.array_equal(before.indices, again.indices)
            and np.array_equal(exact.indices[:, 0], np.arange(50))
        )
        if child == 0:
            os._exit(0 if right else 1)
        assert os.waitpid(child, 0)[1] == 0, "child"
        assert right, "parent"
    """
    succeed(script)


@pytest.mark.parametrize("dims", [(16, 16), (16, 24)], ids=["same dimension", "other dimension"])
def test_queries_during_a_refit_see_one_index_or_the_other(dims):
    """Of different sizes, one ranked in cells, one flat: a plan of one with the points of the other would show."""
    rng = np.random.default_rng(0)
    sets = [rng.standard_normal((n, dim)).astype(np.float32) for n, dim in zip((3000, 800), dims, strict=True)]
    Q = rng.standard_normal((20, dims[0])).astype(np.float32)
    index = dci.DCI(directions="random", n_simple=6, random_state=0, num_threads=1)
    calls = [
        {"max_candidates": 0.5},
        {"recall": 0.5},
        {"k": 900, "max_candidates": 1.0},
        {"filter": np.arange(0, 800, 2)},
    ]
    wanted = [[index.fit(X).query(Q, **call) for call in calls] for X in sets if X.shape[1] == dims[0]]
    stop, seen = threading.Event(), [0] * len(sets)

    def refit():
        while not stop.is_set():
            for X in sets:
                index.fit(X)

    def ask(_):
        rounds, end = 0, time.monotonic() + 30
        while rounds < 60 or (not all(seen[: len(wanted)]) and time.monotonic() < end):
            rounds += 1
            for i, call in enumerate(calls):
                try:
                    found = index.query(Q, **call)
                except dci.errors.InvalidValueError:
                    if dims[0] == dims[1]:
                        raise
                    continue
                fits = [np.array_equal(found.indices, answers[i].indices) for answers in wanted]
                assert any(fits)
                seen[fits.index(True)] += 1
            assert repr(index).split(", ")[1] in [f"{X.shape[0]} x {X.shape[1]}" for X in sets]
            assert index.stats_.n_points in (3000, 800)

    thread = threading.Thread(target=refit)
    thread.start()
    try:
        with ThreadPoolExecutor(3) as pool:
            list(pool.map(ask, range(3)))
    finally:
        stop.set()
        thread.join()
    assert all(seen[: len(wanted)])


FORKED = """
    import os, threading, warnings
    import numpy as np
    import dci
    from dci._runtime import blas
    from threadpoolctl import threadpool_limits

    warnings.simplefilter("ignore", DeprecationWarning)  # of forking with threads
    X = np.tanh(np.random.default_rng(0).standard_normal((3000, 32), dtype=np.float32))
    index = dci.DCI(random_state=0, num_threads=2, n_levels=2).fit(X)
    before = index.query(X[:50], 5)
    threadpool_limits(2, user_api="blas")

    def blas_threads():
        return {pool["num_threads"] for pool in blas._pools().select(user_api="blas").info()}

    def check(process):
        assert blas_threads() == {2}, (process, blas_threads())
        assert np.array_equal(index.query(X[:50], 5).indices, before.indices), process
        index.query(X[:50], 100)  # takes the lock
        again = dci.DCI(random_state=0, num_threads=2, n_levels=2).fit(X)
        assert np.array_equal(again.query(X[:50], 5).indices, before.indices), process
        assert blas_threads() == {2}, (process, blas_threads())

    def finish(child):
        if child == 0:
            code = 1
            try:
                check("child")
                code = 0
            finally:
                os._exit(code)
        assert os.waitpid(child, 0)[1] == 0

    inside, leave = threading.Event(), threading.Event()

    def hold():
        with HELD:
            inside.set()
            leave.wait()
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs os.fork")
@pytest.mark.parametrize("held", ["blas.one_blas_thread()", "blas._lock", "index._version.engine.lock"])
def test_works_after_a_fork_while_another_thread_is_inside(held):
    script = textwrap.dedent(FORKED.replace("HELD", held)) + textwrap.dedent("""
        thread = threading.Thread(target=hold)
        thread.start()
        inside.wait()
        finish(os.fork())
        leave.set()
        thread.join()
        check("parent")
    """)
    succeed(script, timeout=50)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs os.fork")
@pytest.mark.parametrize("held", ["blas.one_blas_thread()", "index._version.engine.lock"])
def test_works_after_a_fork_from_within(held):
    script = textwrap.dedent(FORKED) + textwrap.dedent(f"""
        with {held}:
            child = os.fork()
        finish(child)
        check("parent")
    """)
    succeed(script, timeout=50)


LONG = {
    "fit": """
        ready()
        while True:
            dci.DCI(directions="random", n_composite=4, n_simple=32, random_state=0).fit(X)
    """,
    "query": """
        index = dci.DCI(recall=1.0).fit(X)
        ready()
        while True:
            index.query(X)
    """,
    "exact": """
        ready()
        while True:
            dci.exact(X, X, 10, "l2")
    """,
}


@pytest.mark.alone
@pytest.mark.skipif(sys.platform == "win32", reason="needs SIGINT")
@pytest.mark.parametrize("job", LONG)
def test_ctrl_c_stops_within_a_second(job):
    script = textwrap.dedent("""
            import signal
            import numpy as np
            import dci

            signal.signal(signal.SIGINT, signal.default_int_handler)
            X = np.random.default_rng(0).standard_normal((200_000, 64), dtype=np.float32)

            def ready():
                print("ready", flush=True)
        """) + textwrap.dedent(LONG[job])
    process = run_script(script)
    try:
        assert process.stdout.readline() == "ready\n", process.stderr.read()
        time.sleep(1.0)  # into the work
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=5)  # one second is the promise; machines are shared
    finally:
        process.kill()
    assert process.returncode != 0
    assert errors.rstrip().endswith("KeyboardInterrupt")


def test_one_blas_thread_ends_with_the_last():
    pools = blas._pools().select(user_api="blas")  # packages loaded later bring others, which NumPy does not use

    def of_blas():
        return {pool["num_threads"] for pool in pools.info()}

    with threadpool_limits(2, user_api="blas"):
        before = of_blas()
        first, second = blas.one_blas_thread(), blas.one_blas_thread()
        first.__enter__()
        second.__enter__()
        first.__exit__(None, None, None)
        assert of_blas() == {1}
        second.__exit__(None, None, None)
        assert of_blas() == before
