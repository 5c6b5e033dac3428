"""Exact attention by PyTorch's blocked CPU kernel, never with a score for every query and key at once.

That kernel wants four axes and values as wide as keys; other calls fall back to a softmax of the whole L × S matrix.
So everything here has the engine's shapes, and narrow sides are padded with zeros.

    query (H, G, L, E)    key (H, S, E)    value (H, S, Ev)    out (H, G, L, Ev)

H are heads of keys and values, G the query heads that share each of them.
"""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

# Windows of 128 to 2,048 keys are fastest with 64 to 256 rows. To measure anew, time `banded` at these sizes.
_BAND_ROWS = 128
_PAIRS = 1 << 29  # of a query and a key in one call of the kernel, which Ctrl-C cannot stop: well under a second
_MASK_NUMBERS = 1 << 22  # of a mask in float32 at once, 16 MB

KeyRange = tuple[int, int, Tensor | None]  # keys [first, stop) and a mask for them


def whole(
    query: Tensor, key: Tensor, value: Tensor, scale: float, *, causal: bool = False, lse: Tensor | None = None
) -> Tensor:
    """Every query sees all keys, or with `causal`, query i the keys up to i."""
    n_keys, width = value.shape[-2:]
    if lse is not None:
        stops = torch.full(query.shape[-2:-1], n_keys)
        if causal:
            stops = torch.arange(1, len(stops) + 1).clamp(max=n_keys)
        return banded(query, key, value, torch.zeros_like(stops), stops, scale, lse)
    rows = max(_BAND_ROWS, _PAIRS // max(1, query.shape[0] * query.shape[1] * n_keys) // _BAND_ROWS * _BAND_ROWS)
    if rows < query.shape[-2] and not causal:
        return _by_rows(query, key, value, scale, rows, lambda row, end: (0, n_keys, None))
    return _sdpa(*_same_width(query, key, value), None, scale, causal)[..., :width]


def up_to(
    query: Tensor, key: Tensor, value: Tensor, stops: Tensor | None, scale: float, lse: Tensor | None = None
) -> Tensor:
    """Query i sees the keys [0, stops[i]), at least one; `stops` of shape (L,) never descends."""
    if stops is None:
        return whole(query, key, value, scale, lse=lse)
    length, n_keys = query.shape[-2], key.shape[-2]
    if torch.equal(stops, torch.arange(1, length + 1).clamp(max=n_keys)):
        return whole(query, key, value, scale, causal=True, lse=lse)
    return banded(query, key, value, torch.zeros_like(stops), stops, scale, lse)


def banded(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    starts: Tensor,
    stops: Tensor,
    scale: float,
    lse: Tensor | None = None,
) -> Tensor:
    """Query i sees the keys [starts[i], stops[i]), at least one; neither bound ever descends."""

    def keys_of(row: int, end: int) -> KeyRange:
        first, stop = int(starts[row]), int(stops[end - 1])
        if first == starts[end - 1] and stop == stops[row]:
            return first, stop, None
        ids = torch.arange(first, stop)
        return first, stop, (ids >= starts[row:end, None]) & (ids < stops[row:end, None])

    return _by_rows(query, key, value, scale, _BAND_ROWS, keys_of, lse)


def masked(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor,
    scale: float,
    *,
    causal: bool = False,
    lse: Tensor | None = None,
) -> Tensor:
    """Any mask of shape (L, S), bool or added to the scores; with `causal`, no key behind key i for query i as well.

    Queries that see nothing give zeros.
    """
    n_keys = key.shape[-2]

    def keys_of(row: int, end: int) -> KeyRange:
        if not causal:
            return 0, n_keys, mask[row:end]
        stop = min(end, n_keys)
        future = torch.arange(stop) > torch.arange(row, end)[:, None]
        return 0, stop, mask[row:end, :stop].masked_fill(future, False if mask.dtype == torch.bool else -torch.inf)

    return _by_rows(query, key, value, scale, max(1, _MASK_NUMBERS // n_keys), keys_of, lse)


def _by_rows(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    scale: float,
    rows: int,
    keys_of: Callable[[int, int], KeyRange],
    lse: Tensor | None = None,
) -> Tensor:
    """Blocks of `rows` queries, each with the keys and the mask that `keys_of` names."""
    length, width = query.shape[-2], value.shape[-1]
    out = query.new_empty((*query.shape[:-1], width))
    query, key, value = _same_width(query, key, value)
    if lse is not None:
        rows = min(rows, max(1, _MASK_NUMBERS // (query.shape[0] * query.shape[1] * max(1, key.shape[-2]))))
    for row in range(0, length, rows):
        end = min(row + rows, length)
        first, stop, mask = keys_of(row, end)
        some = query[:, :, row:end], key[:, first:stop], value[:, first:stop]
        if lse is None:
            block = _sdpa(*some, mask, scale, False)
        else:
            block, lse[:, :, row:end] = _with_lse(*some, mask, scale)
        out[:, :, row:end] = block[..., :width]
    return out


def _same_width(query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Pad with zeros, which change neither scores nor the other columns of the output."""
    missing = value.shape[-1] - key.shape[-1]
    if missing > 0:
        return F.pad(query, (0, missing)), F.pad(key, (0, missing)), value
    return query, key, F.pad(value, (0, -missing)) if missing else value


def _sdpa(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, scale: float, causal: bool) -> Tensor:
    group = query.shape[1]
    key, value = (x[:, None].expand(-1, group, -1, -1) for x in (key, value))
    return F.scaled_dot_product_attention(query, key, value, mask, 0.0, causal, scale=scale)


def _with_lse(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, scale: float) -> tuple[Tensor, Tensor]:
    """As `_sdpa`, and the logarithm of every query's normaliser; PyTorch's kernel does not return it."""
    dtype = value.dtype
    if dtype != torch.float64:
        query, key, value = (x.float() for x in (query, key, value))
    scores = (query * scale) @ key[:, None].transpose(-1, -2)
    if mask is not None:
        scores = scores.masked_fill(~mask, -torch.inf) if mask.dtype == torch.bool else scores + mask
    lse = scores.logsumexp(-1)
    shift = lse.masked_fill(lse == -torch.inf, 0.0)  # of queries that see nothing
    return ((scores - shift[..., None]).exp_() @ value[:, None]).to(dtype), lse


def attend_last(query: Tensor, keys: Tensor, values: Tensor, starts: list[int], scale: float) -> Tensor:
    """Attend with the last L tokens, each to the keys up to its own, by PyTorch's kernel.

    Parameters
    ----------
    query, keys, values : Tensor of shape (B, Hq, L, E), (B, H, n, E) and (B, H, n, Ev)
    starts : list of B int
        The keys before these are not seen.
    scale : float

    Notes
    -----
    The query heads that share keys are rows of one head: half the time of ``enable_gqa=True``.
    """
    batch, heads, length, _ = query.shape
    n_heads, n_keys = keys.shape[1:3]
    seen = None
    if length > 1 or any(starts):
        key_id = torch.arange(n_keys)
        seen = key_id <= torch.arange(n_keys - length, n_keys)[:, None]
        seen = seen & (key_id >= torch.tensor(starts)[:, None, None])
        seen = seen.repeat(1, heads // n_heads, 1)[:, None]
    grouped = query.reshape(batch, n_heads, -1, query.shape[3])
    out = F.scaled_dot_product_attention(grouped, keys, values, seen, scale=scale)
    return out.reshape(batch, heads, length, -1)
