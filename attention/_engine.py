"""The approximation of one batch of heads: each is planned, calibrated and computed, or left to the exact kernel."""

import time
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from dci._threads import Work

from . import _exact, _topk
from ._head import Head
from ._plan import make_plan
from ._sample import Sample
from .options import AttentionOptions
from .report import HeadReport

_LEAST_KEYS = 512  # below which there is nothing to put into cells
_MARGIN = 0.9  # of the tolerance: other queries may err more than the sampled ones
_SURE = 1.2  # times the tolerance, for the error with its standard error
_RUNS = 3
_CORRECTION = 3.0  # error falls about with the third root of the threshold
_PLANS_ARE_DEAR = 16384  # keys: below, planning every head in vain would cost over 5 % of exact attention
_HEADS_A_PROBE = 6
_PAYS = 0.35  # of the visible keys: touching more takes longer than the exact kernel


def attend(
    query: Tensor, key: Tensor, value: Tensor, stops: Tensor | None, scale: float, options: AttentionOptions
) -> tuple[Tensor, list[HeadReport]]:
    """Attend with every head's queries to the keys that they see, within the tolerance.

    Parameters
    ----------
    query : Tensor of shape (H, G, L, E), float32
    key, value : Tensor of shape (H, S, E) and (H, S, Ev), float32
    stops : Tensor of shape (L,), int64, ascending, optional
        Query i sees the keys before stops[i], at least one.
    scale : float
    options : AttentionOptions

    Returns
    -------
    out : Tensor of shape (H, G, L, Ev), float32
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
    out = query.new_empty((*query.shape[:-1], value.shape[-1]))
    reports: list[HeadReport] = [HeadReport("exact", key.shape[-2], 1.0, 0.0, 0.0, "too few keys for cells")] * n_heads
    n_threads = options.num_threads or torch.get_num_threads()
    # Heads side by side where that keeps the threads busy, else one after the other on all of them.
    aside = n_heads % n_threads == 0 or n_heads >= 3 * n_threads
    outer, inner = (n_threads, 1) if aside else (1, n_threads)
    ends = None if stops is None else stops.numpy().astype(np.int64)
    attend_head = _topk.attend_head if options.top_k is not None else _near_and_far
    heads = Work(outer)

    def run(h: int) -> None:
        begin = time.perf_counter()
        with Work(inner, parent=heads) as work:
            arrays = (query[h].numpy(), np.ascontiguousarray(key[h].numpy()), value[h].numpy())
            report = attend_head(*arrays, ends, scale, options, work, out[h].numpy())
        reports[h] = replace(report, seconds=time.perf_counter() - begin)

    if options.top_k is not None or key.shape[-2] >= _LEAST_KEYS:
        probes = range(n_heads)
        if key.shape[-2] < _PLANS_ARE_DEAR and options.near is None and options.exact_below is None:
            probes = range(0, n_heads, _HEADS_A_PROBE * (2 if key.shape[-2] < _PLANS_ARE_DEAR // 2 else 1))
        with heads:
            heads.run(run, probes)
            if all(reports[h].method == "exact" for h in probes):
                for h in set(range(n_heads)).difference(probes):
                    reason = "approximation does not pay for the heads tried"
                    reports[h] = replace(reports[probes[0]], seconds=0.0, reason=reason)
            else:
                heads.run(run, sorted(set(range(n_heads)).difference(probes)))
    left = [h for h in range(n_heads) if reports[h].method == "exact"]
    # Several at once, or one thread waits for the other where queries see more and more keys; not all, to copy few.
    size = len(left) if len(left) == n_heads else 2 * n_threads
    for start in range(0, len(left), max(size, 1)):
        begin = time.perf_counter()
        some = slice(None) if size == n_heads else left[start : start + size]
        out[some] = _exact.up_to(query[some], key[some], value[some], stops, scale)
        each = (time.perf_counter() - begin) / len(left[start : start + size])
        for h in left[start : start + size]:
            reports[h] = replace(reports[h], seconds=reports[h].seconds + each)
    return out, reports


def _near_and_far(
    query: np.ndarray,
    key: np.ndarray,
    value: np.ndarray,
    stops: np.ndarray | None,
    scale: float,
    options: AttentionOptions,
    work: Work,
    out: np.ndarray,
) -> HeadReport:
    """Attend with one head, into (G, L, Ev), or report that the exact kernel should."""
    n_threads = work.num_threads
    plan = make_plan(query.reshape(-1, query.shape[-1]), key, scale, options, n_threads)
    head = Head(query, key, value, stops, scale, options, plan, work)
    sample = Sample(head, options.random_state)
    seen = len(key) if stops is None else float(stops.mean())
    if sample.empty:
        return HeadReport("exact", seen, 1.0, 0.0, 0.0, "too few keys before any query")
    flat = out.reshape(-1, out.shape[-1])
    if options.near is not None:
        whole = options.near == 1.0 if isinstance(options.near, float) else options.near >= len(key)
        size = len(key) if whole else options.near * (seen if isinstance(options.near, float) else 1)
        found = sample.search_size(size)
        touched = head.run(found.threshold, flat)
        return HeadReport(
            "near+far", touched, touched / seen, sample.check(flat)[0], 0.0, "near field of the given size"
        )
    found = sample.search(_MARGIN * options.tolerance, _PAYS * seen)
    threshold = found.threshold
    if found.error <= options.tolerance and found.touched < _PAYS * seen:
        for _ in range(_RUNS):
            touched = head.run(threshold, flat)
            error, bound = sample.check(flat)
            if error <= options.tolerance and bound <= _SURE * options.tolerance:
                return HeadReport("near+far", touched, touched / seen, error, 0.0, "within the tolerance")
            if touched > _PAYS * seen / 2:
                break
            threshold = (
                min(threshold, 1.0)
                * min(_MARGIN * options.tolerance / error, _SURE * options.tolerance / bound) ** _CORRECTION
            )
    return HeadReport("exact", seen, 1.0, 0.0, 0.0, "approximation does not pay at this tolerance")
