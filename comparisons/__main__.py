"""``python -m comparisons``: measure on this machine, print tables, keep the raw results, draw the report."""

from __future__ import annotations

import argparse
import itertools
import json
import shlex
import sys
from pathlib import Path
from typing import Any

from comparisons.attention import suites as attention_suites
from comparisons.data import heads
from comparisons.data.datasets import (
    DATASETS,
    FILE_TYPES,
    SIZED,
    ComparisonError,
    MissingPackageError,
    load,
    optional,
)
from comparisons.harness import machine, results
from comparisons.harness.results import Run
from comparisons.knn import adapters, costs, filters, suites
from comparisons.knn.bench import THREADS
from comparisons.report import tables


def main(arguments: list[str] | None = None) -> int:
    """Run one subcommand; return the exit code, 2 for what the user can put right."""
    arguments = sys.argv[1:] if arguments is None else arguments
    options = _parser().parse_args(arguments)
    options.command = shlex.join(["python", "-m", "comparisons", *arguments])
    try:
        return options.run(options)
    except ComparisonError as error:
        print(f"comparisons: {error}", file=sys.stderr)
        return 2


def run_suites(options: argparse.Namespace) -> int:
    """Measure, print the tables, and on the user's own data say what to use."""
    chosen = suites.named(options.suite)
    known = {key: rival for suite in chosen for key, rival in suite.known().items()}
    rivals = tuple(adapters.named(options.rivals, known)) if options.rivals else ()
    asked = suites.Options(options.recall, rivals, options.repeats or (1 if options.smoke else 3), options.smoke)
    stem = "all" if len(chosen) == len(suites.SUITES) else "+".join(suite.name for suite in chosen)
    path = options.out or (results.latest_unfinished(stem) if options.resume else results.new_path(stem))
    for suite, name in itertools.product(chosen, options.data or ()):
        suite.read(name, options.smoke)  # what cannot be read is said before anything is measured
    run = Run(path, options.threads, options.resume, options.command)
    left_out = dict.fromkeys(rival.package for rival in known.values() if not adapters.installed(rival))
    if left_out and not rivals:
        print(f"not installed, so left out: {', '.join(left_out)}", file=sys.stderr)
    try:
        for suite in chosen:
            for name in options.data or suite.names(options.smoke):
                suite.run(run, name, asked)
    except KeyboardInterrupt:
        print(f"\ninterrupted; {path} keeps what was measured, --resume goes on with it", file=sys.stderr)
        return 130
    run.finish()
    _print(run.rows(), [suite.name for suite in chosen], own_data=bool(options.data))
    print(f"\nraw results: {path}; python -m comparisons report {path} draws them")
    return 0


def _print(rows: list[results.Row], names: list[str], own_data: bool) -> None:
    for name in names:
        if len(table := tables.of_suite(rows, name)) > 1:
            print(f"{suites.SUITES[name].name}: {suites.SUITES[name].question}\n\n{tables.markdown(table)}\n")
    if own_data and "knn" in names:
        for data in dict.fromkeys(row["data"] for row in results.select(rows, "knn")):
            print(tables.recommendation(rows, data))
    elif results.busy(results.select(rows, *names)):
        print("The machine was busy (repeats differ by more than 20 %): run again when it is quiet.")


def run_report(options: argparse.Namespace) -> int:
    """Draw the figures and the page."""
    from comparisons.report import page as report_page

    paths = options.results or sorted(Path("results").glob("*.json"))
    if not paths:
        raise ComparisonError("no results: name files, or run `python -m comparisons run` first")
    page = report_page.write([results.read(path) for path in paths], options.out)
    print(page)
    return 0


def run_list(options: argparse.Namespace) -> int:
    """Print what there is: suites, data sets, rivals."""
    print("suites (minutes of a full run)")
    for suite in suites.SUITES.values():
        print(f"  {suite.name:<21} {suite.minutes:>3}  {suite.question}")
    print(f"\ndata sets\n  {', '.join(DATASETS)}\n  {', '.join(SIZED)}\n  any {', '.join(FILE_TYPES)} file")
    print(f"\nheads, for attention\n  {', '.join((heads.ENCODER, *heads.HEADS))}\n  any .npz file")
    for what, known in (("rivals", lambda: adapters.RIVALS), ("rivals at attention", attention_suites.known)):
        print(f"\n{what}")
        try:
            rivals = known()
        except MissingPackageError as error:
            print(f"  {error}")
            continue
        for rival in rivals.values():
            state = "" if adapters.installed(rival) else f"  (not installed: pip install {rival.package})"
            print(f"  {rival.key:<14} {rival.name}{state}")
    return 0


