"""A clock of stages, and functions of the engines that switch it while they run.

The engines know nothing of it: for the time of a run, names in their modules and classes stand for functions that
start a stage, call the original, and go back to the stage before. A name that is no more raises `StaleProfileError`.

Everything has one thread, so a stage's processor time is that of the thread.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import wraps
from inspect import isgeneratorfunction
from typing import Any, NamedTuple

REST = "everything else"
_CALLS = 2_000  # that tell what looking at the clock takes


class StaleProfileError(Exception):
    """A name that the profile wraps is gone from the engine: its list of stages has to follow."""


class Amount(NamedTuple):
    """Work: floating-point operations (float32), exponentials, and bytes that come from memory or go there."""

    flops: float = 0.0
    exps: float = 0.0
    bytes: float = 0.0

    def and_also(self, other: Amount) -> Amount:
        return Amount(*(a + b for a, b in zip(self, other, strict=True)))


class Clock:
    """Processor seconds and work by stage.

    A stage within another counts for itself alone. A name that begins with ":" is a part of the stage that it runs in:
    ": near keys" within "search" or within "search: linear forms" is "search: near keys".

    Attributes
    ----------
    taking_apart : bool
        Whether to call stages that are one function again, in parts. What that takes is no part of the run, but caches
        feel it, so the times of whole stages come from runs without.
    seconds, work : dict
        By stage.
    shares : dict
        By stage that was taken apart, and by part of it: seconds that these took again.
    """

    def __init__(self) -> None:
        self.taking_apart = False
        self.seconds: dict[str, float] = {}
        self.work: dict[str, Amount] = {}
        self.shares: dict[str, dict[str, float]] = {}
        self._stack: list[str | None] = []
        self._last = 0.0
        begin = time.thread_time()
        for _ in range(_CALLS):
            time.thread_time()
        self._own = (time.thread_time() - begin) / _CALLS

    @contextmanager
    def running(self) -> Iterator[None]:
        """Forget what was, and measure what runs in here."""
        self.seconds, self.work, self.shares, self._stack = {}, {}, {}, [REST]
        self._last = time.thread_time()
        try:
            yield
        finally:
            self._lap()
            self._stack = []

    @property
    def current(self) -> str:
        """The stage that runs, "" if none does."""
        return self._stack[-1] or "" if self._stack else ""

    def enter(self, name: str | None) -> None:
        """Begin a stage; None for what is no part of the run."""
        if self._stack:
            self._lap()
            self._stack.append(name and self.full(name))

    def leave(self) -> None:
        """Go back to the stage before."""
        if self._stack:
            self._lap()
            self._stack.pop()

    @contextmanager
    def within(self, name: str | None) -> Iterator[None]:
        """Run a stage."""
        self.enter(name)
        try:
            yield
        finally:
            self.leave()

    def full(self, name: str) -> str:
        return self.current.partition(":")[0] + name if name.startswith(":") else name

    def count(self, amount: Amount, name: str = "") -> None:
        """Add work to a stage, the current one without a name; nothing while nothing runs."""
        if self.current:
            name = self.full(name or self.current)
            self.work[name] = self.work.get(name, Amount()).and_also(amount)

    def take_apart(self, whole: str, parts: dict[str, tuple[float, Amount]]) -> None:
        """Note what the parts of a stage took when they were called again, and their work."""
        if self.current:
            shares = self.shares.setdefault(self.full(whole), {})
            for name, (seconds, amount) in parts.items():
                shares[self.full(name)] = shares.get(self.full(name), 0.0) + seconds
                self.count(amount, name)

    def _lap(self) -> None:
        now, stage = time.thread_time(), self._stack[-1]
        if stage is not None:
            self.seconds[stage] = self.seconds.get(stage, 0.0) + max(0.0, now - self._last - self._own)
        self._last = now


class Replacement(NamedTuple):
    """`make(clock, original)` stands for the attribute `name` of a module or class while the clock watches.

    `title` is that of the stage that it is, "" if it is none or several.
    """

    owner: Any
    name: str
    make: Callable[[Clock, Any], Any]
    title: str = ""


@contextmanager
def watched(clock: Clock, replacements: Sequence[Replacement]) -> Iterator[None]:
    """Put the replacements in their places, and the originals back."""
    for owner, name, *_ in replacements:
        if not callable(vars(owner).get(name)):
            raise StaleProfileError(f"{owner.__name__} has no function {name!r} any more: see comparisons/profile")
    originals = [(owner, name, vars(owner)[name]) for owner, name, *_ in replacements]
    try:
        for owner, name, make, _ in replacements:
            setattr(owner, name, make(clock, vars(owner)[name]))
        yield
    finally:
        for owner, name, original in reversed(originals):
            setattr(owner, name, original)


def stage(
    owner: Any, name: str, title: str, work: Callable[..., Amount] | None = None, inside: str = ""
) -> Replacement:
    """Let a function be a stage of its own; of a generator, every step until the next `yield`.

    Parameters
    ----------
    owner : module or class
    name : str
        Of the function in there.
    title : str
    work : callable, optional
        From the arguments of a call to its work.
    inside : str
        Only in stages that begin so; elsewhere its time is that of whoever calls it.
    """

    def make(clock: Clock, original: Callable[..., Any]) -> Callable[..., Any]:
        if isgeneratorfunction(original):
            return _timed_steps(clock, original, title, work)

        @wraps(original)
        def timed(*arguments: Any, **named: Any) -> Any:
            if not clock.current.startswith(inside):
                return original(*arguments, **named)
            clock.enter(title)
            try:
                result = original(*arguments, **named)
                if work is not None:
                    clock.count(work(*arguments, **named))
                return result
            finally:
                clock.leave()

        return timed

    return Replacement(owner, name, make, title)


def _timed_steps(
    clock: Clock, original: Callable[..., Any], title: str, work: Callable[..., Amount] | None
) -> Callable[..., Any]:
    @wraps(original)
    def timed(*arguments: Any, **named: Any) -> Any:
        steps, answer = original(*arguments, **named), None
        while True:
            with clock.within(title):
                try:
                    step = steps.send(answer)
                except StopIteration as end:
                    if work is not None:
                        clock.count(work(*arguments, **named))
                    return end.value
            answer = yield step

    return timed


def counted(owner: Any, name: str, work: Callable[..., Amount]) -> Replacement:
    """Count the work of a function in whatever stage it is called."""

    def make(clock: Clock, original: Callable[..., Any]) -> Callable[..., Any]:
        @wraps(original)
        def counting(*arguments: Any, **named: Any) -> Any:
            clock.count(work(*arguments, **named))
            return original(*arguments, **named)

        return counting

    return Replacement(owner, name, make)
