"""How the attention function finds the index of a cache's layer: by the keys and values that the layer returned."""

from typing import Protocol, cast

import torch
from torch import Tensor

from ..masks import MaskRule
from ..options import AttentionOptions
from .key_value_index import AT_ONCE, KeyValueIndex, check_options


class Layer(Protocol):
    """A layer of a `DCICache`."""

    index: KeyValueIndex
    follows: bool  # the options of the attention function


def mark(tensor: Tensor, layer: Layer) -> Tensor:
    """Have a tensor lead to its layer: models hand it on as it is."""
    tensor._dci_layer = layer  # type: ignore[attr-defined]
    return tensor


def attend_cached(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    padding: Tensor | None,
    rule: MaskRule,
    scale: float | None,
    options: AttentionOptions | None,
) -> Tensor | None:
    """Attend by the index that the keys and values belong to, if there is one and it can.

    Parameters
    ----------
    query, key, value : Tensor of shape (B, Hq, L, E), (B, H, n, E) and (B, H, n, Ev)
    padding : Tensor of shape (B, n), bool, optional
        True is no padding.
    rule : MaskRule
    scale : float, optional
    options : AttentionOptions, optional
        Of the attention function.

    Returns
    -------
    Tensor of shape (B, Hq, L, Ev) or None
        None where the mask is not causal with padding on the left, or there are many queries.
    """
    layer = _layer(key, value)
    if layer is None:
        return None
    if layer.follows and options is not None:
        check_options(options)
    index, length, n_keys = layer.index, query.shape[2], key.shape[2]
    windowed = rule.window is not None and rule.window < n_keys
    if length > AT_ONCE or windowed or n_keys != len(index) or not (rule.causal or length == 1):
        return None
    starts = None if padding is None else _left_padding(padding)
    if padding is not None and (starts is None or padding.shape[1] != n_keys or max(starts) > n_keys - length):
        return None
    return index.attend(query, scale, starts, options if layer.follows else None)


def observe_cached(query: Tensor, key: Tensor, value: Tensor, options: AttentionOptions | None) -> None:
    """Have the index that the keys and values belong to, if there is one, remember many queries attended elsewhere."""
    layer = _layer(key, value)
    if layer is None or query.shape[2] <= AT_ONCE:
        return
    if layer.follows and options is not None:
        layer.index.options = options
    layer.index.observe(query)


def _layer(key: Tensor, value: Tensor) -> Layer | None:
    found = getattr(key, "_dci_layer", None)
    if found is None or getattr(value, "_dci_layer", None) is not found:
        return None
    return cast(Layer, found)


def _left_padding(padding: Tensor) -> list[int] | None:
    """Count the padding on the left, by sequence; None if there is other padding. Known to the tensor from then on."""
    known: tuple[list[int] | None] | None = getattr(padding, "_dci_starts", None)
    if known is None:
        on_left = bool(torch.all(padding[:, 1:] >= padding[:, :-1]))
        known = ((~padding).sum(1).tolist() if on_left else None,)
        padding._dci_starts = known  # type: ignore[attr-defined] # one mask serves all layers
    return known[0]
