"""A trained model's answers at one length, under one contender after the other."""

from __future__ import annotations

from functools import cached_property

import torch
from torch import Tensor
from torch.nn import functional

from comparisons.attention.bench import Contender
from comparisons.harness.results import Row
from comparisons.tasks import rows
from comparisons.tasks.contenders import EXACT
from comparisons.tasks.models import Transformer
from comparisons.tasks.swap import swap
from comparisons.tasks.task import Task

PARTS = 16  # of a sequence, whose losses are told apart
SHORT = 1_024  # tokens, to warm up with


class Evaluation:
    """One task at one length.

    Parameters
    ----------
    task : Task
    model : Transformer
        In evaluation mode.
    length, threads : int
    repeats : int, optional
        Runs of a contender, if they are short; the first one is judged, times are medians.
    """

    def __init__(self, task: Task, model: Transformer, length: int, threads: int, repeats: int = 1) -> None:
        self.task, self.model, self.length, self.threads, self.repeats = task, model, length, threads, repeats
        self.sequences = task.count(length)
        self._warm: set[type] = set()

    def row(self, contender: Contender) -> Row:
        """Return the row of a contender: what it costs, and its accuracy beside that of exact attention.

        ``agreement`` is the share of the answers that are those of exact attention, right or wrong; ``worst_layer`` the
        layer with the largest error of a head. Where every token is asked for there are perplexities too, also by part
        of the sequence: ``losses`` and ``exact_losses``. Times are those of all sequences together.
        """
        self._warm_up(contender)
        logits, row = self._measure(contender)
        row = rows.repeated(row, lambda: self._measure(contender, judge=False)[1], self.repeats)
        exact, answers = self._exact, self.answers
        same = _share(logits.argmax(-1) == exact.argmax(-1))
        row |= {"causal": self.task.config.causal, "sequences": self.sequences, "agreement": same}
        row["worst_layer"] = row["worst_call"] % self.task.config.layers
        if self._every_token:
            mine, theirs = (_losses(some, answers, self.sequences) for some in (logits, exact))
            parts = {"losses": mine.tolist(), "exact_losses": theirs.tolist()}
            return row | rows.perplexity(mine.mean().item(), theirs.mean().item(), same, answers.numel()) | parts
        reached, best = (_share(some.argmax(-1) == answers) for some in (logits, exact))
        return row | rows.accuracy(self.task.metric, reached, best, answers.numel())

    def _measure(self, contender: Contender, judge: bool = True) -> tuple[Tensor, Row]:
        mlps = [layer.mlp for layer in self.model.layers]
        return rows.measure(contender, self.threads, self.logits, judge, mlps)

    def _warm_up(self, contender: Contender) -> None:
        """Make the sequences, and have a rival run once on a short one: neither is timed."""
        _ = self._batches
        if contender.rival not in self._warm:
            self._warm.add(contender.rival)
            some = self.task.held_out(min(self.length, SHORT), 0)
            with swap(contender, self.threads):
                self.model(some.tokens, some.at, some.places)

    @cached_property
    def _batches(self):
        return [self.task.held_out(self.length, at) for at in range(self.sequences)]

    @cached_property
    def _every_token(self) -> bool:
        some = self._batches[0]
        return some.at is not None and some.at.shape == some.tokens.shape

    @cached_property
    def answers(self) -> Tensor:
        """The right answers of all sequences, (answers,)."""
        return torch.cat([_asked(batch.answers, batch.asked) for batch in self._batches])

    @cached_property
    def _exact(self) -> Tensor:
        return self._measure(EXACT, judge=False)[0]

    def rows_asked(self, sequence: int, rows: Tensor) -> Tensor:
        """Return, of what every token of a sequence has, that of the places of its answers; for one answer the mean."""
        batch = self._batches[sequence]
        if batch.at is None:
            return rows.mean(0, keepdim=True)
        return _asked(rows[batch.at], batch.asked)

    def logits(self) -> Tensor:
        """Return the logits of all answers, one sequence after the other, (answers, outputs)."""
        found = [(self.model(batch.tokens, batch.at, batch.places), batch.asked) for batch in self._batches]
        return torch.cat([_asked(logits, asked) for logits, asked in found])


def _asked(values: Tensor, asked: Tensor | None) -> Tensor:
    return values.flatten(0, 1) if asked is None else values[asked]


def _share(hits: Tensor) -> float:
    return hits.float().mean().item()


def _losses(logits: Tensor, answers: Tensor, sequences: int) -> Tensor:
    """Return the mean loss of each part of the sequences, in nats a token."""
    losses = functional.cross_entropy(logits, answers, reduction="none")
    return losses.view(sequences, PARTS, -1).mean((0, 2))
