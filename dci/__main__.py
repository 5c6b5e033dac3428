"""``python -m dci``: indexes on the command line.

Exit codes: 0; 2 for what the user can put right (arguments, files, numbers in them), with one line on stderr; 130 after
Ctrl-C. Commands that write replace a file at once: the old one or the new one is there, whatever happens.
"""

import argparse
import contextlib
import os
import sys
from collections.abc import Callable, Sequence

from dci import DCIError, __version__
from dci._api import cli
from dci._store.vectors import READABLE

_FILES = f"Files of vectors: {READABLE}. Exit codes: 0, 2 (arguments or files, one line on stderr), 130 (Ctrl-C)."
_EXAMPLES = {
    "fit": """
  python -m dci fit X.npy index.dci
  python -m dci fit X.npy index.dci --store int8                 points at a quarter of their size
  python -m dci fit X.fvecs index.dci --recall 0.99 --metric cosine --queries Q.fvecs --verbose""",
    "query": """
  python -m dci query index.dci Q.npy -k 10 --out result.npz     arrays distances and ids
  python -m dci query index.dci Q.csv --out result.csv           query,rank,id,distance
  python -m dci query index.dci data.npz:test -k 1               to the terminal""",
    "add": """
  python -m dci add index.dci more.npy                           ids go on from the last
  python -m dci add index.dci more.npy --ids ids.npy""",
    "remove": """
  python -m dci remove index.dci ids.npy
  python -m dci remove index.dci --ids 1,2,3 --ignore-missing""",
    "info": """
  python -m dci info index.dci""",
    "verify": """
  python -m dci verify index.dci
  python -m dci verify index.dci --queries Q.npy                 recall against exact search of its own points
  python -m dci verify index.dci --data X.npy --queries Q.npy    against exact search of X""",
    "bench": """
  python -m dci bench X.npy
  python -m dci bench X.npy --queries Q.npy --recall 0.9 -k 100""",
}


def parser() -> argparse.ArgumentParser:
    """Return the parser of all commands."""
    main = argparse.ArgumentParser(
        prog="python -m dci", description="k-nearest-neighbour search: indexes in files.", epilog=_FILES
    )
    main.add_argument("--version", action="version", version=__version__)
    subparsers = main.add_subparsers(required=True, metavar="command")

    def command(name: str, run: Callable[[argparse.Namespace], str]) -> argparse.ArgumentParser:
        text = (run.__doc__ or "").strip()
        sub = subparsers.add_parser(
            name, help=text.rstrip(".").lower(), description=text,
            epilog=f"examples:{_EXAMPLES[name]}\n\n{_FILES}", formatter_class=argparse.RawDescriptionHelpFormatter,
        )  # fmt: skip
        sub.set_defaults(run=run)
        return sub

    sub = command("fit", cli.fit)
    sub.add_argument("data", help="file of vectors")
    sub.add_argument("index", help="file to write or replace")
    sub.add_argument("--queries", help="file with a sample of the queries to come")
    _structure(sub)

    sub = command("query", cli.query)
    sub.add_argument("index")
    sub.add_argument("queries", help="file of vectors")
    sub.add_argument("-k", type=int, default=10, help="neighbours of each query, 10 if not given")
    sub.add_argument("--out", help=".npz or .csv to write; the terminal if not given")
    sub.add_argument("--recall", type=float, help="another one than the index was fitted for")
    _running(sub)

    sub = command("add", cli.add)
    sub.add_argument("index", help="file, or directory made by dci.open")
    sub.add_argument("data", help="file of vectors")
    sub.add_argument("--ids", help="file of their ids; assigned if not given")

    sub = command("remove", cli.remove)
    sub.add_argument("index", help="file, or directory made by dci.open")
    sub.add_argument("file", nargs="?", help="file of ids")
    sub.add_argument("--ids", type=_ids, help="ids with commas between them; --ids=-1,2 if the first is negative")
    sub.add_argument("--ignore-missing", action="store_true", help="pass over ids that the index does not have")

    command("info", cli.info).add_argument("index")

    sub = command("verify", cli.check)
    sub.add_argument("index")
    sub.add_argument("--data", help="file of the vectors that are searched exactly; the index's own if not given")
    sub.add_argument("--queries", help="file of vectors; without it, rows of --data")
    sub.add_argument("-k", type=int, default=10)

    sub = command("bench", cli.bench)
    sub.add_argument("data", help="file of vectors")
    sub.add_argument("--queries", help="file of vectors; rows of the data if not given")
    sub.add_argument("-k", type=int, default=10)
    _structure(sub)
    return main


def _structure(sub: argparse.ArgumentParser) -> None:
    sub.add_argument("--metric", default="l2", help="l2 (the default), ip or cosine")
    sub.add_argument("--recall", type=float, default=0.95, help="share of true neighbours to find, 0.95 if not given")
    sub.add_argument("--store", default="float32", help="float32 (the default), float16 or int8, which takes a quarter")
    sub.add_argument("--seed", type=int, default=0, help="the same one gives the same index; 0 if not given")
    _running(sub)


def _running(sub: argparse.ArgumentParser) -> None:
    sub.add_argument("--threads", type=int, help="DCI_NUM_THREADS or the number of processors if not given")
    sub.add_argument("--verbose", action="store_true", help="show progress")


def _ids(text: str) -> list[int]:
    return [int(word) for word in text.split(",")]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; return the exit code."""
    args = parser().parse_args(arguments)
    try:
        print(args.run(args), flush=True)
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:  # the reader had enough
        with contextlib.suppress(OSError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except OSError as error:
        named = f"{error.filename}: {error.strerror}" if error.filename is not None else str(error)
        cli.report(named)
        return 2
    except (DCIError, ImportError) as error:
        cli.report(str(error))
        return 2
    except MemoryError as error:
        cli.report(f"expected more memory: {error}")
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
