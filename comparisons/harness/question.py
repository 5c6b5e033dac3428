"""What a suite is, and what a user may say about a run."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from comparisons.harness.results import Run
from comparisons.knn import adapters


@dataclass(frozen=True)
class Options:
    """What a user may say about a run."""

    recall: float | None = None
    rivals: tuple[str, ...] = ()  # none: every installed rival that the suite looks at
    repeats: int = 3
    smoke: bool = False


@dataclass(frozen=True)
class Suite:
    """A question, the data sets that it is asked of, and what measures it."""

    name: str
    question: str
    minutes: int  # of a full run on two cores
    data: tuple[str, ...]
    measure: Callable[[Suite, Run, str, Options], None]
    rivals: tuple[str, ...]
    smoke_data: tuple[str, ...]
    read: Callable[[str, bool], object]  # a data set by its name, or one line about why not
    known: Callable[[], dict[str, Any]] = lambda: adapters.RIVALS
    tabled: bool = True  # in the report; what hundreds of settings did is better drawn

    def run(self, run: Run, name: str, options: Options) -> None:
        """Measure one data set."""
        self.measure(self, run, name, options)

    def chosen(self, options: Options) -> list[Any]:
        """Return the rivals that the user named, or the installed ones."""
        known = self.known()
        wanted = [key for key in self.rivals if not options.rivals or key in options.rivals]
        return [known[key] for key in wanted if key in known and adapters.installed(known[key])]

    def names(self, smoke: bool) -> tuple[str, ...]:
        return self.smoke_data if smoke else self.data
