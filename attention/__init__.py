"""Attention within a tolerance of the exact one, for long sequences and any PyTorch model on CPUs.

The layers, each calling only what is below it:

    huggingface, modules        the ways into a model: DCIAttention, register,
    patching                    accelerate and use
    functional                  dci_attention; checks arguments once (_inputs, options)
    _op                         the same as an operator, for torch.compile
    _route, masks               any leading axes and masks become batches of heads with intervals of keys
    _choose                     exact or approximate, and why
    _engine      _exact         which heads are approximated; PyTorch's own kernel, in blocks
    _sample, _plan              what a tolerance takes; coordinates and cells
    _head                       near field and far field of one head, segment by segment
    _field, _near, _moments     the kernels of both, cells of keys
    _order                      in which neighbours are alike

`cache` and `growing` are for decoding: keys that grow, over `_prefix`, which stands where `_head` does.
`attention.reference` stands beside them: exact attention in plain NumPy; `attention.embedding` has the published T_K
and T_Q.
"""

import importlib
from typing import TYPE_CHECKING, Any

try:
    import torch  # noqa: F401
except ModuleNotFoundError:
    raise ImportError("the package `attention` needs PyTorch: pip install 'dci-attention[torch]'") from None

from . import _op  # noqa: F401 - registers the operator
from .errors import AttentionError, InvalidTypeError, InvalidValueError, UnsupportedError
from .functional import dci_attention
from .options import AttentionOptions
from .report import HeadReport, Report

if TYPE_CHECKING:
    from .cache import DCICache
    from .huggingface import register
    from .modules import DCIAttention
    from .patching import accelerate, use

_LAZY = {
    "DCIAttention": "modules",
    "DCICache": "cache",
    "accelerate": "patching",
    "register": "huggingface",
    "use": "patching",
}

__all__ = [
    "AttentionError",
    "AttentionOptions",
    "DCIAttention",
    "DCICache",
    "HeadReport",
    "InvalidTypeError",
    "InvalidValueError",
    "Report",
    "UnsupportedError",
    "accelerate",
    "dci_attention",
    "register",
    "use",
]


def __getattr__(name: str) -> Any:
    # Late, so that `import attention` does not import transformers.
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_LAZY[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *_LAZY})
