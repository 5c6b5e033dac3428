"""What a call of attention did, head by head."""

from dataclasses import dataclass


@dataclass(frozen=True)
class HeadReport:
    """How one head of keys and values was attended to, by all the query heads that share it.

    Attributes
    ----------
    method : {"exact", "banded", "near+far", "top-k"}
    keys_touched : float
        Keys and summaries of cells that a query touched, on average.
    share : float
        `keys_touched` as a share of the keys that a query may see, on average.
    error : float
        Relative L2 error of a query head's output, the largest of those that share the keys, estimated from some 130
        queries of each that were computed exactly; 0.0 where all were.
    seconds : float
        Wall time; work on several heads at once is shared out evenly.
    reason : str
        Why this method.
    error_bound : float
        Upper bound of the true error; 0.0 where all was exact. Approximated heads whose bound is beyond the tolerance
        are left to the exact kernel, unless `near` or `top_k` fix what is attended to.

    Notes
    -----
    The bound has a confidence of 99 % for a query head, by the central limit theorem with a correction for skewness;
    queries that the kernels suspect of larger errors, and those with larger outputs, are more likely to be looked at.
    It covers the error of the query head as a whole: the error of a single query can be larger. It does not cover
    queries whose error is far beyond that of all that were looked at and that nothing made suspicious.
    """

    method: str
    keys_touched: float
    share: float
    error: float
    seconds: float
    reason: str
    error_bound: float = 0.0


@dataclass(frozen=True)
class Report:
    """What one call did.

    Attributes
    ----------
    heads : tuple of HeadReport
        One for every distinct head of keys and values, in row-major order of batch and heads. Query heads that share
        keys and values (``enable_gqa``, broadcasting) share their report.
    seconds : float
        Wall time of the call.

    Examples
    --------
    >>> print(Report((HeadReport("exact", 12.0, 1.0, 0.0, 0.001, "few keys"),), 0.001))
    1 head, 1.0 ms, worst error about 0.0000
    head  method    keys touched   share   error   bound        ms  reason
       0  exact             12.0  1.0000  0.0000  0.0000       1.0  few keys
    """

    heads: tuple[HeadReport, ...]
    seconds: float

    @property
    def worst_error(self) -> float:
        """Largest estimated error of a head; 0.0 if there are no heads."""
        return max((head.error for head in self.heads), default=0.0)

    def __str__(self) -> str:
        plural = "" if len(self.heads) == 1 else "s"
        lines = [
            f"{len(self.heads)} head{plural}, {self.seconds * 1e3:.1f} ms, worst error about {self.worst_error:.4f}",
            "head  method    keys touched   share   error   bound        ms  reason",
        ]
        for i, h in enumerate(self.heads):
            errors = f"{h.error:6.4f}  {h.error_bound:6.4f}"
            measured = f"{h.keys_touched:12.1f}  {h.share:6.4f}  {errors}  {h.seconds * 1e3:8.1f}"
            lines.append(f"{i:4d}  {h.method:8s}  {measured}  {h.reason}")
        return "\n".join(lines)
