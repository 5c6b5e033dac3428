"""What is asked of `dci`, read off the rows of a run: shown by the report and by pytest, asserted but for times.

`JUDGES` maps a suite to a function from its rows to bars; another package adds its own.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from comparisons.attention.suites import TOLERANCES
from comparisons.harness.question import Options
from comparisons.harness.results import Row, select
from comparisons.knn.bench import Measurement, cheapest
from comparisons.knn.suites import PAIR, RECALL, SUITES, wanted_recall
from comparisons.report import bars_tasks

MARGIN = 0.01  # recall is calibrated on a sample and measured on other queries
FEW = 1_000  # queries, below which chance moves the recall by more than that
LARGE = 100_000  # points, from which on times are judged that depend on their number
ADD, REMOVE, IN_BATCHES = 0.03, 0.02, 1.5  # 1 % of the points; all of them in batches: as a share of a fit
SINGLE_ADDS = 50_000  # a second
CHURNED = 1.05  # times what queries take on an index that was fitted
SMALLER = 1.0  # of the time of float32, at the same recall
SAVED, OF_DISK = 500e6, 0.8  # bytes a second, or a share of what the disk takes
MAPPED = 0.1  # seconds to the first answer
OPEN, OPEN_BYTES = 0.05, 1.2e9  # seconds to open a file of at most so many bytes
RESIDENT = 2e9  # bytes that a process which asks a mapped index holds
LONGEST_WAIT = 0.01  # seconds that a query waits while points are added
BESIDE = 1.3  # times what it takes alone
SHARDED, HELD = 1.2, 1.6  # times what one index takes; times its shards that a worker holds


@dataclass(frozen=True)
class Bar:
    """One thing asked, and what came.

    Attributes
    ----------
    timed : bool
        Holds on whole data and a quiet machine only, and is shown rather than asserted.
    """

    suite: str
    data: str
    asked: str
    reached: str
    holds: bool
    timed: bool = True


@dataclass(frozen=True)
class Goal:
    """Total time on a data set: at least so many times faster than these."""

    over_flat: float
    over_ivf: float | None = None


GOALS = {
    "manifold": Goal(8, 8),
    "glove": Goal(6, 4),
    "sentences": Goal(1, 1.5),
    "words": Goal(1 / 1.1),
    "noise": Goal(1 / 1.1),
}

FLOORS = {  # exact attention's time as a multiple of dci_attention's, at tolerances 0.05 and 0.1
    ("heads", 4_096): (1.5, 2),
    ("heads", 16_384): (5, 9),
    ("heads", 32_768): (9, 15),
    ("heads-causal", 16_384): (2.5, 4.5),
    ("heads-causal", 32_768): (4.5, 7.5),
    **{(f"smooth-{width}-{kind}", 16_384): (6, 8) for width in (64, 128) for kind in ("diffuse", "peaked")},
    **{(f"smooth-{width}-{kind}", 65_536): (15, 20) for width in (64, 128) for kind in ("diffuse", "peaked")},
}
DECODING_FLOORS = (5, 8)
HELD_UP = 20  # milliseconds that a fold may take of one token, beside the median
WORST = 1.1  # times the tolerance that a head's error may be
WITHIN = 0.99  # of the heads are within the tolerance itself
LONG = 8_192  # from here on exponents are fitted
MOST_EXPONENT = 1.4
SLOWER, SLOWER_SECONDS = 1.1, 30e-6  # times what exact attention takes, or more by this
OVER_IVF, OVER_LSH = 1.3, 2.0  # attention mass at equal keys examined
EXAMINED = 0.01  # of the keys, where that is asked


def bars(rows: Sequence[Row]) -> list[Bar]:
    """Judge all rows, suite by suite and data set by data set."""
    found: list[Bar] = []
    for suite, judge in JUDGES.items():
        of_suite = select(rows, suite)
        for data in dict.fromkeys(row["data"] for row in of_suite):
            found += judge(data, select(of_suite, data=data))
        if suite == "growth" and of_suite:
            found += _exponent(of_suite)
        if suite == "attention_truth" and of_suite:
            found += _within(of_suite)
    return found


def exponent(points: Sequence[tuple[float, float]]) -> float:
    """Return the slope of a line through (log x, log y): how y grows with x.

    Examples
    --------
    >>> round(exponent([(1, 3), (2, 12), (4, 48)]), 6)
    2.0
    """
    x, y = np.log(np.array(points, dtype=float)).T
    return float(np.polyfit(x, y, 1)[0])


def best(rows: Sequence[Row], rival: str, cost: str = "total") -> Measurement | None:
    """Return a rival's cheapest row; in a final every row reaches the recall."""
    return cheapest([Measurement.of(row) for row in rows if row["rival"] == rival], 0, cost)


