"""The rivals at attention, one class each: exact, ranked, bucketed, and approximations that need no retraining.

A rival is constructed with its settings, `fit` builds what depends on the keys, `attend` answers; both are timed. All
of them take tensors of shape (heads, length, width), float32, and use the threads that PyTorch and faiss were given.
Queries that are a sample of a sequence may be asked where `sampled` says so and nothing is causal; the others need the
whole sequence.
Grids ascend in effort.
"""

from __future__ import annotations

import math
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from attention import AttentionOptions, dci_attention
from attention.embedding import embed_keys, embed_queries
from comparisons.data.datasets import optional
from comparisons.knn.adapters import Arguments

ROWS = 512  # queries whose scores against all keys are in memory at once
SHARES = (1 / 256, 1 / 64)  # of the keys, for what is told how many to take


class Attention:
    """What the suites need of a rival.

    Parameters
    ----------
    threads : int
    causal : bool
    **settings
        The rival's own.
    """

    key: ClassVar[str]
    name: ClassVar[str]  # in tables and plots
    module: ClassVar[str] = "torch"
    package: ClassVar[str] = "torch"
    causal_too: ClassVar[bool] = False
    sampled: ClassVar[bool] = True

    def __init__(self, threads: int, causal: bool = False, **settings: Any) -> None:
        self.threads, self.causal, self.settings = threads, causal, settings

    @classmethod
    def grid(cls, length: int, width: int) -> list[Arguments]:
        """Return settings worth trying at a length, in ascending order of effort."""
        return [{}]

    def fit(self, query: Tensor, key: Tensor, value: Tensor) -> None:
        """Build what depends on the keys; `query` is there for what wants a sample of it."""
        self.k, self.v = key, value
        self.scale = 1 / math.sqrt(key.shape[-1])

    def attend(self, query: Tensor) -> Tensor:
        """Return the output, (heads, length, width)."""
        raise NotImplementedError

    def touched(self) -> list[float]:
        """Return, of each head, how many keys (or what stands for keys) a query was compared with in full."""
        return [float(self.k.shape[1])] * len(self.k)

    def notes(self) -> Arguments:
        """Return what the rival says about itself, for the record."""
        return {}


# ------------------------------------------------------------------------------------------------------ exact


class Exact(Attention):
    """PyTorch's own, fused and blocked."""

    key, name, causal_too = "exact", "torch exact", True

    def attend(self, query: Tensor) -> Tensor:
        return F.scaled_dot_product_attention(query[None], self.k[None], self.v[None], is_causal=self.causal)[0]


class Textbook(Attention):
    """softmax(Q Kᵀ) V as it is written down, some rows at a time so that the scores fit into memory."""

    key, name, causal_too = "textbook", "textbook", True

    def attend(self, query: Tensor) -> Tensor:
        out = torch.empty_like(query[..., : self.v.shape[-1]])
        for start in range(0, query.shape[1], ROWS):
            rows = slice(start, start + ROWS)
            scores = query[:, rows] @ self.k.mT * self.scale
            if self.causal:
                at = torch.arange(query.shape[1])[rows, None]
                scores.masked_fill_(torch.arange(self.k.shape[1]) > at, -math.inf)
            out[:, rows] = scores.softmax(-1) @ self.v
        return out


class ExactTopK(Attention):
    """Softmax over the k keys that really weigh most: the ceiling of every method that keeps k keys."""

    key, name, causal_too = "exact-topk", "exact top-k", True

    @classmethod
    def grid(cls, length: int, width: int) -> list[Arguments]:
        return [{"k": max(1, int(share * length))} for share in SHARES]

    def attend(self, query: Tensor) -> Tensor:
        heads = zip(query, self.k, self.v, strict=True)
        return torch.stack([_over(q, k, v, self._best(q, k), self.scale) for q, k, v in heads])

    def _best(self, query: Tensor, key: Tensor) -> Tensor:
        parts, at = [], torch.arange(len(key))
        for start in range(0, len(query), ROWS):
            rows = slice(start, start + ROWS)
            scores = query[rows] @ key.T
            if self.causal:
                scores.masked_fill_(at > at[rows, None], -math.inf)
            found = scores.topk(min(self.settings["k"], len(key)), sorted=False)
            parts.append(found.indices.masked_fill_(found.values == -math.inf, -1))
        return torch.cat(parts)

    def touched(self) -> list[float]:
        return [float(self.settings["k"])] * len(self.k)


