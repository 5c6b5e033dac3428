"""Options that differ from layer to layer of a model, and their file."""

import json
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, ClassVar

from dci._runtime.scalars import describe, is_int

from .errors import AttentionError, InvalidTypeError, InvalidValueError
from .options import AttentionOptions

_FORMAT = "attention.LayerOptions 1"


@dataclass(frozen=True)
class LayerOptions:
    """Attention options of each layer of a model; `attention.calibrate` makes them.

    `accelerate` takes them, finding layers by name; `register` and `DCICache` too, finding layers by index.

    Parameters
    ----------
    options : dict from str to AttentionOptions
        By the layers' qualified names, in the model's order. `LayerOptions.EXACT` leaves a layer exact.
    indices : dict from str to int
        The attribute ``layer_idx`` of layers that have one, as attention layers of transformers do.
    change : float, optional
        By how much the model's output changed with these options on the inputs that they were calibrated with.

    Raises
    ------
    InvalidTypeError, InvalidValueError
        Something other than the above.

    Examples
    --------
    >>> options = LayerOptions({"layers.0": AttentionOptions(tolerance=0.02), "layers.1": LayerOptions.EXACT})
    >>> print(options)
    layers.0: tolerance 0.02
    layers.1: exact
    """

    EXACT: ClassVar[AttentionOptions] = AttentionOptions(exact_below=1 << 62)  # more keys than there are anywhere

    options: Mapping[str, AttentionOptions]
    indices: Mapping[str, int] = field(default_factory=dict)
    change: float | None = None

    def __post_init__(self) -> None:
        given: dict[str, Any] = {"options": self.options, "indices": self.indices}
        for name, value in given.items():
            if not isinstance(value, Mapping) or not all(isinstance(key, str) for key in value):
                raise InvalidTypeError(f"{name}: expected a dict by the layers' names, received {describe(value)}")
        for layer, options in self.options.items():
            if not isinstance(options, AttentionOptions):
                raise InvalidTypeError(f"options: expected AttentionOptions of {layer!r}, received {describe(options)}")
        if not self.options:
            raise InvalidValueError("options: expected those of a layer or more, received none")
        for layer, index in self.indices.items():
            if not is_int(index) or index < 0 or layer not in self.options:
                expected = f"an int >= 0 of one of {list(self.options)}"
                raise InvalidValueError(f"indices: expected {expected}, received {index!r} of {layer!r}")
        for name, value in given.items():
            object.__setattr__(self, name, dict(value))

    def by_index(self) -> dict[int, AttentionOptions]:
        """Return the options by ``layer_idx``.

        Raises
        ------
        InvalidValueError
            Layers without one, or two layers with the same, as those of an encoder and a decoder: `accelerate` tells
            these apart.
        """
        found = {self.indices[name]: options for name, options in self.options.items() if name in self.indices}
        if len(found) < len(self.options):
            raise InvalidValueError(
                "options: expected layers with a layer_idx each, all different, received "
                f"{ {name: self.indices.get(name) for name in self.options} }: use attention.accelerate"
            )
        return found

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write a JSON file; one that is there is replaced at the end, or stays as it is if something fails."""
        layers = {
            name: {
                "options": "exact" if options == LayerOptions.EXACT else _changed(options),
                **({"index": int(self.indices[name])} if name in self.indices else {}),
            }
            for name, options in self.options.items()
        }
        text = json.dumps({"format": _FORMAT, "change": self.change, "layers": layers}, indent=1)
        target = Path(path)
        beside = target.with_name(f"{target.name}.{os.getpid()}.tmp")
        try:
            beside.write_text(text + "\n", encoding="utf-8")
            beside.replace(target)
        finally:
            beside.unlink(missing_ok=True)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> "LayerOptions":
        """Read a file that `save` has written.

        Raises
        ------
        OSError
            The file cannot be read.
        InvalidValueError
            It holds something else.
        """
        try:
            content = json.loads(Path(path).read_text(encoding="utf-8"))
            if content["format"] != _FORMAT:
                raise InvalidValueError(f"expected the format {_FORMAT!r}, received {content['format']!r}")
            layers, change = content["layers"], content["change"]
            options = {name: _read(layer["options"]) for name, layer in layers.items()}
            indices = {name: layer["index"] for name, layer in layers.items() if "index" in layer}
            return cls(options, indices, None if change is None else _finite(change))
        except (ValueError, KeyError, TypeError, AttributeError, AttentionError) as error:
            raise InvalidValueError(f"{path}: expected a file of LayerOptions.save, received {error!r}") from error

    def __str__(self) -> str:
        return "\n".join(f"{name}: {_say(options)}" for name, options in self.options.items())


def _changed(options: AttentionOptions) -> dict[str, Any]:
    """Return what is not as by default."""
    values = {f.name: getattr(options, f.name) for f in fields(options) if f.init}
    defaults = AttentionOptions()
    return {name: value for name, value in values.items() if value != getattr(defaults, name)}


def _read(saved: Any) -> AttentionOptions:
    return LayerOptions.EXACT if saved == "exact" else AttentionOptions(**saved)


def _finite(value: Any) -> float:
    if not math.isfinite(value):
        raise InvalidValueError(f"change: expected a finite number, received {value}")
    return float(value)


def _say(options: AttentionOptions) -> str:
    if options == LayerOptions.EXACT:
        return "exact"
    changed = {"tolerance": options.tolerance} | _changed(options)
    return ", ".join(f"{name} {value}" for name, value in changed.items())
