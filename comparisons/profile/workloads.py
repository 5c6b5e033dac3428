"""What is profiled: attention over real heads, causal too, long smooth heads, decoding; fits and queries of indexes.

Everything runs on one thread, so that processor time and time are the same and no stage waits for another.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache, partial

import numpy as np
import torch

import dci
from attention import AttentionOptions, dci_attention
from attention.decoding.key_value_index import KeyValueIndex
from comparisons.data import heads
from comparisons.data.datasets import ComparisonError, Dataset, load
from comparisons.profile import attention_stages, knn_stages
from comparisons.profile.clock import Replacement

K, RECALL = 10, 0.9
GROUP, OBSERVED = 4, 256  # query heads that share keys; queries of the prompt that an index has seen
TOKENS, SINGLE = 50, 200  # that are decoded, and queries that are asked one by one, in a repeat
MORE = 500  # tokens that there are to decode: fewer than make another fold
CACHED = 32_768
SMOKE_LENGTH, SMOKE_POINTS = 2_560, "manifold-20k-12-128"
Call = Callable[[], object]


@dataclass(frozen=True)
class Job:
    """Something to profile, ready to run again and again.

    Attributes
    ----------
    call : callable
    count : int
        Times are of one of so many: tokens, queries.
    shape : str
        What it is about, in words.
    """

    call: Call
    count: int
    shape: str


@dataclass(frozen=True)
class Workload:
    """A name, what there is to do (on little data if told so), and the stages of it."""

    name: str
    title: str
    unit: str  # what times are of
    prepare: Callable[[bool], Job]
    stages: Callable[[bool], Sequence[Replacement]]


def named(names: str | None) -> list[Workload]:
    """Return the workloads that the user named, comma-separated; all without names."""
    known = {workload.name: workload for workload in WORKLOADS}
    if names is None:
        return list(WORKLOADS)
    if unknown := [name for name in names.split(",") if name not in known]:
        raise ComparisonError(f"unknown workload {unknown[0]!r}: expected some of {', '.join(known)}")
    return [known[name] for name in names.split(",")]


# --------------------------------------------------------------------------------------------------- attention


def _attention(name: str, length: int, count: int, tolerance: float, smoke: bool) -> Job:
    length, count = (min(length, SMOKE_LENGTH), 1) if smoke else (length, count)
    some = heads.load(name, length).some(count)
    tensors = [torch.from_numpy(np.ascontiguousarray(part))[None] for part in (some.query, some.key, some.value)]
    # On little data nothing would be approximated without being told to.
    options = AttentionOptions(tolerance=tolerance, num_threads=1, exact_below=0 if smoke else None)
    causal = heads.split(name)[1]
    call = partial(dci_attention, *tensors, is_causal=causal, options=options)
    return Job(call, 1, f"{some.shape}, tolerance {tolerance:g}")


def _cached(smoke: bool) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, int]:
    """Return queries (1, Hq, …, E) in no order, the first `OBSERVED` of a prompt, keys, values, how many are cached."""
    cached, n_heads = (SMOKE_LENGTH, 1) if smoke else (CACHED, 4)
    some = heads.load("smooth-64-peaked", cached + MORE).some(n_heads)
    rng = np.random.default_rng(0)
    picked = rng.integers(cached, size=(n_heads, GROUP, OBSERVED + MORE))
    drawn = np.stack([some.query[head][picked[head]] for head in range(n_heads)])
    key, value = (torch.from_numpy(np.ascontiguousarray(part))[None] for part in (some.key, some.value))
    return torch.from_numpy(drawn).flatten(0, 1)[None], key, value, cached


def _prompted(smoke: bool) -> tuple[Callable[[], KeyValueIndex], Callable[[KeyValueIndex, int], object], str]:
    """Return what makes an index that holds a prompt, what decodes one token after it, and words."""
    query, key, value, cached = _cached(smoke)
    options = AttentionOptions(tolerance=0.05, num_threads=1, exact_below=0 if smoke else None)

    def make() -> KeyValueIndex:
        index = KeyValueIndex(options)
        index.append(key[:, :, :cached], value[:, :, :cached])
        index.observe(query[:, :, :OBSERVED])
        return index

    def decode(index: KeyValueIndex, token: int) -> object:
        at = slice(cached + token, cached + token + 1)
        index.append(key[:, :, at], value[:, :, at])
        return index.attend(query[:, :, OBSERVED + token : OBSERVED + token + 1])

    n_heads = key.shape[1]
    return make, decode, f"{GROUP * n_heads} query heads on {n_heads} of {cached:,} cached keys x 64, tolerance 0.05"


def _step(smoke: bool) -> Job:
    make, decode, shape = _prompted(smoke)
    index = make()
    decode(index, 0)  # the fold
    token = iter(range(1, MORE))
    count = 5 if smoke else TOKENS
    return Job(lambda: [decode(index, next(token)) for _ in range(count)], count, shape)


def _fold(smoke: bool) -> Job:
    make, decode, shape = _prompted(smoke)
    return Job(lambda: decode(make(), 0), 1, shape)


# -------------------------------------------------------------------------------------------------------- k-NN


@cache
def _load(name: str) -> Dataset:
    return load(name)


def _points(name: str, smoke: bool) -> Dataset:
    data = _load(SMOKE_POINTS if smoke else name)
    return data.head(len(data.points), 500) if smoke else data


def _index(recall: float) -> dci.DCI:
    return dci.DCI(num_threads=1, random_state=0, recall=recall)


def _fit(name: str, recall: float, smoke: bool) -> Job:
    data = _points(name, smoke)
    return Job(lambda: _index(recall).fit(data.points), 1, f"{data.shape}, recall {recall:g}")


@cache
def _fitted(name: str, recall: float, smoke: bool) -> dci.DCI:
    return _index(recall).fit(_points(name, smoke).points)


def _batch(name: str, recall: float, smoke: bool) -> Job:
    data, index = _points(name, smoke), _fitted(name, recall, smoke)
    shape = f"{len(data.queries):,} queries of {data.shape}, recall {recall:g}"
    return Job(lambda: index.query(data.queries, K), 1, shape)


def _single(name: str, recall: float, smoke: bool) -> Job:
    data, index = _points(name, smoke), _fitted(name, recall, smoke)
    queries = data.queries[: 20 if smoke else SINGLE]
    shape = f"one query of {data.shape} at a time, recall {recall:g}"
    return Job(lambda: [index.query(query, K) for query in queries], len(queries), shape)


def _query_stages(name: str, recall: float, smoke: bool) -> Sequence[Replacement]:
    return knn_stages.query(_fitted(name, recall, smoke).stats_.max_candidates or 0)


# -------------------------------------------------------------------------------------------------------------- all


def _call(name: str, title: str, data: str, length: int, count: int, tolerance: float) -> Workload:
    prepare = partial(_attention, data, length, count, tolerance)
    return Workload(name, title, "call", prepare, lambda smoke: attention_stages.CALL)


def _of_index(data: str, recall: float) -> tuple[Workload, ...]:
    stages = partial(_query_stages, data, recall)
    return (
        Workload(f"fit-{data}", f"Fitting {data}", "fit", partial(_fit, data, recall), lambda smoke: knn_stages.FIT),
        Workload(f"batch-{data}", f"A batch of queries, {data}", "batch", partial(_batch, data, recall), stages),
        Workload(f"single-{data}", f"Single queries, {data}", "query", partial(_single, data, recall), stages),
    )


REAL, CAUSAL = heads.ENCODER, heads.ENCODER + heads.CAUSAL
WORKLOADS = (
    _call("heads-4k", "Real heads, 4,096 tokens", REAL, 4_096, 12, 0.05),
    _call("heads-16k", "Real heads, 16,384 tokens", REAL, 16_384, 6, 0.05),
    _call("heads-32k", "Real heads, 32,768 tokens", REAL, 32_768, 6, 0.05),
    _call("causal-16k", "Causal real heads, 16,384 tokens", CAUSAL, 16_384, 6, 0.05),
    _call("causal-16k-loose", "Causal real heads, 16,384 tokens, tolerance 0.1", CAUSAL, 16_384, 6, 0.1),
    _call("smooth-64k", "Smooth wide heads, 65,536 tokens", "smooth-128-diffuse", 65_536, 2, 0.05),
    Workload("step", "Decoding a token", "token", _step, lambda smoke: attention_stages.DECODING),
    Workload("fold", "Decoding: a fold", "fold", _fold, lambda smoke: attention_stages.DECODING),
    *_of_index("manifold", 0.95),
    *_of_index("glove", RECALL),
    *_of_index("sentences", RECALL),
)