def _over(query: Tensor, key: Tensor, value: Tensor, ids: Tensor, scale: float) -> Tensor:
    """Softmax of each query (n, d) over the keys `ids` (n, k), none where -1; zeros without any."""
    out = query.new_empty((len(query), value.shape[-1]))
    step = max(1, (1 << 22) // (ids.shape[1] * key.shape[1]))
    for start in range(0, len(query), step):
        rows = slice(start, start + step)
        here = ids[rows].clamp_min(0)
        scores = torch.einsum("nd,nkd->nk", query[rows], key[here]) * scale
        weights = scores.masked_fill_(ids[rows] < 0, -math.inf).softmax(-1).nan_to_num_(0.0)
        out[rows] = torch.einsum("nk,nkd->nd", weights, value[here])
    return out


# ---------------------------------------------------------------------------------------------- this project


class DCIAttention(Attention):
    """Near field and far field of this project, told the tolerance, or what else `AttentionOptions` has."""

    key, name, causal_too, sampled = "dci", "dci_attention", True, False
    module, package = "attention", "dci-attention[torch]"

    @classmethod
    def grid(cls, length: int, width: int) -> list[Arguments]:
        return [{"tolerance": tolerance} for tolerance in (0.2, 0.1, 0.05, 0.02)]

    def __init__(self, threads: int, causal: bool = False, **settings: Any) -> None:
        super().__init__(threads, causal, **settings)
        self.options = AttentionOptions(num_threads=threads, **settings)  # made once, as a user does

    def attend(self, query: Tensor) -> Tensor:
        out, self.report = dci_attention(
            query[None], self.k[None], self.v[None], is_causal=self.causal, options=self.options, return_report=True
        )
        return out[0]

    def touched(self) -> list[float]:
        return [head.keys_touched for head in self.report.heads]

    def notes(self) -> Arguments:
        heads = self.report.heads
        return {"estimated": [head.error for head in heads], "approximated": sum(h.method != "exact" for h in heads)}


class RankedTopK(DCIAttention):
    """Softmax over the k keys that this project's index finds, with directions made for the queries."""

    key, name, causal_too, sampled = "dci-topk", "dci top-k", True, True
    embedding: ClassVar[str] = "query"

    @classmethod
    def grid(cls, length: int, width: int) -> list[Arguments]:
        return [{"top_k": max(1, int(share * length))} for share in SHARES]

    def __init__(self, threads: int, causal: bool = False, **settings: Any) -> None:
        super().__init__(threads, causal, **{"far_field": "none", "embedding": self.embedding} | settings)


class IceFormer(RankedTopK):
    """The same as published: T_K and T_Q on random directions (Mao, Ester & Li 2024)."""

    key, name = "iceformer", "IceFormer"
    embedding = "random"


# -------------------------------------------------------------------------------------------------- buckets


class Faiss(Attention):
    """Softmax over the k keys that an index of faiss finds; subclasses say which."""

    module, package = "faiss", "faiss-cpu"

    def fit(self, query: Tensor, key: Tensor, value: Tensor) -> None:
        super().fit(query, key, value)
        self.faiss = optional("faiss", f"the rival {self.key!r}", "faiss-cpu")
        self.faiss.omp_set_num_threads(self.threads)
        self.indices = [self.make(head.numpy()) for head in key]

    def make(self, key: np.ndarray) -> Any:
        """Return an index of one head's keys."""
        raise NotImplementedError

    def asked(self, query: np.ndarray) -> np.ndarray:
        """Return queries as the index wants them."""
        return query

    def attend(self, query: Tensor) -> Tensor:
        self.faiss.omp_set_num_threads(self.threads)
        parts = []
        for q, k, v, index in zip(query, self.k, self.v, self.indices, strict=True):
            ids = index.search(self.asked(q.numpy()), self.settings["k"])[1]
            parts.append(_over(q, k, v, torch.from_numpy(ids), self.scale))
        return torch.stack(parts)

    def touched(self) -> list[float]:
        return [float(self.settings["k"])] * len(self.k)


class FaissIVF(Faiss):
    """Buckets by k-means, those with the largest inner product of query and centre searched."""

    key, name = "ivf", "faiss IVF"

    @classmethod
    def grid(cls, length: int, width: int) -> list[Arguments]:
        nlist = 2 ** round(math.log2(max(length, 64)) / 2)
        pairs = zip(SHARES, (nlist // 16, nlist // 4), strict=True)
        return [{"nlist": nlist, "nprobe": max(1, p), "k": max(1, int(share * length))} for share, p in pairs]

    def make(self, key: np.ndarray) -> Any:
        index = ivf(self.faiss, key, self.settings["nlist"])
        index.nprobe = self.settings["nprobe"]
        return index


def ivf(faiss: Any, key: np.ndarray, nlist: int, inner_product: bool = True) -> Any:
    """Return faiss IVF of keys, by inner product or by distance."""
    metric = faiss.METRIC_INNER_PRODUCT if inner_product else faiss.METRIC_L2
    quantizer = (faiss.IndexFlatIP if inner_product else faiss.IndexFlatL2)(key.shape[1])
    index = faiss.IndexIVFFlat(quantizer, key.shape[1], nlist, metric)
    index.cp.min_points_per_centroid = 1  # silences a warning, changes nothing else
    index.train(key)
    index.add(key)
    return index


class FaissLSH(Faiss):
    """Signs of random projections of T_K(k) and T_Q(q), the k nearest by Hamming distance."""

    key, name = "lsh", "faiss LSH"

    @classmethod
    def grid(cls, length: int, width: int) -> list[Arguments]:
        return [{"bits": 256, "k": max(1, int(share * length))} for share in SHARES]

    def make(self, key: np.ndarray) -> Any:
        index = self.faiss.IndexLSH(key.shape[1] + 1, self.settings["bits"], True, True)
        embedded = embed_keys(key)
        index.train(embedded)
        index.add(embedded)
        return index

    def asked(self, query: np.ndarray) -> np.ndarray:
        return embed_queries(query)


class Reformer(Attention):
    """Buckets of random rotations for queries and keys alike, sorted; a chunk attends to three (Kitaev et al. 2020)."""

    key, name, causal_too, sampled = "reformer", "Reformer buckets", True, False

    @classmethod
    def grid(cls, length: int, width: int) -> list[Arguments]:
        return [{"chunk": chunk, "rounds": rounds} for chunk, rounds in ((64, 2), (128, 4), (256, 8))]

    def attend(self, query: Tensor) -> Tensor:
        chunk, (_, length, width) = min(self.settings["chunk"], query.shape[1]), query.shape
        n = length // chunk * chunk  # what is left over joins in through padding
        n += chunk * (n < length)
        outs, logs = [], []
        for turn in range(self.settings["rounds"]):
            rotation = torch.randn((width, max(1, n // chunk // 2)), generator=torch.Generator().manual_seed(turn))
            q_order, k_order = (_bucket(x, rotation).argsort(dim=-1, stable=True) for x in (query, self.k))
            q = F.pad(_take(query, q_order), (0, 0, 0, n - length)).unflatten(1, (-1, chunk))
            k, v = (F.pad(_take(x, k_order), (0, 0, 0, n - length)).unflatten(1, (-1, chunk)) for x in (self.k, self.v))
            # Where keys stand; what fills the last chunk up stands behind all queries.
            q_at, k_at = (F.pad(x, (0, n - length), value=n).unflatten(1, (-1, chunk)) for x in (q_order, k_order))
            k, v, k_at = (torch.cat([x.roll(1, 1), x, x.roll(-1, 1)], 2) for x in (k, v, k_at))
            hidden = k_at[:, :, None] > (q_at[..., None] if self.causal else length)
            scores = (q @ k.mT * self.scale).masked_fill(hidden, -math.inf)
            back = q_order.argsort(-1)
            logs.append(scores.logsumexp(-1).flatten(1)[:, :length].gather(1, back))
            outs.append(_take((scores.softmax(-1).nan_to_num_(0.0) @ v).flatten(1, 2)[:, :length], back))
        weights = torch.stack(logs).softmax(0).nan_to_num_(0.0)[..., None]  # a causal query may meet no earlier key
        return (weights * torch.stack(outs)).sum(0)

    def touched(self) -> list[float]:
        return [3.0 * self.settings["chunk"] * self.settings["rounds"]] * len(self.k)


def _bucket(x: Tensor, rotation: Tensor) -> Tensor:
    turned = F.normalize(x, dim=-1) @ rotation
    return torch.cat([turned, -turned], -1).argmax(-1)


def _take(x: Tensor, order: Tensor) -> Tensor:
    return x.gather(1, order[..., None].expand(-1, -1, x.shape[-1]))


# ------------------------------------------------------------------------------------------- approximations


class Nystrom(Attention):
    """Softmax through the means of segments of queries and of keys (Xiong et al. 2021), with an exact pseudoinverse."""

    key, name, sampled = "nystrom", "Nyström", False

    @classmethod
    def grid(cls, length: int, width: int) -> list[Arguments]:
        return [{"landmarks": count} for count in (32, 64, 128, 256) if 4 * count <= length]

    def attend(self, query: Tensor) -> Tensor:
        segments = torch.arange(query.shape[1]) * self.settings["landmarks"] // query.shape[1]
        counts = segments.bincount()[:, None]
        q, k = (x.new_zeros((len(x), len(counts), x.shape[-1])).index_add_(1, segments, x) / counts
                for x in (query, self.k))  # fmt: skip
        middle = (q @ k.mT * self.scale).softmax(-1)
        right = F.scaled_dot_product_attention(q[None], self.k[None], self.v[None])[0]
        return (query @ k.mT * self.scale).softmax(-1) @ (torch.linalg.pinv(middle) @ right)

    def touched(self) -> list[float]:
        return [float(self.settings["landmarks"])] * len(self.k)


class Performer(Attention):
    """Positive orthogonal random features of the softmax kernel, FAVOR+ (Choromanski et al. 2021)."""

    key, name, causal_too, sampled = "performer", "Performer", True, False

    @classmethod
    def grid(cls, length: int, width: int) -> list[Arguments]:
        return [{"features": count} for count in (64, 256, 1_024)]

    def attend(self, query: Tensor) -> Tensor:
        width, count = query.shape[-1], self.settings["features"]
        generator = torch.Generator().manual_seed(0)
        square = torch.randn((-(-count // width), width, width), generator=generator)
        norms = torch.randn((count, width), generator=generator).norm(dim=1)
        directions = torch.linalg.qr(square)[0].flatten(0, 1)[:count] * norms[:, None]
        q, k = (x * math.sqrt(self.scale) for x in (query, self.k))
        q, k = (x @ directions.T - x.square().sum(-1, keepdim=True) / 2 for x in (q, k))
        q = (q - q.amax(-1, keepdim=True)).exp()  # a factor of each query cancels, and one of all keys
        k = (k - k.amax((-2, -1), keepdim=True)).exp()
        v = F.pad(self.v, (0, 1), value=1.0)  # the last column sums the weights
        if not self.causal:
            out = q @ (k.mT @ v)
        else:
            out, earlier = (
                query.new_empty((*query.shape[:2], v.shape[-1])),
                query.new_zeros((len(k), count, v.shape[-1])),
            )
            for start in range(0, query.shape[1], ROWS):
                rows = slice(start, start + ROWS)
                out[:, rows] = q[:, rows] @ earlier + (q[:, rows] @ k[:, rows].mT).tril_() @ v[:, rows]
                earlier += k[:, rows].mT @ v[:, rows]
        return out[..., :-1] / out[..., -1:].clamp_min(1e-30)

    def touched(self) -> list[float]:
        return [float(self.settings["features"])] * len(self.k)


class Window(Attention):
    """The keys next to each query and the first few (Xiao et al. 2024)."""

    key, name, causal_too, sampled = "window", "window and sinks", True, False
    sinks: ClassVar[int] = 4

    @classmethod
    def grid(cls, length: int, width: int) -> list[Arguments]:
        return [{"window": size} for size in (256, 1_024, 4_096) if size < length]

    def attend(self, query: Tensor) -> Tensor:
        window, out = self.settings["window"], torch.empty_like(query)
        before, after = (window, 0) if self.causal else (window // 2, window // 2)
        for start in range(0, query.shape[1], ROWS):
            rows = torch.arange(start, min(start + ROWS, query.shape[1]))
            first = max(self.sinks, start - before)
            keys = torch.cat([torch.arange(self.sinks), torch.arange(first, int(rows[-1]) + after + 1)])
            keys = keys[keys < self.k.shape[1]]
            seen = (keys >= rows[:, None] - before) & (keys <= rows[:, None] + after) | (keys < self.sinks)
            seen &= (keys <= rows[:, None]) | torch.tensor(not self.causal)
            parts = query[:, rows], self.k[:, keys], self.v[:, keys]
            out[:, rows] = F.scaled_dot_product_attention(*(x[None] for x in parts), attn_mask=seen)[0]
        return out

    def touched(self) -> list[float]:
        return [float(self.settings["window"] + self.sinks)] * len(self.k)


RIVALS: dict[str, type[Attention]] = {
    rival.key: rival
    for rival in (
        Exact, Textbook, DCIAttention, RankedTopK, IceFormer, ExactTopK,
        FaissIVF, FaissLSH, Reformer, Nystrom, Performer, Window,
    )
}  # fmt: skip
