"""Rows as text: tables, and for a user's own data a recommendation in words, also when a rival wins."""

from __future__ import annotations

import statistics
from collections.abc import Sequence

from comparisons.harness.results import Row, busy, select
from comparisons.knn.bench import Measurement, cheapest
from comparisons.report import bars, tables_tasks

Table = list[list[str]]  # the first row is the header
CLOSE = 1.1  # two times within this factor are the same
SHORT = 0.01  # a recall that falls this much short is not the wanted one


def markdown(rows: Sequence[Sequence[str]]) -> str:
    """Align rows of cells as a Markdown table; the first row is the header."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ["| " + " | ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)) + " |" for row in rows]
    return "\n".join([lines[0], "|" + "|".join("-" * (w + 2) for w in widths) + "|", *lines[1:]])


def time(seconds: float) -> str:
    """Return seconds with three digits and a unit.

    Examples
    --------
    >>> time(12.3456), time(0.0123), time(0.0000456)
    ('12.3 s', '12.3 ms', '45.6 µs')
    """
    for unit, size in (("s", 1), ("ms", 1e-3)):
        if seconds >= size:
            return f"{seconds / size:.3g} {unit}"
    return f"{seconds * 1e6:.3g} µs"


def finals(rows: Sequence[Row]) -> list[Measurement]:
    """Return each rival's cheapest measurement, cheapest first."""
    best: dict[str, Measurement] = {}
    for m in sorted(map(Measurement.of, rows), key=lambda m: m.total):
        best.setdefault(m.rival, m)
    return list(best.values())


def unreached(rows: Sequence[Row], suite: str, data: str, wanted: float) -> list[Measurement]:
    """Return, of the rivals whose sweeps did not reach the recall, the nearest to it."""
    final = {row["rival"] for row in select(rows, suite, data=data)}
    swept = [Measurement.of(row) for row in select(rows, "sweep", data=data, wanted=wanted)]
    nearest = {m.rival: m for m in sorted(swept, key=lambda m: m.recall)}
    return [m for m in nearest.values() if m.rival not in final and m.recall < wanted]


def judged(rows: Sequence[Row]) -> Table:
    """Return what is asked of `dci` and what came, empty where nothing is asked."""
    found = [["yes" if bar.holds else "NO", bar.suite, bar.data, bar.asked, bar.reached] for bar in bars.bars(rows)]
    return [["holds", "suite", "data", "asked", "reached"], *found] if found else []


def equal_recall(rows: Sequence[Row], suite: str = "knn") -> Table:
    """Return total times at equal recall, cheapest first; rivals that miss the recall come last."""
    table = [["data", "rival", "its setting", "recall", "total", "construction", "queries", "over dci", "spread"]]
    of_suite = select(rows, suite)
    for data, wanted in dict.fromkeys((row["data"], row["wanted"]) for row in of_suite):
        final = finals(select(of_suite, data=data, wanted=wanted))
        dci = next((m for m in final if m.rival == "dci"), None)
        for m in final + unreached(rows, suite, data, wanted):
            missed = "" if m in final else f" (not {wanted:g})"
            table.append(
                [
                    data,
                    m.rival,
                    m.arguments,
                    f"{m.recall:.3f}{missed}",
                    *map(time, (m.total, m.build_time, m.query_time)),
                    f"{m.total / dci.total:.2f} x" if dci else "",
                    f"{m.spread:.0%}" if len(m.totals) > 1 else "",
                ]
            )
    return table


def summary(rows: Sequence[Row]) -> Table:
    """Return one line a data set: `dci`'s total, and how many times as long each rival takes."""
    of_suite = select(rows, "knn")
    rivals = [name for name in dict.fromkeys(row["rival"] for row in of_suite) if name != "dci"]
    table = [["data", "recall wanted", "reached", "dci (construction + queries)", *rivals]]
    for data, wanted in dict.fromkeys((row["data"], row["wanted"]) for row in of_suite):
        some = select(of_suite, data=data, wanted=wanted)
        final = {m.rival: m for m in finals(some)}
        if dci := final.get("dci"):
            shape = f"{data} {some[0]['n']:,} x {some[0]['dim']}"
            own = f"{time(dci.total)} ({time(dci.build_time)} + {time(dci.query_time)})"
            ratios = [f"{final[name].total / dci.total:.1f} x" if name in final else "not reached" for name in rivals]
            table.append([shape, f"{wanted:g}", f"{dci.recall:.3f}", own, *ratios])
    return table