def run_memory(options: argparse.Namespace) -> int:
    """Print, as one line of JSON, the memory that fit and query of `dci` need in this process."""
    print(json.dumps(machine.own_memory_growth(options.recall, load(options.data), suites.K, options.threads)))
    return 0


def run_calibrate_costs(options: argparse.Namespace) -> int:
    """Print the constants of the cost model of `dci`: those in use and those measured here."""
    print(costs.report(options.smoke))
    return 0


def run_filters(options: argparse.Namespace) -> int:
    """Print how long queries with a filter take, beside exact search of the allowed points."""
    print(filters.report(options.threads, options.smoke))
    return 0


def run_profile(options: argparse.Namespace) -> int:
    """Profile, print the tables, and write them into a document if one is named."""
    optional("torch", "the profile")
    from comparisons.profile import bench, workloads
    from comparisons.report import page_profile

    if not options.results:
        chosen = workloads.named(options.workloads)
        path = options.out or results.new_path(bench.SUITE)
        run = Run(path, 1, command=options.command)
        bench.run(run, chosen, options.smoke)
        run.finish()
        print("\n\n".join(page_profile.text_of(run.rows())))
        print(f"\nraw results: {path}")
        options.results = [path]
    if options.page:
        page_profile.write([results.read(path) for path in options.results], options.page)
        print(options.page)
    return 0


def _share(text: str) -> float:
    value = float(text)
    if not 0 < value <= 1:
        raise argparse.ArgumentTypeError(f"expected a number in (0, 1], got {text}")
    return value


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"expected at least 1, got {text}")
    return value


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m comparisons", description=__doc__)
    commands = parser.add_subparsers(required=True, metavar="run | report | list | …")
    run = commands.add_parser("run", help="measure")
    run.add_argument("--suite", default="knn", metavar="NAME", help="suites, comma-separated; tasks, all (default knn)")
    run.add_argument("--data", action="append", metavar="NAME", help="a data set or a file; repeatable")
    run.add_argument("--recall", type=_share, help="wanted recall@10 (default: the data set's own)")
    run.add_argument("--rivals", metavar="NAMES", help="comma-separated; dci always runs (default: all installed)")
    run.add_argument("--repeats", type=_positive, help="rounds of the final (default 3)")
    run.add_argument("--out", type=Path, metavar="JSON", help="the file to keep (default: a new one in results/)")
    run.add_argument("--resume", action="store_true", help="go on with --out, or with the last interrupted run")
    run.add_argument("--smoke", action="store_true", help="little data, one round")
    run.set_defaults(run=run_suites)
    report = commands.add_parser("report", help="draw results as one HTML page and PNGs")
    report.add_argument("results", nargs="*", type=Path, metavar="results.json", help="default: all in results/")
    report.add_argument("--out", type=Path, default=Path("results/report"), metavar="DIR", help="where to write")
    report.set_defaults(run=run_report)
    commands.add_parser("list", help="suites, data sets and rivals").set_defaults(run=run_list)
    memory = commands.add_parser("memory", help="memory of fit and query, as a multiple of the data")
    memory.add_argument("--data", required=True, metavar="NAME")
    memory.add_argument("--recall", type=_share, default=suites.RECALL)
    memory.set_defaults(run=run_memory)
    filtered = commands.add_parser("filters", help="queries with a filter, beside exact search of the allowed points")
    filtered.add_argument("--smoke", action="store_true", help="little data, two rounds: does it run?")
    filtered.set_defaults(run=run_filters)
    calibrate = commands.add_parser("calibrate-costs", help="measure the constants of the cost model; change nothing")
    calibrate.add_argument("--smoke", action="store_true", help="few sizes, one round: does it run?")
    calibrate.set_defaults(run=run_calibrate_costs)
    _add_profile(commands)
    for command in (run, memory, filtered):
        command.add_argument("--threads", type=_positive, default=THREADS, help="threads for every rival (default 2)")
    return parser


def _add_profile(commands: Any) -> None:
    profile = commands.add_parser("profile", help="where the time goes, stage by stage, beside the machine's limits")
    profile.add_argument("--workloads", metavar="NAMES", help="comma-separated (default: all; four minutes)")
    profile.add_argument("--out", type=Path, metavar="JSON", help="the file to keep (default: a new one in results/)")
    profile.add_argument("--results", action="append", type=Path, metavar="JSON", help="measure nothing, take these")
    profile.add_argument("--page", type=Path, metavar="FILE", help="write tables between the marks of this document")
    profile.add_argument("--smoke", action="store_true", help="little data, one round: does it run?")
    profile.set_defaults(run=run_profile)


if __name__ == "__main__":
    sys.exit(main())
