"""Profiling: every workload without clocks, and with them; the machine's limits before and after."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

from comparisons.data.datasets import optional
from comparisons.harness.results import Row, Run
from comparisons.profile import limits
from comparisons.profile.clock import Amount, Clock, watched
from comparisons.profile.workloads import Workload

SUITE = "profile"
MACHINE = "machine"  # the data of the rows that hold its limits
REPEATS = 3


def run(run: Run, workloads: Iterable[Workload], smoke: bool = False) -> None:
    """Profile workloads, and keep what was found in the run."""
    repeats = 1 if smoke else REPEATS
    with _one_thread():
        run.step("limits before", lambda: [_limits("limits before", smoke)])
        for workload in workloads:
            print(f"  profile: {workload.name}", file=sys.stderr, flush=True)
            run.step(workload.name, lambda workload=workload: rows(workload, repeats, smoke))
        run.step("limits after", lambda: [_limits("limits after", smoke)])


def rows(workload: Workload, repeats: int, smoke: bool = False) -> list[Row]:
    """Return the stages of a workload, and first the whole of it without clocks.

    A row has the seconds of processor time of every repeat, and the work of one: ``flops``, ``exps``, ``bytes``.
    """
    job = workload.prepare(smoke)
    job.call()
    whole = [_seconds(job.call) / job.count for _ in range(repeats)]
    clock = Clock()
    with watched(clock, workload.stages(smoke)):
        job = workload.prepare(smoke)  # again: what it makes has to be timed
        turns = [_turn(clock, job.call) for _ in range(repeats)]
    common = {"suite": SUITE, "data": workload.name, "threads": 1}
    first = {"operation": "whole", "seconds": whole, "title": workload.title, "shape": job.shape, "unit": workload.unit}
    found = [common | first]
    for name in dict.fromkeys(name for seconds, _ in turns for name in seconds):
        times = [seconds.get(name, 0.0) / job.count for seconds, _ in turns]
        work = [part / job.count for part in turns[0][1].get(name, Amount())]
        found.append(common | {"operation": name, "seconds": times} | Amount(*work)._asdict())
    return found


def _turn(clock: Clock, call: Callable[[], object]) -> tuple[dict[str, float], dict[str, Amount]]:
    """Run twice, whole and taken apart; return seconds and work by stage."""
    clock.taking_apart = False
    with clock.running():
        call()
    seconds = clock.seconds
    clock.taking_apart = True
    with clock.running():
        call()
    for whole, shares in clock.shares.items():
        spent, total = seconds.pop(whole, 0.0), sum(shares.values()) or 1.0
        for name, share in shares.items():
            seconds[name] = seconds.get(name, 0.0) + spent * share / total
    return seconds, clock.work


def _limits(when: str, smoke: bool) -> Row:
    return {"suite": SUITE, "data": MACHINE, "operation": when, **limits.measure(smoke)._asdict()}


def _seconds(call: Callable[[], object]) -> float:
    begin = time.thread_time()
    call()
    return time.thread_time() - begin


@contextmanager
def _one_thread() -> Iterator[None]:
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with optional("threadpoolctl", "the profile").threadpool_limits(1), torch.no_grad():
            yield
    finally:
        torch.set_num_threads(before)
