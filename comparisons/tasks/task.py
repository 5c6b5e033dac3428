"""What a task is: a small model, how it is trained, and the sequences that ask it something."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from comparisons.tasks.models import Config


@dataclass(frozen=True)
class Batch:
    """Sequences and what should come out.

    Attributes
    ----------
    tokens : Tensor of shape (sequences, length), int64
    at : Tensor of shape (sequences, answers), int64, or None
        Where answers are read; None: one answer for the whole sequence.
    answers : Tensor of shape (sequences, answers or 1), int64
    places : Tensor of shape (sequences, length), int64, optional
        Where tokens stand, for learned positions.
    asked : Tensor of shape (sequences, answers), bool, optional
        Which answers are evaluated; training learns from all.
    """

    tokens: Tensor
    at: Tensor | None
    answers: Tensor
    places: Tensor | None = None
    asked: Tensor | None = None


def batch(
    tokens: np.ndarray,
    answers: np.ndarray,
    at: np.ndarray | None = None,
    places: np.ndarray | None = None,
    asked: np.ndarray | None = None,
) -> Batch:
    """Return a batch of NumPy's arrays."""
    whole = [None if x is None else torch.from_numpy(np.asarray(x, np.int64)) for x in (tokens, at, answers, places)]
    mask = None if asked is None else torch.from_numpy(np.asarray(asked, bool))
    return Batch(*whole, mask)  # type: ignore[arg-type]


@dataclass(frozen=True)
class Stage:
    """A part of the training: so many steps with so many sequences of a length, at a rate that falls to `last`."""

    length: int
    sequences: int
    steps: int
    rate: float = 2e-3
    last: float = 0.1  # times `rate`


class Source(np.random.Generator):
    """Random numbers that know whether they are for evaluation: data that are finite are split by it."""

    def __init__(self, held_out: bool, *seed: int) -> None:
        super().__init__(np.random.PCG64((int(held_out), *seed)))
        self.held_out = held_out


Make = Callable[[int, int, Source], Batch]  # length, sequences, random numbers


@dataclass(frozen=True)
class Task:
    """One task.

    Attributes
    ----------
    name : str
    question : str
    metric : str
        What the accuracy is of.
    config : Config
    make : callable
        Sequences of a length; their random numbers say whether they are for training or for evaluation.
    stages : tuple of Stage
    lengths : tuple of int
        To evaluate at.
    at : int
        The length of them at which the rivals, and all tolerances, are tried.
    sequences : int
        To evaluate at this length; of shorter ones more, of longer ones fewer, of as many tokens.
    """

    name: str
    question: str
    metric: str
    config: Config
    make: Make
    stages: tuple[Stage, ...]
    lengths: tuple[int, ...]
    at: int
    sequences: int

    def training(self, stage: int, step: int) -> Batch:
        """Return the batch of a step of a stage."""
        where = self.stages[stage]
        return self.make(where.length, where.sequences, Source(False, stage, step))

    def count(self, length: int) -> int:
        """Return how many sequences of a length are evaluated."""
        return max(1, self.sequences * self.at // length)

    def held_out(self, length: int, sequence: int) -> Batch:
        """Return one sequence that training has not seen."""
        return self.make(length, 1, Source(True, length, sequence))
