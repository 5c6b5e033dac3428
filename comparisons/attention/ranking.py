"""Ranking against bucketing: what the keys that a method examines weigh in the softmax, at equal numbers of them.

A key is *examined* when its inner product with the query is computed in full. What leads there is not counted: `dci`
ranks keys by 16 projected coordinates (64 bytes a key; all keys, or where the method says so the tenth of them in the
best cells), IVF ranks cells by their centres, LSH with few bits ranks buckets by Hamming distance. Of `dci`
the `max_candidates` best ranked keys are examined, of the others whole cells or buckets, and of the last ones as many
keys as are still allowed: their expected share, as if in random order. faiss's IndexLSH with many bits has no
buckets: it scans the codes of all keys, 128 bytes each with 1,024 bits. That is a ranking too, and is shown apart, as
"faiss LSH codes". The queries that directions are fitted to are others than those that are asked.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

import dci
from attention.embedding import embed_keys, embed_queries
from comparisons.attention.adapters import ivf
from comparisons.data.datasets import optional
from comparisons.data.heads import NEEDLES, Heads
from comparisons.harness.results import Row
from comparisons.knn.adapters import Arguments

ASKED = 256  # queries of a head
TOP = 32  # "the most heavily weighted keys"
DIRECTIONS = 16  # m of both ways to rank
VISITED = 0.1  # of the keys, those in the best cells, are ranked where not all of them are
SAMPLE = 1_024  # queries that directions are fitted to
CELLS = (128, 64, 32)  # keys in a cell of IVF, about
BUCKET_BITS = (6, 8, 10, 12, 16)
CODE_BITS = (256, 1_024)

# Of one head: method, its options, and at each share the mass recalled and the share of the true top keys.
Found = tuple[str, Arguments, np.ndarray, np.ndarray]


def rows(heads: Heads, shares: Sequence[float], threads: int) -> list[Row]:
    """Measure every method on all heads: a row for each setting and share, with a list over heads."""
    gathered: dict[str, tuple[str, Arguments, list[np.ndarray], list[np.ndarray]]] = {}
    for number in range(len(heads.key)):
        for method, options, mass, top in head_rows(heads, number, shares, threads):
            mine = gathered.setdefault(f"{method} {options}", (method, options, [], []))
            mine[2].append(mass)
            mine[3].append(top)
    return [
        {
            "method": method,
            "options": options,
            "keys": share,
            "heads": len(mass),
            "mass": [float(of_head[at]) for of_head in mass],
            "top": [float(of_head[at]) for of_head in top],
        }
        for method, options, mass, top in gathered.values()
        for at, share in enumerate(shares)
    ]


def head_rows(heads: Heads, number: int, shares: Sequence[float], threads: int) -> Iterator[Found]:
    """Measure every method on one head."""
    query, key = heads.query[number], heads.key[number]
    rng = np.random.default_rng(number)
    if heads.name == "needle":  # the queries that have one
        asked = np.arange(len(query) - min(NEEDLES, len(query) // 4), len(query))
    else:
        asked = rng.choice(len(query), min(ASKED, len(query) // 4), replace=False)
    others = np.setdiff1d(np.arange(len(query)), asked)
    sample = query[rng.choice(others, min(SAMPLE, len(others)), replace=False)]
    weights = softmax(query[asked] @ key.T / np.sqrt(np.float32(key.shape[1])))
    counts = [max(1, round(share * len(key))) for share in shares]
    best = np.argpartition(-weights, TOP, axis=1)[:, :TOP]
    is_top = np.zeros_like(weights)
    np.put_along_axis(is_top, best, 1.0 / TOP, axis=1)
    asked_queries = np.ascontiguousarray(query[asked])

    ordered = -np.sort(-weights, axis=1)
    yield "exact top-k", {}, _upto(ordered, counts), np.minimum(np.array(counts) / TOP, 1.0)
    yield from _ranked(asked_queries, key, sample, counts, weights, is_top, threads)
    yield from _cells(asked_queries, key, counts, weights, is_top)
    yield from _codes(asked_queries, key, counts, weights, is_top)


def softmax(scores: np.ndarray) -> np.ndarray:
    """Return the weights of attention, row by row."""
    weights = np.exp(scores - scores.max(axis=1, keepdims=True))
    return weights / weights.sum(axis=1, keepdims=True)


def _upto(gains: np.ndarray, counts: Sequence[int]) -> np.ndarray:
    """Return the mean over queries of the sum of the first so many gains."""
    return np.cumsum(gains, axis=1)[:, np.array(counts) - 1].mean(axis=0)


def _ranked(
    query: np.ndarray, key: np.ndarray, sample: np.ndarray, counts: Sequence[int], weights: np.ndarray,
    is_top: np.ndarray, threads: int,
) -> Iterator[Found]:  # fmt: skip
    """Rank by directions made for the queries, and by the published embedding on random ones."""
    settings = {"n_composite": 1, "n_simple": DIRECTIONS, "random_state": 0, "num_threads": threads}
    aware = dci.DCI("ip", directions="query", **settings).fit(key, queries=sample)
    random = dci.DCI("l2", directions="random", **settings).fit(embed_keys(key))
    lifted = embed_queries(query)
    ways = (("dci", aware, query, 1.0), (f"dci, {VISITED:.0%} ranked", aware, query, VISITED))
    for method, index, asked, visited in (*ways, ("dci random directions", random, lifted, 1.0)):
        mass, top = [], []
        for count in counts:
            visits = {} if visited == 1.0 else {"max_visits": max(visited, min(1.0, 2 * count / len(key)))}
            ids = index.query(asked, count, max_candidates=count, **visits).indices
            found = ids >= 0  # cells that hold so many keys are opened, so that few are missing
            mass.append((np.take_along_axis(weights, ids, axis=1) * found).sum(axis=1).mean())
            top.append((np.take_along_axis(is_top, ids, axis=1) * found).sum(axis=1).mean())
        yield method, {"directions": DIRECTIONS, "ranked": visited}, np.array(mass), np.array(top)


def _cells(
    query: np.ndarray, key: np.ndarray, counts: Sequence[int], weights: np.ndarray, is_top: np.ndarray
) -> Iterator[Found]:
    """Visit the cells of faiss IVF in its order, by inner product and by the distance of T_K and T_Q."""
    faiss = optional("faiss", "faiss IVF", "faiss-cpu")
    for inner_product in (True, False):
        points, asked = (key, query) if inner_product else (embed_keys(key), embed_queries(query))
        for size in CELLS:
            nlist = max(1, len(key) // size)
            index = ivf(faiss, np.ascontiguousarray(points), nlist, inner_product)
            order = index.quantizer.search(asked, nlist)[1]
            cell_of = index.quantizer.search(points, 1)[1].ravel()
            sizes = np.bincount(cell_of, minlength=nlist)
            held = np.cumsum(sizes[order], axis=1)
            gains = [np.stack([np.bincount(cell_of, row, nlist) for row in of]) for of in (weights, is_top)]
            mass, top = (_partly(held, np.take_along_axis(gain, order, axis=1), counts) for gain in gains)
            metric = "inner product" if inner_product else "l2 of T_K, T_Q"
            yield "faiss IVF", {"nlist": nlist, "metric": metric}, mass, top


def _partly(held: np.ndarray, gains: np.ndarray, counts: Sequence[int]) -> np.ndarray:
    """Return the mean gain of the first so many keys, where whole cells hold `held` keys and gain `gains`."""
    gained = np.cumsum(gains, axis=1)
    start = np.zeros((len(held), 1))
    held, gained = np.concatenate([start, held], axis=1), np.concatenate([start, gained], axis=1)
    return np.array([np.mean([np.interp(count, h, g) for h, g in zip(held, gained, strict=True)]) for count in counts])


def _codes(
    query: np.ndarray, key: np.ndarray, counts: Sequence[int], weights: np.ndarray, is_top: np.ndarray
) -> Iterator[Found]:
    """Take the keys nearest by the Hamming distance of faiss LSH's codes of T_K and T_Q."""
    faiss = optional("faiss", "LSH", "faiss-cpu")
    points, asked = embed_keys(key), embed_queries(query)
    for bits in (*BUCKET_BITS, *CODE_BITS):
        index = faiss.IndexLSH(points.shape[1], bits, True, True)
        index.train(points)
        if bits in CODE_BITS:
            index.add(points)
            ids = index.search(asked, max(counts))[1]
            gains = (np.take_along_axis(of, ids, axis=1) for of in (weights, is_top))
            mass, top = (_upto(gain, counts) for gain in gains)
            yield "faiss LSH codes", {"bits": bits}, mass, top
            continue
        codes, of_queries = (np.unpackbits(index.sa_encode(x), axis=1, count=bits, bitorder="little").astype(np.float32)
                             for x in (points, asked))  # fmt: skip
        distance = of_queries.sum(axis=1)[:, None] + codes.sum(axis=1) - 2 * of_queries @ codes.T
        distance = np.rint(distance).astype(np.int64)
        held = np.cumsum([np.bincount(row, minlength=bits + 1) for row in distance], axis=1)
        found = [
            _partly(held, np.stack([np.bincount(d, g, bits + 1) for d, g in zip(distance, of, strict=True)]), counts)
            for of in (weights, is_top)
        ]
        yield "LSH buckets", {"bits": bits}, *found
