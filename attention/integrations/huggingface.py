"""Attention for models of transformers: the attention function and its mask function, under one name."""

import sys
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from .._core import dispatch
from .._core.validation import check_inputs, check_settings
from ..decoding import layer_lookup
from ..errors import InvalidTypeError, InvalidValueError, UnsupportedError
from ..functional import dci_attention
from ..layer_options import LayerOptions
from ..masks import MaskRule, Visible
from ..options import AttentionOptions
from .hf_masks import INSTEAD, padding_mask

# Arguments of models that change what attention computes, and what they ask for.
_UNSUPPORTED = {
    "softcap": "softcapping of the scores",
    "position_bias": "a bias added to the scores",
    "s_aux": "attention sinks as parameters",
    "sinks": "attention sinks as parameters",
    "head_mask": "a mask of heads",
    "indices": "sparse attention to chosen keys",
    "block_indices": "sparse attention to chosen keys",
    "cache": "a paged cache",
}


def register(name: str = "dci", options: AttentionOptions | LayerOptions | None = None) -> None:
    """Make `dci_attention` an attention implementation of transformers.

    Registers an attention function and the mask function that belongs to it.  Again under the same
    name it changes the options, of models in use too; under several names models can have options of
    their own.

    Parameters
    ----------
    name : str
        What ``attn_implementation`` and ``set_attn_implementation`` call it.
    options : AttentionOptions or LayerOptions, optional
        For all layers, or for each its own, as `calibrate` returns them, by the layers' ``layer_idx``: for one model
        with one kind of attention layers.

    Raises
    ------
    ImportError
        If transformers (5.7 or later) is not installed.
    InvalidTypeError
        If `name` is not a string or `options` are not of these.
    InvalidValueError
        If layers share a ``layer_idx`` or have none, or, when the model is called, if a layer has no options.

    Notes
    -----
    Causal, bidirectional and sliding-window attention, each with padding on either side, never have
    a mask of queries × keys; a 4-D mask that the user gives is passed on.  Queries are the last of the
    keys in a cache.  Padding attends to nothing, and its output is zero.

    What would come out wrong raises `UnsupportedError` when the model is called: softcapping, position
    biases, sinks as parameters, ``output_attentions``, dropout in training, chunked attention, packed
    sequences, and masks that a model combines in its own ways.

    Examples
    --------
    >>> import attention, transformers
    >>> attention.register("dci", attention.AttentionOptions(tolerance=0.05))
    >>> config = transformers.BertConfig(
    ...     hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=64
    ... )
    >>> model = transformers.BertModel(config).eval()
    >>> model.set_attn_implementation("dci")
    """
    if not isinstance(name, str):
        raise InvalidTypeError(f"name: expected a str, received {type(name).__name__}")
    if not isinstance(options, AttentionOptions | LayerOptions | None):
        raise InvalidTypeError(
            f"options: expected AttentionOptions, LayerOptions or None, received {type(options).__name__}"
        )
    options_of = _options_of(options)
    try:
        from transformers import AttentionInterface, AttentionMaskInterface
    except ImportError as error:
        raise ImportError("register needs transformers 5.7 or later: pip install 'transformers>=5.7'") from error
    AttentionInterface.register(name, _attention_function(options_of))
    AttentionMaskInterface.register(name, padding_mask)


def _options_of(
    options: AttentionOptions | LayerOptions | None,
) -> Callable[[nn.Module], AttentionOptions | None]:
    """Return what tells the options of a layer."""
    if not isinstance(options, LayerOptions):
        return lambda module: options
    by_index = options.by_index()

    def find(module: nn.Module) -> AttentionOptions:
        index = getattr(module, "layer_idx", None)
        if index not in by_index:
            raise InvalidValueError(
                f"options: expected those of {type(module).__name__} with layer_idx {index}, received those of "
                f"{sorted(by_index)}"
            )
        return by_index[index]

    return find


