"""A cache for models of transformers that attends to long sequences token by token, at a part of the exact cost."""

from typing import Any

import torch
from torch import Tensor

from ..errors import InvalidValueError, UnsupportedError
from ..layer_options import LayerOptions
from ..options import AttentionOptions
from .key_value_index import KeyValueIndex
from .layer_lookup import mark
from .report import CacheReport, IndexReport

try:
    from transformers.cache_utils import Cache, DynamicCache, DynamicLayer
except ImportError as error:
    raise ImportError("DCICache needs transformers 5.7 or later: pip install 'transformers>=5.7'") from error

_ENDS = 4  # layers at either end that are written out

__all__ = ["CacheReport", "DCICache", "DCILayer", "IndexReport"]


class DCILayer(DynamicLayer):  # type: ignore[no-untyped-call]
    """The keys and values of one layer, in a `KeyValueIndex`.

    Parameters
    ----------
    options : AttentionOptions, optional
    turn : int
        Which layer it is, so that folds of different layers fall on different tokens.
    """

    def __init__(self, options: AttentionOptions | None = None, turn: int = 0) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.index = KeyValueIndex(options)
        self.index.turn = turn
        self.follows = options is None  # the options of the attention function

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.index.report()})"

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor | None = None) -> None:
        """Take dtype and device from the first keys."""
        self.dtype, self.device = key_states.dtype, key_states.device
        self.is_initialized = True

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Append, and return all keys and values, by which the attention function finds the index."""
        self.index.append(key_states, value_states)
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        self._show()
        return mark(self.index.keys, self), mark(self.index.values, self)

    def _show(self) -> None:
        """Have the views that the base class reads."""
        if len(self.index):
            self.keys, self.values = self.index.keys, self.index.values

    def crop(self, tokens_to_remove: int) -> None:
        """Remove the last -`tokens_to_remove` tokens; a positive number is how many stay, as in transformers 5.7."""
        length = len(self.index)
        self.index.crop(tokens_to_remove if tokens_to_remove > 0 else max(0, length + tokens_to_remove))
        self._show()

    def reset(self) -> None:
        """Drop everything but the options."""
        self.index.reset()
        self.keys = self.values = None
        self.is_initialized = False

    def reorder_cache(self, beam_idx: Tensor) -> None:
        """Keep these sequences, for beam search."""
        self.batch_select_indices(beam_idx)

    def batch_repeat_interleave(self, repeats: int) -> None:
        """Have every sequence `repeats` times."""
        if len(self.index):
            self.batch_select_indices(torch.arange(len(self.index.keys)).repeat_interleave(repeats))

    def batch_select_indices(self, indices: Tensor) -> None:
        """Keep these sequences."""
        self.index.select(indices)
        self._show()

    def offload(self) -> None:
        """Raise: the cache is for the CPU."""
        raise UnsupportedError("offloading: expected a cache that stays on the CPU, received a call of offload")


class DCICache(Cache):
    """A cache with which models attend to long sequences token by token, at a part of the exact cost.

    Parameters
    ----------
    options : AttentionOptions or LayerOptions, optional
        Those of the attention implementation if not given, also where these differ from layer to layer. There is no
        `top_k` here.
    config : transformers.PreTrainedConfig, optional
        Of the model: layers of other kinds than full attention (sliding windows, state spaces) then have the same
        cache as in `transformers.DynamicCache`.

    Notes
    -----
    Models and their ``generate`` take it as ``cache=``, before transformers 5.24 as ``past_key_values=``.
    Goes with ``attn_implementation="dci"`` (see `attention.register`). With another implementation it is an ordinary
    cache, whose memory grows by halves. Masks must be causal, with padding on the left alone; with others, all keys
    are attended to as without this cache. One pass over more than 32 tokens, such as a prompt's, is attended to as
    without this cache too.

    Cells beside the keys and values take about 4.5 (E + Ev) bytes a key and head, and their moments a tenth of that:
    1.25 times the size of float32 keys and values of 64 numbers, 2.5 times that of bfloat16 ones, and twice as much for
    the time in which they are made anew (see `KeyValueIndex`). Copies and pickles make their cells anew.

    Examples
    --------
    >>> import attention, transformers
    >>> attention.register("dci")
    >>> config = transformers.LlamaConfig(
    ...     vocab_size=64, hidden_size=32, intermediate_size=48, num_hidden_layers=1, num_attention_heads=4,
    ...     num_key_value_heads=2, pad_token_id=0, attn_implementation="dci",
    ... )
    >>> model = transformers.LlamaForCausalLM(config).eval()
    >>> cache = attention.DCICache(attention.AttentionOptions(tolerance=0.05))
    >>> prompt = torch.tensor([[1, 5, 9]])
    >>> tokens = model.generate(prompt, cache=cache, max_new_tokens=4, min_new_tokens=4, do_sample=False)
    >>> cache  # the last token was not attended with
    DCICache(
        0: DCILayer(6 tokens, 0 in cells, 6.0 keys touched),
    )
    """

    def __init__(self, options: AttentionOptions | LayerOptions | None = None, config: Any = None) -> None:
        own = options.by_index() if isinstance(options, LayerOptions) else None
        if config is not None:
            layers = DynamicCache(config=config).layers
        elif own is not None:
            layers = [DynamicLayer() for _ in range(max(own) + 1)]  # type: ignore[no-untyped-call]
        else:
            KeyValueIndex(options)  # type: ignore[arg-type] # raises if there is something wrong with them
            self._options = options
            super().__init__(layer_class_to_replicate=self._another)  # type: ignore[arg-type]
            return
        places = [i for i, layer in enumerate(layers) if type(layer) is DynamicLayer]
        if own is not None and not own.keys() >= set(places):
            raise InvalidValueError(f"options: expected those of layers {places}, received those of {sorted(own)}")
        for i in places:
            layers[i] = DCILayer(options if own is None else own[i], i)  # type: ignore[arg-type]
        super().__init__(layers=layers)

    def _another(self) -> DCILayer:
        return DCILayer(self._options, len(self.layers))  # type: ignore[arg-type]

    def __repr__(self) -> str:
        lines = [f"    {i}: {layer}," for i, layer in enumerate(self.layers)]
        if len(lines) > 2 * _ENDS:
            lines[_ENDS:-_ENDS] = [f"    ... {len(lines) - 2 * _ENDS} layers more ..."]
        return "\n".join([f"{type(self).__name__}(", *lines, ")"]) if lines else f"{type(self).__name__}()"

    def report(self) -> CacheReport:
        """Say what the last token touched in every layer that has an index, and with what error."""
        return CacheReport(tuple(layer.index.report() for layer in self.layers if isinstance(layer, DCILayer)))
