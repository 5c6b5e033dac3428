"""What became of the attention calls of a block or a layer: counted, bounded, readable."""

from collections import Counter
from collections.abc import Sequence
from copy import deepcopy
from dataclasses import dataclass, field
from textwrap import indent
from threading import Lock
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from attention.report import Report

_MOST_REASONS = 16  # reasons quote shapes, so that their number has no bound of its own
_OTHER = "other reasons"

_lock = Lock()  # one for all records: a record that owned one could be neither copied nor pickled


@dataclass
class Calls:
    """Calls of about the same shape (lengths within a factor of two), added up.

    Attributes
    ----------
    query, key : tuple of int
        The largest shapes seen.
    count : int
    methods : dict from str to int
        How many heads each method served.
    share : float
        Keys touched over keys there, the mean of all heads.
    error, error_bound : float
        The largest estimate and the largest bound of a head's error.
    seconds : float
        Wall time.
    """

    query: tuple[int, ...]
    key: tuple[int, ...]
    count: int = 0
    methods: Counter[str] = field(default_factory=Counter)
    share: float = 0.0
    error: float = 0.0
    error_bound: float = 0.0
    seconds: float = 0.0

    def add(self, query: tuple[int, ...], key: tuple[int, ...], report: "Report") -> None:
        """Add a call."""
        self.query, self.key = max(self.query, query), max(self.key, key)
        heads_before = self.methods.total()
        self.count += 1
        self.methods.update(head.method for head in report.heads)
        touched = heads_before * self.share + sum(head.share for head in report.heads)
        self.share = touched / max(1, self.methods.total())
        self.error = max(self.error, report.worst_error)
        self.error_bound = max([self.error_bound, *(head.error_bound for head in report.heads)])
        self.seconds += report.seconds

    def __str__(self) -> str:
        methods = ", ".join(f"{name} {count}" for name, count in self.methods.most_common())
        return (
            f"{self.count} × query {self.query} key {self.key}: heads {methods or 'none'}; "
            f"keys touched {self.share:.1%}, error about {self.error:.1e}, bound {self.error_bound:.1e}, "
            f"{self.seconds:.3f} s"
        )


class Record:
    """Adds up calls; lengths, heads and batches are grouped by powers of two, which bounds the memory."""

    def __init__(self) -> None:
        self.taken: dict[tuple[int, ...], Calls] = {}
        self.left: Counter[str] = Counter()

    def take(self, query: Sequence[int], key: Sequence[int], report: "Report") -> None:
        """Add a call that dci_attention has answered."""
        query, key = tuple(query), tuple(key)
        group = (*(size.bit_length() for size in query[:-1]), key[-2].bit_length(), query[-1])
        with _lock:
            self.taken.setdefault(group, Calls(query, key)).add(query, key, report)

    def leave(self, reason: str) -> None:
        """Count a call that torch has answered."""
        with _lock:
            known = reason in self.left or len(self.left) < _MOST_REASONS
            self.left[reason if known else _OTHER] += 1

    def report(self) -> "CallsReport":
        """Copy what the record holds now."""
        with _lock:
            return CallsReport(deepcopy(list(self.taken.values())), dict(self.left))


@dataclass(frozen=True)
class CallsReport:
    """Calls inside a `use` block, or of one layer; printable.

    Attributes
    ----------
    taken : list of Calls
        What dci_attention answered, by shape.
    left : dict from str to int
        Why calls were left to torch, and how many.
    """

    taken: list[Calls]
    left: dict[str, int]

    def __str__(self) -> str:
        left = [f"{count} × left to torch: {reason}" for reason, count in self.left.items()]
        return "\n".join([*map(str, self.taken), *left]) or "no attention was called"


@dataclass(frozen=True)
class LayerReport:
    """What became of the calls of one attention layer; printable.

    Attributes
    ----------
    name : str
        Its qualified name in the model.
    calls : CallsReport
    why_not : str
        Why dci_attention has answered none of its calls; empty if it has.
    """

    name: str
    calls: CallsReport
    why_not: str

    def __str__(self) -> str:
        return f"{self.name}: {self.why_not}" if self.why_not else indent(f"{self.name}:\n{self.calls}", "    ")[4:]


@dataclass(frozen=True)
class ModelReport:
    """What became of the attention layers of an accelerated model; printable.

    Attributes
    ----------
    layers : list of LayerReport
        In the model's order, the layers that were not chosen included.
    """

    layers: list[LayerReport]

    @property
    def taken(self) -> list[str]:
        """Names of the layers of which dci_attention has answered calls."""
        return [layer.name for layer in self.layers if not layer.why_not]

    @property
    def left(self) -> dict[str, str]:
        """Names of the other layers, and why."""
        return {layer.name: layer.why_not for layer in self.layers if layer.why_not}

    def __str__(self) -> str:
        return "\n".join(map(str, self.layers))
