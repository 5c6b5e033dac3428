"""``python -m comparisons.tasks``: train the small models of the tasks, and write the page of their results."""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

from comparisons.data.datasets import ComparisonError
from comparisons.knn.bench import THREADS
from comparisons.tasks import training
from comparisons.tasks.registry import TASKS


def main(arguments: list[str] | None = None) -> int:
    """Run one subcommand; return the exit code, 2 for what the user can put right."""
    options = _parser().parse_args(arguments)
    try:
        return options.run(options)
    except ComparisonError as error:
        print(f"comparisons.tasks: {error}", file=sys.stderr)
        return 2


def run_train(options: argparse.Namespace) -> int:
    """Train models anew and say where their weights are."""
    unknown = [name for name in options.names if name not in (*TASKS, "all")]
    if unknown:
        raise ComparisonError(f"unknown task {unknown[0]!r}: expected some of {', '.join(TASKS)}, or all")
    for name in TASKS if "all" in options.names else options.names:
        start = time.monotonic()
        path = training.train(TASKS[name], options.threads)
        print(f"{path}: {path.stat().st_size / 1e6:.1f} MB, {(time.monotonic() - start) / 60:.1f} minutes")
    return 0


def run_page(options: argparse.Namespace) -> int:
    """Write the page of tasks into the README of the comparisons, and its figures beside it."""
    from comparisons.harness import results
    from comparisons.report import page_tasks

    page_tasks.write([results.read(path) for path in options.results], options.readme)
    print(options.readme)
    return 0


def run_list(options: argparse.Namespace) -> int:
    """Print the tasks, and whether they are trained."""
    for task in TASKS.values():
        state = "trained" if training.weights_path(task).is_file() else "not trained"
        print(f"{task.name:<10} {task.question} ({state})")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m comparisons.tasks", description=__doc__)
    commands = parser.add_subparsers(required=True, metavar="train | page | list")
    train = commands.add_parser("train", help="train models; their weights are kept in DCI_DATA")
    train.add_argument("names", nargs="+", metavar="NAME", help="tasks, or all")
    train.add_argument("--threads", type=int, default=THREADS, help="of PyTorch (default 2)")
    train.set_defaults(run=run_train)
    page = commands.add_parser(
        "page", help="write results into the README: tables between its marks, figures beside it"
    )
    page.add_argument("results", nargs="+", type=Path, metavar="results.json")
    page.add_argument(
        "--readme", type=Path, default=Path("comparisons/README.md"), metavar="FILE", help="where to write"
    )
    page.set_defaults(run=run_page)
    commands.add_parser("list", help="the tasks").set_defaults(run=run_list)
    return parser


if __name__ == "__main__":
    sys.exit(main())
