"""A growing index attends as exact attention does, within the tolerance, at a small part of the cost."""

import copy
import pickle
from contextlib import nullcontext

import numpy as np
import pytest
import torch

import attention
from attention import AttentionOptions, InvalidTypeError, InvalidValueError, UnsupportedError
from attention.decoding.key_value_index import AT_ONCE, KeyValueIndex

TIGHT = AttentionOptions(tolerance=1e-3, exact_below=0)
LOOSE = AttentionOptions(tolerance=0.05, exact_below=0)


def smooth(n_keys, n_tokens, heads=(1, 2, 4), width=64, sharpness=3.0, seed=0):
    """Keys, values and queries (n_tokens before and after n_keys) that depend on few latent numbers."""
    rng = np.random.default_rng(seed)
    batch, n_heads, group = heads
    latent = rng.standard_normal((batch, n_heads, n_keys, 6))
    mix, phase = 0.3 * rng.standard_normal((6, 48)), rng.uniform(0, 6.28, 48)
    to_key, to_value = rng.standard_normal((2, 48, width)) / 5

    def view(at, to):
        rows = np.sin(at @ mix + phase) @ to
        return torch.from_numpy((rows + 0.05 * rows.std() * rng.standard_normal(rows.shape)).astype(np.float32))

    near = rng.integers(n_keys, size=(batch, n_heads, group * n_tokens))
    at = np.take_along_axis(latent, near[..., None], 2) + 0.1 * rng.standard_normal((*near.shape, 6))
    query = view(at, to_key).reshape(batch, n_heads * group, n_tokens, width) * sharpness
    return view(latent, to_key), view(latent, to_value), query


def exact(exactly, query, key, value, starts=None):
    """Exact attention of the last tokens."""
    length, n_keys = query.shape[2], key.shape[2]
    seen = torch.arange(n_keys) <= torch.arange(n_keys - length, n_keys)[:, None]
    seen = seen & (torch.arange(n_keys) >= torch.tensor(starts or [0] * len(key))[:, None, None, None])
    return exactly(query, key, value, seen, enable_gqa=True)