def calls(rows: Sequence[Row], suite: str) -> Table:
    """Return the times of single queries or of batches, by size."""
    table = [["data", "batch", "rival", "its setting", "recall", "median of a query", "p90"]]
    for row in sorted(select(rows, suite), key=lambda row: (row["data"], row["batch"], row["median"])):
        arguments = " ".join(f"{name}={value}" for name, value in {**row["build"], **row["search"]}.items())
        each = [time(row[name] / row["batch"]) for name in ("median", "p90")]
        table.append([row["data"], f"{row['batch']:,}", row["rival"], arguments, f"{row['recall']:.3f}", *each])
    return table


def plainly(rows: Sequence[Row], suite: str) -> Table:
    """Return every measurement of a suite: sensitivity, calibration, construction."""
    table = [["data", "k", "rival", "its setting", "recall", "total", "construction", "queries"]]
    for row in select(rows, suite):
        m = Measurement.of(row)
        times = map(time, (m.total, m.build_time, m.query_time))
        table.append([row["data"], str(row["k"]), m.rival, m.arguments, f"{m.recall:.3f}", *times])
    return table


def memory(rows: Sequence[Row]) -> Table:
    """Return the memory of `dci`."""
    table = [["data", "data itself", "peak growth over fit and query", "times the data"]]
    for row in select(rows, "memory"):
        sizes = [f"{row[name] / 1e6:.0f} MB" for name in ("data_bytes", "growth_bytes")]
        table.append([row["data"], *sizes, f"{row['times_data']:.2f}"])
    return table


def dynamic(rows: Sequence[Row]) -> Table:
    """Return what each operation of an index that changes takes, and beside what it is to be seen."""
    table = [["data", "operation", "rival", "of", "time", "a second", "beside", "recall", "queries", "spread"]]
    for data in dict.fromkeys(row["data"] for row in select(rows, "dynamic")):
        mine = select(rows, "dynamic", data=data)
        took = {row["operation"]: bars.seconds(row) for row in select(mine, rival="dci")}
        for row in mine:
            taken, repeats, answers = bars.seconds(row), row["seconds"], ["", ""]
            size, rate = f"{row.get('points', 0):,} points", f"{bars.rate(row):,.0f}"
            if "memory" in row:
                size += f", {row['memory'] / 1e6:.1f} MB"
            if "bytes" in row:
                size, rate = f"{row['bytes'] / 1e6:.1f} MB", f"{bars.rate(row) / 1e6:,.0f} MB"
            if row["operation"].startswith("map"):  # it reads little of them
                rate = ""
            if "asked" in row:
                size, rate, answers[1] = (
                    f"{row['asked']:,} queries",
                    "",
                    f"{time(row['median'])}, 99 %: {time(row['p99'])}",
                )
            share = taken / took[row["beside"]] if row.get("beside") in took else None
            beside = "" if share is None else f"{share:.1%} of {row['beside']}"
            if share is not None and share >= 1:
                beside = f"{share:.2f} x {row['beside']}"
            if "recall" in row:
                answers = [f"{row['recall']:.3f}", time(statistics.median(row["query_seconds"]))]
            spread = f"{(max(repeats) - min(repeats)) / taken:.0%}" if len(repeats) > 1 else ""
            table.append([data, row["operation"], row["rival"], size, time(taken), rate, beside, *answers, spread])
        if "one by one" in took and not select(mine, operation="one by one", rival="hnswlib"):
            missing = ["not installed, or not asked for", *[""] * 6]
            table.append([data, "one by one", "hnswlib", *missing])
    return table


def out_of_core(rows: Sequence[Row]) -> Table:
    """Return what a mapped index takes, and what the process that asks it holds, its own memory and pages of files."""
    table = [["data", "operation", "of", "time", "a query", "resident: peak", "its own", "of files", "recall"]]
    for row in select(rows, "out_of_core"):
        taken, held, of = bars.seconds(row), row.get("resident", {}), ""
        for name, words in (("points", "points"), ("asked", "queries")):
            of = f"{row[name]:,} {words}" if name in row else of
        of = of or (f"{row['bytes'] / 1e9:.2f} GB" if "bytes" in row else "")
        each = time(taken / row["asked"]) if "asked" in row else ""
        sizes = [f"{held[kind] / 1e9:.2f} GB" if kind in held else "" for kind in ("peak", "anon", "file")]
        recall = f"{row['recall']:.3f}" if "recall" in row else ""
        table.append([row["data"], row["operation"], of, time(taken), each, *sizes, recall])
    return table


