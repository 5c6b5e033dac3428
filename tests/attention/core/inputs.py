"""Heads of attention to test the engine with, and how to call it."""

from functools import lru_cache

import torch
from torch.nn import functional as F

from attention import AttentionOptions, dci_attention

ALWAYS = AttentionOptions(exact_below=0, num_threads=2)


def attend(query, key, value, options=ALWAYS, **arguments):
    """Output and the report of the only head, which must have been approximated unless said otherwise."""
    out, report = dci_attention(query, key, value, options=options, return_report=True, **arguments)
    return out, report.heads[0]


def exact(query, key, value, **arguments):
    return F.scaled_dot_product_attention(query, key, value, **arguments)


def off(found, expected):
    """Relative L2 error."""
    return float((found - expected).norm() / expected.norm())


def spread_to(query, key, spread):
    """Scale queries until the scores of one have this standard deviation."""
    return query * (spread / (query[:500] @ key[:500].T * query.shape[-1] ** -0.5).std(dim=1).mean())


@lru_cache(8)
def smooth(n, width=32, seed=0, spread=2.0, length=None, value_width=None):
    """Keys and values smooth functions of one latent of 6 dimensions with 5 % noise, queries near keys."""
    generator = torch.Generator().manual_seed(seed)
    latent = torch.randn(n, 6, generator=generator)
    parts = [
        torch.tanh(latent @ torch.randn(6, w, generator=generator) / 6**0.5) for w in (width, value_width or width)
    ]
    key, value = (x + 0.05 * x.std() * torch.randn(x.shape, generator=generator) for x in parts)
    rows = torch.randint(n, (length or n,), generator=generator)
    query = key[rows] + 0.05 * torch.randn(len(rows), width, generator=generator)
    return spread_to(query, key, spread)[None], key[None], value[None]


@lru_cache(8)
def clustered(n, width=32, seed=0, spread=2.0, n_clusters=40):
    generator = torch.Generator().manual_seed(seed)
    centres, means = torch.randn(2, n_clusters, width, generator=generator)
    of_key, of_query = torch.randint(n_clusters, (2, n), generator=generator)
    noise = 0.3 * torch.randn(3, n, width, generator=generator)
    key, query, value = centres[of_key] + noise[0], centres[of_query] + noise[1], means[of_key] + noise[2]
    return spread_to(query, key, spread)[None], key[None], value[None]


@lru_cache(8)
def gaussian(n, width=32, seed=0, spread=1.0):
    query, key, value = torch.randn(3, 1, n, width, generator=torch.Generator().manual_seed(seed))
    return spread_to(query[0], key[0], spread)[None], key, value


@lru_cache(4)
def prefix(n):
    """A mask under which every query sees the first half, and its past."""
    return torch.ones(n, n, dtype=torch.bool).tril() | (torch.arange(n) < n // 2)


VISIBLE = {
    "all": lambda n: {},
    "causal": lambda n: {"is_causal": True},
    "prefix": lambda n: {"attn_mask": prefix(n)},
}


def hide_needle(name, tensors, place, rows):
    """Put one key at `place` that the queries `rows` give all their mass to; return what they attend to."""
    query, key, value = (x.clone() for x in tensors)
    generator = torch.Generator().manual_seed(7)
    axis = F.normalize(torch.randn(key.shape[-1], generator=generator), dim=0)
    size = key.norm(dim=-1).mean()
    root = key.shape[-1] ** 0.5
    if name == "same norm":  # and the query an outlier
        key[0, place] = size * axis
        query[0, rows] = 30 * root / size * axis
    elif name == "far outside":
        key[0, place] = 10 * size * axis
        query[0, rows] = 4 * root / size * axis
    elif name == "off the others":  # an inlier but for one component
        key[0, place] += 2 * size * axis
        query[0, rows] += 20 * root / size * axis
    elif name == "far off, shared":  # every query sees it a little, these do wholly
        key[0, place] = 5 * size * axis
        query[0] += 0.1 * root / size * axis
        query[0, rows] += 6 * root / size * axis
    weights = torch.softmax(query[0, rows] @ key[0].T / root, dim=-1)
    return query, key, value, weights[:, place].min()


NEEDLES = ("same norm", "far outside", "off the others", "far off, shared")