def _knn(data: str, rows: Sequence[Row]) -> Iterator[Bar]:
    dci, goal = best(rows, "dci"), GOALS.get(data)
    if dci is None:
        return
    yield _recall_bar("knn", data, rows[0]["wanted"], dci.recall, rows[0]["queries"])
    if goal is None or rows[0]["wanted"] != wanted_recall(data, Options()):
        return
    for name, factor in (("faiss flat", goal.over_flat), ("faiss IVF", goal.over_ivf)):
        rival = best(rows, name)
        if factor and rival:
            ratio = rival.total / dci.total
            yield Bar("knn", data, f"total time: {name} / dci at least {factor:.2g}", f"{ratio:.2f}", ratio >= factor)


def _latency(data: str, rows: Sequence[Row]) -> Iterator[Bar]:
    medians = {name: [row["median"] for row in rows if row["rival"] == name] for name in ("dci", "faiss IVF")}
    if data in PAIR and all(medians.values()):
        dci, ivf = (1e6 * min(values) for values in medians.values())
        yield Bar("latency", data, "one query: median at most faiss IVF's", f"{dci:.0f} and {ivf:.0f} µs", dci <= ivf)


def _pareto(data: str, rows: Sequence[Row]) -> Iterator[Bar]:
    """`dci` is cheapest at every recall: at the recall of each rival's setting, some `dci` reaches as much in less."""
    measured = [Measurement.of(row) for row in rows]
    dci = [m for m in measured if m.rival == "dci"]
    for name in ("faiss LSH", "faiss IVF"):
        ratios = []
        for m in measured:
            if m.rival == name and m.recall >= 0.5:
                match = cheapest(dci, min(m.recall, 0.99))
                ratios.append((m.total / match.total if match else 0.0, m))
        if data in PAIR and ratios and dci:
            worst, at = min(ratios, key=lambda pair: pair[0])
            asked = f"total time at every recall of {name} from 0.5 to 0.99: {name} / dci above 1"
            yield Bar("pareto", data, asked, f"least: {worst:.2f} at {at.recall:.3f} ({at.arguments})", worst > 1)


def _calibration(data: str, rows: Sequence[Row]) -> Iterator[Bar]:
    for row in rows:
        yield _recall_bar("calibration", data, row["search"]["recall"], row["recall"], row["queries"])


def _memory(data: str, rows: Sequence[Row]) -> Iterator[Bar]:
    for row in rows:
        growth, limit = row["growth_bytes"] / 1e6, (row["data_bytes"] + 200e6) / 1e6
        yield Bar("memory", data, f"fit and query at most {limit:.0f} MB", f"{growth:.0f} MB", growth <= limit)


def _growth(data: str, rows: Sequence[Row]) -> Iterator[Bar]:
    if dci := best(rows, "dci"):
        yield _recall_bar("growth", data, rows[0]["wanted"], dci.recall, rows[0]["queries"])


