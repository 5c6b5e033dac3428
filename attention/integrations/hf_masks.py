"""The mask function of transformers' models: what the mask says, never written out as queries × keys."""

from collections.abc import Callable, Iterator
from inspect import getclosurevars
from types import FunctionType
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..errors import UnsupportedError
from ..masks import MaskRule

INSTEAD = "use attn_implementation='eager' (or 'sdpa', where it can) for this model"


def padding_mask(
    *,
    batch_size: int,
    kv_length: int,
    q_length: int | None = None,
    q_offset: int | Tensor = 0,
    kv_offset: int = 0,
    mask_function: Callable[..., Any],
    attention_mask: Tensor | None = None,
    **unused: Any,
) -> Tensor | None:
    """Tell which keys are padding, and by an attribute ``rule`` what else the mask says.

    Parameters
    ----------
    batch_size, kv_length, q_length, q_offset, kv_offset, mask_function, attention_mask
        As transformers passes them to every mask function.

    Returns
    -------
    Tensor of shape (batch_size, keys), bool, or None
        True is no padding.  A static cache has room for keys to come: they are not counted.  None is
        what it is for sdpa: plain causal or bidirectional, or a window wider than the keys.
    """
    rule = _read(mask_function)
    n_keys = kv_length
    if rule.causal and q_length is not None:
        n_keys = min(kv_length, int(q_offset) + q_length - kv_offset)
    if attention_mask is None:
        padding = torch.ones((batch_size, n_keys), dtype=torch.bool)
    elif attention_mask.dim() == 2:
        padding = attention_mask[:, kv_offset : kv_offset + n_keys].bool()
        padding = F.pad(padding, (0, n_keys - padding.shape[1]))
    else:
        raise UnsupportedError(f"attention_mask: expected 2 or 4 axes, received {attention_mask.dim()}: {INSTEAD}")
    narrow = rule.window is not None and rule.window < n_keys
    if n_keys == kv_length and not narrow and bool(padding.all()):
        return None
    padding.rule = rule  # type: ignore[attr-defined] # models hand the tensor on as it is
    return padding


def _read(mask_function: Callable[..., Any]) -> MaskRule:
    """Recognise the masks that attention can honour, made by transformers' own functions; raise at others."""
    parts = {f"{part.__module__}.{part.__qualname__}".split(".<locals>")[0]: part for part in _conjuncts(mask_function)}
    windows = [getclosurevars(part).nonlocals.get("sliding_window") for part in parts.values()]
    window = next((window for window in windows if window is not None), 0)
    match sorted(name.removeprefix("transformers.masking_utils.") for name in parts):
        case ["causal_mask_function"]:
            return MaskRule(causal=True)
        case ["bidirectional_mask_function"]:
            return MaskRule(causal=False)
        case ["causal_mask_function", "sliding_window_overlay"]:
            return MaskRule(causal=True, window=window)
        case ["bidirectional_mask_function", "sliding_window_bidirectional_overlay"]:
            return MaskRule(causal=False, window=window + 1)
    raise UnsupportedError(
        "mask_function: expected a causal, bidirectional or sliding-window mask, "
        f"received {' and '.join(parts)}: {INSTEAD}"
    )


def _conjuncts(mask_function: Callable[..., Any]) -> Iterator[FunctionType]:
    """Yield what transformers' and_masks has combined."""
    if not isinstance(mask_function, FunctionType):
        raise UnsupportedError(f"mask_function: expected a function, received {mask_function!r}: {INSTEAD}")
    if mask_function.__qualname__ != "and_masks.<locals>.and_mask":
        yield mask_function
        return
    for part in getclosurevars(mask_function).nonlocals["mask_functions"]:
        yield from _conjuncts(part)
