"""A fold: cells of a layer's heads are made or measured anew, by a bounded amount of work a token."""

from torch import Tensor

from dci._runtime.blas import one_blas_thread
from dci._runtime.threads import Work
from dci._runtime.types import FloatArray

from ..options import AttentionOptions
from .prefix import Prefix, PrefixJob
from .sample import Source, Steps

Pair = tuple[Tensor, Tensor]


class Fold:
    """Prefixes of some sequences, made head by head while tokens go on.

    Nothing here depends on the clock: as many multiply-adds as the caller says are done at a time, and a step more.

    Parameters
    ----------
    boundary : int
        Of the keys before it. They must not change; sequences that are copied share them.
    starts : list of int
        By sequence, how many keys nothing sees.
    samples : dict from sequence to list of H arrays of shape (tokens, G, E)
        Recent queries of the sequences that are to have cells.
    old : list of (list of Prefix or None), or None
        The cells there are, of all keys before `boundary`.
    growth : float
        See `PrefixJob`.
    scale : float
    options : AttentionOptions

    Attributes
    ----------
    boundary : int
    worked : int
        Multiply-adds of the last call.
    """

    def __init__(
        self,
        boundary: int,
        starts: list[int],
        samples: dict[int, list[FloatArray]],
        old: list[list[Prefix] | None] | None,
        growth: float,
        scale: float,
        options: AttentionOptions,
    ) -> None:
        self.boundary, self.worked = boundary, 0
        self._sources = list(range(len(starts)))
        self._jobs: dict[int, list[PrefixJob]] = {}
        for b, of in samples.items():
            before = None if old is None else old[b]
            self._jobs[b] = [
                PrefixJob((starts[b], boundary), query, scale, options, None if before is None else before[h], growth)
                for h, query in enumerate(of)
            ]
        self._steps = self._all_steps()

    def select(self, chosen: list[int]) -> None:
        """Keep these sequences, in this order."""
        self._sources = [self._sources[b] for b in chosen]

    def advance(self, pair: Pair, most: int) -> list[list[Prefix] | None] | None:
        """Work until `most` multiply-adds are done; return the cells by sequence and head when all are there."""
        self.worked = 0
        self._set_sources(pair)
        with one_blas_thread():
            while self.worked < most:
                work = next(self._steps, None)
                if work is None:
                    return self._prefixes()
                self.worked += work
        return None

    def finish(self, pair: Pair, num_threads: int) -> list[list[Prefix] | None]:
        """Do it all at once, before any step."""
        self._set_sources(pair)

        def run(job: PrefixJob) -> None:
            for _ in job.steps():
                work.tick()

        with one_blas_thread(), Work(num_threads) as work:
            work.run(run, [job for jobs in self._jobs.values() for job in jobs])
        return self._prefixes()

    def _all_steps(self) -> Steps:
        for source, jobs in self._jobs.items():
            for job in jobs:
                steps = job.steps()
                while source in self._sources and (work := next(steps, None)) is not None:
                    yield work

    def _set_sources(self, pair: Pair) -> None:
        for source, jobs in self._jobs.items():
            if source in self._sources:
                b = self._sources.index(source)
                for h, job in enumerate(jobs):
                    job.source = rows_of(pair, b, h)

    def _prefixes(self) -> list[list[Prefix] | None]:
        found: list[list[Prefix] | None] = []
        for source in self._sources:
            made = [job.prefix for job in self._jobs.get(source, [])]
            complete = [prefix for prefix in made if prefix is not None]
            found.append(complete if complete and len(complete) == len(made) else None)
        return found


def rows_of(pair: Pair, b: int, h: int) -> Source:
    """Return what gives the keys and values of a head in float32."""

    def rows(start: int, stop: int) -> tuple[FloatArray, FloatArray]:
        key, value = (x[b, h, start:stop].float().contiguous().numpy() for x in pair)
        return key, value

    return rows
