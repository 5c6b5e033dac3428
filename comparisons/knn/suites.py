"""The questions about the index, and the list of all suites: each measures one data set and leaves rows in a `Run`.

Those about attention are in `comparisons.attention.suites`. A suite joins in `SUITES`, its bars in `bars.JUDGES`, its
figures in `figures_knn.FIGURES` or `figures_attention.FIGURES`, its table in `tables.of_suite`.
"""

from __future__ import annotations

import re
from functools import lru_cache, partial

from comparisons.attention import suites as attention_suites
from comparisons.data import datasets
from comparisons.data.datasets import ComparisonError, Dataset
from comparisons.harness import machine
from comparisons.harness.question import Options, Suite
from comparisons.harness.results import Run
from comparisons.knn import beside, out_of_core, sharded
from comparisons.knn.adapters import DCI, RIVALS, Adapter
from comparisons.knn.bench import Bench, Measurement, Setting, front
from comparisons.knn.dynamic import Changing
from comparisons.tasks import suites as task_suites
from comparisons.tasks.pretrained import suites as pretrained_suites

K = 10
RECALLS = {"manifold": 0.95}  # wanted where nothing else is said
RECALL = 0.9
PARETO_RECALLS = (0.5, 0.6, 0.7, 0.8, 0.85, 0.9, 0.93, 0.95, 0.97, 0.98, 0.99, 0.995)
BATCHES = {10: 200, 100: 50, 1_000: 10, 10_000: 5}  # size -> calls
CALIBRATED = (0.8, 0.9, 0.95, 0.99)
SEARCHERS = ("dci", "exact", "flat", "ivf", "hnsw")  # where every rival would take hours
TRACED = (*SEARCHERS, "lsh", "lsh-refined", "lorann")
PARAMETERS = {
    "n_simple": (4, 8, 12, 16, 24, 32, 48),
    "n_composite": (1, 2, 4),
    "n_levels": (1, 2, 3),
    "directions": ("random", "principal"),
    "ranking": ("max", "sum"),
}
NEIGHBOURS = (1, 10, 50, 100)
SMOKE = {  # what a smoke run has less of
    "PARETO_RECALLS": (0.5, 0.9),
    "BATCHES": {10: 4, 100: 2},
    "PARAMETERS": {"n_simple": (4, 16), "ranking": ("max", "sum")},
    "NEIGHBOURS": (1, 10),
}
SMOKE_DATA = ("manifold-2k-12-64", "glove-4k")


def wanted_recall(name: str, options: Options) -> float:
    """Return the recall that is asked for on a data set."""
    return options.recall or RECALLS.get(name.partition("-")[0], RECALL)


@lru_cache(maxsize=1)
def load(name: str, smoke: bool) -> Dataset:
    """Return a data set, in smoke runs at most 20,000 points and 300 queries of it."""
    data = datasets.load(name)
    return data.head(20_000, 300) if smoke else data


@lru_cache(maxsize=1)
def _bench(run: Run, name: str, smoke: bool) -> Bench:
    return Bench(load(name, smoke), K, run, builds=2 if smoke else None)


def _little(what: str, options: Options):
    return SMOKE[what] if options.smoke else globals()[what]


# ------------------------------------------------------------------------------------------- equal recall


def _contenders(bench: Bench, rivals: list[type[Adapter]], wanted: float, cost: str, count: int = 2) -> list[Setting]:
    """Return every rival's best settings; `dci` is told the recall and has no choice."""
    found = []
    for rival in rivals:
        own = [Setting(DCI, {"recall": wanted})] if rival is DCI else bench.contenders(rival, wanted, cost, count)
        found += own
    return found


def _equal_recall(suite: Suite, run: Run, name: str, options: Options) -> None:
    """Sweep every rival for the least total time at the recall; the best settings then take turns."""
    bench, wanted = _bench(run, name, options.smoke), wanted_recall(name, options)
    settings = _contenders(bench, suite.chosen(options), wanted, "total")
    bench.interleave(suite.name, settings, options.repeats, wanted)


def _construction(suite: Suite, run: Run, name: str, options: Options) -> None:
    """Find each rival's fastest construction that still reaches the recall; these then take turns."""
    bench, wanted = _bench(run, name, options.smoke), wanted_recall(name, options)
    settings = _contenders(bench, suite.chosen(options), wanted, "build_time", count=1)
    bench.interleave(suite.name, settings, options.repeats, wanted)