def grown(options, key, value, query, n_keys):
    index = KeyValueIndex(options)
    index.append(key[:, :, :n_keys], value[:, :, :n_keys])
    index.observe(query[:, :, : query.shape[2] // 2])
    return index


def decode(index, key, value, query):
    """Append and attend one by one; return what every token saw."""
    outs = []
    for i in range(len(index), key.shape[2]):
        index.append(key[:, :, i : i + 1], value[:, :, i : i + 1])
        outs.append(index.attend(query[:, :, i : i + 1]))
    return torch.cat(outs, 2)


@pytest.mark.parametrize("far_field", ["auto", "mean", "none"])
@pytest.mark.parametrize("heads", [(1, 2, 4), (2, 1, 1)], ids=["gqa", "batch"])
def test_growth_past_several_folds_stays_within_tolerance(exactly, errors_of, heads, far_field):
    key, value, query = smooth(3000, 3000, heads)
    index = grown(LOOSE.replace(far_field=far_field), key, value, query, 1500)
    folds, outs = [], []
    for i in range(1500, 3000):
        index.append(key[:, :, i : i + 1], value[:, :, i : i + 1])
        outs.append(index.attend(query[:, :, i : i + 1]))
        folds.append(index.report().folded)
        assert i + 1 - folds[-1] < 500
    assert len(set(folds)) >= 4
    expected = exact(exactly, query[:, :, 1500:], key, value)
    assert errors_of(torch.cat(outs, 2), expected).max() <= LOOSE.tolerance
    assert folds == sorted(folds)


def test_few_keys_are_touched_at_32k(exactly, errors_of):
    key, value, query = smooth(32768 + 40, 600, (1, 2, 4))
    index = grown(AttentionOptions(tolerance=0.05), key, value, query, 32768)
    outs = []
    for i in range(40):
        at = slice(32768 + i, 32769 + i)
        index.append(key[:, :, at], value[:, :, at])
        outs.append(index.attend(query[:, :, 300 + i : 301 + i]))
        report = index.report()
        assert 0 < report.share < 0.1
        assert report.keys_touched == pytest.approx(report.share * report.length)
    assert report.folded > 32000
    assert 0 < report.error <= 0.05
    expected = exact(exactly, query[:, :, 300:340], key, value)
    assert errors_of(torch.cat(outs, 2), expected).max() <= 0.05


def test_several_tokens_at_once_are_causal(exactly):
    key, value, query = smooth(1000, 1000)
    for length in (1, 2, 7, AT_ONCE):
        index = grown(TIGHT, key, value, query, 900)
        index.append(key[:, :, 900 : 900 + length], value[:, :, 900 : 900 + length])
        out = index.attend(query[:, :, 900 : 900 + length])
        assert index.report().folded > 800
        stop = 900 + length
        expected = exact(exactly, query[:, :, 900:stop], key[:, :, :stop], value[:, :, :stop])
        assert (out - expected).norm() <= 2e-3 * expected.norm()
        # What comes later changes nothing, bit for bit.
        again = grown(TIGHT, key, value, query, 900)
        other = value[:, :, 900:stop].clone()
        other[:, :, -1] = 1e3
        again.append(key[:, :, 900:stop], other)
        torch.testing.assert_close(again.attend(query[:, :, 900:stop])[:, :, :-1], out[:, :, :-1], rtol=0, atol=0)


@pytest.mark.parametrize("starts", [[0, 300], [583, 0], [600, 600], [5, 616]])
def test_padding_on_the_left_is_never_seen(exactly, starts):
    key, value, query = smooth(640, 640, (2, 2, 2))
    index = grown(TIGHT, key, value, query, 610)
    stop = 617
    index.append(key[:, :, 610:stop], value[:, :, 610:stop])
    length = min(7, stop - max(starts))
    out = index.attend(query[:, :, stop - length : stop], starts=starts)
    expected = exact(exactly, query[:, :, stop - length : stop], key[:, :, :stop], value[:, :, :stop], starts)
    assert (out - expected).norm() <= 2e-3 * expected.norm()


@pytest.mark.parametrize("back", [1, 20, 200])
def test_cropped_tokens_are_forgotten(exactly, back):
    key, value, query = smooth(1000, 1000)
    index = grown(TIGHT, key, value, query, 950)
    decode(index, key, value, query)
    folded = index.report().folded
    index.crop(1000 - back)
    assert len(index) == 1000 - back
    assert index.report().folded == (folded if back < 32 else 0)
    key, value = key.clone(), value.clone()
    value[:, :, 1000 - back :] *= -1
    out = decode(index, key, value, query)
    expected = exact(exactly, query[:, :, -back:], key, value)
    assert (out - expected).norm() <= 2e-3 * expected.norm()
    index.crop(5000)
    assert len(index) == 1000


@pytest.mark.parametrize("chosen", [[1, 0], [2, 2, 2, 0], [1]])
def test_selected_sequences_go_their_own_ways(exactly, chosen):
    key, value, query = smooth(1000, 1000, (3, 2, 2))
    index = grown(TIGHT, key, value, query, 900)
    decode(index, key[:, :, :950], value[:, :, :950], query)
    folded = index.report().folded
    index.select(torch.tensor(chosen))
    key, value, query = (x[chosen].clone() for x in (key, value, query))
    key[:, :, 950:] += torch.randn_like(key[:, :, 950:])  # copies of a sequence part
    out = decode(index, key, value, query)
    assert index.report().folded >= folded > 0
    expected = exact(exactly, query[:, :, 950:], key, value)
    assert (out - expected).norm() <= 2e-3 * expected.norm()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision(exactly, errors_of, dtype):
    key, value, query = (x.to(dtype) for x in smooth(1000, 1000))
    index = grown(LOOSE, key, value, query, 900)
    out = decode(index, key, value, query)
    assert index.report().folded > 800
    assert index.keys.dtype == index.values.dtype == out.dtype == dtype
    assert errors_of(out, exact(exactly, query[:, :, 900:], key, value)).max() <= LOOSE.tolerance


def test_values_of_another_width_and_odd_sizes(exactly):
    key, value, query = smooth(700, 700, (1, 3, 2), width=33)
    index = grown(TIGHT, key, value[..., :17], query, 650)
    out = decode(index, key, value[..., :17], query)
    expected = exact(exactly, query[:, :, 650:], key, value[..., :17])
    assert (out - expected).norm() <= 2e-3 * expected.norm()


def test_memory_grows_by_halves():
    index, places, rooms = KeyValueIndex(), set(), set()
    one = torch.zeros(1, 1, 1, 8)
    for _ in range(20_000):
        index.append(one, one)
        places.add(index.keys.data_ptr())
        rooms.add(index._store[0].room)
    assert len(rooms) < 15
    assert max(rooms) <= 1.5 * 20_000 + 256


def test_few_keys_and_unknown_queries_are_attended_to_exactly(exactly):
    key, value, query = smooth(400, 400)
    index = grown(AttentionOptions(), key, value, query, 399)
    out = decode(index, key, value, query)
    assert index.report().folded == 0
    assert index.report().keys_touched == 400
    torch.testing.assert_close(out, exact(exactly, query[:, :, -1:], key, value).float(), rtol=1e-4, atol=1e-5)
    index = KeyValueIndex(LOOSE)
    index.append(key[:, :, :380], value[:, :, :380])
    for i in range(380, 400):
        index.append(key[:, :, i : i + 1], value[:, :, i : i + 1])
        index.attend(query[:, :, i : i + 1])
        assert index.report().folded == 0 or i >= 395
    assert index.report().folded > 0  # they took some tokens


@pytest.mark.parametrize("num_threads", [1, 2, 5])
def test_threads_change_nothing(monkeypatch, num_threads):
    monkeypatch.setattr("attention.decoding.folding._WORTH_THREADS", 0)
    key, value, query = smooth(800, 800, (2, 3, 2))
    outs = [
        decode(grown(LOOSE.replace(num_threads=n), key, value, query, 700), key, value, query) for n in (1, num_threads)
    ]
    torch.testing.assert_close(*outs, rtol=0, atol=0)


def test_pinned_keys_and_sizes_of_the_near_field(exactly):
    key, value, query = smooth(1500, 1500)
    key[:, :, 0] *= 20  # a sink
    wide = grown(LOOSE.replace(sink=1, window=500), key, value, query, 1400)
    out = decode(wide, key, value, query)
    assert wide.report().folded <= 1000
    expected = exact(exactly, query[:, :, 1400:], key, value)
    assert (out - expected).norm() <= LOOSE.tolerance * expected.norm()
    shares = []
    for near in (8, 0.2, 5000):
        index = grown(LOOSE.replace(near=near), key, value, query, 1400)
        out = decode(index, key, value, query)
        shares.append(index.report().share)
    assert shares == sorted(shares)
    assert (out - expected).norm() <= 1e-5 * expected.norm()


def test_modes_of_autograd_mix():
    key, value, query = smooth(600, 600)
    with torch.inference_mode():
        index = grown(LOOSE, *(x.clone() for x in (key, value, query)), 500)
        inside = decode(index, key[:, :, :550], value[:, :, :550], query)
        index.select(torch.tensor([0]))
    assert inside.shape == (1, 8, 50, 64)
    with torch.no_grad():
        index.crop(540)
        decode(index, key, value, query)
    assert len(index) == 600


@pytest.mark.parametrize("twin", [copy.deepcopy, lambda index: pickle.loads(pickle.dumps(index))])
def test_copies_are_independent(exactly, twin):
    key, value, query = smooth(700, 700)
    index = grown(TIGHT, key, value, query, 600)
    decode(index, key[:, :, :650], value[:, :, :650], query)
    other = twin(index)
    expected = exact(exactly, query[:, :, 650:], key, value)
    for each in (index, other):
        out = decode(each, key, value, query)
        assert (out - expected).norm() <= 2e-3 * expected.norm()


def test_reset_forgets():
    key, value, query = smooth(600, 600)
    index = grown(LOOSE, key, value, query, 599)
    decode(index, key, value, query)
    index.reset()
    assert len(index) == 0
    assert index.report().length == index.report().folded == 0
    index.append(key[:1, :1, :5, :3], value[:1, :1, :5, :4])
    assert index.attend(query[:1, :1, :2, :3]).shape == (1, 1, 2, 4)


def test_no_keys():
    index = KeyValueIndex()
    assert len(index) == 0
    index.crop(0)
    index.select(torch.tensor([0]))
    with pytest.raises(InvalidValueError, match="received none"):
        index.attend(torch.zeros(1, 1, 1, 4))


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, 1e30])
@pytest.mark.parametrize("length", [1, 7])
def test_a_query_that_is_not_finite_harms_no_other(exactly, bad, length):
    """Neither beside it, nor as one of those that are remembered."""
    key, value, query = smooth(1200, 1200, (2, 2, 4))
    stop = 900 + length
    spoilt = query[:, :, 600 : 600 + length].clone()
    spoilt[1, 5, -1, 3] = bad
    index = grown(LOOSE, key, value, query, 900)
    index.append(key[:, :, 900:stop], value[:, :, 900:stop])
    out = index.attend(spoilt)
    folded, share = index.report().folded, index.report().share
    assert folded > 0
    assert 0 < share < 0.9
    expected = exact(exactly, query[:, :, 600 : 600 + length], key[:, :, :stop], value[:, :, :stop])
    alone = torch.nn.functional.scaled_dot_product_attention(
        spoilt[1:, 5:6, -1:], key[1:, 1:2, :stop], value[1:, 1:2, :stop]
    )
    torch.testing.assert_close(out[1, 5, -1:], alone[0, 0], equal_nan=True)
    out[1, 5, -1] = expected[1, 5, -1].float()
    assert (out - expected).norm() <= LOOSE.tolerance * expected.norm()
    out = decode(index, key, value, query)  # through the next fold
    assert index.report().folded > folded
    assert index.report().share < 0.9
    expected = exact(exactly, query[:, :, stop:], key, value)
    assert (out - expected).norm() <= LOOSE.tolerance * expected.norm()


