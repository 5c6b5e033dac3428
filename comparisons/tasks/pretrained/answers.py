"""A model's answers under one contender after the other, beside those with exact attention, which are made once."""

from __future__ import annotations

from collections.abc import Callable
from typing import Generic, TypeVar

from comparisons.attention.bench import Contender
from comparisons.harness.results import Row
from comparisons.tasks import rows
from comparisons.tasks.contenders import EXACT

Answer = TypeVar("Answer")


class Answers(Generic[Answer]):
    """What a model answers.

    Parameters
    ----------
    forward : callable
        Runs the model.
    threads : int
    judge : bool
        Find the errors of heads as well: everybody's attention but exact then takes that of exact on top of it.
    """

    def __init__(self, forward: Callable[[], Answer], threads: int, judge: bool = True) -> None:
        self.forward, self.threads, self.judge = forward, threads, judge
        self._exact: Answer | None = None

    def of(self, contender: Contender) -> tuple[Answer, Row]:
        """Return the answers under a contender, and the row that `comparisons.tasks.rows.measure` makes of them."""
        exact = contender.rival is EXACT.rival
        answer, row = rows.measure(contender, self.threads, self.forward, self.judge and not exact)
        if exact:
            self._exact = answer
        return answer, row

    @property
    def exact(self) -> Answer:
        """The answers with exact attention."""
        return self.of(EXACT)[0] if self._exact is None else self._exact
