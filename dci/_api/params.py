"""The parameters of an index, checked once and frozen."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from .._runtime.types import FloatArray
from ..errors import InvalidTypeError, InvalidValueError
from . import validation as check

DIRECTIONS = ("auto", "random", "principal", "query")
RANKINGS = ("auto", "max", "sum")
STORES = ("float32", "float16", "int8")


@dataclass(frozen=True)
class Params:
    """What `DCI` was asked for; None stands for "auto" among the counts.

    Attributes
    ----------
    metric : {"l2", "ip", "cosine"}
    directions : {"auto", "random", "principal", "query"} or (L * m, d) float32
        The u_jl of the papers.
    ranking : {"auto", "max", "sum"}
    n_composite : int or None
        L, the number of composite indices.
    n_simple : int or None
        m, the number of simple indices in each of them.
    n_levels : int or None
    recall : float
    store : {"float32", "float16", "int8"}
    """

    metric: str
    directions: str | FloatArray
    ranking: str
    n_composite: int | None
    n_simple: int | None
    n_levels: int | None
    recall: float
    store: str = "float32"

    @classmethod
    def checked(cls, values: Mapping[str, object]) -> "Params":
        """Take arguments of `DCI` by name; raise InvalidValueError or InvalidTypeError for what cannot be used."""
        directions = values["directions"]
        composite = check.check_count_or_auto(values["n_composite"], "n_composite")
        simple = check.check_count_or_auto(values["n_simple"], "n_simple")
        if isinstance(directions, str):
            kind: str | FloatArray = check.check_choice(directions, "directions", DIRECTIONS)
        elif directions is None:
            raise InvalidTypeError(f"directions: expected one of {DIRECTIONS} or an array, received None")
        else:
            kind = _direction_array(directions, composite, simple)
        return cls(
            metric=check.check_metric(values["metric"]),
            directions=kind,
            ranking=check.check_choice(values["ranking"], "ranking", RANKINGS),
            n_composite=composite,
            n_simple=simple,
            n_levels=check.check_count_or_auto(values["n_levels"], "n_levels"),
            recall=check.check_recall(values["recall"]),
            store=check.check_choice(values["store"], "store", STORES),
        )

    @property
    def all_auto(self) -> bool:
        """Whether exact search may take the place of ranking."""
        return (
            isinstance(self.directions, str)
            and self.directions == self.ranking == "auto"
            and self.n_composite is self.n_simple is self.n_levels is None
        )


def _direction_array(directions: object, composite: int | None, simple: int | None) -> FloatArray:
    array, absmax = check.as_points(directions, "directions")  # type: ignore[arg-type]
    if len(array) == 0 or not np.all(np.any(array != 0, axis=1)) or absmax > 1e15:
        raise InvalidValueError(
            f"directions: expected at least one row, none of them zero or above 1e15, received shape {array.shape}"
        )
    total = len(array)
    if total % (composite or 1) or (simple is not None and simple * (composite or 1) != total):
        raise InvalidValueError(
            f"directions: expected n_composite * n_simple rows, received {total} rows with "
            f"n_composite={composite or 'auto'} and n_simple={simple or 'auto'}"
        )
    return array