def sharded(rows: Sequence[Row]) -> Table:
    """Return what shards take beside one index, and what merging and asking a shard cost."""
    table = [["data", "operation", "of", "time", "fit", "queries", "processor", "visited", "held", "recall"]]
    for row in select(rows, "sharded"):
        of = [f"{row[name]:,} {words}" for name, words in (("points", "points"), ("asked", "queries")) if name in row]
        of += [f"{row['bytes'] / 1e6:.0f} MB"] if "bytes" in row else []
        of += [f"{row['shards']} shards"] if "shards" in row else []
        parts = ["", ""]
        if "seconds" in row:
            taken = bars.seconds(row)
        else:
            taken = bars.total_seconds(row)
            parts = [time(statistics.median(row[f"{part}_seconds"])) for part in ("build", "query")]
        parts.append(time(row["processor"]) if "processor" in row else "")
        visited = f"{row['visited']:.2f}" if "visited" in row else ""
        held = f"{row['memory']:.2f} x" if "memory" in row else ""
        recall = f"{row['recall']:.3f}" if "recall" in row else ""
        table.append([row["data"], row["operation"], ", ".join(of), time(taken), *parts, visited, held, recall])
    return table


def beside(rows: Sequence[Row]) -> Table:
    """Return what fitting and asking take alone and beside busy software."""
    table = [["data", "threads", "operation", "time", "alone = 1", "spread"]]
    of_suite = select(rows, "beside")
    for row in of_suite:
        alone = [bars.seconds(other) for other in select(of_suite, data=row["data"], operation=row["beside"])]
        taken, repeats = bars.seconds(row), row["seconds"]
        spread = f"{(max(repeats) - min(repeats)) / taken:.0%}" if len(repeats) > 1 else ""
        ratio = f"{taken / alone[0]:.2f}" if alone else ""
        table.append([row["data"], str(row["threads"]), row["operation"], time(taken), ratio, spread])
    return table


def layers(rows: Sequence[Row], suite: str) -> Table:
    """Return how many times faster than exact attention whole layers are, over the layers of the data."""
    table = [["data", "length", "tolerance", "torch exact", "dci_attention", "exact / dci_attention (layers)"]]
    table[0] += ["error", "worst head's", "worst estimate", "keys touched"]
    of_suite = [row for row in select(rows, suite) if "tolerance" in row["options"]]
    for data, length, method in dict.fromkeys((row["data"], row["length"], row["method"]) for row in of_suite):
        mine = select(of_suite, data=data, length=length, method=method)
        exact = {row.get("layer"): bars.seconds(row) for row in select(rows, suite, data=data, length=length,
                                                                  method="torch exact")}  # fmt: skip
        ratios = [exact[row.get("layer")] / bars.seconds(row) for row in mine]
        middle = [statistics.median(values) for values in (exact.values(), map(bars.seconds, mine), ratios)]
        spread = f" ({min(ratios):.1f} to {max(ratios):.1f})" if len(ratios) > 1 else ""
        estimates = [max(row["notes"].get("estimated") or [0.0]) for row in mine]
        cells = [data, f"{length:,}", f"{mine[0]['options']['tolerance']:g}", time(middle[0]), time(middle[1])]
        cells += [f"{middle[2]:.1f} x{spread}", f"{statistics.median(row['error'] for row in mine):.4f}"]
        cells += [f"{max(row['worst'] for row in mine):.4f}", f"{max(estimates):.4f}"]
        table.append([*cells, f"{statistics.mean(row['keys'] for row in mine):.1%}"])
    return table


def methods(rows: Sequence[Row], suite: str) -> Table:
    """Return every measurement of attention: time, against that of exact attention, and error."""
    table = [["data", "length", "heads", "method", "options", "time", "of exact", "error", "worst head's", "keys"]]
    of_suite = select(rows, suite)
    for row in sorted(of_suite, key=lambda row: (row["data"], row["length"])):
        place = {"data": row["data"], "length": row["length"], "layer": row.get("layer")}
        exact = [bars.seconds(other) for other in select(of_suite, **place, method="torch exact")]
        arguments = " ".join(f"{name}={value}" for name, value in row["options"].items())
        times = [time(bars.seconds(row)), f"{bars.seconds(row) / exact[0]:.3g} x" if exact else ""]
        errors = [f"{row[name]:.4f}" for name in ("error", "worst")]
        head = [row["data"], f"{row['length']:,}", str(row["heads"]), row["method"], arguments]
        table.append([*head, *times, *errors, f"{row['keys']:.2%}"])
    return table


def recalled(rows: Sequence[Row], suite: str) -> Table:
    """Return the attention mass at equal numbers of keys examined, each head's best setting, the median of heads."""
    of_suite = select(rows, suite)
    found = list(dict.fromkeys(row["method"] for row in of_suite))
    table = [["data", "keys examined", *found, "share of the top 32: dci"]]
    for data, share in dict.fromkeys((row["data"], row["keys"]) for row in of_suite):
        some = select(of_suite, data=data, keys=share)
        mass = [statistics.median(bars.recalled(some, method).values() or [0.0]) for method in found]
        top = statistics.median(bars.recalled(some, "dci", "top").values() or [0.0])
        table.append([data, f"{share:.2%}", *(f"{value:.3f}" for value in mass), f"{top:.3f}"])
    return table


