"""A torch function mode that answers attention calls with dci_attention.

While a mode is active, torch's own checks (``torch.overrides.has_torch_function``) keep
``nn.TransformerEncoder``, ``nn.TransformerEncoderLayer`` and ``nn.MultiheadAttention`` off their
C++ fast paths, which never call ``scaled_dot_product_attention``.  Their Python path hands the mode
the whole of ``torch.nn.functional.multi_head_attention_forward``; with the mode switched off inside
its own handler, the ``scaled_dot_product_attention`` in there would escape.
"""

from collections.abc import Callable, Iterable
from inspect import signature
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from .._core.multi_head import multi_head_attention
from ..errors import AttentionError, InvalidTypeError
from ..functional import dci_attention
from ..options import AttentionOptions
from .records import Record

_ATTENTION = {
    F.scaled_dot_product_attention,
    torch.ops.aten.scaled_dot_product_attention,
    torch.ops.aten.scaled_dot_product_attention.default,
}
_NAMES = tuple(signature(F.multi_head_attention_forward).parameters)


class AttentionMode(TorchFunctionMode):
    """Sends attention to dci_attention, and to torch what dci_attention refuses.

    Torch keeps the active modes in a stack of the thread; a mode itself has no state of being
    active, so that one may be entered by several threads, and again while it is active.

    Parameters
    ----------
    options : AttentionOptions or None
    record : Record
        Counts the calls.

    Attributes
    ----------
    entered : bool
        Whether the mode was ever active.
    """

    def __init__(self, options: AttentionOptions | None, record: Record) -> None:
        if not isinstance(options, AttentionOptions | None):
            raise InvalidTypeError(f"options: expected None or AttentionOptions, received {type(options).__name__}")
        super().__init__()
        self.options = options
        self.record = record
        self.entered = False

    def __enter__(self) -> "AttentionMode":
        self.entered = True
        super().__enter__()  # type: ignore[no-untyped-call]
        return self

    def __torch_function__(
        self, func: Callable[..., Any], types: Iterable[type], args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Answer attention; call everything else as it is."""
        kwargs = kwargs or {}
        if func in _ATTENTION:
            return self._attend_scaled_dot_product(*args, **kwargs)
        if func is F.multi_head_attention_forward:
            return self._attend_multi_head(*args, **kwargs)
        return func(*args, **kwargs)

    def _attend_scaled_dot_product(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attn_mask: Tensor | None = None,
        dropout_p: float = 0.0,
        is_causal: bool = False,
        **kwargs: Any,
    ) -> Tensor:
        arguments = (query, key, value, attn_mask, dropout_p, is_causal)
        strange = {type(x).__name__ for x in arguments[:3] if x.is_nested or type(x) not in (Tensor, nn.Parameter)}
        if strange:
            self.record.leave(f"nested or of a subclass of Tensor: {', '.join(sorted(strange))}")
            return F.scaled_dot_product_attention(*arguments, **kwargs)
        # Off: neither an outer `use` nor a default device may reach into our own torch calls.
        with torch._C.DisableTorchFunction():
            try:
                if torch.compiler.is_compiling():  # a graph has no place for reports
                    compiled: Tensor = dci_attention(*arguments, **kwargs, options=self.options)
                    return compiled
                output: Tensor
                output, report = dci_attention(*arguments, **kwargs, options=self.options, return_report=True)
            except AttentionError as refusal:
                self.record.leave(str(refusal))
            else:
                self.record.take(query.shape, key.shape, report)
                return output
        if is_causal and attn_mask is not None:  # torch takes one of the two
            arguments = (query, key, value, _causal(attn_mask, query, key), dropout_p, False)
        return F.scaled_dot_product_attention(*arguments, **kwargs)

    def _attend_multi_head(self, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor | None]:
        """Answer multi_head_attention_forward, which in torch would call scaled_dot_product_attention unseen."""
        arguments = {**dict(zip(_NAMES, args, strict=False)), **kwargs}
        if arguments["need_weights"]:
            self.record.leave("need_weights=True: the weights are wanted, which dci_attention never builds")
        elif arguments["static_k"] is not None or arguments["static_v"] is not None:
            self.record.leave("static_k, static_v: keys or values are given in their heads already")
        else:
            return multi_head_attention(self._attend_scaled_dot_product, **arguments), None
        return F.multi_head_attention_forward(*args, **kwargs)


def _causal(mask: Tensor, query: Tensor, key: Tensor) -> Tensor:
    future = torch.ones(query.shape[-2], key.shape[-2], dtype=torch.bool, device=mask.device).triu(1)
    return mask.masked_fill(future, False if mask.dtype == torch.bool else -torch.inf)