def test_queries_of_which_none_is_finite_are_attended_to_exactly():
    key, value, query = smooth(600, 600)
    index = KeyValueIndex(LOOSE)
    index.append(key, value)
    index.observe(torch.full_like(query, torch.nan))
    out = index.attend(query[:, :, -10:])
    assert index.report().folded == 0
    assert torch.isfinite(out).all()
    assert torch.isnan(index.attend(torch.full_like(query[:, :, -1:], torch.nan))).all()


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_a_value_that_is_not_finite_counts_as_in_exact_attention(bad):
    key, value, query = smooth(600, 600)
    value[0, 0, 100, 3] = bad
    index = grown(LOOSE, key, value, query, 599)
    out = decode(index, key, value, query)
    assert index.report().folded > 0
    finite = torch.isfinite(out)
    assert not finite[0, :4, :, 3].any()
    assert finite.sum() == out.numel() - 4


def test_keys_too_large_for_cells_are_attended_to_exactly(exactly):
    key, value, query = smooth(600, 600, (2, 2, 2))
    key[1, 1, 100] *= 1e25
    index = grown(LOOSE, key, value, query, 599)
    out = decode(index, key, value, query)
    assert index.report().folded > 0
    expected = exact(exactly, query[:, :, -1:], key, value)
    torch.testing.assert_close(out[1], expected[1].float(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("length", [1, 2])
def test_a_negative_scale_sees_no_future(length):
    key, value, query = smooth(50, 50)
    outs = []
    for last in (value[:, :, -1:], 100 + value[:, :, -1:]):
        index = KeyValueIndex(LOOSE)
        index.append(key, torch.cat([value[:, :, :-1], last], 2))
        outs.append(index.attend(query[:, :, -length:], scale=-0.5, starts=[3]))
    assert torch.equal(outs[0][:, :, :-1], outs[1][:, :, :-1])
    group = query.shape[1] // key.shape[1]
    scores = -0.5 * query[:, :, -1:] @ key[:, :, 3:].repeat_interleave(group, 1).mT
    expected = torch.softmax(scores, -1) @ torch.cat([value[:, :, 3:-1], last], 2).repeat_interleave(group, 1)
    torch.testing.assert_close(outs[1][:, :, -1:], expected, rtol=1e-4, atol=1e-4)


def test_a_default_device_and_an_active_use_stay_outside():
    key, value, query = smooth(600, 600)
    outs = []
    for device, used in (("cpu", False), ("meta", True)):
        with torch.device(device), attention.use(AttentionOptions(tolerance=0.9)) if used else nullcontext() as usage:
            index = grown(LOOSE, key, value, query, 560)
            first = index.attend(query[:, :, :40], starts=[2])
            index.append(key[:, :, 560:], value[:, :, 560:])
            outs.append(torch.cat([first, index.attend(query[:, :, -5:])], 2))
    assert torch.equal(*outs)
    assert usage.report().taken == []


def test_nan_is_reported_and_leaves_the_index_usable():
    key, value, query = smooth(600, 600)
    key[0, 0, 100, 3] = torch.nan
    index = grown(LOOSE, key, value, query, 599)
    for _ in range(2):
        with pytest.raises(InvalidValueError, match="NaN"):
            index.attend(query[:, :, -1:])
    index.crop(100)
    assert torch.isfinite(index.attend(query[:, :, -1:])).all()


def test_bad_input():
    with pytest.raises(InvalidTypeError, match="options"):
        KeyValueIndex({"tolerance": 0.1})
    with pytest.raises(UnsupportedError, match="top_k"):
        KeyValueIndex(AttentionOptions(top_k=4))
    index = KeyValueIndex()
    rows = torch.zeros(2, 3, 5, 8)
    with pytest.raises(InvalidValueError, match=r"\(B, H, L, E\)"):
        index.append(rows[0], rows[0])
    with pytest.raises(InvalidValueError, match="received"):
        index.append(rows, rows[:, :, :4])
    with pytest.raises(UnsupportedError, match="no_grad"):
        index.append(rows.clone().requires_grad_(), rows)
    index.append(rows, rows)
    with pytest.raises(InvalidValueError, match="as before"):
        index.append(rows[:1], rows[:1])
    with pytest.raises(InvalidValueError, match="as before"):
        index.append(rows.half(), rows.half())
    with pytest.raises(InvalidTypeError, match="float32"):
        index.attend(rows.half())
    with pytest.raises(InvalidValueError, match="multiple"):
        index.attend(torch.zeros(2, 4, 1, 8))
    with pytest.raises(InvalidValueError, match="L from 1 to 5"):
        index.attend(torch.zeros(2, 3, 6, 8))
    with pytest.raises(InvalidValueError, match="starts"):
        index.attend(torch.zeros(2, 3, 1, 8), starts=[0])
    with pytest.raises(InvalidValueError, match="from 0 to 4"):
        index.attend(torch.zeros(2, 3, 1, 8), starts=[0, 5])
    with pytest.raises(InvalidValueError, match="scale"):
        index.attend(torch.zeros(2, 3, 1, 8), scale=float("nan"))
    with pytest.raises(InvalidValueError, match="length"):
        index.crop(-1)
    assert len(index) == 5
