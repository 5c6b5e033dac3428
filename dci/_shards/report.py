"""What an index in shards tells of itself."""

from dataclasses import dataclass


@dataclass(frozen=True)
class ShardedStats:
    """What was chosen and measured.

    Attributes
    ----------
    n_points, dim : int
    metric : {"l2", "ip", "cosine"}
    partition : {"chunks", "cells"}
    n_shards : int
    points : tuple of int
        Of each shard.
    n_ranked : int
        Shards that have a structure; others are searched exactly.
    nbytes : int
        Memory of points and structures of all shards.
    shards_visited : float
        By a query for 10 neighbours at the recall of the index, on average.
    max_visits, max_candidates : int or None
        What such a query may spend in each of them; None for exact search.
    recall_at_10 : float or None
        Merged recall of the held-out queries; None where nothing had to be measured.
    """

    n_points: int
    dim: int
    metric: str
    partition: str
    n_shards: int
    points: tuple[int, ...]
    n_ranked: int
    nbytes: int
    shards_visited: float
    max_visits: int | None
    max_candidates: int | None
    recall_at_10: float | None
