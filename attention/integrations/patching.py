"""Attention inside models that know nothing of it: for a block of code, or layer by layer."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from types import MethodType
from typing import Any

from torch import nn
from torch.overrides import BaseTorchFunctionMode, TorchFunctionMode

from ..errors import InvalidTypeError, InvalidValueError
from ..layer_options import LayerOptions
from ..modules import DCIAttention
from ..options import AttentionOptions
from .layers import Layers, attention_layers, choose
from .records import CallsReport, LayerReport, ModelReport, Record
from .torch_function import AttentionMode


class Usage:
    """What `use` yields: it knows what has become of the calls."""

    def __init__(self, record: Record) -> None:
        self._record = record

    def report(self) -> CallsReport:
        """Return the calls so far, answered and left to torch; printable."""
        return self._record.report()


@contextmanager
def use(options: AttentionOptions | None = None) -> Iterator[Usage]:
    """Answer every scaled_dot_product_attention inside the block with `dci_attention`.

    However the function is called: by its name in torch.nn.functional, by a name imported earlier,
    inside any model, by `nn.MultiheadAttention`, `nn.TransformerEncoder` and its layers, whose fast
    paths are left out inside the block.  Holds for this block and this thread, exceptions or not;
    in nested blocks the inner options hold.

    What `dci_attention` refuses (gradients, dropout, devices, dtypes) goes to torch as ever, and so
    does `nn.MultiheadAttention` called with ``need_weights=True``, its default: it multiplies
    matrices to have the weights.  The report says so.

    Parameters
    ----------
    options : AttentionOptions, optional

    Yields
    ------
    Usage
        Its ``report()`` lists the calls by shape, and those left to torch by reason.

    Raises
    ------
    InvalidTypeError
        If `options` are not AttentionOptions. (`LayerOptions` are for `accelerate`, which knows the layers.)

    Notes
    -----
    A padded `nn.TransformerEncoder` (``src_key_padding_mask``) outside the block may pack its input
    into a nested tensor, and then has zeros where the padding was; inside, as in training, it has
    numbers there that mean nothing.  Nested tensors given to `nn.MultiheadAttention` or the encoder
    directly need the fast path and raise torch's error inside the block.

    Inside `torch.compile`, calls become ``torch.ops.dci.attention`` and are not counted; encoders of torch keep their
    fast path, which is exact.

    Examples
    --------
    >>> import torch, attention
    >>> query, key, value = torch.randn(3, 1, 4, 100, 16)
    >>> with attention.use(attention.AttentionOptions(tolerance=0.1)) as usage:
    ...     output = torch.nn.functional.scaled_dot_product_attention(query, key, value)
    >>> usage.report().taken[0].count
    1
    """
    record = Record()
    with AttentionMode(options, record):
        yield Usage(record)


def accelerate(
    model: nn.Module, options: AttentionOptions | LayerOptions | None = None, layers: Layers = None
) -> "Acceleration":
    """Answer the attention of a model's layers with `dci_attention`, until restored.

    Attention layers are `nn.MultiheadAttention` (those in `nn.TransformerEncoderLayer` too), modules
    whose own code calls scaled_dot_product_attention, and modules with "Attention" in their class's
    name that contain no other attention layer.  Inside them holds what `use` says.

    Parameters
    ----------
    model : nn.Module
        Changed in place: the chosen layers' ``forward`` is wrapped; parameters and state dict stay.
    options : AttentionOptions or LayerOptions, optional
        For all layers, or for each its own, as `calibrate` returns them.
    layers : int, str or list of them, optional
        Index among the attention layers (negative from the end) or pattern of qualified names, as
        in "encoder.*.self_attn".  None is all, or with `LayerOptions` those that have options and are not left exact.

    Returns
    -------
    Acceleration
        ``report()``, ``restore()``; as a context manager it restores at the end of the block.

    Raises
    ------
    InvalidValueError
        If the model has no attention layers, or none of those asked for or named by `LayerOptions`, or one is
        accelerated already.
    InvalidTypeError
        If `options` or `layers` are of the wrong type.

    Notes
    -----
    A copy (``copy.deepcopy``, pickle) of an accelerated model is accelerated and cannot be restored:
    restore first.  Models may be called from several threads.  Inside `torch.compile` calls are not counted, and
    torch's encoders keep their fast path, which is exact.

    Examples
    --------
    >>> import torch, attention
    >>> layer = torch.nn.TransformerEncoderLayer(32, 4, batch_first=True)
    >>> model = torch.nn.TransformerEncoder(layer, num_layers=2).eval()
    >>> handle = attention.accelerate(model, layers=-1)
    >>> with torch.no_grad():
    ...     output = model(torch.randn(1, 50, 32))
    >>> handle.report().taken
    ['layers.1.self_attn']
    >>> handle.restore()
    """
    return Acceleration(model, options, layers)


class Acceleration:
    """What `accelerate` returns: it knows the layers and can give them back."""

    def __init__(self, model: nn.Module, options: AttentionOptions | LayerOptions | None, layers: Layers) -> None:
        chosen, of = _with_options(model, options, layers)
        taken = [name for name, module in chosen.items() if isinstance(module.forward, _Forward)]
        if taken:
            raise InvalidValueError(f"layers: expected some not accelerated yet, received {taken}: restore them first")
        self._found = attention_layers(model)
        self._modes: dict[str, AttentionMode] = {}
        self._records: dict[str, Record] = {}
        self._wrapped: list[_Forward] = []
        for name, module in chosen.items():
            if not isinstance(module, DCIAttention):
                self._records[name] = Record()
                self._modes[name] = AttentionMode(of[name], self._records[name])
                self._wrapped.append(_Forward(module, self._modes[name]))
        # Torch's encoders bypass the attention module inside them unless a mode is active around them already.
        for module in model.modules():
            encoder = isinstance(module, nn.TransformerEncoder | nn.TransformerEncoderLayer)
            if encoder and not set(chosen.values()).isdisjoint(module.modules()):
                self._wrapped.append(_Forward(module, BaseTorchFunctionMode()))

    def report(self) -> ModelReport:
        """Return what has become of every attention layer of the model; printable."""
        return ModelReport([self._report(name, module) for name, module in self._found.items()])

    def restore(self) -> None:
        """Give the layers back as they were; doing it again does nothing."""
        for forward in self._wrapped:
            forward.remove()

    def __enter__(self) -> "Acceleration":
        return self

    def __exit__(self, *exception: object) -> None:
        self.restore()

    def _report(self, name: str, module: nn.Module) -> LayerReport:
        if name not in self._records:
            why_not = "has options of its own" if isinstance(module, DCIAttention) else "not chosen"
            return LayerReport(name, CallsReport([], {}), why_not)
        calls = self._records[name].report()
        why_not = ""
        if not self._modes[name].entered:
            why_not = "never called"
        elif not calls.taken:
            why_not = str(calls) if calls.left else _why_silent(module)
        return LayerReport(name, calls, why_not)


def _with_options(
    model: nn.Module, options: AttentionOptions | LayerOptions | None, layers: Layers
) -> tuple[dict[str, nn.Module], dict[str, AttentionOptions | None]]:
    """Choose layers, and say which options each has."""
    if not isinstance(options, LayerOptions):
        chosen = choose(model, layers)
        return chosen, dict.fromkeys(chosen, options)
    if layers is not None:
        raise InvalidTypeError(f"layers: expected None with LayerOptions, which name them, received {layers!r}")
    found = choose(model, None)
    missing = [name for name in options.options if name not in found]
    if missing:
        raise InvalidValueError(f"options: expected names of attention layers, {list(found)}, received {missing}")
    of: dict[str, AttentionOptions | None] = {
        name: own for name, own in options.options.items() if own != LayerOptions.EXACT
    }
    return {name: module for name, module in found.items() if name in of}, of


def _why_silent(module: nn.Module) -> str:
    implementation = getattr(getattr(module, "config", None), "_attn_implementation", None)
    hint = f" (attn_implementation is {implementation!r})" if implementation else ""
    return f"called, but did not call scaled_dot_product_attention{hint}"


class _Forward:
    """A module's forward with a mode active around it.

    An attribute of the instance, not a hook: torch runs no hooks after Ctrl-C, and the mode would
    stay.  An object, not a closure: a copy of the module copies it, with the module inside.
    """

    def __init__(self, module: nn.Module, mode: TorchFunctionMode) -> None:
        self.module = module
        self.mode: TorchFunctionMode | None = mode
        self.__wrapped__: Callable[..., Any] = module.forward  # the name that inspect.signature follows
        module.forward = self

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        with self.mode or nullcontext():
            return self.__wrapped__(*args, **kwargs)

    def remove(self) -> None:
        """Step out; a wrapper that was put around this one meanwhile stays."""
        self.mode = None
        forward = self.module.forward
        while isinstance(forward, _Forward) and forward.mode is None:
            forward = forward.__wrapped__
        if forward == MethodType(type(self.module).forward, self.module):
            self.module.__dict__.pop("forward", None)
        else:
            self.module.forward = forward
