"""Whatever shapes, masks, dtypes and modes: valid input never raises, and every head is within the tolerance."""

import contextlib

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from attention import AttentionOptions, dci_attention

ROUNDING = {torch.float32: 2e-5, torch.bfloat16: 1e-2, torch.float16: 2e-3, torch.float64: 1e-9}
MODES = {"no_grad": torch.no_grad, "inference_mode": torch.inference_mode, "neither": contextlib.nullcontext}


@st.composite
def shapes(draw):
    """Leading axes of queries and keys, lengths and widths; now and then long enough for cells."""
    long = draw(st.booleans())
    lengths = st.integers(500, 1500) if long else st.integers(1, 60)
    n_keys = draw(lengths)
    length = n_keys if draw(st.booleans()) else draw(lengths)
    heads, group = draw(st.integers(1, 3)), draw(st.integers(1, 3))
    batch = draw(st.sampled_from([(), (1,), (2,)]))
    widths = draw(st.sampled_from([(1, 1), (3, 8), (16, 16), (32, 5), (48, 48)]))
    return batch, heads, group, length, n_keys, widths


def make(batch, heads, group, length, n_keys, widths, seed):
    """Keys and values that are smooth in few latent numbers, queries near keys."""
    rng = np.random.default_rng(seed)
    latent = rng.standard_normal((*batch, heads, n_keys, 4))
    key, value = (np.tanh(latent @ rng.standard_normal((4, width))) for width in widths)
    near = rng.integers(n_keys, size=(*batch, heads, group * length))
    query = np.take_along_axis(key, near[..., None], -2) * rng.uniform(0.5, 6)
    query = query + 0.1 * rng.standard_normal(query.shape)
    return [torch.from_numpy(x) for x in (query.reshape(*batch, heads * group, length, widths[0]), key, value)]


@st.composite
def masks(draw, length, n_keys):
    """A mask or None, and is_causal."""
    kind = draw(st.sampled_from(["none", "causal", "padding", "prefix", "window", "holes", "added", "causal padding"]))
    at, row = torch.arange(n_keys), torch.arange(length)[:, None]
    some = draw(st.integers(1, n_keys))
    shown = {
        "padding": (at < some).expand(length, -1),
        "causal padding": (at >= n_keys - some).expand(length, -1),
        "prefix": (at < some) | (at <= row),
        "window": (at <= row) & (at > row - some),
        "holes": (at * 7 + row * 3) % 5 < 3,
    }.get(kind)
    if kind == "added":
        return torch.sin(0.1 * (at + row)), False
    return shown, "causal" in kind


def visible_of(mask, is_causal, length, n_keys):
    """What is added to scores, in float64."""
    added = torch.zeros(length, n_keys, dtype=torch.float64)
    if mask is not None:
        added = mask.double() if mask.dtype != torch.bool else added.masked_fill(~mask, -torch.inf)
    future = torch.arange(n_keys) > torch.arange(length)[:, None]
    return added.masked_fill(future, -torch.inf) if is_causal else added


def oracle(query, key, value, added):
    """Attention in float64; zeros for queries that see nothing."""
    group = query.shape[-3] // key.shape[-3]
    key, value = (x.repeat_interleave(group, -3) for x in (key, value))
    scores = query @ key.mT * query.shape[-1] ** -0.5 + added
    return torch.nan_to_num(scores.softmax(-1), nan=0.0) @ value


@settings(max_examples=150)
@given(st.data())
def test_random_calls_are_within_the_tolerance(data):
    batch, heads, group, length, n_keys, widths = data.draw(shapes())
    dtype = data.draw(st.sampled_from(list(ROUNDING)))
    mask, is_causal = data.draw(masks(length, n_keys))
    tolerance = data.draw(st.sampled_from([0.02, 0.1, 0.3]))
    threads = data.draw(st.integers(1, 3))
    tensors = [x.to(dtype) for x in make(batch, heads, group, length, n_keys, widths, data.draw(st.integers(0, 99)))]
    if data.draw(st.booleans()):  # heads behind tokens, as models have them
        tensors = [x.transpose(-3, -2).contiguous().transpose(-3, -2) for x in tensors]
    options = AttentionOptions(tolerance=tolerance, exact_below=0, num_threads=threads)
    with MODES[data.draw(st.sampled_from(list(MODES)))]():
        out, report = dci_attention(
            *(x.clone() for x in tensors), mask, is_causal=is_causal, enable_gqa=True, options=options,
            return_report=True,
        )  # fmt: skip
    expected = oracle(*(x.double() for x in tensors), visible_of(mask, is_causal, length, n_keys))
    assert out.dtype == dtype
    assert len(report.heads) == max(1, *batch, 1) * heads
    for at, head in enumerate(report.heads):
        some = (*np.unravel_index(at, (*batch, heads))[:-1], slice(at % heads * group, (at % heads + 1) * group))
        off = float((out[some].double() - expected[some]).norm())
        most = 1.1 * tolerance if head.method == "near+far" else 0.0
        assert off <= (most + ROUNDING[dtype]) * float(expected[some].norm()) + 1e-30, head
