"""Attention within a tolerance of the exact one, for long sequences and any PyTorch model on CPUs.

The rooms, each calling only what is below it:

    integrations   the ways into a model: use, accelerate, register, calibrate, the operator for torch.compile
    decoding       keys that grow: KeyValueIndex, DCICache
    functional     dci_attention; modules: DCIAttention; partial: merge_partial; options, layer_options, masks, report,
                   errors
    _core          input validation, batching, dispatch, planning, threshold search, heads
    _native        kernels of the near field and the far field

`attention.reference` stands beside them: exact attention in plain NumPy; `attention.embedding` has the published T_K
and T_Q. Of `dci` only its public names and its floor are used: `dci._geometry`, `dci._runtime`, `dci._native`.
"""

import importlib
from typing import TYPE_CHECKING, Any

try:
    import torch  # noqa: F401
except ModuleNotFoundError:
    raise ImportError("the package `attention` needs PyTorch: pip install 'dci-attention[torch]'") from None

from .errors import AttentionError, InvalidTypeError, InvalidValueError, UnsupportedError
from .functional import dci_attention
from .integrations import torch_operator  # noqa: F401 - registers the operator
from .layer_options import LayerOptions
from .options import AttentionOptions
from .partial import merge_partial
from .report import HeadReport, Report

if TYPE_CHECKING:
    from .decoding.cache import DCICache
    from .decoding.key_value_index import KeyValueIndex
    from .integrations.calibration import calibrate
    from .integrations.huggingface import register
    from .integrations.patching import accelerate, use
    from .modules import DCIAttention

_LAZY = {
    "DCIAttention": "modules",
    "DCICache": "decoding.cache",
    "KeyValueIndex": "decoding.key_value_index",
    "accelerate": "integrations.patching",
    "calibrate": "integrations.calibration",
    "register": "integrations.huggingface",
    "use": "integrations.patching",
}

__all__ = [
    "AttentionError",
    "AttentionOptions",
    "DCIAttention",
    "DCICache",
    "HeadReport",
    "InvalidTypeError",
    "InvalidValueError",
    "KeyValueIndex",
    "LayerOptions",
    "Report",
    "UnsupportedError",
    "accelerate",
    "calibrate",
    "dci_attention",
    "merge_partial",
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
