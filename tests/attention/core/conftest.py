"""Threads of the engine's tests."""

import pytest
import torch


@pytest.fixture(autouse=True, scope="module")
def one_thread_of_torch():
    """The tests are many small calls: on a busy machine, torch's threads wait for each other."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
