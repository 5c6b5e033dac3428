"""Measuring attention: rivals take turns on the same heads, each output is held against exact attention's.

Time is that of building and of attending together, everything included. Like `harness`, this keeps steps in a `Run`.
"""

from __future__ import annotations

import gc
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from attention.demo import head_errors
from comparisons.attention.adapters import Attention, Exact
from comparisons.data.datasets import optional
from comparisons.data.heads import Heads, load, split
from comparisons.harness.results import Row, Run
from comparisons.knn.adapters import Arguments

_SHORT = 5e-3  # seconds

_warm: set[type[Attention]] = set()  # rivals that ran in this process


@dataclass(frozen=True)
class Contender:
    """A rival with its settings, under the name that figures and tables show."""

    rival: type[Attention]
    settings: Arguments = field(default_factory=dict)
    label: str = ""

    @property
    def method(self) -> str:
        return self.label or self.rival.name


class Bench:
    """Steps of a run on one data set at one length.

    Parameters
    ----------
    run : Run
        Keeps the steps, and says how many threads everything gets.
    suite : str
        Of the rows.
    name : str
        The data's.
    length : int
    layer : int, optional
        Of a model.
    """

    def __init__(self, run: Run, suite: str, name: str, length: int, layer: int | None = None) -> None:
        self.run, self.suite, self.name, self.length, self.layer = run, suite, name, length, layer

    def step(self, key: str, make: Callable[[], list[Row]]) -> list[Row]:
        """Return the rows that the run keeps under a key, or make them; what all have in common is added."""
        where = f"{self.name} {self.length:,}" + ("" if self.layer is None else f" layer {self.layer}")

        def rows() -> list[Row]:
            print(f"  {self.suite}: {where} | {key}", file=sys.stderr, flush=True)
            with self.limits():
                return [self._context() | row for row in make()]

        return self.run.step(f"{self.suite} | {where} | {key}", rows)

    @contextmanager
    def limits(self) -> Iterator[None]:
        """Give PyTorch, every BLAS and every OpenMP of the process the run's threads, and no gradients."""
        before = torch.get_num_threads()
        torch.set_num_threads(self.run.threads)
        try:
            with optional("threadpoolctl", "the harness").threadpool_limits(self.run.threads), torch.no_grad():
                yield
        finally:
            torch.set_num_threads(before)

    def _context(self) -> Row:
        context = {"suite": self.suite, "data": self.name, "length": self.length, "threads": self.run.threads}
        return context | ({} if self.layer is None else {"layer": self.layer})


class AttentionBench(Bench):
    """Some heads of one length.

    Parameters
    ----------
    run, suite, name, length
        Those of `Bench`; the name of heads may end with ``-causal``.
    layer, count : int, optional
        All heads of a layer of the encoder; only the first heads.
    """

    def __init__(
        self, run: Run, suite: str, name: str, length: int, layer: int | None = None, count: int | None = None
    ) -> None:
        super().__init__(run, suite, name, length, layer)
        self.count, self.causal = count, split(name)[1]

    def compare(self, contenders: Sequence[Contender], repeats: int, sample: int | None = None) -> list[Row]:
        """Measure contenders in turn, each round starting with another one.

        Parameters
        ----------
        contenders : sequence of Contender
        repeats : int
        sample : int, optional
            Ask with so many queries only, spread over the sequence; for rivals that allow it, and not for causal heads.
        """
        sample = None if self.causal else sample
        fitting = [c for c in contenders if (c.rival.causal_too or not self.causal) and (c.rival.sampled or not sample)]
        key = f"{[(c.method, c.settings) for c in fitting]}"
        return self.step(key, lambda: self._compare(fitting, repeats, sample))

    def heads(self) -> Heads:
        """Return the heads."""
        return load(self.name, self.length, self.layer).some(self.count or 1_000)

    def tensors(self) -> tuple[Tensor, Tensor, Tensor]:
        """Return queries, keys and values, (heads, length, width) each."""
        heads = self.heads()
        query, key, value = (torch.from_numpy(part) for part in (heads.query, heads.key, heads.value))
        return query, key, value

    def _compare(self, contenders: Sequence[Contender], repeats: int, sample: int | None) -> list[Row]:
        query, key, value = self.tensors()
        length = query.shape[1]
        asked = query
        if sample and sample < length:
            asked = query[:, torch.linspace(0, length - 1, sample).long()].contiguous()
        for contender in contenders:
            self._warm_up(contender.rival, query, key, value)
        exact: Tensor | None = None
        if not any(c.rival is Exact for c in contenders):
            exact = self._once(Contender(Exact), query, asked, key, value)[0]
        seconds: dict[int, list[tuple[float, float]]] = {at: [] for at in range(len(contenders))}
        found: dict[int, Row] = {}
        # Exact attention comes first in the first round: its output is what the others are held against.
        order = sorted(seconds, key=lambda at: contenders[at].rival is not Exact)
        for turn in range(repeats):
            shift = turn % len(order)
            for at in [*order[shift:], *order[:shift]]:
                out, built, attended, rival = self._once(contenders[at], query, asked, key, value)
                seconds[at].append((built, attended))
                exact = out if exact is None else exact
                if at not in found:
                    found[at] = self._row(contenders[at], rival, out, exact, length)
                del out, rival
        for at, times in seconds.items():
            found[at] |= {"seconds": [sum(pair) for pair in times], "build": statistics.median(b for b, _ in times)}
        return [found[at] for at in sorted(found)]

    def _once(
        self, contender: Contender, query: Tensor, asked: Tensor, key: Tensor, value: Tensor
    ) -> tuple[Tensor, float, float, Attention]:
        rival = contender.rival(self.run.threads, self.causal, **contender.settings)
        gc.collect()
        start = time.perf_counter()
        rival.fit(query, key, value)
        middle = time.perf_counter()
        out = rival.attend(asked)
        attended = time.perf_counter() - middle
        if attended < _SHORT:  # one call in the cold says little: time several in a row, as in a model
            count = int(2 * _SHORT / attended) + 1
            begin = time.perf_counter()
            for _ in range(count):
                rival.attend(asked)
            attended = (time.perf_counter() - begin) / count
        return out, middle - start, attended, rival

    def _warm_up(self, rival: type[Attention], *heads: Tensor) -> None:
        if rival in _warm:
            return
        _warm.add(rival)
        few = [part[:2, :2_560].contiguous() for part in heads]
        settings = rival.grid(few[0].shape[1], few[0].shape[2])[0]
        some = rival(self.run.threads, **settings)
        some.fit(*few)
        some.attend(few[0])

    @staticmethod
    def _row(contender: Contender, rival: Attention, out: Tensor, exact: Tensor, length: int) -> dict[str, Any]:
        errors = head_errors(out, exact).tolist()
        touched = rival.touched()
        return {
            "method": contender.method,
            "options": contender.settings,
            "heads": len(errors),
            "dim": out.shape[-1],
            "error": statistics.median(errors),
            "worst": max(errors),
            "errors": errors,
            "keys": statistics.mean(touched) / length,
            "notes": rival.notes(),
        }
