"""How long parts of a model take."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn


@contextmanager
def clocked(modules: Iterable[nn.Module]) -> Iterator[list[float]]:
    """Add up the seconds that modules take, in a list of one."""
    total, starts, hooks = [0.0], [], []

    def start(*_: Any) -> None:
        starts.append(time.perf_counter())

    def stop(*_: Any) -> None:
        total[0] += time.perf_counter() - starts.pop()

    for module in modules:
        hooks += [module.register_forward_pre_hook(start), module.register_forward_hook(stop)]
    try:
        yield total
    finally:
        for hook in hooks:
            hook.remove()
