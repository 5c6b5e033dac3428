"""Masks are read into what they say, whatever wrote them."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from attention import masks
from attention.masks import Visible


def written(visible, length, n_keys):
    """The bool mask that a Visible stands for."""
    if visible.mask is not None:
        mask = visible.mask if visible.mask.dtype == torch.bool else visible.mask == 0
        return mask & torch.ones(length, n_keys, dtype=torch.bool).tril() if visible.causal else mask
    keys = torch.arange(n_keys) if visible.keys is None else visible.keys
    out = torch.zeros(length, n_keys, dtype=torch.bool)
    for i in range(length):
        seen = keys if visible.starts is None else keys[visible.starts[i] : max(visible.starts[i], visible.stops[i])]
        out[i, seen] = True
    return out


def ascending(visible):
    sees = visible.starts < visible.stops
    return all((edge[sees].diff() >= 0).all() for edge in (visible.starts, visible.stops))


def tri(length, n_keys, diagonal=0):
    return torch.ones(length, n_keys, dtype=torch.bool).tril(diagonal)


def additive(mask, low=-torch.inf, dtype=torch.float32):
    return torch.zeros(mask.shape, dtype=dtype).masked_fill(~mask, low)


STRUCTURED = {
    "everything": (torch.ones(5, 7, dtype=torch.bool), ()),
    "nothing": (torch.zeros(5, 7, dtype=torch.bool), ("starts", "stops")),
    "causal": (tri(6, 6), ("starts", "stops")),
    "causal, wide": (tri(4, 9), ("starts", "stops")),
    "causal, tall": (tri(9, 4), ("starts", "stops")),
    "causal, bottom right": (tri(4, 9, 5), ("starts", "stops")),
    "prefix": (tri(7, 7) | (torch.arange(7) < 3), ("starts", "stops")),
    "sliding": (tri(9, 9) & ~tri(9, 9, -3), ("starts", "stops")),
    "two-sided": (tri(9, 9, 2) & ~tri(9, 9, -3), ("starts", "stops")),
    "documents": (torch.block_diag(*[torch.ones(n, n) for n in (3, 2, 4)]) > 0, ("starts", "stops")),
    "left padding": ((torch.arange(7) > 2).expand(5, 7), ("starts", "stops")),
    "right padding": ((torch.arange(7) < 4).expand(5, 7), ("starts", "stops")),
    "holes": ((torch.arange(7) % 3 > 0).expand(5, 7), ("keys",)),
    "left padding, causal": (tri(7, 7) & (torch.arange(7) > 2), ("starts", "stops")),
    "left padding, causal, bottom right": (tri(4, 9, 5) & (torch.arange(9) > 6), ("starts", "stops")),
    "right padding, causal": (tri(7, 7) & (torch.arange(7) < 4), ("starts", "stops")),
    "holes, causal": (tri(8, 8) & (torch.arange(8) % 3 > 0), ("keys", "starts", "stops")),
    "blind queries": (tri(8, 8) & (torch.arange(8) % 3 > 0)[:, None], ("starts", "stops")),
    "one query": (torch.tensor([[True, False, True]]), ("keys",)),
    "one key": (torch.tensor([[True], [False], [True]]), ("starts", "stops")),
}


@pytest.fixture(params=[1, 20, 1 << 20], autouse=True)
def block_bytes(request, monkeypatch):
    """Blocks of one row, of a few, of all."""
    monkeypatch.setattr(masks, "_BLOCK_BYTES", request.param)


@pytest.mark.parametrize("name", STRUCTURED)
@pytest.mark.parametrize("kind", ["bool", "-inf", "lowest", "bfloat16", "float16", "rows apart"])
def test_structure_is_found(name, kind):
    mask, parts = STRUCTURED[name]
    length, n_keys = mask.shape
    blind = bool((~mask.any(dim=1)).any())
    given_mask = {
        "bool": mask,
        "-inf": additive(mask),
        "lowest": additive(mask, torch.finfo(torch.float32).min),
        "bfloat16": additive(mask, torch.finfo(torch.bfloat16).min, torch.bfloat16),
        "float16": additive(mask, dtype=torch.float16),
        "rows apart": mask.contiguous(),
    }[kind]
    visible = masks.read(given_mask)
    if blind and kind in ("lowest", "bfloat16"):  # torch averages over all keys there
        assert visible.mask is given_mask
        return
    assert {part for part in ("keys", "starts", "stops", "mask") if getattr(visible, part) is not None} == set(parts)
    assert torch.equal(written(visible, length, n_keys), mask)
    assert visible.starts is None or ascending(visible)


@pytest.mark.parametrize(
    "mask",
    [
        torch.eye(6, dtype=torch.bool).flip(0),  # intervals that move back
        torch.rand(9, 9, generator=torch.Generator().manual_seed(0)) > 0.5,
        tri(6, 6).T,  # starts move on, stops stay: but see below
        additive(tri(6, 6), -10.0),
        additive(tri(6, 6), torch.nan),
        additive(tri(6, 6), torch.inf),
        torch.randn(5, 5),
        torch.randn(5).expand(5, 5),
    ],
)
def test_other_masks_stay(mask):
    visible = masks.read(mask)
    if torch.equal(mask, tri(6, 6).T):
        assert visible.starts.tolist() == [0, 1, 2, 3, 4, 5]
    else:
        assert visible.mask is mask


@given(data=st.data())
def test_any_mask_is_read_right(data):
    length, n_keys = data.draw(st.integers(1, 12)), data.draw(st.integers(1, 12))
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32 - 1)))
    mask = rng.random((length, n_keys)) < data.draw(st.sampled_from([0.1, 0.5, 0.95]))
    if data.draw(st.booleans()):
        edges = np.sort(rng.integers(0, n_keys + 1, (2, length)), axis=1)
        ids = np.arange(n_keys)
        mask = (ids >= edges[0][:, None]) & (ids < edges[1][:, None])
        mask &= rng.random(n_keys) < data.draw(st.sampled_from([0.7, 1.0]))
    mask = torch.from_numpy(mask)
    floating = data.draw(st.booleans())
    visible = masks.read(additive(mask) if floating else mask)
    assert torch.equal(written(visible, length, n_keys), mask)
    before = visible.before(length, n_keys)
    assert torch.equal(written(before, length, n_keys), mask & tri(length, n_keys))
    assert before.starts is None or ascending(before)


def test_causal_after_everything():
    visible = Visible().before(4, 3)
    assert visible.starts.tolist() == [0, 0, 0, 0]
    assert visible.stops.tolist() == [1, 2, 3, 3]


def test_same():
    reads = [masks.read(STRUCTURED[name][0]) for name in ("everything", "causal", "sliding", "holes")]
    assert all(a.same(b) == (a is b) for a in reads for b in reads)
    assert masks.read(tri(5, 5)).same(masks.read(tri(5, 5).clone()))
    other = Visible(mask=torch.randn(3, 3))
    assert not other.same(other)
