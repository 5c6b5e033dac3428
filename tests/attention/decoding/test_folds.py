"""Folds are done a little at a time: no token waits for one, and nothing that happens meanwhile is mixed up with it."""

import copy
import pickle

import numpy as np
import pytest
import torch

from attention import AttentionOptions
from attention.decoding import folding
from attention.decoding.key_value_index import KeyValueIndex

TIGHT = AttentionOptions(tolerance=1e-3, exact_below=0)
LOOSE = AttentionOptions(tolerance=0.05, exact_below=0)
HEADS, GROUP, WIDTH = 2, 2, 16
STEP = 20_000_000  # multiply-adds of the largest step, at these sizes


def smooth(batch, n_keys, seed=0):
    """Keys, values and queries that depend on few latent numbers, (B, H, n, E) and (B, H * G, n, E)."""
    rng = np.random.default_rng(seed)
    latent = rng.standard_normal((batch, HEADS * GROUP, n_keys, 4))
    mix, phase = 0.4 * rng.standard_normal((4, 32)), rng.uniform(0, 6, 32)
    to_key, to_value = rng.standard_normal((2, 32, WIDTH)) / 3
    key, value = (torch.from_numpy((np.sin(latent @ mix + phase) @ to).astype(np.float32)) for to in (to_key, to_value))
    return key[:, :HEADS].contiguous(), value[:, :HEADS].contiguous(), 2 * key


@pytest.fixture
def slow(monkeypatch):
    """Folds that take many tokens."""
    monkeypatch.setattr(folding, "_AT_LEAST", 100_000)
    monkeypatch.setattr(folding, "_A_HEAD", 100_000)


def prompted(options, key, value, query, n_keys):
    index = KeyValueIndex(options)
    index.append(key[:, :, :n_keys], value[:, :, :n_keys])
    index.observe(query[:, :, :n_keys])
    return index


def token(index, key, value, query, i):
    index.append(key[:, :, i : i + 1], value[:, :, i : i + 1])
    return index.attend(query[:, :, i : i + 1])


def until_pending(index, key, value, query):
    """Decode until a fold has been pending for some tokens; return how many keys there are."""
    waited = 0
    while waited < 5:
        token(index, key, value, query, len(index))
        waited = waited + 1 if index._cells.pending is not None else 0
    assert index._cells.prefixes is not None
    return len(index)


def pending_index():
    """Return an index with a fold that has been pending for some tokens, what it is of, and how many keys it has."""
    key, value, query = smooth(1, 2600)
    index = prompted(TIGHT, key, value, query, 1000)
    return index, key, value, query, until_pending(index, key, value, query)


def assert_exact(exactly, out, key, value, query, start, stop):
    """Tokens [start, stop), each of which sees the keys up to its own."""
    seen = torch.arange(stop) <= torch.arange(start, stop)[:, None]
    expected = exactly(query[:, :, start:stop], key[:, :, :stop], value[:, :, :stop], seen, enable_gqa=True)
    assert (out - expected).norm() <= 2e-3 * expected.norm()


def test_no_token_of_5000_does_more_than_its_part(monkeypatch, exactly):
    monkeypatch.setattr(folding, "_AT_LEAST", 2_000_000)
    monkeypatch.setattr(folding, "_A_HEAD", 500_000)
    key, value, query = smooth(1, 6000)
    index = prompted(LOOSE, key, value, query, 1000)
    token(index, key, value, query, 1000)
    folded, worked, finished, outs = [index.report().folded], [], 0, []
    for i in range(1001, 6000):
        pending = index._cells.pending
        outs.append(token(index, key, value, query, i))
        worked.append(index._cells.worked)
        finished += pending is not None and index._cells.pending is None
        folded.append(index.report().folded)
    assert finished >= 3  # two plans, and thresholds between
    assert sum(worked) > 20 * max(worked)
    assert max(worked) <= 2_000_000 + STEP
    assert min(np.diff(folded)) >= 0
    assert max(np.diff(folded)) <= folding.AT_A_TIME
    assert max(i - count for i, count in zip(range(1001, 6001), folded, strict=True)) < 1000
    out = torch.cat(outs, 2)
    seen = torch.arange(6000) <= torch.arange(1001, 6000)[:, None]
    expected = exactly(query[:, :, 1001:], key, value, seen, enable_gqa=True)
    assert ((out - expected).norm(dim=(2, 3)) <= 0.05 * expected.norm(dim=(2, 3))).all()


