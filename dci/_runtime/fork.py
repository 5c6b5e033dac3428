"""Locks in forked processes."""

import os
import threading
import weakref
from types import TracebackType


class Lock:
    """A lock that is released in a forked child, where the thread that held it does not exist.

    What it guards has to make sense at any moment, then: fill something new and put it in place at last.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        _locks.add(self)

    def __enter__(self) -> None:
        self._lock.acquire()

    def try_enter(self) -> bool:
        """Enter if nobody is inside; tell whether."""
        return self._lock.acquire(blocking=False)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._lock.locked():  # else this is a child that was forked within
            self._lock.release()


_locks: "weakref.WeakSet[Lock]" = weakref.WeakSet()


def _renew() -> None:
    for lock in list(_locks):
        lock._lock = threading.Lock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_renew)
