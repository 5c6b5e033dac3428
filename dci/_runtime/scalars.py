"""Checks of single values, which both packages make with errors of their own."""

import numbers
from collections.abc import Sequence
from typing import Any

import numpy as np

from ..errors import InvalidTypeError, InvalidValueError


def is_int(value: object) -> bool:
    """Whether a value is an integer, which a bool is not."""
    return isinstance(value, numbers.Integral) and not isinstance(value, bool)


def is_real(value: object) -> bool:
    """Whether a value is a real number, which a bool is not."""
    return isinstance(value, numbers.Real) and not isinstance(value, bool)


def describe(value: object) -> str:
    """Name a received value: an array by shape and dtype, anything else by type and repr."""
    if isinstance(value, np.ndarray):
        return f"an array of shape {value.shape} and dtype {value.dtype}"
    text = repr(value)
    if len(text) > 60:
        text = text[:57] + "..."
    return f"{type(value).__name__} {text}"


class Checks:
    """Return a value if it is what is expected, raise what this was made with otherwise.

    Parameters
    ----------
    wrong_type, wrong_value : exception classes
    """

    def __init__(self, wrong_type: type[InvalidTypeError], wrong_value: type[InvalidValueError]) -> None:
        self._wrong_type, self._wrong_value = wrong_type, wrong_value

    def count(self, value: Any, name: str, expected: str, least: int = 1, most: int | None = None) -> int:
        """Return an int of at least `least` and at most `most`."""
        if not is_int(value):
            raise self._wrong_type(f"{name}: expected {expected}, received {describe(value)}")
        if value < least or (most is not None and value > most):
            raise self._wrong_value(f"{name}: expected {expected}, received {value}")
        return int(value)

    def share(self, value: Any, name: str, expected: str) -> float:
        """Return a number in (0, 1]."""
        if not is_real(value):
            raise self._wrong_type(f"{name}: expected {expected}, received {describe(value)}")
        if not 0 < value <= 1:  # NaN fails this too
            raise self._wrong_value(f"{name}: expected {expected}, received {value}")
        return float(value)

    def choice(self, value: Any, name: str, choices: Sequence[str]) -> str:
        """Return one of some strings."""
        expected = listed(choices)
        if not isinstance(value, str):
            raise self._wrong_type(f"{name}: expected {expected}, received {describe(value)}")
        if value not in choices:
            raise self._wrong_value(f"{name}: expected {expected}, received {value!r}")
        return value


def listed(choices: Sequence[str]) -> str:
    """Return what a message says of some strings."""
    return "one of " + ", ".join(map(repr, choices))
