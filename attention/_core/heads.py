"""The approximation of one batch of heads: each is planned, calibrated and computed, or left to the exact kernel."""

import math
import time
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from dci._runtime.blas import one_blas_thread
from dci._runtime.threads import Work

from ..options import AttentionOptions
from ..report import HeadReport
from . import top_k
from .head import Head
from .output import Output
from .planning import make_plan
from .sample import Sample

_LEAST_KEYS = 512  # below which there is nothing to put into cells
# To measure these anew: errors and bounds by `python -m comparisons run --suite attention_truth`, times by
# `python -m comparisons run --suite attention_layers`.
_MARGIN = 0.87  # of the tolerance, for the error of a small sample: so the bound of the whole mostly keeps it
_RUNS = 3
_CORRECTION = 2.0  # error falls about with the third root of the threshold, its bound faster
_PAYS = 0.35  # of the visible keys: touching more takes longer than the exact kernel
_AGAIN = 0.25  # of them: touching more with too large an error, another run would not pay
# What a wasted plan of a head costs, in pairs of a query and a key: as many as the exact kernel meets in that time. It
# hardly depends on the number of queries, nor on the width. To measure anew, set them to 1 and 0, so that noise is
# planned too, and compare its times before and after: python -m comparisons run --suite attention_length
_PLAN_PAIRS = 9_000_000
_PLAN_PAIRS_A_KEY = 500
_WASTE = 0.08  # of the exact time of all heads that planning may waste
_HEADS_A_PROBE = 6  # of many, where planning all would risk more


