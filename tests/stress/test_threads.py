"""Everything at once from many threads: answers are those of one thread.

STRESS_ROUNDS is how often each thread does its work at least, STRESS_SECONDS how long it goes on in each test: `make
stress` for a minute, `make sanitize-threads` under ThreadSanitizer.
"""

import os
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch

import dci
from attention import AttentionOptions, dci_attention
from attention.decoding.key_value_index import KeyValueIndex

ROUNDS = int(os.environ.get("STRESS_ROUNDS", "3"))
SECONDS = float(os.environ.get("STRESS_SECONDS", "0"))
N_THREADS = 8


def points(n, seed):
    """On a surface of four dimensions in 24, so that ranking pays."""
    rng = np.random.default_rng(seed)
    latent = rng.standard_normal((n, 4))
    return np.tanh(latent @ rng.standard_normal((4, 24))).astype(np.float32)


def heads(n, n_heads, seed):
    """Queries, keys and values that depend on few latent numbers, so that heads can be approximated."""
    rng = np.random.default_rng(seed)
    latent = np.sin(rng.standard_normal((n_heads, n, 4)) @ rng.standard_normal((4, 24)))
    sides = [latent @ (scale * rng.standard_normal((24, 16))) for scale in (0.5, 0.5, 1.0)]
    return [torch.from_numpy(side.astype(np.float32)[None]) for side in sides]


@pytest.fixture(autouse=True)
def switch_often():
    """Let Python's threads take turns a hundred times as often as usual."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(before / 100)
    yield
    sys.setswitchinterval(before)


def together(works):
    """Run every function on a thread of its own, again and again, all from the same moment."""
    barrier, failed = threading.Barrier(len(works)), threading.Event()

    def repeat(work):
        barrier.wait(timeout=60)
        rounds, end = 0, time.monotonic() + SECONDS
        while (rounds < ROUNDS or time.monotonic() < end) and not failed.is_set():
            try:
                work()
            except BaseException:
                failed.set()
                raise
            rounds += 1
        return rounds

    with ThreadPoolExecutor(len(works)) as pool:
        rounds = [future.result() for future in [pool.submit(repeat, work) for work in works]]
    print(f"{len(works)} threads did their work {sum(rounds)} times: {rounds}")


def equal(first, second):
    return all(np.array_equal(a, b) for a, b in zip(first, second, strict=True))


SOME = np.arange(0, 6000, 3)
QUERIES = {
    "batch": lambda index, Q: index.query(Q, 10, max_candidates=100),
    "calibrated": lambda index, Q: index.query(Q, 10, recall=0.8),
    "single": lambda index, Q: index.query(Q[5], 7, max_candidates=100),
    "exact": lambda index, Q: index.query(Q[:20], 3, recall=1.0),
    "mask": lambda index, Q: index.query(Q[:64], 5, filter=np.arange(6000) % 2 == 0),
    "ids": lambda index, Q: index.query(Q[:64], 5, filter=SOME[:40]),
}


@pytest.fixture(scope="module")
def data():
    return points(6000, 0), points(6000, 1), points(200, 2)


def fitted(X, num_threads):
    return dci.DCI(n_simple=8, random_state=0, num_threads=num_threads).fit(X)


@pytest.fixture(scope="module")
def answers(data):
    """Of the index of the first points and of that of the second, by one thread."""
    first, second, Q = data
    return [{name: ask(fitted(X, 1), Q) for name, ask in QUERIES.items()} for X in (first, second)]


@pytest.fixture(scope="module")
def attended():
    """Calls of attention of several shapes, with what one thread gives."""
    settings = [(1500, 2, False, 0), (1111, 3, True, 1), (600, 1, True, 2)]
    calls = []
    for n, n_heads, is_causal, seed in settings:
        inputs = heads(n, n_heads, seed)

        def attend(num_threads=2, inputs=inputs, is_causal=is_causal):
            options = AttentionOptions(tolerance=0.1, near=0.1, exact_below=0, num_threads=num_threads)
            return dci_attention(*inputs, is_causal=is_causal, options=options)

        calls.append((attend, attend(num_threads=1)))
    return calls


def grow(seed, num_threads=2):
    """Append and attend token by token, past some folds."""
    query, key, value = heads(700, 2, seed)
    index = KeyValueIndex(AttentionOptions(tolerance=0.1, exact_below=0, num_threads=num_threads))
    index.append(key[:, :, :500], value[:, :, :500])
    index.observe(query[:, :, :500])
    outs = []
    for i in range(500, 700, 4):
        index.append(key[:, :, i : i + 4], value[:, :, i : i + 4])
        outs.append(index.attend(query[:, :, i : i + 4]))
    return torch.cat(outs, 2)


def test_queries_while_others_fit_and_attend(data, answers, attended):
    """A query during a refit is answered from before or from after."""
    first, second, Q = data
    shared = fitted(first, 2)
    decoded = grow(0, num_threads=1)

    def ask(name):
        answer = QUERIES[name](shared, Q)
        assert any(equal(answer, expected[name]) for expected in answers), name

    def refit():
        shared.fit(second)
        shared.fit(first)

    def fit():
        assert equal(QUERIES["batch"](fitted(second, 2), Q), answers[1]["batch"])

    def attend():
        for call, expected in attended:
            assert torch.equal(call(), expected)

    def decode():
        assert torch.equal(grow(0), decoded)

    asks = [lambda name=name: ask(name) for name in QUERIES]
    together([lambda: [work() for work in asks], lambda: [work() for work in asks[::-1]], asks[0], refit, fit, attend,
              attend, decode])  # fmt: skip


def test_indexes_grow_side_by_side():
    """One `KeyValueIndex` a thread: they share nothing."""
    expected = [grow(seed, num_threads=1) for seed in range(3)]

    def decode(seed):
        assert torch.equal(grow(seed), expected[seed])

    together([lambda seed=seed: decode(seed % 3) for seed in range(N_THREADS)])


def test_one_index_changes_while_others_ask(data):
    """Workers add, update and remove points of their own, past some folds; all find theirs and what was fitted."""
    first, second, Q = data
    shared = dci.DCI(n_simple=8, random_state=0, num_threads=2).fit(first[:2000])

    def change(part):
        rows = second[part * 150 : (part + 1) * 150] + np.float32(100.0 * (part + 1))  # far from the others
        ids = shared.add(rows)
        assert np.array_equal(shared.get(ids), rows)
        shared.update(ids[:20], rows[:20] + 1)
        found = shared.query_by_id(ids[20:40], 1, num_threads=2)
        assert (found.distances < 50).all()
        assert shared.remove(ids[:100]) == 100
        assert np.array_equal(shared.get(ids[100:]), rows[100:])
        shared.remove(ids[100:])

    def ask():
        exact = shared.query(first[:40], 1, recall=1.0)
        assert np.array_equal(exact.indices[:, 0], np.arange(40))
        found = shared.query(Q, 10, max_candidates=100)
        assert (found.indices < 2000).all()  # those far away are never among the nearest
        some = shared.query(Q[:64], 5, filter=SOME[SOME < 2000])
        assert np.isin(some.indices, SOME).all()
        shared.query_radius(Q[:10], 1.0)

    together([*(lambda part=part: change(part) for part in range(3)), *[ask] * 5])
    assert np.array_equal(shared.ids, np.arange(2000))
