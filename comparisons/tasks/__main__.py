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
    for name in list(TASKS) if options.names == ["all"] else list(map(_known, options.names)):
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


def run_blame(options: argparse.Namespace) -> int:
    """Print which layers, heads and rows lose answers."""
    import torch

    from comparisons.report import tables
    from comparisons.tasks import blame, contenders
    from comparisons.tasks.evaluation import Evaluation

    task = TASKS[_known(options.name)]
    model = training.trained(task, options.threads)
    torch.set_num_threads(options.threads)
    evaluation = Evaluation(task, model, options.length or task.at, options.threads)
    print(tables.markdown(blame.table(evaluation, contenders.ours(options.tolerance, options.forced))))
    return 0


def _known(name: str) -> str:
    if name not in TASKS:
        raise ComparisonError(f"unknown task {name!r}: expected some of {', '.join(TASKS)}")
    return name


def run_list(options: argparse.Namespace) -> int:
    """Print the tasks, and whether they are trained."""
    for task in TASKS.values():
        state = "trained" if training.weights_path(task).is_file() else "not trained"
        print(f"{task.name:<10} {task.question} ({state})")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m comparisons.tasks", description=__doc__)
    commands = parser.add_subparsers(required=True, metavar="train | page | blame | list")
    train = commands.add_parser("train", help="train models; their weights are kept in DCI_DATA")
    train.add_argument("names", nargs="+", metavar="NAME", help="tasks, or all")
    train.set_defaults(run=run_train)
    page = commands.add_parser(
        "page", help="write results into the README: tables between its marks, figures beside it"
    )
    page.add_argument("results", nargs="+", type=Path, metavar="results.json")
    page.add_argument(
        "--readme", type=Path, default=Path("comparisons/README.md"), metavar="FILE", help="where to write"
    )
    page.set_defaults(run=run_page)
    blame = commands.add_parser("blame", help="which layers, heads and rows lose answers with dci_attention")
    blame.add_argument("name", metavar="NAME")
    blame.add_argument("--tolerance", type=float, default=0.05)
    blame.add_argument("--length", type=int, help="(default: that at which the rivals are tried)")
    blame.add_argument("--forced", action="store_true", help="rank short sequences too")
    blame.set_defaults(run=run_blame)
    for command in (train, blame):
        command.add_argument("--threads", type=int, default=THREADS, help="of PyTorch and dci_attention (default 2)")
    commands.add_parser("list", help="the tasks").set_defaults(run=run_list)
    return parser


if __name__ == "__main__":
    sys.exit(main())
