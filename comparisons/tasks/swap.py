"""A contender in the place of `torch.nn.functional.scaled_dot_product_attention`, for a block of code.

Models that call it by that name see no difference: ours, PyTorch's own layers, and those of transformers with
``attn_implementation="sdpa"``. What is no self-attention over a whole sequence (a mask, queries that are not as many as
the keys) goes to PyTorch, unless the contender is this project's, which takes masks itself.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor
from torch.nn import functional

from attention import dci_attention
from attention.demo import head_errors
from comparisons.attention.adapters import DCIAttention, Exact
from comparisons.attention.bench import Contender


@dataclass
class Call:
    """One call of attention; in a model, calls follow its layers.

    Attributes
    ----------
    shape : tuple of int
        Query heads of all sequences, queries, keys, width.
    seconds, processor : float
        Time, and the time that processors were busy, which says more on a busy machine.
    touched : float
        Keys, and what stands for keys, that a query was compared with, as a share of those that it may see.
    errors : list of float
        Relative L2 error of each head's output; empty where nobody judged.
    approximated : float
        Share of the heads that were not left to an exact kernel.
    reasons : Counter
        Why heads were exact.
    """

    shape: tuple[int, int, int, int]
    seconds: float = 0.0
    processor: float = 0.0
    touched: float = 1.0
    errors: list[float] = field(default_factory=list)
    approximated: float = 0.0
    reasons: Counter[str] = field(default_factory=Counter)


@dataclass
class Usage:
    """What `swap` yields: what became of the calls.

    Attributes
    ----------
    calls : list of Call
    judging : float
        Seconds that finding the errors took, which are in no call's.
    """

    calls: list[Call] = field(default_factory=list)
    judging: float = 0.0

    @property
    def seconds(self) -> float:
        return sum(call.seconds for call in self.calls)

    @property
    def processor(self) -> float:
        return sum(call.processor for call in self.calls)


Watch = Callable[[int, Tensor, Tensor], Tensor]  # a call's place, the contender's output, and the exact one


@contextmanager
def swap(contender: Contender, threads: int, judge: bool = False, watch: Watch | None = None) -> Iterator[Usage]:
    """Answer every ``torch.nn.functional.scaled_dot_product_attention`` of the process by a contender.

    Parameters
    ----------
    contender : Contender
        A rival of `comparisons.attention.adapters` with its settings.
    threads : int
        For the contender; PyTorch keeps its own.
    judge : bool
        Compute exact attention as well and keep the errors of heads.
    watch : callable, optional
        With `judge`: is given every call's place, output and exact output, and returns what the model shall have.

    Yields
    ------
    Usage

    Notes
    -----
    Neither for several threads at once, nor inside itself.

    Examples
    --------
    >>> import torch
    >>> from comparisons.attention.adapters import RIVALS
    >>> with torch.no_grad(), swap(Contender(RIVALS["exact-topk"], {"k": 3}), threads=1, judge=True) as usage:
    ...     out = functional.scaled_dot_product_attention(*torch.randn(3, 1, 2, 12, 4))
    >>> usage.calls[0].shape, usage.calls[0].touched
    ((2, 12, 12, 4), 0.25)
    """
    original = functional.scaled_dot_product_attention
    replacement = _Replacement(contender, threads, judge, watch, original)
    functional.scaled_dot_product_attention = replacement
    try:
        yield replacement.usage
    finally:
        functional.scaled_dot_product_attention = original


class _Replacement:
    def __init__(
        self, contender: Contender, threads: int, judge: bool, watch: Watch | None, original: Callable[..., Tensor]
    ) -> None:
        self.contender, self.threads, self.judge, self.watch = contender, threads, judge, watch
        self.original = original
        self.usage, self.inside = Usage(), False
        self.ours = contender.rival(threads, **contender.settings)
        self.ours = self.ours if isinstance(self.ours, DCIAttention) else None

    def __call__(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attn_mask: Tensor | None = None,
        dropout_p: float = 0.0,
        is_causal: bool = False,
        scale: float | None = None,
        enable_gqa: bool = False,
    ) -> Tensor:
        rest = (attn_mask, dropout_p, is_causal)
        named = {"scale": scale, "enable_gqa": enable_gqa}
        if self.inside:  # the contender's own exact parts
            return self.original(query, key, value, *rest, **named)
        n_heads = query.shape[:-2].numel()
        call = Call((n_heads, query.shape[-2], key.shape[-2], query.shape[-1]))
        self.usage.calls.append(call)
        self.inside, start, busy = True, time.perf_counter(), time.process_time()
        try:
            if self.ours is not None:
                out = self._ours(call, query, key, value, *rest, **named)
            elif self.contender.rival is Exact or (left := _why_left(query, key, attn_mask, dropout_p)):
                if self.contender.rival is not Exact:
                    call.reasons[left] += n_heads
                out = self.original(query, key, value, *rest, **named)
            else:
                out = self._rival(call, query, key, value, is_causal, scale)
            call.seconds, call.processor = time.perf_counter() - start, time.process_time() - busy
            if self.judge:
                exact = self.original(query, key, value, *rest, **named)
                call.errors = head_errors(out.flatten(0, -3).float(), exact.flatten(0, -3).float()).tolist()
                out = out if self.watch is None else self.watch(len(self.usage.calls) - 1, out, exact)
                self.usage.judging += time.perf_counter() - start - call.seconds
        finally:
            self.inside = False
        return out

    def _ours(self, call: Call, *arguments: Any, **named: Any) -> Tensor:
        out, report = dci_attention(*arguments, **named, options=self.ours.options, return_report=True)
        call.touched = sum(head.share for head in report.heads) / len(report.heads)
        exact = [head.reason for head in report.heads if head.method in ("exact", "banded")]  # a band is exact too
        call.approximated = 1 - len(exact) / len(report.heads)
        call.reasons.update(exact)
        return out

    def _rival(
        self, call: Call, query: Tensor, key: Tensor, value: Tensor, causal: bool, scale: float | None
    ) -> Tensor:
        if scale is not None:  # rivals divide by √width
            query = query * (scale * query.shape[-1] ** 0.5)
        if key.shape[-3] != query.shape[-3]:
            key, value = (x.repeat_interleave(query.shape[-3] // x.shape[-3], -3) for x in (key, value))
        heads = [x.reshape(-1, *x.shape[-2:]) for x in (query, key, value)]
        rival = self.contender.rival(self.threads, causal, **self.contender.settings)
        rival.fit(*heads)
        out = rival.attend(heads[0]).reshape(*query.shape[:-1], value.shape[-1])
        counts = rival.touched()
        call.touched = _share(sum(counts) / len(counts), key.shape[-2], causal)
        call.approximated = float(call.touched < 1)
        return out


def _why_left(query: Tensor, key: Tensor, attn_mask: Tensor | None, dropout_p: float) -> str:
    if attn_mask is not None:
        return "a mask"
    if dropout_p:
        return "dropout"
    return "" if query.shape[-2] == key.shape[-2] else "fewer queries than keys"


def _share(count: float, n_keys: int, causal: bool) -> float:
    """Return how large a part of the keys that a query may see `count` of them are, on average."""
    count = min(count, n_keys)
    if not causal:
        return count / n_keys
    return (count * (count + 1) / 2 + (n_keys - count) * count) / (n_keys * (n_keys + 1) / 2)