def _batch(suite: Suite, run: Run, name: str, options: Options) -> None:
    """Find what answers fastest at the recall, whatever its construction took; then ask in batches of several sizes."""
    bench, wanted = _bench(run, name, options.smoke), wanted_recall(name, options)
    settings = _contenders(bench, suite.chosen(options), wanted, "query_time", count=1)
    for size, calls in _little("BATCHES", options).items():
        bench.calls(suite.name, settings, size, calls, wanted)


def _latency(suite: Suite, run: Run, name: str, options: Options) -> None:
    """Do the same with single queries, for which a rival may have another way of searching."""
    bench, wanted = _bench(run, name, options.smoke), wanted_recall(name, options)
    settings = _contenders(bench, suite.chosen(options), wanted, "query_time")
    variants = [Setting(s.rival, s.build, search) for s in settings for search in s.rival.single(s.search)]
    bench.calls(suite.name, variants, 1, 20 if options.smoke else 1_000, wanted)


def _pareto(suite: Suite, run: Run, name: str, options: Options) -> None:
    """Trace every setting of every rival once; each rival's Pareto front then takes turns with the others'."""
    bench, recalls = _bench(run, name, options.smoke), _little("PARETO_RECALLS", options)
    settings = []
    for rival in suite.chosen(options):
        if rival is DCI:
            settings += [Setting(DCI, {"recall": recall}) for recall in recalls]
            continue
        found: list[Measurement] = []
        for build in bench.grid(rival, max(recalls)):
            found += bench.trace(rival, build, max(recalls))
        best = [m for m in front(found) if m.recall >= min(recalls)]
        settings += [Setting(rival, m.build, m.search) for m in sorted(best, key=lambda m: str(m.build))]
    bench.interleave(suite.name, settings, options.repeats)


# ---------------------------------------------------------------------------------------------- dci alone


def _sensitivity(suite: Suite, run: Run, name: str, options: Options) -> None:
    """Change one parameter of `dci` at a time, everything else chosen by itself; then the number of neighbours."""
    wanted, parameters = wanted_recall(name, options), _little("PARAMETERS", options)
    settings = [Setting(DCI, {"recall": wanted})]
    settings += [Setting(DCI, {"recall": wanted, key: value}) for key, values in parameters.items() for value in values]
    _bench(run, name, options.smoke).interleave(suite.name, settings, options.repeats, wanted)
    for k in _little("NEIGHBOURS", options):
        if k != K:
            Bench(load(name, options.smoke), k, run).interleave(suite.name, settings[:1], options.repeats, wanted)


def _calibration(suite: Suite, run: Run, name: str, options: Options) -> None:
    """Fit once, ask for several recalls on queries that calibration never saw."""
    bench = _bench(run, name, options.smoke)
    settings = [Setting(DCI, {"recall": RECALL}, {"recall": wanted}) for wanted in CALIBRATED]
    bench.interleave(suite.name, settings, repeats=1)


def _memory(suite: Suite, run: Run, name: str, options: Options) -> None:
    """Measure, in a process of its own, the memory of fit and query on top of the data."""
    wanted, (n, dim) = wanted_recall(name, options), load(name, smoke=False).points.shape  # made and cached here
    context = {"suite": suite.name, "data": name, "n": n, "dim": dim, "wanted": wanted, "rival": "dci"}
    run.step(f"memory | {name} at {wanted}", lambda: [context | machine.memory_growth(name, wanted, run.threads)])


def _dynamic(suite: Suite, run: Run, name: str, options: Options) -> None:
    """Let an index change, beside fitting anew."""
    bench = _bench(run, name, options.smoke)
    Changing(bench, wanted_recall(name, options), suite.chosen(options)).measure(suite.name, options.repeats)


def _out_of_core(suite: Suite, run: Run, name: str, options: Options) -> None:
    """Map an index that is larger than the memory it is asked in."""
    out_of_core.measure(run, suite.name, _mixture(name), wanted_recall(name, options))


def _mixture(name: str) -> str:
    """Return the name of a mixture of some size; others are an error."""
    if not re.fullmatch(r"mixture-[1-9]\d*k-[1-9]\d*", name):
        raise ComparisonError(f"unknown data set {name!r}: expected mixture-<n>k-<dim>, which is made in blocks")
    return name


def _sharded(suite: Suite, run: Run, name: str, options: Options) -> None:
    """Fit and ask shards in processes, beside one index."""
    asked = 500 if options.smoke else sharded.QUERIES
    sharded.measure(run, suite.name, _mixture(name), wanted_recall(name, options), options.repeats, asked)


def _beside(suite: Suite, run: Run, name: str, options: Options) -> None:
    """Fit and ask while other software is busy."""
    beside.measure(_bench(run, name, options.smoke), suite.name, wanted_recall(name, options), options.repeats)