def _dynamic(data: str, rows: Sequence[Row]) -> Iterator[Bar]:
    found = {row["operation"]: row for row in select(rows, rival="dci")}
    for changed, fitted in (("in batches", "fit"), ("churn", "fit anew")):
        if {changed, fitted} <= found.keys():
            asked = f"{changed}: recall within {(margin := _margin(rows[0]['queries']))} of that of a fit"
            ours, theirs = (found[name]["recall"] for name in (changed, fitted))
            holds = ours >= theirs - margin
            yield Bar("dynamic", data, asked, f"{ours:.3f} and {theirs:.3f}", holds, timed=False)
    for name in [name for name in found if name.startswith("fit as ")]:
        margin, reachable = _margin(rows[0]["queries"]), min(rows[0]["wanted"], found[name]["reachable"])
        reached = found[name]["recall"]
        asked = f"{name}: recall {rows[0]['wanted']}, or what rounding leaves, within {margin}"
        yield Bar("dynamic", data, asked, f"{reached:.3f}", reached >= reachable - margin, timed=False)
    if rows[0]["n"] >= LARGE:
        for judge in (_changing, _smaller, _stored):
            for asked, reached, holds in judge(found, rows):
                yield Bar("dynamic", data, asked, reached, holds)


def _changing(found: dict[str, Row], rows: Sequence[Row]) -> Iterator[tuple[str, str, bool]]:
    names = {"first add": "1 %, first add, which copies what is there", "in batches": "everything, in batches"}
    limits = {"first add": ADD, "second add": ADD, "remove": REMOVE, "in batches": IN_BATCHES}
    for operation in [name for name in limits if {name, "fit"} <= found.keys()]:
        share, most = seconds(found[operation]) / seconds(found["fit"]), limits[operation]
        yield f"{names.get(operation, f'1 %, {operation}')}: at most {most:.0%} of a fit", f"{share:.1%}", share <= most
    if single := found.get("one by one"):
        reached = f"{rate(single):,.0f}"
        for other in select(rows, operation="one by one"):
            if other is not single:
                reached += f" ({other['rival']} {rate(other):,.0f})"
        yield f"one by one: at least {SINGLE_ADDS:,} points a second", reached, rate(single) >= SINGLE_ADDS
    if {"longest read", "longest read, adding"} <= found.keys():
        alone, longest = (max(found[name]["seconds"]) for name in ("longest read", "longest read, adding"))
        asked = f"a query while as many points are added: waits at most {1e3 * LONGEST_WAIT:.0f} ms"
        reached = f"the longest takes {1e3 * longest:.1f} ms, alone {1e3 * alone:.1f} ms"
        yield asked, reached, longest <= LONGEST_WAIT + statistics.median(found["longest read"]["seconds"])
    if {"churn", "fit anew"} <= found.keys():
        ours, theirs = (statistics.median(found[name]["query_seconds"]) for name in ("churn", "fit anew"))
        asked = f"after churn: queries take at most {CHURNED:g} x those of a fit"
        yield asked, f"{ours / theirs:.2f} x", ours <= CHURNED * theirs


def _smaller(found: dict[str, Row], rows: Sequence[Row]) -> Iterator[tuple[str, str, bool]]:
    for store in ("float16", "int8"):
        if {kept := f"fit as {store}", plain := "fit as float32"} <= found.keys():
            ours, theirs = (statistics.median(found[name]["query_seconds"]) for name in (kept, plain))
            asked = f"{store}: queries take at most {SMALLER:g} x those of float32"
            yield asked, f"{ours / theirs:.2f} x", ours <= SMALLER * theirs
            memory = found[kept]["memory"] / found[plain]["memory"]
            yield f"{store}: less memory than float32, structure and all", f"{memory:.2f} x", memory < 1


def _stored(found: dict[str, Row], rows: Sequence[Row]) -> Iterator[tuple[str, str, bool]]:
    if {"save", "write"} <= found.keys():
        save, disk = rate(found["save"]), rate(found["write"])
        asked = f"save: at least {SAVED / 1e6:.0f} MB/s, or {OF_DISK:.0%} of a plain write"
        yield asked, f"{save / 1e6:.0f} and {disk / 1e6:.0f} MB/s", save >= min(SAVED, OF_DISK * disk)
    if mapped := found.get("map and query"):
        asked = f"load with mmap and the first query: under {1e3 * MAPPED:.0f} ms"
        yield asked, f"{1e3 * seconds(mapped):.1f} ms", seconds(mapped) < MAPPED