def test_the_first_cells_come_little_by_little_where_no_prompt_was(slow, exactly):
    key, value, query = smooth(1, 900)
    index = KeyValueIndex(TIGHT.replace(exact_below=700))
    outs, folded = [], []
    for i in range(900):
        outs.append(token(index, key, value, query, i))
        folded.append(index.report().folded)
        assert index._cells.worked <= STEP
    first = int(np.flatnonzero(folded)[0])
    assert 710 < first < 890
    assert folded[first] <= 700
    assert_exact(exactly, torch.cat(outs, 2), key, value, query, 0, 900)


@pytest.mark.parametrize("back", [1, 31, 40, 300])
def test_cropped_while_a_fold_is_pending(slow, exactly, back):
    key, value, query = smooth(1, 4000)
    index = prompted(TIGHT, key, value, query, 1000)
    stop = until_pending(index, key, value, query)
    index.crop(stop - back)
    key, value = key.clone(), value.clone()
    value[:, :, stop - back :] *= -1
    out = torch.cat([token(index, key, value, query, i) for i in range(stop - back, 4000)], 2)
    assert index.report().folded > stop
    assert_exact(exactly, out, key, value, query, stop - back, 4000)


@pytest.mark.parametrize("chosen", [[1, 0], [1], [1, 1, 0], [0, 0, 0]])
def test_selected_while_a_fold_is_pending(slow, exactly, chosen):
    """Copies of a sequence go their own ways, before the fold is done and after."""
    key, value, query = smooth(2, 3000)
    index = prompted(TIGHT, key, value, query, 1000)
    stop = until_pending(index, key, value, query)
    pending = index._cells.pending
    for _ in range(2):
        index.select(torch.tensor(chosen))
        key, value, query = (x[chosen].clone() for x in (key, value, query))
        for b in range(len(chosen)):
            for x in (key, value):
                x[b, :, stop:] = x[b, :, stop:].roll(7 * b + 1, 1)
        chosen = list(range(len(chosen)))[::-1]
    outs = []
    while index._cells.pending is pending:
        outs.append(token(index, key, value, query, len(index)))
    done = len(index)
    outs += [token(index, key, value, query, i) for i in range(done, min(3000, done + 600))]
    assert index.report().folded >= done
    assert_exact(exactly, torch.cat(outs, 2), key, value, query, stop, len(index))


@pytest.mark.parametrize("twin", [copy.deepcopy, lambda index: pickle.loads(pickle.dumps(index))])
def test_copied_while_a_fold_is_pending(slow, exactly, twin):
    index, key, value, query, stop = pending_index()
    for each in (twin(index), index):
        out = torch.cat([token(each, key, value, query, i) for i in range(stop, stop + 100)], 2)
        assert each.report().folded > 0
        assert_exact(exactly, out, key, value, query, stop, stop + 100)


def test_other_settings_drop_a_pending_fold(slow, exactly):
    index, key, value, query, stop = pending_index()
    index.options = TIGHT.replace(window=5)
    assert index._cells.pending is None
    out = torch.cat([token(index, key, value, query, i) for i in range(stop, stop + 50)], 2)
    assert index.report().folded > 1000
    assert_exact(exactly, out, key, value, query, stop, stop + 50)


def test_many_new_keys_are_folded_at_once(slow, exactly):
    index, key, value, query, stop = pending_index()
    index.append(key[:, :, stop : stop + 500], value[:, :, stop : stop + 500])
    out = token(index, key, value, query, stop + 500)
    assert index._cells.pending is None
    assert index.report().folded == stop + 501 - 1 - folding.KEPT
    assert_exact(exactly, out, key, value, query, stop + 500, stop + 501)


def test_a_fold_that_fails_leaves_the_index_usable(slow, exactly, monkeypatch):
    index, key, value, query, stop = pending_index()
    monkeypatch.setattr("attention.decoding.sample.TokenSample.measure", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        [token(index, key, value, query, i) for i in range(stop, 2500)]
    monkeypatch.undo()
    stop = len(index)
    out = index.attend(query[:, :, stop - 1 : stop])
    assert_exact(exactly, out, key, value, query, stop - 1, stop)


@pytest.mark.parametrize("num_threads", [1, 3])
def test_tokens_are_the_same_however_many_threads_there_are(slow, monkeypatch, num_threads):
    monkeypatch.setattr(folding, "_WORTH_THREADS", 0)
    key, value, query = smooth(2, 2300)
    outs = []
    for n in (1, num_threads):
        index = prompted(LOOSE.replace(num_threads=n), key, value, query, 1000)
        outs.append(torch.cat([token(index, key, value, query, i) for i in range(1000, 2300)], 2))
    assert torch.equal(*outs)
