"""An index in a directory whose process is killed at random moments: python tests/dci/store/kill_index.py 200

A child adds points one by one, updates, removes and saves, and reports each change that a call has returned from; it
is killed (SIGKILL). Then the parent opens what is there: every reported change, and at most one more.
"""

import os
import sys
import tempfile
import warnings
from pathlib import Path

import numpy as np

import dci

sys.path.insert(0, str(Path(__file__).parents[3]))  # run as a script, it has its own folder alone

from tests.dci.store.kill import kill

DIM = 5


def row(number):
    return np.full((1, DIM), number, np.float32)


def change(index, number):
    """Do the change of this number."""
    kind = number % 10
    if kind == 7:
        index.update([number - 1], row(-number))
    elif kind == 8:
        index.remove([number - 3])
    elif kind == 9 and number % 50 == 49:
        index.save()  # a new base, nothing else
    else:
        index.add(row(number), ids=[number])


def content(count):
    """Ids and first coordinates after so many changes."""
    found = {}
    for number in range(count):
        kind = number % 10
        if kind == 7:
            del found[number - 1]  # an updated point goes to the end
            found[number - 1] = -number
        elif kind == 8:
            del found[number - 3]
        elif kind != 9 or number % 50 != 49:
            found[number] = number
    return found


def check(path, last):
    """Return the number of changes that are there, `last` or one more."""
    with dci.open(path) as index:
        ids = index.ids.tolist()
        rows = index.get(ids)[:, 0].tolist() if ids else []
        found = dict(zip(ids, rows, strict=True))
        count = last if found == content(last) else last + 1
        assert list(found.items()) == list(content(count).items()), f"{last} were reported, there is {list(found)[-5:]}"
        if len(ids) > 3:
            nearest = index.query(index.get(ids[-50:]), 1, recall=1.0)
            assert nearest.indices[:, 0].tolist() == ids[-50:]
        return count


def run(rounds):
    warnings.simplefilter("ignore", UserWarning)  # what the journal says when it cuts off a torn record
    with tempfile.TemporaryDirectory() as directory:
        path = os.path.join(directory, "index")
        with dci.open(path, recall=1.0, num_threads=1) as index:
            index.fit(np.empty((0, DIM), np.float32))
        last = kept = 0

        def use(acknowledge):
            with dci.open(path) as index:
                for number in range(last, sys.maxsize):
                    change(index, number)
                    acknowledge(number + 1)

        for _ in range(rounds):
            last = check(path, max([last, *kill(use, 0.4)]))
            kept = max(kept, last)
        assert kept > rounds
        print(f"{rounds} killed while changing an index, {kept} changes kept")


if __name__ == "__main__":
    run(int(sys.argv[1]) if len(sys.argv) > 1 else 20)
