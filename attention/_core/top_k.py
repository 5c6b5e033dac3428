"""Attention to the k keys that an index finds, and to no others: IceFormer (Mao, Ester & Li 2024).

Keys and queries are embedded by T_K and T_Q, and a query's k nearest keys in a `dci.DCI` are those with the largest
weights. With causal attention the index is asked for keys before a segment of queries; keys inside it are compared
one by one.
"""

import numpy as np

import dci
from dci._runtime.threads import Work
from dci._runtime.types import FloatArray

from ..embedding import embed_keys, embed_queries
from ..options import AttentionOptions
from ..report import HeadReport
from .output import Output

_BLOCK = 8192  # queries between two looks at Ctrl-C: half a second
_SEGMENT = 1024  # queries whose keys are looked for with one filter; to measure anew, time causal calls with `top_k`
_NUMBERS = 1 << 22  # of gathered keys at once, 16 MB
_SAMPLE = 64  # queries whose error is measured


def attend_top_k(
    query: FloatArray,
    key: FloatArray,
    value: FloatArray,
    stops: np.ndarray | None,
    scale: float,
    options: AttentionOptions,
    work: Work,
    output: Output,
) -> HeadReport:
    """Attend with the queries (G, L, E) of one head of keys (S, E) and values (S, Ev)."""
    out, lse = output
    k = min(int(options.top_k or 1), len(key))
    random = options.embedding == "random"
    index = dci.DCI(
        directions="random" if random else "auto", random_state=options.random_state, num_threads=work.num_threads
    )
    length = query.shape[1]
    rng = np.random.default_rng(options.random_state)
    rows = rng.choice(query.shape[0] * length, min(_SAMPLE * 4, query.shape[0] * length), replace=False)
    flat, flat_out = query.reshape(-1, query.shape[-1]), out.reshape(-1, out.shape[-1])
    index.fit(embed_keys(key), queries=None if random else embed_queries(flat[rows]))
    if stops is None:
        for start in range(0, len(flat), _BLOCK):
            work.tick()
            part = slice(start, start + _BLOCK)
            found = index.query(embed_queries(flat[part]), k).indices
            some = Output(flat_out[part], None if lse is None else lse[part])
            _weigh(flat[part], key, value, found, scale, some)
    else:
        for start in range(0, length, _SEGMENT):
            work.tick()
            part = slice(start, min(start + _SEGMENT, length))
            for group in range(query.shape[0]):
                found = _found_before(index, query[group, part], key, stops[part], k)
                some = Output(out[group, part], None if lse is None else lse.reshape(-1, length)[group, part])
                _weigh(query[group, part], key, value, found, scale, some)
    seen = len(key) if stops is None else float(stops.mean())
    error = _error(flat, key, value, stops, scale, flat_out, rows[:_SAMPLE])
    return HeadReport("top-k", float(k), min(1.0, k / seen), error, 0.0, f"the {k} keys that the index finds")


def _found_before(index: dci.DCI, query: FloatArray, key: FloatArray, stops: np.ndarray, k: int) -> np.ndarray:
    """Find the k best keys before each query's stop, (n, k), -1 where there are fewer."""
    boundary, last = int(stops[0]), int(stops[-1])
    before = index.query(embed_queries(query), k, filter=np.arange(boundary)).indices
    within = np.broadcast_to(np.arange(boundary, last), (len(query), last - boundary))
    ids = np.concatenate([before, np.where(within < stops[:, None], within, -1)], axis=1)
    scores = np.concatenate([_scores(query, key, before), query @ key[boundary:last].T], axis=1)
    scores[ids < 0] = -np.inf
    best = np.argpartition(-scores, min(k, scores.shape[1]) - 1, axis=1)[:, :k]
    return np.take_along_axis(ids, best, axis=1)


def _scores(query: FloatArray, key: FloatArray, ids: np.ndarray) -> FloatArray:
    out = np.empty(ids.shape, np.float32)
    step = max(1, _NUMBERS // (ids.shape[1] * key.shape[1]))
    for start in range(0, len(ids), step):
        part = slice(start, start + step)
        out[part] = np.matmul(key[ids[part]], query[part, :, None])[..., 0]
    return out


def _weigh(
    query: FloatArray, key: FloatArray, value: FloatArray, ids: np.ndarray, scale: float, output: Output
) -> None:
    """Softmax over the keys `ids` (n, k) of each query, none where -1."""
    step = max(1, _NUMBERS // (ids.shape[1] * max(key.shape[1], value.shape[1])))
    for start in range(0, len(ids), step):
        part = slice(start, start + step)
        here = ids[part]
        scores = np.where(here < 0, -np.inf, _scores(query[part], key, here) * np.float32(scale))
        top = scores.max(axis=1, keepdims=True)
        weights = np.exp(scores - top)
        total = weights.sum(axis=1, keepdims=True)
        weights /= total
        output.rows[part] = np.matmul(weights[:, None], value[here])[:, 0]
        if output.lse is not None:
            output.lse[part] = (top + np.log(total))[:, 0]


def _error(
    query: FloatArray,
    key: FloatArray,
    value: FloatArray,
    stops: np.ndarray | None,
    scale: float,
    out: FloatArray,
    rows: np.ndarray,
) -> float:
    """Relative L2 error of these rows against attention to all keys."""
    scores = query[rows] @ key.T * np.float32(scale)
    if stops is not None:
        scores[np.arange(len(key)) >= stops[rows % len(stops), None]] = -np.inf
    weights = np.exp(scores - scores.max(axis=1, keepdims=True))
    exact = weights @ value / weights.sum(axis=1, keepdims=True)
    return float(np.linalg.norm(out[rows] - exact) / max(np.linalg.norm(exact), np.finfo(np.float32).tiny))
