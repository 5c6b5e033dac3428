"""The oracle for tensors, and the error that tolerances are about."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from attention.reference import dense_attention

collect_ignore_glob = ["examples/*.py"]  # test_examples.py runs them, elsewhere: they write files


def exact_attention(
    query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None = None, **arguments: Any
) -> Tensor:
    """Attend in float64, whatever the dtype of the inputs."""
    if attn_mask is not None and attn_mask.dtype != torch.bool:
        attn_mask = attn_mask.double()
    mask = None if attn_mask is None else attn_mask.numpy()
    return torch.from_numpy(dense_attention(query.double(), key.double(), value.double(), mask, **arguments))


def head_errors(out: Tensor, expected: Tensor) -> Tensor:
    """Relative L2 error of each head; 0 where nothing is expected and nothing came."""
    off = (out.double() - expected).flatten(-2).norm(dim=-1)
    size = expected.flatten(-2).norm(dim=-1)
    return torch.where(off == 0, 0.0, off / size)


@pytest.fixture(scope="session")
def exactly() -> Callable[..., Tensor]:
    return exact_attention


@pytest.fixture(scope="session")
def errors_of() -> Callable[[Tensor, Tensor], Tensor]:
    return head_errors