def _out_of_core(data: str, rows: Sequence[Row]) -> Iterator[Bar]:
    suite, found = "out_of_core", {row["operation"]: row for row in rows}
    if sample := found.get("sample"):
        yield _recall_bar(suite, data, sample["wanted"], sample["recall"], sample["queries"])
    held = [row["resident"] for row in rows if "anon" in row.get("resident", ())]
    if held and rows[0]["n"] >= LARGE:
        most = {kind: max(resident[kind] for resident in held) for kind in ("peak", "anon", "file")}
        reached = "{peak} ({anon} its own, {file} of files)".format(**{k: f"{v / 1e9:.2f} GB" for k, v in most.items()})
        yield Bar(suite, data, f"mapped and asked: at most {RESIDENT / 1e9:g} GB resident", reached,
                  most["peak"] <= RESIDENT, timed=False)  # fmt: skip
    if (opened := found.get("map again")) and opened["bytes"] <= OPEN_BYTES and rows[0]["n"] >= LARGE:
        asked = f"{opened['bytes'] / 1e9:.1f} GB opened with mmap, read lately: under {1e3 * OPEN:.0f} ms"
        yield Bar(suite, data, asked, f"{1e3 * seconds(opened):.1f} ms", seconds(opened) < OPEN)


def _sharded(data: str, rows: Sequence[Row]) -> Iterator[Bar]:
    found = {row["operation"]: row for row in rows}
    for row in rows:
        if "recall" in row:
            yield _recall_bar("sharded", data, row["wanted"], row["recall"], row["queries"])
    if not {"one", "sharded"} <= found.keys() or rows[0]["n"] < LARGE:
        return
    ratio = total_seconds(found["sharded"]) / total_seconds(found["one"])
    asked = f"fit and queries, in processes: at most {SHARDED:g} x the time of one index"
    yield Bar("sharded", data, asked, f"{ratio:.2f} x", ratio <= SHARDED)
    held = found["sharded"]["memory"]
    asked = f"a worker holds at most {HELD:g} x its shards"
    yield Bar("sharded", data, asked, f"{held:.2f} x", held <= HELD, timed=False)


def _beside(data: str, rows: Sequence[Row]) -> Iterator[Bar]:
    took = {row["operation"]: seconds(row) for row in rows}
    if rows[0]["n"] < LARGE:
        return
    for row in rows:
        if row["operation"] != row["beside"] and row["beside"] in took:
            ratio = seconds(row) / took[row["beside"]]
            asked = f"{row['operation']}: at most {BESIDE:g} x the time alone"
            yield Bar("beside", data, asked, f"{ratio:.2f} x", ratio <= BESIDE)


def total_seconds(row: Row) -> float:
    """Return the median of fitting and asking together."""
    return statistics.median(map(sum, zip(row["build_seconds"], row["query_seconds"], strict=True)))


def rate(row: Row) -> float:
    """Return points or bytes a second of a row of an index that changes."""
    return row.get("points", row.get("bytes", 0)) / seconds(row)


def _exponent(rows: Sequence[Row]) -> Iterator[Bar]:
    cost = [(row["n"], Measurement.of(row).query_time) for row in rows if row["rival"] == "dci"]
    if len(cost) > 1 and max(cost)[0] >= 100_000 and rows[0]["wanted"] == RECALL:
        slope = exponent(cost)
        yield Bar("growth", "glove", "exponent of a query's time in n at most 0.6", f"{slope:.2f}", slope <= 0.6)


# -------------------------------------------------------------------------------------------------- attention


def seconds(row: Row) -> float:
    """Return the median time of a row of attention's."""
    return statistics.median(row["seconds"])