def attend_heads(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    stops: Tensor | None,
    scale: float,
    options: AttentionOptions,
    lse: Tensor | None = None,
) -> tuple[Tensor, list[HeadReport]]:
    """Attend with every head's queries to the keys that they see, within the tolerance, where that pays.

    Parameters
    ----------
    query : Tensor of shape (H, G, L, E), of any floating dtype
    key, value : Tensor of shape (H, S, E) and (H, S, Ev), of the same dtype
    stops : Tensor of shape (L,), int64, ascending, optional
        Query i sees the keys before stops[i], at least one.
    scale : float
    options : AttentionOptions
    lse : Tensor of shape (H, G, L), float32, optional
        Receives what `out` does.

    Returns
    -------
    out : Tensor of shape (H, G, L, Ev), of the same dtype
        Not written for the heads whose report says "exact".
    reports : list of HeadReport
        H of them.

    Raises
    ------
    InvalidValueError
        NaN or infinity in `query` or `key`.

    Notes
    -----
    A head takes 1.5 times the size of its keys and values beside them while it is computed, and its moments; as many
    heads are in work as there are threads.
    """
    n_heads = len(key)
    with torch.inference_mode(False):  # the mode is each thread's own, and others write here
        out = query.new_empty((*query.shape[:-1], value.shape[-1]))
    reports: list[HeadReport] = [HeadReport("exact", key.shape[-2], 1.0, 0.0, 0.0, "too few keys for cells")] * n_heads
    ends = None if stops is None else stops.numpy().astype(np.int64)
    attend_one_head = top_k.attend_top_k if options.top_k is not None else _attend_near_and_far
    n_threads = options.num_threads or torch.get_num_threads()

    def run(heads: Sequence[int]) -> None:
        # Heads side by side keep the threads busier; those left over one after the other, on all threads.
        whole = len(heads) // n_threads * n_threads
        run_some(heads[:whole], n_threads, 1)
        run_some(heads[whole:], 1, n_threads)

    def run_some(heads: Sequence[int], outer: int, inner: int) -> None:
        def attend_one(h: int) -> None:
            begin = time.perf_counter()
            with Work(inner, parent=several) as work:
                arrays = (_float32(query[h]), np.ascontiguousarray(_float32(key[h])), _float32(value[h]))
                mine = out[h] if out.dtype == torch.float32 else out.new_empty(out[h].shape, dtype=torch.float32)
                output = Output(mine.numpy(), None if lse is None else lse[h].numpy().reshape(-1))
                report = attend_one_head(*arrays, ends, scale, options, work, output)
            if out.dtype != torch.float32 and report.method != "exact":
                out[h] = mine
            reports[h] = replace(report, seconds=time.perf_counter() - begin)

        with one_blas_thread(), Work(outer) as several:
            several.run(attend_one, heads)

    if options.top_k is None and key.shape[-2] < _LEAST_KEYS:
        return out, reports
    probes = range(n_heads)
    if may_fail(options):
        seen = key.shape[-2] if ends is None else float(ends.mean())
        bearable = most_probes(n_heads, query.shape[1] * query.shape[2], key.shape[-2], seen)
        if bearable < n_heads:
            apart = -(-n_heads // max(1, bearable))
            probes = range(0, n_heads, apart if n_heads <= _HEADS_A_PROBE else max(_HEADS_A_PROBE, apart))
    run(probes)
    others = sorted(set(range(n_heads)).difference(probes))
    if all(reports[h].method == "exact" for h in probes):
        for h in others:
            reason = "approximation does not pay for the heads tried"
            reports[h] = replace(reports[probes[0]], seconds=0.0, reason=reason)
    else:
        run(others)
    return out, reports


def may_fail(options: AttentionOptions) -> bool:
    """Whether a head may turn out not to pay after it was planned, without the user having asked for the attempt."""
    return options.top_k is None and options.near is None and options.exact_below is None


def most_probes(n_heads: int, n_queries: int, n_keys: int, seen: float) -> int:
    """Return how many heads can be planned, and the plans wasted, without making the whole call much slower.

    Parameters
    ----------
    n_heads, n_queries, n_keys : int
        H, G × L and S.
    seen : float
        Keys that a query sees, on average.
    """
    wasted, exact = _PLAN_PAIRS + _PLAN_PAIRS_A_KEY * n_keys, n_queries * seen
    bearable = _WASTE * n_heads * exact / wasted
    return 0 if exact < wasted or bearable < 1 else min(n_heads, round(bearable))


def _float32(x: Tensor) -> np.ndarray:
    """As an array with unit stride in the last axis."""
    x = x.float()
    rows: np.ndarray = (x if x.stride(-1) == 1 else x.contiguous()).numpy()
    return rows


def _attend_near_and_far(
    query: np.ndarray,
    key: np.ndarray,
    value: np.ndarray,
    stops: np.ndarray | None,
    scale: float,
    options: AttentionOptions,
    work: Work,
    output: Output,
) -> HeadReport:
    """Attend with one head, or report that the exact kernel should."""
    n_threads = work.num_threads
    seen = len(key) if stops is None else float(stops.mean())
    plan = make_plan(query.reshape(-1, query.shape[-1]), key, seen, scale, options, n_threads)
    head = Head(query, key, value, stops, scale, options, plan, work)
    head.field.lse = output.lse  # of every query, estimated where its output is
    sample = Sample(head, options.random_state)
    if sample.empty:
        return HeadReport("exact", seen, 1.0, 0.0, 0.0, "too few keys before any query")
    flat = output.rows.reshape(-1, output.rows.shape[-1])
    if options.near is not None:
        whole = options.near == 1.0 if isinstance(options.near, float) else options.near >= len(key)
        size = len(key) if whole else options.near * (seen if isinstance(options.near, float) else 1)
        look = sample.search_size(size)
        touched = head.run(look.threshold, flat)
        error, bound = sample.check(flat)
        return HeadReport("near+far", touched, touched / seen, error, 0.0, "near field of the given size", bound)
    look = sample.search(_MARGIN * options.tolerance, _PAYS * seen)
    threshold = look.threshold
    if look.error <= options.tolerance and look.touched < _PAYS * seen:
        for _ in range(_RUNS):
            touched = head.run(threshold, flat)
            error, bound = sample.check(flat, options.tolerance)
            if bound <= options.tolerance:
                return HeadReport("near+far", touched, touched / seen, error, 0.0, "within the tolerance", bound)
            if touched > _AGAIN * seen:
                break
            beyond = math.sqrt(error * bound) / options.tolerance
            threshold = min(threshold, 1.0) * min(_MARGIN, _MARGIN / beyond) ** _CORRECTION
    return HeadReport("exact", seen, 1.0, 0.0, 0.0, "approximation does not pay at this tolerance")