ALL = ("manifold", "glove", "sentences", "words", "noise")
PAIR = ("manifold", "glove")
GLOVES = tuple(f"glove-{thousands}k" for thousands in (25, 50, 100, 200, 400))
DIMENSIONS = tuple(f"manifold-20k-12-{dim}" for dim in (16, 32, 64, 128, 256, 512, 1024))
INTRINSIC = tuple(f"manifold-20k-{intrinsic}-256" for intrinsic in (4, 8, 16, 24))
_suite = partial(Suite, rivals=tuple(RIVALS), smoke_data=SMOKE_DATA, read=lambda name, smoke: load(name, smoke))
KNN = _suite("knn", "total time, construction plus 10,000 queries, at equal recall", 15, ALL, _equal_recall)
CONSTRUCTION = _suite("construction", "the fastest construction that reaches the recall", 14, PAIR, _construction)
BATCH = _suite("batch", "batches of queries on a built index, by their size", 18, PAIR, _batch)
LATENCY = _suite("latency", "one query at a time on a built index", 15, PAIR, _latency)
GROWTH = _suite(
    "growth",
    "time against the number of points",
    5,
    GLOVES,
    _equal_recall,
    rivals=SEARCHERS,
    smoke_data=("glove-1k", "glove-2k", "glove-4k"),
)
DIMENSION = _suite(
    "dimension",
    "time against the dimension, ambient and intrinsic",
    8,
    DIMENSIONS + INTRINSIC,
    _equal_recall,
    rivals=SEARCHERS,
    smoke_data=("manifold-2k-12-16", "manifold-2k-12-64", "manifold-2k-4-64"),
)
SENSITIVITY = _suite(
    "sensitivity", "dci's own parameters, one at a time", 5, PAIR, _sensitivity, rivals=("dci",), tabled=False
)
PARETO = _suite(
    "pareto",
    "total time at every recall against every setting of every rival",
    35,
    PAIR,
    _pareto,
    rivals=TRACED,
    tabled=False,
)
CALIBRATION = _suite("calibration", "is the recall asked for reached?", 2, ALL, _calibration, rivals=("dci",))
MEMORY = _suite("memory", "memory of fit and query on top of the data", 2, ALL, _memory, rivals=("dci",), smoke_data=())
DYNAMIC = _suite(
    "dynamic",
    "an index that changes, beside fitting anew: adding, removing, saving, loading",
    2,
    ("glove",),
    _dynamic,
    rivals=("dci", "hnswlib"),
    smoke_data=("manifold-20k-12-64", "glove-4k"),  # ranked and exact
)
OUT_OF_CORE = _suite(
    "out_of_core",
    "an index larger than the memory it is asked in: mapped from a file that was not read before",
    9,
    ("mixture-2400k-96", "mixture-10000k-96"),  # a file of 1 GB, and 3.8 GB of points
    _out_of_core,
    rivals=("dci",),
    smoke_data=("mixture-20k-96",),
    read=lambda name, smoke: _mixture(name),
)
SHARDED = _suite(
    "sharded",
    "shards in as many processes, beside one index of as many threads; what merging and asking a shard cost",
    2,
    ("mixture-1000k-96",),
    _sharded,
    rivals=("dci",),
    smoke_data=("mixture-40k-96",),
    read=lambda name, smoke: _mixture(name),
)
BESIDE = _suite(
    "beside",
    "half of the processors, while PyTorch or NumPy keeps the other half busy",
    2,
    ("glove",),
    _beside,
    rivals=("dci",),
    smoke_data=("manifold-2k-12-64",),
)

SUITES = {
    suite.name: suite
    for suite in (
        KNN,
        CONSTRUCTION,
        BATCH,
        LATENCY,
        GROWTH,
        DIMENSION,
        SENSITIVITY,
        PARETO,
        CALIBRATION,
        MEMORY,
        DYNAMIC,
        OUT_OF_CORE,
        SHARDED,
        BESIDE,
        *attention_suites.SUITES,
        *task_suites.SUITES,
        *pretrained_suites.SUITES,
    )
}


def named(names: str) -> list[Suite]:
    """Return the suites in a comma-separated text: their names, ``tasks`` for those of models, ``all`` for each one."""
    groups = {"all": list(SUITES), "tasks": [name for name in SUITES if name.startswith("task_")]}
    found: list[str] = []
    for name in (name.strip() for name in names.split(",") if name.strip()):
        if name not in SUITES and name not in groups:
            raise ComparisonError(f"unknown suite {name!r}: expected some of {', '.join(SUITES)}, tasks, or all")
        found += groups.get(name, [name])
    return [SUITES[name] for name in dict.fromkeys(found)]
