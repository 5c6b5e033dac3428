"""Rows of tasks: what a model's answers cost under a contender, and what they are worth.

A row has ``suite``, ``data``, ``length``, ``threads`` (`comparisons.attention.bench.Bench` adds these), ``method`` and
``options`` (the contender), `costs`, and `accuracy` or `perplexity`. ``forced`` says that short sequences were ranked
too (``exact_below=0``), which would otherwise go to exact attention.
"""

from __future__ import annotations

import gc
import math
import statistics
import time
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

from torch import nn

from comparisons.attention.bench import Contender
from comparisons.harness.machine import status_bytes
from comparisons.harness.results import Row
from comparisons.tasks.clock import clocked
from comparisons.tasks.swap import Usage, swap

Answer = TypeVar("Answer")
TIMES = ("attention_seconds", "attention_processor", "mlp_seconds")
ENOUGH = 10.0  # seconds, after which no run is repeated


def measure(
    contender: Contender,
    threads: int,
    forward: Callable[[], Answer],
    judge: bool = True,
    mlps: Sequence[nn.Module] = (),
) -> tuple[Answer, Row]:
    """Run a model with a contender for its attention.

    Parameters
    ----------
    contender : Contender
    threads : int
    forward : callable
        Runs the model; PyTorch's threads and gradients are the caller's concern (`Bench.step` sees to both).
    judge : bool
        Find the errors of layers as well; the time that takes is not counted.
    mlps : sequence of nn.Module, optional
        Of the model, whose time is told apart.

    Returns
    -------
    answer
        What `forward` returns.
    row : dict
        ``method``, ``options``, ``forced``, `costs`, ``peak_bytes`` more than before, and ``mlp_seconds``.
    """
    gc.collect()
    before = reset_peak()
    start = time.perf_counter()
    with swap(contender, threads, judge) as usage, clocked(mlps) as mlp_seconds:
        answer = forward()
    seconds = time.perf_counter() - start - usage.judging
    forced = contender.settings.get("exact_below") == 0
    row: Row = {"method": contender.method, "options": contender.settings, "forced": forced}
    row |= costs(usage, seconds) | {"peak_bytes": max(0, status_bytes("VmHWM") - before)}
    return answer, row | ({"mlp_seconds": mlp_seconds[0]} if mlps else {})


def repeated(row: Row, measure: Callable[[], Row], most: int) -> Row:
    """Return a row with medians of its times and those of further runs: at most so many, and none after 10 s."""
    found = [row]
    while len(found) < most and sum(one["seconds"][0] for one in found) < ENOUGH:
        found.append(measure())
    medians = {name: statistics.median(one[name] for one in found) for name in TIMES if name in row}
    return row | medians | {"seconds": [one["seconds"][0] for one in found]}


def costs(usage: Usage, seconds: float) -> Row:
    """Return the costs of a run of a model.

    Returns
    -------
    dict
        ``seconds`` (of the whole model, in a list), ``attention_seconds``, ``attention_processor`` (seconds of all
        processors), ``touched`` (share of the visible keys),
        ``approximated`` (share of the heads), ``worst`` (largest relative error of a head) with ``worst_call`` and
        ``worst_head`` (in order of call and of head, sequences first), ``call_errors`` (the largest of each call),
        ``reasons`` why heads were exact.
    """
    calls = usage.calls
    row: Row = {"seconds": [seconds], "attention_seconds": usage.seconds, "attention_processor": usage.processor}
    if calls:
        row |= {
            "touched": sum(call.touched for call in calls) / len(calls),
            "approximated": sum(call.approximated for call in calls) / len(calls),
            "reasons": dict(sum((call.reasons for call in calls), Counter())),
        }
    if judged := [(max(call.errors), at) for at, call in enumerate(calls) if call.errors]:
        worst, at = max(judged)
        row |= {"worst": worst, "worst_call": at, "worst_head": calls[at].errors.index(worst)}
        row["call_errors"] = [error for error, _ in judged]
    return row


def accuracy(metric: str, reached: float, exact: float, items: int) -> Row:
    """Return an accuracy (higher is better, 1 is all) of `items` answers beside that with exact attention."""
    kept = reached / exact if exact else math.nan
    return {"metric": metric, "accuracy": reached, "exact_accuracy": exact, "kept": kept, "items": items}


def perplexity(loss: float, exact: float, agreement: float, items: int) -> Row:
    """Return the perplexity of a mean loss (nats a token) beside exact attention's.

    Returns
    -------
    dict
        ``perplexity``, ``exact_perplexity``, ``growth`` (0.01 is one per cent more), ``accuracy`` and ``kept``: the
        share of the tokens whose most likely successor is that of exact attention.
    """
    row = {"metric": "same next token", "accuracy": agreement, "exact_accuracy": 1.0, "kept": agreement, "items": items}
    ours, theirs = math.exp(loss), math.exp(exact)
    return row | {"perplexity": ours, "exact_perplexity": theirs, "growth": ours / theirs - 1}


def reset_peak() -> int:
    """Forget the peak of this process's resident memory (Linux), and return the bytes that are resident now."""
    Path("/proc/self/clear_refs").write_text("5")
    return status_bytes("VmRSS")
