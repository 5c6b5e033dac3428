"""Finding the attention layers of any torch model, and choosing among them."""

from collections.abc import Iterator, Sequence
from fnmatch import fnmatchcase
from types import CodeType, FunctionType
from typing import TypeAlias

import torch.nn.functional as F
from torch import nn

from ..errors import InvalidTypeError, InvalidValueError

_NAME = "scaled_dot_product_attention"

Layers: TypeAlias = int | str | Sequence[int | str] | None


def attention_layers(model: nn.Module) -> dict[str, nn.Module]:
    """Attention layers by qualified name, in the model's order.

    These are `nn.MultiheadAttention`; modules whose own code calls scaled_dot_product_attention; and
    modules with "Attention" in their class's name that contain no other of these (models of
    transformers choose their attention function at run time, so that only the name tells).
    """
    found: dict[nn.Module, str] = {}
    for name, module in reversed(list(model.named_modules())):  # what is inside comes before its container
        certain = isinstance(module, nn.MultiheadAttention) or _calls_attention(type(module))
        named = "Attention" in type(module).__name__
        if certain or (named and found.keys().isdisjoint(module.modules())):
            found[module] = name
    return {name: module for module, name in reversed(found.items())}


def choose(model: nn.Module, layers: Layers) -> dict[str, nn.Module]:
    """Attention layers that `layers` names, in the model's order.

    Raises
    ------
    InvalidValueError
        If the model has no attention layer, or none of the name or index asked for.
    InvalidTypeError
        If `layers` is neither None nor made of ints and strings.
    """
    found = attention_layers(model)
    if not found:
        raise InvalidValueError(
            f"model: expected a nn.MultiheadAttention, a module that calls {_NAME} or one with 'Attention' in its "
            f"class's name, received {type(model).__name__} without any"
        )
    if layers is None:
        return found
    wanted = [layers] if isinstance(layers, int | str) else layers
    if isinstance(wanted, bytes) or not isinstance(wanted, Sequence):
        raise InvalidTypeError(
            f"layers: expected None, an int, a str or a list of them, received {type(layers).__name__}"
        )
    names = list(found)
    chosen = {name for item in wanted for name in _matching(item, names)}
    return {name: module for name, module in found.items() if name in chosen}


def _matching(item: int | str, names: list[str]) -> list[str]:
    if isinstance(item, bool) or not isinstance(item, int | str):
        raise InvalidTypeError(f"layers: expected ints and strings, received {type(item).__name__}")
    if isinstance(item, str):
        matching = [name for name in names if fnmatchcase(name, item)]
    else:
        matching = [names[item]] if -len(names) <= item < len(names) else []
    if not matching:
        listed = ", ".join(f"{index} {name!r}" for index, name in enumerate(names))
        raise InvalidValueError(
            f"layers: expected some of the model's {len(names)} attention layers ({listed}), received {item!r}"
        )
    return matching


def _calls_attention(kind: type[nn.Module]) -> bool:
    """Whether the code of a class, its bases or the helpers that it names calls the function."""
    functions = [
        function
        for base in kind.__mro__
        if not base.__module__.startswith("torch.")
        for function in vars(base).values()
        if isinstance(function, FunctionType)
    ]
    helpers = [
        helper
        for function in functions
        for name in _names(function.__code__)
        if isinstance(helper := function.__globals__.get(name), FunctionType)
    ]
    return any(_names_attention(function) for function in functions + helpers)


def _names_attention(function: FunctionType) -> bool:
    names = set(_names(function.__code__))
    aliases = (function.__globals__.get(name) for name in names)  # from torch.nn.functional import … as …
    return _NAME in names or any(value is F.scaled_dot_product_attention for value in aliases)


def _names(code: CodeType) -> Iterator[str]:
    """Names that code looks up, that of functions inside it included."""
    yield from code.co_names
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _names(constant)
