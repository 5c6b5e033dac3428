"""Which kernel attends for one batch of heads whose queries see the same: the engine or an exact one."""

import math
import time
from dataclasses import replace

import torch
from torch import Tensor

from ..masks import Visible
from ..options import AttentionOptions
from ..report import HeadReport
from . import exact, heads

# Below either of these, exact attention is faster than planning an approximation of it. To measure anew, set both to 0
# and run: python -m comparisons run --suite attention_length
EXACT_BELOW = 4096  # keys that a query sees, on average
FEW_QUERIES = 2048  # that share one head of keys

Result = tuple[Tensor, list[HeadReport]]


def why_exact(
    n_heads: int, n_queries: int, n_keys: int, seen: float, width: int, dtype: torch.dtype, options: AttentionOptions
) -> str:
    """Return why these sizes call for exact attention, or "" if they are worth approximating.

    Parameters
    ----------
    n_heads : int
        H, of keys.
    n_queries : int
        G × L, the queries that share one head of keys.
    n_keys : int
        S.
    seen : float
        Keys that a query sees, on average.
    width : int
        E.
    dtype : torch.dtype
    options : AttentionOptions
    """
    least, few = EXACT_BELOW, FEW_QUERIES
    if options.exact_below is not None:
        least, few = options.exact_below, min(few, options.exact_below)
    elif options.top_k is not None:  # not an approximation of attention to all keys: wanted at any length
        least, few = options.top_k + 1, 0
    if seen < least:
        return f"fewer than {least} keys"
    if n_queries < few:
        return f"fewer than {few} queries"
    if dtype == torch.float64:
        return "float64"
    if not width or not n_keys:
        return "nothing to rank"
    if heads.may_fail(options) and not heads.most_probes(n_heads, n_queries, n_keys, seen):
        return "too little work to risk a plan"
    return ""


def attend_visible(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    visible: Visible,
    scale: float,
    options: AttentionOptions,
    lse: Tensor | None = None,
) -> Result:
    """Attend to what is visible.

    Parameters
    ----------
    query : Tensor of shape (H, G, L, E)
    key, value : Tensor of shape (H, S, E) and (H, S, Ev)
    visible : Visible
    scale : float
        Above 0.
    options : AttentionOptions
    lse : Tensor of shape (H, G, L), optional
        Receives the logarithm of every query's normaliser; float32, or float64 if the inputs are.

    Returns
    -------
    out : Tensor of shape (H, G, L, Ev)
        In the dtype of the inputs.
    reports : list of HeadReport
        H of them.
    """
    begin = time.perf_counter()
    if visible.mask is not None:
        out = exact.masked(query, key, value, visible.mask, scale, causal=visible.causal, lse=lse)
        return out, _reports("exact", key, key.shape[-2], begin, "a mask without structure")
    if visible.keys is not None:
        key, value = key[:, visible.keys], value[:, visible.keys]
    if visible.starts is None or visible.stops is None:
        return _attend_up_to(query, key, value, None, scale, options, lse)
    sees = visible.starts < visible.stops
    if sees.all():
        return _attend_intervals(query, key, value, visible.starts, visible.stops, scale, options, lse)
    if lse is not None:
        lse.fill_(-math.inf)
    out = value.new_zeros((*query.shape[:-1], value.shape[-1]))
    rows = sees.nonzero().squeeze(-1)
    if len(rows) == 0:
        return out, _reports("exact", key, 0, begin, "nothing to see")
    of_rows = None if lse is None else lse.new_empty((*lse.shape[:2], len(rows)))
    some, reports = _attend_intervals(
        query[:, :, rows], key, value, visible.starts[rows], visible.stops[rows], scale, options, of_rows
    )
    if lse is not None and of_rows is not None:
        lse[:, :, rows] = of_rows
    out[:, :, rows] = some.to(out.dtype)
    return out, reports


def _attend_intervals(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    starts: Tensor,
    stops: Tensor,
    scale: float,
    options: AttentionOptions,
    lse: Tensor | None,
) -> Result:
    begin = time.perf_counter()
    first, last = int(starts[0]), int(stops[-1])
    if first != starts[-1]:
        out = exact.banded(query, key, value, starts, stops, scale, lse)
        return out, _reports("banded", key, _mean(stops - starts), begin, "a sliding window")
    same = stops[0] == last
    return _attend_up_to(
        query, key[:, first:last], value[:, first:last], None if same else stops - first, scale, options, lse
    )


def _attend_up_to(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    stops: Tensor | None,
    scale: float,
    options: AttentionOptions,
    lse: Tensor | None,
) -> Result:
    begin = time.perf_counter()
    n_keys, width = key.shape[-2:]
    seen = n_keys if stops is None else _mean(stops)
    reason = why_exact(len(key), query.shape[1] * query.shape[2], n_keys, seen, width, query.dtype, options)
    if not reason:
        done = heads.attend_heads(query, key, value, stops, scale, options, lse)
        return _complete_exactly(query, key, value, stops, scale, done, lse)
    out = exact.up_to(query, key, value, stops, scale, lse)
    return out, _reports("exact", key, seen, begin, reason)


def _complete_exactly(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    stops: Tensor | None,
    scale: float,
    done: Result,
    lse: Tensor | None,
) -> Result:
    """Compute the heads that the engine left to the exact kernel."""
    out, reports = done
    left = [h for h, report in enumerate(reports) if report.method == "exact"]
    everything = len(left) == len(reports)
    # Several at once, or one thread waits for the other where queries see more and more keys; not all, to copy few.
    size = len(left) if everything else 2 * torch.get_num_threads()
    for start in range(0, len(left), max(size, 1)):
        begin, some = time.perf_counter(), left[start : start + size]
        if everything:
            out = exact.up_to(query, key, value, stops, scale, lse)
        else:
            of_some = None if lse is None else lse[some]
            out[some] = exact.up_to(query[some], key[some], value[some], stops, scale, of_some)
            if lse is not None and of_some is not None:
                lse[some] = of_some
        each = (time.perf_counter() - begin) / len(some)
        for h in some:
            reports[h] = replace(reports[h], seconds=reports[h].seconds + each)
    return out, reports


def _mean(counts: Tensor) -> float:
    return float(counts.double().mean())


def _reports(method: str, key: Tensor, keys_touched: float, begin: float, reason: str) -> list[HeadReport]:
    n_heads = len(key)
    seconds = (time.perf_counter() - begin) / n_heads
    return [HeadReport(method, float(keys_touched), 1.0, 0.0, seconds, reason)] * n_heads
