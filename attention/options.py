"""The options of approximate attention, checked once and frozen."""

import dataclasses
import json
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, Literal

from dci._runtime.scalars import Checks, describe, is_int, is_real, listed
from dci._runtime.threads import MAX_THREADS

from .errors import InvalidTypeError, InvalidValueError

FAR_FIELDS = ("auto", "none", "mean", "covariance")
EMBEDDINGS = ("auto", "query", "random")
_checks = Checks(InvalidTypeError, InvalidValueError)


@dataclass(frozen=True, eq=False)
class AttentionOptions:
    """How attention is approximated, and how well.

    Parameters
    ----------
    tolerance : float
        Largest relative L2 error of a head's output against exact attention, in (0, 1). A head is approximated only
        where an upper bound of its error (`HeadReport.error_bound`, of 99 % confidence) is within; single queries may
        err more.
    top_k : int, optional
        Attend to this many keys of each query and to no others: the IceFormer of Mao, Ester & Li 2024. Goes with
        ``far_field="none"``, which it implies, and not with `near`. Where exact attention runs for another reason
        (a mask without structure, a sliding window), it attends to all visible keys, and the report says so.
    near : int or float, optional
        Size of a query's near field, the keys that are attended to exactly. An int is a count of keys, at least 1; a
        float is a share of the visible keys, in (0, 1]: 1 is one key, 1.0 all of them. None sets the size from the
        tolerance.
    far_field : {"auto", "none", "mean", "covariance"}
        How the keys outside of the near field are estimated: "mean" takes a cell's count, mean key and mean value,
        "covariance" also the covariances inside the cell, "none" leaves these keys out. "auto" is "covariance", or
        "none" with `top_k`.
    exact_below : int, optional
        With fewer keys than this, exact attention runs; counted are the keys that a query sees, on average (half of
        them, with as many causal queries). None means the measured crossover: 4,096 keys with nine heads, 8,192 with
        three, 16,384 with one, if there are as many queries. Fewer queries than this, or than 2,048, are exact
        as well.
    directions : int or "auto"
        m, the number of projected coordinates.
    embedding : {"auto", "query", "random"}
        What keys are ranked by: "query" projects on directions made for the queries, "random" projects the
        published T_K and T_Q on random directions. "auto" is "query".
    sink : int
        So many of the first keys always belong to the near field.
    window : int
        So many of the last keys before each query always belong to the near field.
    random_state : int
        Seed of samples and of random directions, at least 0.
    num_threads : int, optional
        None means as many as PyTorch uses.

    Raises
    ------
    InvalidValueError, InvalidTypeError
        A value cannot be used, or two contradict each other.

    Notes
    -----
    Create options outside of code that `torch.compile` traces.

    References
    ----------
    Mao, Ester & Li 2024, IceFormer, arXiv 2405.02842.

    Examples
    --------
    >>> AttentionOptions(tolerance=0.1, sink=4).tolerance
    0.1
    >>> AttentionOptions(top_k=32).far_field
    'none'
    """

    tolerance: float = 0.05
    top_k: int | None = None
    near: int | float | None = None
    far_field: Literal["auto", "none", "mean", "covariance"] = "auto"
    exact_below: int | None = None
    directions: int | Literal["auto"] = "auto"
    embedding: Literal["auto", "query", "random"] = "auto"
    sink: int = 0
    window: int = 0
    random_state: int = 0
    num_threads: int | None = None
    _text: str = field(init=False, repr=False)

    def __new__(cls, *values: Any, **named: Any) -> "AttentionOptions":
        """Refuse unknown options: the generated ``__init__`` would with an error that is not the package's."""
        names = [f.name for f in dataclasses.fields(cls) if f.init]
        unknown = [name for name in named if name not in names]
        if unknown or len(values) > len(names):
            received = ", ".join(map(repr, unknown)) or f"{len(values)} values"
            raise InvalidTypeError(f"options: expected some of {', '.join(names)}, received {received}")
        return super().__new__(cls)

    def __post_init__(self) -> None:
        checked = {
            "tolerance": _tolerance(self.tolerance),
            "top_k": _count(self.top_k, "top_k", "None or an int >= 1"),
            "near": _near(self.near),
            "far_field": _far_field(self.far_field, self.top_k),
            "exact_below": _count(self.exact_below, "exact_below", "None or an int >= 0", least=0),
            "directions": _directions(self.directions),
            "embedding": _checks.choice(self.embedding, "embedding", EMBEDDINGS),
            "sink": _checks.count(self.sink, "sink", "an int >= 0", least=0),
            "window": _checks.count(self.window, "window", "an int >= 0", least=0),
            "random_state": _checks.count(self.random_state, "random_state", "an int >= 0", least=0),
            "num_threads": _num_threads(self.num_threads),
        }
        if self.top_k is not None and self.near is not None:
            raise InvalidValueError(
                f"near: expected None together with top_k={self.top_k}, which is the near field's size, "
                f"received {self.near}"
            )
        for name, value in checked.items():
            object.__setattr__(self, name, value)
        object.__setattr__(self, "_text", json.dumps(checked))

    @property
    def text(self) -> str:
        """The options as JSON, as an argument of the operator "dci::attention"."""
        return self._text

    # By text, which tells near=1, one key, from near=1.0, all of them.
    def __eq__(self, other: object) -> bool:
        return isinstance(other, AttentionOptions) and self._text == other._text

    def __hash__(self) -> int:
        return hash(self._text)

    def replace(self, **changes: Any) -> "AttentionOptions":
        """Return a copy with some values changed."""
        values = {f.name: getattr(self, f.name) for f in dataclasses.fields(self) if f.init}
        return AttentionOptions(**(values | changes))


@lru_cache
def from_text(text: str) -> AttentionOptions:
    """Return the options that `AttentionOptions.text` stands for; "" are the defaults."""
    return AttentionOptions(**json.loads(text or "{}"))


def _count(value: Any, name: str, expected: str, least: int = 1, most: int | None = None) -> int | None:
    """Return a count, or None as it is."""
    return None if value is None else _checks.count(value, name, expected, least, most)


def _tolerance(value: Any) -> float:
    if not is_real(value):
        raise InvalidTypeError(f"tolerance: expected a number between 0 and 1, received {describe(value)}")
    if not 0 < value < 1:  # NaN fails this too
        raise InvalidValueError(f"tolerance: expected a number between 0 and 1, both excluded, received {value}")
    return float(value)


def _near(value: Any) -> int | float | None:
    expected = "None, an int >= 1 or a float share in (0, 1]"
    if value is None or is_int(value):
        return _count(value, "near", expected)
    return _checks.share(value, "near", expected)


def _far_field(value: Any, top_k: object) -> str:
    if is_int(value) or isinstance(value, bool):
        # What earlier versions took.
        now = {"False": "none", "0": "mean", "2": "covariance"}.get(str(value))
        instead = f" (now called {now!r})" if now else ""
        raise InvalidTypeError(f"far_field: expected {listed(FAR_FIELDS)}, received {describe(value)}{instead}")
    far_field = _checks.choice(value, "far_field", FAR_FIELDS)
    if top_k is None:
        return far_field
    if far_field not in ("auto", "none"):
        raise InvalidValueError(f"far_field: expected 'none' together with top_k={top_k}, received {far_field!r}")
    return "none"


def _directions(value: Any) -> int | str | None:
    if isinstance(value, str) and value == "auto":
        return value
    return _checks.count(value, "directions", "'auto' or an int >= 1")


def _num_threads(value: Any) -> int | None:
    return _count(value, "num_threads", f"None or an int from 1 to {MAX_THREADS}", most=MAX_THREADS)
