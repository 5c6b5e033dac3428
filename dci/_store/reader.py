"""Values and arrays out of a container, each checked as it is taken: what is not as it has to be raises."""

import math
import sys
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from .._native.kernels import survey
from .._runtime.types import FloatArray
from ..errors import FileFormatError, InvalidTypeError

_GENERATORS = ("PCG64", "PCG64DXSM")

Array = npt.NDArray[Any]


class Reader:
    """Takes values and arrays out of a container, and raises where they are not what they have to be.

    Parameters
    ----------
    meta, sections : dict
        The container's.
    name : str
        What messages call the file.
    data : bool
        Whether large sections are to be looked at as well.
    """

    def __init__(self, meta: dict[str, Any], sections: Mapping[str, Array], name: str, data: bool) -> None:
        self.meta = meta
        self.sections = sections
        self.name = name
        self.data = data

    def error(self, what: str, expected: str, received: object) -> FileFormatError:
        return FileFormatError(f"{self.name}: {what}: expected {expected}, received {received}")

    def group(self, path: str) -> dict[str, Any]:
        """Return an object of the meta."""
        value = self.meta.get(path)
        if not isinstance(value, dict):
            raise self.error(path, "an object", type(value).__name__)
        return value

    def check_str(self, group: dict[str, Any], key: str) -> None:
        """Refuse a value that is no str."""
        if not isinstance(group[key], str):
            raise self.error(key, "a str", repr(group[key])[:60])

    def _value(self, path: str) -> Any:
        group, _, key = path.rpartition(".")
        return (self.group(group) if group else self.meta).get(key)

    def number(self, path: str, least: float = 0.0, most: float = sys.float_info.max) -> float:
        """Return a number in [least, most]."""
        value = self._value(path)
        if isinstance(value, bool) or not isinstance(value, int | float) or not least <= value <= most:
            raise self.error(path, f"a number from {least} to {most}", repr(value)[:60])
        return float(value)

    def count(self, path: str, least: int, most: int) -> int:
        """Return an int in [least, most]."""
        value = self._value(path)
        if type(value) is not int or not least <= value <= most:
            raise self.error(path, f"an int from {least} to {most}", repr(value)[:60])
        return value

    def flag(self, path: str) -> bool:
        """Return a bool."""
        value = self._value(path)
        if not isinstance(value, bool):
            raise self.error(path, "true or false", repr(value)[:60])
        return value

    def choice(self, path: str, choices: tuple[str, ...]) -> str:
        """Return one of `choices`."""
        value = self._value(path)
        if value not in choices:
            raise self.error(path, f"one of {choices}", repr(value)[:60])
        return str(value)

    def array(self, name: str, dtype: npt.DTypeLike, shape: tuple[int | None, ...]) -> Array:
        """Return a section of this dtype and shape, None standing for any length."""
        array = self.sections.get(name)
        wanted = f"{np.dtype(dtype)} of shape ({', '.join('any' if n is None else str(n) for n in shape)})"
        if array is None:
            raise self.error(name, wanted, "no such section")
        fits = len(shape) == array.ndim and all(n in (None, have) for n, have in zip(shape, array.shape, strict=True))
        if array.dtype != dtype or not fits:
            raise self.error(name, wanted, f"{array.dtype} of shape {array.shape}")
        return array

    def matrix(
        self,
        name: str,
        shape: tuple[int | None, ...],
        least: int = 0,
        *,
        most: float = math.inf,
        absmax: float | None = None,
    ) -> FloatArray:
        """Return a section of float32 of at least so many rows, finite and up to `most`, and to `absmax` if given."""
        array: FloatArray = self.array(name, np.float32, shape)
        if len(array) < least:
            raise self.error(name, f"at least {least} rows", len(array))
        if array.size:
            bad, largest = survey(array.reshape(-1, array.shape[-1]))
            if bad >= 0 or largest > most:
                raise self.error(name, f"finite numbers up to {most}", "others")
            if absmax is not None and largest > absmax:
                raise self.error(name, f"numbers up to {absmax}", largest)
        return array

    def optional(self, name: str, dtype: npt.DTypeLike, shape: tuple[int | None, ...]) -> Array | None:
        """Return a section, or None if there is none."""
        return self.array(name, dtype, shape) if name in self.sections else None

    def needed(self, name: str, wanted: bool, shape: tuple[int, ...]) -> FloatArray | None:
        """Return a section of float32 that has to be there if, and only if, it is wanted."""
        if wanted:
            return self.array(name, np.float32, shape)
        if name in self.sections:
            raise self.error(name, "no such section", "one")
        return None

    def in_range(self, name: str, array: Array, least: int, stop: int) -> Array:
        """Return an array of ints in [least, stop)."""
        if array.size and (int(array.min()) < least or int(array.max()) >= stop):
            raise self.error(name, f"ints from {least} to {stop - 1}", f"from {array.min()} to {array.max()}")
        return array


def encode_random_state(state: Any) -> Any:
    """Return a seed as JSON has it: None, an int, or the state of one of NumPy's generators that is all ints."""
    if state is None or isinstance(state, int | np.integer):
        return None if state is None else int(state)
    inner = state.bit_generator.state if isinstance(state, np.random.Generator) else {}
    if inner.get("bit_generator") not in _GENERATORS:
        raise InvalidTypeError(
            f"random_state: expected None, an int or a Generator of {' or '.join(_GENERATORS)} in an index that is "
            f"written, received {type(state).__name__}"
        )
    return inner


def decode_random_state(value: Any) -> Any:
    """Return the seed or the generator that `encode_random_state` has written."""
    if not isinstance(value, dict):
        return value
    kind = value.get("bit_generator")
    if kind not in _GENERATORS:
        raise FileFormatError(f"random_state: expected one of {_GENERATORS}, received {kind!r}")
    generator = np.random.Generator(getattr(np.random, kind)())
    try:
        generator.bit_generator.state = value
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise FileFormatError(f"random_state: expected a state of {kind}, received another: {error}") from error
    return generator