def _at_tolerances(rows: Sequence[Row]) -> Iterator[tuple[int, float, list[Row]]]:
    """Return the rows of `dci_attention` with the place and the value of each tolerance."""
    for at, tolerance in enumerate(TOLERANCES):
        if mine := select(rows, method=f"dci_attention {tolerance:g}"):
            yield at, tolerance, mine


def _over_exact(rows: Sequence[Row], mine: Sequence[Row]) -> list[float]:
    """Return how many times longer exact attention takes, layer by layer."""
    exact = {(row["length"], row.get("layer")): seconds(row) for row in select(rows, method="torch exact")}
    places = [((row["length"], row.get("layer")), row) for row in mine]
    return [exact[place] / seconds(row) for place, row in places if place in exact]


def _worst(suite: str, data: str, length: str, tolerance: float, mine: Sequence[Row]) -> Bar:
    worst, most = max(row["worst"] for row in mine), WORST * tolerance
    asked = f"{length}: worst head's error at most {most:.3g}"
    return Bar(suite, data, asked, f"{worst:.4f}", worst <= most, timed=False)


def _attention_layers(data: str, rows: Sequence[Row]) -> Iterator[Bar]:
    suite = "attention_layers"
    for length in sorted({row["length"] for row in rows}):
        some = select(rows, length=length)
        for at, tolerance, mine in _at_tolerances(some):
            yield _worst(suite, data, f"{length:,} at {tolerance:g}", tolerance, mine)
            ratios = _over_exact(some, mine)
            if ratios and (data, length) in FLOORS:
                floor, middle = FLOORS[data, length][at], statistics.median(ratios)
                asked = f"{length:,} at {tolerance:g}: torch exact / ours, median of layers, at least {floor:g}"
                reached = f"{middle:.2f} ({min(ratios):.2f} to {max(ratios):.2f})"
                yield Bar(suite, data, asked, reached, middle >= floor)


def _attention_length(data: str, rows: Sequence[Row]) -> Iterator[Bar]:
    suite = "attention_length"
    exact = {row["length"]: seconds(row) for row in select(rows, method="torch exact")}
    for _, tolerance, mine in _at_tolerances(rows):
        yield _worst(suite, data, f"every length at {tolerance:g}", tolerance, mine)
        grown = [(row["length"], seconds(row)) for row in mine if row["length"] >= LONG]
        if len(grown) > 2 and data != "noise":  # noise is left to the exact kernel
            slope = exponent(grown)
            asked = f"at {tolerance:g}: exponent of time from {LONG:,} on at most {MOST_EXPONENT:g}"
            yield Bar(suite, data, asked, f"{slope:.2f} to {max(grown)[0]:,}", slope <= MOST_EXPONENT)
        paired = [(seconds(row), exact[row["length"]], row["length"]) for row in mine if row["length"] in exact]
        over = [(ours / theirs, at) for ours, theirs, at in paired if ours > theirs + SLOWER_SECONDS]
        ratio, at = max(over, default=(1.0, 0))
        asked = f"at {tolerance:g}: at most 10 % or 30 µs slower than torch exact, at any length"
        reached = f"at most {ratio:.2f} x at {at:,}" if over else "never slower"
        yield Bar(suite, data, asked, reached, ratio <= SLOWER)


def _attention_decoding(data: str, rows: Sequence[Row]) -> Iterator[Bar]:
    suite = "attention_decoding"
    for at, tolerance, mine in _at_tolerances(rows):
        yield _worst(suite, data, f"at {tolerance:g}", tolerance, mine)
        touched = max(row["keys"] for row in mine)
        asked = f"at {tolerance:g}: a token touches under 10 % of the cached keys"
        full = min(row["length"] for row in mine) >= 32_768
        yield Bar(suite, data, asked, f"{touched:.1%}", touched < 0.1, timed=not full)
        ratios = _over_exact(rows, mine)
        if ratios:
            floor = DECODING_FLOORS[at]
            asked = f"at {tolerance:g}: torch exact / ours per token at least {floor:g}"
            yield Bar(suite, data, asked, f"{min(ratios):.2f}", min(ratios) >= floor)
        tokens = [row["notes"] for row in mine if "slowest" in row.get("notes", {})]
        if tokens:
            longest, median = (max(1e3 * of[name] for of in tokens) for name in ("slowest", "median"))
            asked = f"at {tolerance:g}: the longest token at most {HELD_UP:g} ms longer than the median"
            reached = f"{longest:.1f} ms, median {median:.2f} ms"
            yield Bar(suite, data, asked, reached, longest - median <= HELD_UP)


