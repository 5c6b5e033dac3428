"""Who runs the tasks: the workers of a client, or the threads of this process."""

import time
import warnings
from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any

import dask
import distributed
from dask.delayed import Delayed
from dask.diagnostics import ProgressBar
from dask.sizeof import sizeof
from distributed.client import futures_of
from distributed.scheduler import KilledWorker

from .._shards import tasks
from .._shards.shard import Shard
from ..errors import DCIError, InvalidTypeError, InvalidValueError, WorkersLostError

sizeof.register(Shard, lambda shard: shard.nbytes)  # so that workers know what they hold
_LOOK = 1.0  # seconds between two looks at whether there are workers
PATIENCE = 60.0  # seconds without any worker after which a call fails


class Scheduler:
    """Runs tasks, and keeps what they return where it was made.

    Parameters
    ----------
    client : distributed.Client, optional
        None is the current one, or the threads of this process if there is none.
    verbose : bool
        Show Dask's progress bar.
    """

    def __init__(self, client: distributed.Client | None, verbose: bool) -> None:
        if client is None:
            try:
                client = distributed.default_client()
            except ValueError:  # there is none
                client = None
        elif not isinstance(client, distributed.Client):
            raise InvalidTypeError(f"client: expected a distributed.Client or None, received {type(client).__name__}")
        if client is not None and client.asynchronous:
            raise InvalidValueError("client: expected a synchronous one, received Client(asynchronous=True)")
        self.client = client
        self.verbose = verbose

    def check_workers(self) -> None:
        """Refuse a cluster without workers, or with workers of another version."""
        if self.client is None:
            return
        answers = self.client.run(tasks.version, on_error="return")
        found = {worker: answer for worker, answer in answers.items() if not isinstance(answer, OSError)}  # it is gone
        if not found:
            raise InvalidValueError(
                f"client: expected at least one worker, found none at {self.client.scheduler.address}; "
                "client.wait_for_workers(1) waits for those that are starting"
            )
        for worker, version in sorted(found.items()):
            if isinstance(version, BaseException):
                raise DCIError(f"client: expected dci {tasks.version()} on every worker, {worker} has: {version!r}")
            if version != tasks.version():
                raise DCIError(f"client: expected dci {tasks.version()} on every worker, {worker} has {version}")

    def keep(self, wanted: Sequence[Delayed]) -> list[Delayed]:
        """Start tasks whose results stay on the workers, and are computed again where they are lost.

        Returns tasks of these results, of which `run` waits for those that it needs, and raises their errors.
        """
        if self.client is None:
            with ProgressBar() if self.verbose else nullcontext():
                return list(dask.persist(*wanted, scheduler="threads"))
        kept = self.client.persist(list(wanted))
        if self.verbose:
            with self.client.as_current():
                distributed.progress(futures_of(kept), notebook=False)
        return list(kept)

    def run(self, wanted: Sequence[Delayed]) -> list[Any]:
        """Return the results of tasks."""
        if self.client is None:
            return list(dask.compute(*wanted, scheduler="threads"))
        futures = self.client.compute(list(wanted))
        self._wait(self.client, futures)
        try:
            return list(self.client.gather(futures))
        except (KilledWorker, distributed.CancelledError) as error:
            raise _lost(error) from error

    @staticmethod
    def _wait(client: distributed.Client, futures: list[distributed.Future]) -> None:
        """Return when all are done, or raise the first error; do not wait for ever for workers that are gone."""
        last_seen = time.monotonic()
        while True:
            try:
                with client.as_current():  # or `wait` takes the default one, if there is one
                    distributed.wait(futures, timeout=_LOOK)
                break
            except distributed.TimeoutError:
                now = time.monotonic()
                if client.nthreads():
                    last_seen = now
                elif now - last_seen > PATIENCE:
                    for future in futures:
                        future.cancel()
                    raise WorkersLostError(f"client: no worker for {PATIENCE:.0f} s, so nothing was answered") from None
            except distributed.CancelledError as error:
                raise _lost(error) from error
        for future in futures:
            if future.status in ("error", "cancelled", "lost"):
                try:
                    future.result()
                except (KilledWorker, distributed.CancelledError) as error:
                    raise _lost(error) from error


def _lost(error: BaseException) -> WorkersLostError:
    return WorkersLostError(
        f"client: the workers that had what was asked for are gone, and it cannot be computed again: {error}"
    )


def warn_unknown(what: str) -> None:
    """Warn that sizes of chunks have to be computed."""
    warnings.warn(
        f"{what}: its chunks have unknown sizes, which are computed now; persist the array, or call "
        "compute_chunk_sizes() before, if its chunks should not be made twice",
        UserWarning,
        stacklevel=4,
    )
