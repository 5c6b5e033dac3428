"""``python -m comparisons``: measure on this machine, print tables, keep the raw results."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from comparisons import knn, machine
from comparisons.adapters import DCI
from comparisons.datasets import ComparisonError, load
from comparisons.harness import THREADS, Setting


def main(arguments: list[str] | None = None) -> int:
    """Run one subcommand; return the exit code, 2 for what the user can put right."""
    options = _parser().parse_args(arguments)
    try:
        return options.run(options)
    except ComparisonError as error:
        print(f"comparisons: {error}", file=sys.stderr)
        return 2


def run_knn(options: argparse.Namespace) -> int:
    """Compare total times at equal recall; after each data set the results are saved."""
    names = options.data or (knn.SMOKE if options.smoke else tuple(knn.GOALS))
    repeats = options.repeats or (1 if options.smoke else 3)
    done: list[knn.Comparison] = []
    kept: dict = {"environment": machine.environment(options.threads), "knn": []}
    for name in names:
        goal = knn.GOALS.get(name)
        wanted = options.recall or (goal.recall if goal else 0.9)
        print(f"{name} at recall {wanted} …", file=sys.stderr, flush=True)
        done.append(knn.compare(knn.load(name, options.smoke), wanted, repeats, options.threads))
        kept["knn"].append(row := {**done[-1].record(), "memory": None})
        _save(options.out, kept)
        if not options.smoke:
            row["memory"] = machine.memory_growth(name, wanted, options.threads)
            _save(options.out, kept)
    print(knn.totals_table(done), end="\n\n")
    print(knn.others_table(done))
    memory_rows = [["data", "data itself", "peak growth over fit and query", "times the data"]]
    for row in kept["knn"]:
        if memory := row["memory"]:
            sizes = [f"{memory[key] / 1e6:.0f} MB" for key in ("data_bytes", "growth_bytes")]
            memory_rows.append([row["data"], *sizes, f"{memory['times_data']:.2f}"])
    if len(memory_rows) > 1:
        print("\n" + knn.table(memory_rows))
    if any(c.busy for c in done):
        print("\nThe machine was busy (repeats differ by more than 20 %): run again when it is quiet.")
    return 0


def _save(path: Path | None, kept: dict) -> None:
    if path:
        machine.save(path, kept)


def run_memory(options: argparse.Namespace) -> int:
    """Print, as one line of JSON, the memory that fit and query of `dci` need in this process."""
    setting = Setting(DCI, {"recall": options.recall})
    print(json.dumps(machine.own_memory_growth(setting, load(options.data), knn.K, options.threads)))
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m comparisons", description=__doc__)
    commands = parser.add_subparsers(required=True)
    total = commands.add_parser("knn", help="total time of k-NN at equal recall")
    total.add_argument("--data", action="append", metavar="NAME", help="a data set or a file; repeatable")
    total.add_argument("--recall", type=float, help="wanted recall@10 (default: the data set's goal)")
    total.add_argument("--repeats", type=int, help="rounds (default 3)")
    total.add_argument("--out", type=Path, metavar="JSON", help="keep the raw results here")
    total.add_argument("--smoke", action="store_true", help="small subsets, under a minute")
    total.set_defaults(run=run_knn)
    memory = commands.add_parser("memory", help="memory of fit and query, as a multiple of the data")
    memory.add_argument("--data", required=True, metavar="NAME")
    memory.add_argument("--recall", type=float, default=0.9)
    memory.set_defaults(run=run_memory)
    for command in (total, memory):
        command.add_argument("--threads", type=int, default=THREADS, help="threads for every rival")
    return parser


if __name__ == "__main__":
    sys.exit(main())