def over_tolerance(rows: Sequence[Row]) -> list[float]:
    """Return every approximated head's true error over the tolerance."""
    return [error / row["options"]["tolerance"] for row in rows for error in row["errors"]]


def _attention_truth(data: str, rows: Sequence[Row]) -> Iterator[Bar]:
    worst = max(over_tolerance(rows), default=0.0)
    asked = f"no approximated head's error above {WORST:g} x the tolerance"
    yield Bar("attention_truth", data, asked, f"{worst:.2f} x", worst <= WORST, timed=False)


def _within(rows: Sequence[Row]) -> Iterator[Bar]:
    ratios = over_tolerance(rows)
    share = sum(ratio <= 1 for ratio in ratios) / max(1, len(ratios))
    asked = f"at least {WITHIN:.0%} of the approximated heads within the tolerance"
    yield Bar("attention_truth", "all", asked, f"{share:.2%} of {len(ratios):,}", share >= WITHIN, timed=False)


def recalled(rows: Sequence[Row], method: str, what: str = "mass") -> dict[tuple[Any, int], float]:
    """Return what a method recalls of each layer's each head, with the setting that is best for that head."""
    found: dict[tuple[Any, int], float] = {}
    for row in select(rows, method=method):
        for head, value in enumerate(row[what]):
            place = row.get("layer"), head
            found[place] = max(value, found.get(place, 0.0))
    return found


def _attention_ranking(data: str, rows: Sequence[Row]) -> Iterator[Bar]:
    some = select(rows, keys=EXAMINED)
    ours = recalled(some, "dci")
    for rival, floor in (("faiss IVF", OVER_IVF), ("LSH buckets", OVER_LSH), ("faiss LSH codes", OVER_LSH)):
        theirs = recalled(some, rival)
        ratios = [ours[place] / max(theirs[place], 1e-9) for place in ours if place in theirs]
        if ratios and data == "heads":
            middle = statistics.median(ratios)
            asked = f"{EXAMINED:.0%} of the keys examined: attention mass of dci / {rival}, median of heads, "
            reached = f"{middle:.2f} ({min(ratios):.2f} to {max(ratios):.2f}, {len(ratios)} heads)"
            yield Bar("attention_ranking", data, f"{asked}at least {floor:g}", reached, middle >= floor)


def _task(suite: str) -> Callable[[str, Sequence[Row]], Iterator[Bar]]:
    return lambda data, rows: (Bar(suite, data, *judged) for judged in bars_tasks.judge(rows))


def _recall_bar(suite: str, data: str, wanted: float, reached: float, queries: int) -> Bar:
    margin = _margin(queries)
    holds = reached >= wanted - margin
    return Bar(suite, data, f"recall {wanted} within {margin}", f"{reached:.3f}", holds, timed=False)


def _margin(queries: int) -> float:
    return MARGIN if queries >= FEW else 5 * MARGIN


JUDGES: dict[str, Callable[[str, Sequence[Row]], Iterator[Bar]]] = {
    "knn": _knn,
    "latency": _latency,
    "growth": _growth,
    "pareto": _pareto,
    "calibration": _calibration,
    "memory": _memory,
    "dynamic": _dynamic,
    "out_of_core": _out_of_core,
    "sharded": _sharded,
    "beside": _beside,
    "attention_layers": _attention_layers,
    "attention_length": _attention_length,
    "attention_decoding": _attention_decoding,
    "attention_ranking": _attention_ranking,
    "attention_truth": _attention_truth,
    **{name: _task(name) for name in SUITES if name.startswith("task_")},
}
