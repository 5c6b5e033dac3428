"""``python -m comparisons.tasks``: train the small models of the tasks."""

from __future__ import annotations

import argparse
import sys
import time

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


def run_list(options: argparse.Namespace) -> int:
    """Print the tasks, and whether they are trained."""
    for task in TASKS.values():
        state = "trained" if training.weights_path(task).is_file() else "not trained"
        print(f"{task.name:<10} {task.question} ({state})")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m comparisons.tasks", description=__doc__)
    commands = parser.add_subparsers(required=True, metavar="train | list")
    train = commands.add_parser("train", help="train models; their weights are kept in DCI_DATA")
    train.add_argument("names", nargs="+", metavar="NAME", help="tasks, or all")
    train.add_argument("--threads", type=int, default=THREADS, help="of PyTorch (default 2)")
    train.set_defaults(run=run_train)
    commands.add_parser("list", help="the tasks").set_defaults(run=run_list)
    return parser


if __name__ == "__main__":
    sys.exit(main())