def truth(rows: Sequence[Row], suite: str) -> Table:
    """Return true errors of the approximated heads over the tolerance, the bounds' too, and those of single queries."""
    table = [["data", "lengths", "tolerance", "heads", "approximated", "within", "error: median", "worst"]]
    table[0] += ["bound: median", "rows: median", "rows: 99 %", "rows: worst"]
    of_suite = select(rows, suite)
    for data, tolerance in dict.fromkeys((row["data"], row["options"]["tolerance"]) for row in of_suite):
        mine = [row for row in select(of_suite, data=data) if row["options"]["tolerance"] == tolerance]
        lengths = sorted({row["length"] for row in mine})
        ratios = bars.over_tolerance(mine)
        cells = [data, f"{lengths[0]:,} to {lengths[-1]:,}", f"{tolerance:g}"]
        cells += [str(sum(row["heads"] for row in mine)), str(len(ratios))]
        if ratios:
            bounds = [bound / tolerance for row in mine for bound in row["bounds"]]
            single = list(zip(*(row["row_errors"] for row in mine if row["row_errors"]), strict=True))
            cells += [f"{sum(ratio <= 1 for ratio in ratios) / len(ratios):.1%}"]
            cells += [f"{value:.2f} x" for value in (statistics.median(ratios), max(ratios), statistics.median(bounds))]
            cells += [f"{value:.3f}" for value in map(statistics.median, single[:2])] + [f"{max(single[2]):.2f}"]
        table.append(cells + [""] * (len(table[0]) - len(cells)))
    return table


def of_suite(rows: Sequence[Row], suite: str) -> Table:
    """Return the table of a suite; without rows, its header alone."""
    if suite in ("knn", "growth", "dimension"):
        return equal_recall(rows, suite)
    if suite in ("batch", "latency"):
        return calls(rows, suite)
    if suite == "memory":
        return memory(rows)
    if suite == "dynamic":
        return dynamic(rows)
    if suite == "out_of_core":
        return out_of_core(rows)
    if suite == "sharded":
        return sharded(rows)
    if suite == "beside":
        return beside(rows)
    if suite == "attention_layers":
        return layers(rows, suite)
    if suite == "attention_ranking":
        return recalled(rows, suite)
    if suite == "attention_truth":
        return truth(rows, suite)
    if suite.startswith("attention"):
        return methods(rows, suite)
    if suite.startswith("task"):
        return tables_tasks.of_suite(rows, suite)
    return plainly(rows, suite)


def recommendation(rows: Sequence[Row], data: str) -> str:
    """Say in words what to use on a data set, for this many queries and for many more."""
    some = select(rows, "knn", data=data)
    wanted, queries = some[0]["wanted"], some[0]["queries"]
    enough = [m for m in finals(some) if m.recall >= wanted - SHORT]
    head = f"{data} ({some[0]['n']:,} x {some[0]['dim']}), recall@{some[0]['k']} of {wanted:g}, {queries:,} queries: "
    if not enough:
        return head + "nothing reaches this recall."
    first, second = enough[0], next(iter(enough[1:]), None)
    text = head + f"use {_short(first)}: {time(first.total)} in total."
    if second and second.total <= CLOSE * first.total:
        near = [_short(m) for m in enough[1:] if m.total <= CLOSE * first.total]
        text = head + f"{_short(first)} and {' and '.join(near)} are equally fast: {time(first.total)} in total."
    elif second:
        text += f" Next comes {_short(second)} with {second.total / first.total:.1f} x the time."
    dci = next((m for m in finals(some) if m.rival == "dci"), None)
    if dci and dci not in enough:
        text += f" dci reaches {dci.recall:.3f} only."
    elif dci and dci is not second and dci.total > CLOSE * first.total:
        text += f" dci takes {dci.total / first.total:.1f} x as long: {time(dci.total)}."
    swept = [Measurement.of(row) for row in select(rows, "sweep", data=data, wanted=wanted)]
    lasting = cheapest([*swept, *enough], wanted - SHORT, "query_time")
    saved = (first.query_time - lasting.query_time) / queries if lasting else 0
    if lasting and lasting.rival != first.rival and lasting.query_time * CLOSE < first.query_time:
        count = (lasting.build_time - first.build_time) / saved
        many = f"{float(f'{count:.1g}'):,.0f}"
        text += f" On an index that answers more than about {many} queries, {_short(lasting)} pays off."
    if busy(some):
        text += " The machine was busy (repeats differ by more than 20 %): run again when it is quiet."
    return text


def _short(m: Measurement) -> str:
    return m.rival if m.rival == "dci" else m.label