def _attention_function(
    options_of: Callable[[nn.Module], AttentionOptions | None],
) -> Callable[..., tuple[Tensor, None]]:
    def attention(
        module: nn.Module,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attention_mask: Tensor | None,
        scaling: float | None = None,
        dropout: float = 0.0,
        is_causal: bool | None = None,
        **kwargs: Any,
    ) -> tuple[Tensor, None]:
        """Attention of (batch, heads, length, dim) tensors; returns (batch, length, heads, dim) and no weights."""
        _refuse(module, kwargs)
        options = options_of(module)
        check_settings(dropout, scaling, options)
        rule = MaskRule(getattr(module, "is_causal", True) if is_causal is None else is_causal)
        if attention_mask is not None and attention_mask.dim() == 4:  # given by the user: it says everything
            output = dci_attention(
                query,
                key,
                value,
                attention_mask,
                scale=scaling,
                enable_gqa=query.shape[1] != key.shape[1],
                options=options,
            )
            return output.transpose(1, 2).contiguous(), None
        if attention_mask is not None:
            rule = getattr(attention_mask, "rule", None) or rule._replace(window=kwargs.get("sliding_window"))
            attention_mask = attention_mask.bool()
            n_keys = attention_mask.shape[1]
            if n_keys < key.shape[2]:  # a static cache has room for more
                key, value = key[:, :, :n_keys], value[:, :, :n_keys]
        indexed = layer_lookup.attend_cached(query, key, value, attention_mask, rule, scaling, options)
        if indexed is not None:
            return indexed.transpose(1, 2).contiguous(), None
        output = _attend_last_queries(query, key, value, attention_mask, rule, scaling, options)
        layer_lookup.observe_cached(query, key, value, options)  # last: a refused call leaves the index as it was
        return output.transpose(1, 2).contiguous(), None

    return attention


def _refuse(module: nn.Module, kwargs: dict[str, Any]) -> None:
    """Raise if the model passes what would be left out in silence."""
    for name, meaning in _UNSUPPORTED.items():
        if kwargs.get(name) is not None:
            raise UnsupportedError(f"{name}: expected None from {type(module).__name__}, received {meaning}: {INSTEAD}")
    if kwargs.get("output_attentions") or _weights_are_collected():
        raise UnsupportedError(f"output_attentions: expected False, the weights are never built: {INSTEAD}")


def _weights_are_collected() -> bool:
    """Whether transformers collects weights by hooks: some models do not pass ``output_attentions`` down."""
    capturing = sys.modules.get("transformers.utils.output_capturing")
    collector = getattr(capturing, "_active_collector", None)
    return collector is not None and any("attentions" in name for name in collector.get() or ())


def _attend_last_queries(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    padding: Tensor | None,
    rule: MaskRule,
    scale: float | None,
    options: AttentionOptions | None,
) -> Tensor:
    """Attention of queries that are the last of the keys; `padding` of shape (batch, S) is True where there is none."""
    length, n_keys = query.shape[2], key.shape[2]
    causal, window = rule
    if length == 1:  # sees the last keys
        causal = False
        if window is not None and window < n_keys:
            padding = torch.ones_like(key[:, 0, :, 0], dtype=torch.bool) if padding is None else padding.clone()
            padding[:, :-window] = False
        window = None
    grouped = query.shape[1] != key.shape[1]
    if window is None and (not causal or length == n_keys):
        mask = None if padding is None else padding[:, None, None]
        return dci_attention(query, key, value, mask, 0.0, causal, scale, grouped, options=options)
    check_inputs(query, key, value, None, grouped)
    scale = max(query.shape[-1], 1) ** -0.5 if scale is None else scale
    if scale <= 0:  # exact kernels hide keys behind -inf before they scale
        query, scale = query * scale, 1.0
    output = query.new_empty((*query.shape[:-1], value.shape[-1]))
    with torch._C.DisableTorchFunction():  # or `use` around the model would take the exact parts
        for i in range(len(query)):
            visible = _seen_by_last(length, n_keys, None if padding is None else padding[i], MaskRule(causal, window))
            output[i] = dispatch.attend_visible(
                query[i].reshape(key.shape[1], -1, *query.shape[2:]),
                key[i],
                value[i],
                visible,
                scale,
                options or AttentionOptions(),
            )[0].flatten(0, 1)
    return output


def _seen_by_last(length: int, n_keys: int, kept: Tensor | None, rule: MaskRule) -> Visible:
    """Intervals of keys for queries that are the last of them; `kept` of shape (n_keys,) is False for padding."""
    position = torch.arange(n_keys - length, n_keys)
    starts = torch.zeros_like(position) if rule.window is None else position - (rule.window - 1)
    stops = position + 1 if rule.causal else position + (rule.window or n_keys)
    keys = torch.arange(n_keys) if kept is None else kept.nonzero().squeeze(-1)
    starts, stops = (torch.searchsorted(keys, bound) for bound in (starts, stops))
    return Visible(None if len(keys) == n_keys else keys, starts, stops)
