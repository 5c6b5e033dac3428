"""Tasks on threads, with progress and cancellation.

Threads live as long as one call: a fork finds none of them, and concurrent calls are independent. The
kernels release the GIL; each task writes its own results, so that the number of threads changes no result.
"""

import threading
from collections.abc import Callable, Iterable
from typing import Any

MAX_THREADS = 1024  # that anybody may ask for


def _progress_bar(total: int, title: str, unit: str) -> Any:
    from tqdm import tqdm  # here: its import takes a third of what `import dci` takes

    return tqdm(total=total, desc=title, unit=unit, unit_scale=True)


class Stopped(Exception):  # noqa: N818 - not an error
    """Raised inside a task when another one failed or the user pressed Ctrl-C."""


class Work:
    """Runs tasks and counts what they have done.

    Parameters
    ----------
    num_threads : int
    total : int
        What `tick` counts up to.
    title, unit : str
        Text of the progress bar.
    verbose : bool
        Show a progress bar.
    parent : Work, optional
        When it stops, this stops.
    """

    def __init__(
        self,
        num_threads: int,
        total: int = 0,
        title: str = "",
        unit: str = "",
        verbose: bool = False,
        parent: "Work | None" = None,
    ) -> None:
        self.num_threads = num_threads
        self._parent = parent
        self._lock = threading.Lock()
        self._stop = False
        self._bar = _progress_bar(total, title, unit) if verbose else None

    def __enter__(self) -> "Work":
        return self

    def __exit__(self, *exception: object) -> None:
        if self._bar is not None:
            self._bar.close()

    def tick(self, count: int = 0) -> None:
        """Count `count` units as done; long tasks call it several times a second."""
        if self._stopped():
            raise Stopped
        if self._bar is not None and count:
            with self._lock:
                self._bar.update(count)

    def _stopped(self) -> bool:
        return self._stop or (self._parent is not None and self._parent._stopped())

    def silent(self) -> "Work":
        """Return a Work with as many threads and without progress, for nested work."""
        return Work(self.num_threads)

    def finish(self) -> None:
        """Complete the progress bar."""
        if self._bar is not None:
            self._bar.update(self._bar.total - self._bar.n)

    def run(self, task: Callable[[Any], None], items: Iterable[Any]) -> None:
        """Call task(item) for every item; the first error stops the others and is raised."""
        items = list(items)
        n_threads = min(self.num_threads, len(items))
        if n_threads <= 1:
            for item in items:
                if self._stopped():
                    raise Stopped
                task(item)
            return
        queue = iter(items)
        errors: list[BaseException] = []

        def serve() -> None:
            try:
                while not self._stopped():
                    with self._lock:
                        item = next(queue, None)
                    if item is None:
                        return
                    task(item)
            except BaseException as error:  # raised again below, in the caller's thread
                self._stop = True
                errors.append(error)

        threads = [threading.Thread(target=serve, daemon=True) for _ in range(n_threads - 1)]
        try:
            for thread in threads:
                thread.start()
            serve()
        finally:
            self._stop = self._stop or any(thread.ident is None for thread in threads)
            for thread in threads:
                if thread.ident is not None:
                    thread.join()
        if not errors and self._stopped():
            raise Stopped
        if errors:
            self._stop = False
            raise next((e for e in errors if not isinstance(e, Stopped)), errors[0])


def blocks(total: int, size: int) -> list[tuple[int, int]]:
    """(start, stop) of consecutive blocks of at most `size`."""
    return [(start, min(start + size, total)) for start in range(0, total, size)]


def even_blocks(total: int, most: int, n_threads: int) -> list[tuple[int, int]]:
    """Blocks of at most `most`, about equal, so many that every thread has the same number."""
    rounds = -(-total // max(1, most * n_threads))
    return blocks(total, max(1, -(-total // max(1, rounds * n_threads))))
