"""What decoding a token took, layer by layer."""

from dataclasses import dataclass


@dataclass(frozen=True)
class IndexReport:
    """What the last token did, and how far the index has come.

    Attributes
    ----------
    length : int
        Keys that are cached.
    folded : int
        Keys that are in cells; the others are attended to exactly.
    keys_touched : float
        Keys and summaries of cells that a query of the last call touched, on average.
    share : float
        `keys_touched` as a share of the keys.
    error : float
        Largest relative L2 error of a head, estimated when keys were folded last; 0.0 if all was exact.
    """

    length: int
    folded: int
    keys_touched: float
    share: float
    error: float

    def __str__(self) -> str:
        error = f", error about {self.error:.1e}" if self.folded else ""
        return f"{self.length} tokens, {self.folded} in cells, {self.keys_touched:.1f} keys touched{error}"


@dataclass(frozen=True)
class CacheReport:
    """What the last token did in every layer that has an index.

    Attributes
    ----------
    layers : tuple of IndexReport
    """

    layers: tuple[IndexReport, ...]

    @property
    def worst_error(self) -> float:
        """Largest estimated error of a layer; 0.0 if there are no layers."""
        return max((layer.error for layer in self.layers), default=0.0)

    def __str__(self) -> str:
        lines = ["layer    length    folded  keys touched   share   error"]
        for i, r in enumerate(self.layers):
            measured = f"{r.keys_touched:12.1f}  {r.share:6.4f}  {r.error:6.4f}"
            lines.append(f"{i:5d}  {r.length:8d}  {r.folded:8d}  {measured}")
        return "\n".join(lines)
