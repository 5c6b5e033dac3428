"""A mixture of curved clusters, made in blocks: as many points as there is memory for, each block by its own seed."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

BLOCK = 100_000  # points of a block
COMPONENTS, INTRINSIC = 400, 12
QUERY_BLOCK = 1 << 40  # far from every block of points


class Mixture:
    """Points of many clusters, each a smooth surface of few dimensions, of sizes that fall as a power law.

    Parameters
    ----------
    dim : int
    """

    def __init__(self, dim: int) -> None:
        rng = np.random.default_rng([0, dim])
        self.dim = dim
        shares = np.arange(1, COMPONENTS + 1) ** -0.7
        self.shares = shares / shares.sum()
        self.centers = 0.6 * rng.standard_normal((COMPONENTS, dim)).astype(np.float32)
        self.maps = rng.standard_normal((COMPONENTS, INTRINSIC, dim)).astype(np.float32) / np.sqrt(INTRINSIC)

    def blocks(self, n: int) -> Iterator[np.ndarray]:
        """Yield n points, (at most BLOCK, dim) float32 at a time."""
        for number, start in enumerate(range(0, n, BLOCK)):
            yield self.block(number, min(BLOCK, n - start))

    def queries(self, count: int) -> np.ndarray:
        """Return other points of the same distribution, (count, dim) float32."""
        return self.block(QUERY_BLOCK, count)

    def block(self, number: int, count: int) -> np.ndarray:
        """Return the first points of a block, (count, dim) float32."""
        rng = np.random.default_rng([1, number])
        component = np.sort(rng.choice(COMPONENTS, count, p=self.shares))
        rows = rng.standard_normal((count, self.dim), dtype=np.float32)
        rows *= 0.1
        latent = np.tanh(rng.standard_normal((count, INTRINSIC), dtype=np.float32))
        bounds = np.searchsorted(component, np.arange(COMPONENTS + 1))
        for which in range(COMPONENTS):
            some = slice(bounds[which], bounds[which + 1])
            rows[some] += np.tanh(latent[some] @ self.maps[which]) + self.centers[which]
        return rows[rng.permutation(count)]
