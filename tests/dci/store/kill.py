"""Writers killed at random moments, and at every system call: python tests/dci/store/kill.py 200

A child saves, appends or compacts over and over and reports what was acknowledged through a pipe; it is killed
(SIGKILL), or ends itself before, within or after its nth call. Then the parent opens what is there: the old or the new
file, every acknowledged record, at most one more, and no leftovers after that.
"""

import os
import random
import signal
import struct
import sys
import tempfile
import time
import warnings
from contextlib import contextmanager
from unittest import mock

import numpy as np

from dci._store import container, files
from dci._store import journal as journals
from dci._store.directory import Store, is_store

COUNT = struct.Struct("<q")
BASE = bytes(16)
CALLS = ("open", "writev", "fsync", "fdatasync", "replace", "unlink", "ftruncate", "fchmod", "mkdir")


@contextmanager
def child(work):
    """Fork a process that does ``work(acknowledge)``; yield its id and a function for the acknowledged numbers."""
    receive, send = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(receive)
        try:
            work(lambda number: os.write(send, COUNT.pack(number)))
        except BaseException as error:
            os.write(2, f"{error!r}\n".encode())
            os._exit(1)
        os._exit(0)
    os.close(send)

    def acknowledged():
        data = b""
        while block := os.read(receive, 1 << 16):
            data += block
        return [number for (number,) in COUNT.iter_unpack(data)]

    try:
        yield pid, acknowledged
    finally:
        os.close(receive)


def kill(work, most):
    """Kill a child after up to so many seconds; return what it acknowledged."""
    with child(work) as (pid, acknowledged):
        time.sleep(random.uniform(0, most))
        os.kill(pid, signal.SIGKILL)
        status = os.waitpid(pid, 0)[1]
        assert os.WIFSIGNALED(status), "the child failed before it was killed"
        return acknowledged()


# ---- saving ----


def content(number):
    size = 1 + number * 7919 % 300_000
    return {"number": number}, {"a": np.full(size, number, np.int32), "b": np.full((3, 5), number, np.float32)}


def check_saved(path):
    meta, sections = container.read(path)
    expected = content(meta["number"])
    assert all(np.array_equal(sections[name], array) for name, array in expected[1].items())
    return meta["number"]


def kill_saves(rounds, directory):
    path = os.path.join(directory, "saved.dci")
    container.write(path, *content(0))
    last = stale = 0

    def save(acknowledge):
        for number in range(last + 1, sys.maxsize):
            container.write(path, *content(number))
            acknowledge(number)

    for _ in range(rounds):
        last = max([last, *kill(save, 0.06)])
        found = check_saved(path)
        assert found in (last, last + 1), (found, last)
        last = found
        stale += len(files.remove_stale(directory))
        assert os.listdir(directory) == ["saved.dci"]
    return f"{rounds} killed while saving, {last} files saved, {stale} temporaries were left"


# ---- appending ----


def arrays(number):
    size = 1 + number * 7919 % 50_000 * (10 if number % 5 == 0 else 1)
    return {"ids": np.full(3, number), "X": np.full((size, 2), number, np.float32)}


def check_records(found, first):
    for number, record in enumerate(found, first):
        assert record.sequence == number
        assert all(np.array_equal(record.arrays[name], array) for name, array in arrays(number).items())


def kill_appends(rounds, directory):
    path = os.path.join(directory, "journal.log")
    torn = total = 0

    def append(acknowledge):
        with journals.Journal(path, 0, BASE) as journal:
            while True:
                number = journal.append(1, {}, arrays(journal.next_sequence), sync=True)
                acknowledge(number)

    for i in range(rounds):
        if i % 10 == 0:  # it would grow beyond all measure
            journals.create_journal(path, 0, BASE)
            last = -1
        last = max([last, *kill(append, 0.1)])
        with journals.Journal(path, 0, BASE) as journal:
            check_records(journal.replay(), 0)
            assert journal.next_sequence in (last + 1, last + 2), (journal.next_sequence, last)
            last = journal.next_sequence - 1
            torn += journal.cut is not None
            total += 1
    return f"{rounds} killed while appending, {torn} of them within a record"


# ---- a store ----


def write_base(count):
    return lambda file: container.write(file, {}, {"applied": np.arange(count)})


def operate(path, acknowledge=lambda number: None, rounds=1):
    """Create or open a store; append, compact with one operation to carry over, append."""
    with Store.open(path) if is_store(path) else Store.create(path, write_base(0)) as store:
        acknowledge(store.next_sequence - 1)
        for _ in range(rounds):
            for _ in range(2):
                acknowledge(store.append(1, {}, arrays(store.next_sequence), sync=True))
            position = store.position()
            acknowledge(store.append(1, {}, arrays(store.next_sequence), sync=True))
            store.compact(write_base(position.sequence), position)
            acknowledge(store.append(1, {}, arrays(store.next_sequence), sync=True))


def check_store(path, last):
    """Return the number of the last operation that is there."""
    if not is_store(path):
        assert last < 0
        return -1
    with Store.open(path) as store:
        applied = container.read(store.base)[1]["applied"]
        assert np.array_equal(applied, np.arange(len(applied)))
        check_records(store.replay(), len(applied))
        found = store.next_sequence - 1
        assert found in (last, last + 1), (found, last)
        names = {"CURRENT", "LOCK", f"base-{store.generation}.dci", f"journal-{store.generation}.log"}
        assert set(os.listdir(path)) == names
    return found


def kill_stores(rounds, directory):
    path = os.path.join(directory, "store")
    last = -1
    for _ in range(rounds):
        last = max([last, *kill(lambda acknowledge: operate(path, acknowledge, sys.maxsize), 0.15)])
        last = check_store(path, last)
    return f"{rounds} killed while using a store, {last + 1} operations kept"


# ---- every system call ----


def end_at(nth, when):
    """Have this process end at its nth call: before it, after it, or, if it writes, in the middle."""
    left = [nth]

    def wrap(function):
        def call(*args, **kwargs):
            left[0] -= 1
            if left[0] == 0 and when == "before":
                os._exit(9)
            if left[0] == 0 and when == "within":
                whole = b"".join(args[1])
                os.write(args[0], whole[: len(whole) // 2])
                os._exit(9)
            result = function(*args, **kwargs)
            if left[0] == 0:
                os._exit(9)
            return result

        return call

    for name in ("writev",) if when == "within" else CALLS:
        setattr(os, name, wrap(getattr(os, name)))


def no_sync(descriptor):
    """Stand in for a sync: the end of a process loses nothing that was not synced, and the disk takes its time."""


def end_everywhere(directory):
    """End a store's creation and use at every call, in each way; then use it again."""
    ends = 0
    for when in ("before", "within", "after"):
        for nth in range(1, sys.maxsize):
            path = os.path.join(directory, f"{when}-{nth}")

            def work(acknowledge, path=path, nth=nth, when=when):
                end_at(nth, when)
                operate(path, acknowledge)

            with child(work) as (pid, acknowledged):
                status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
                assert status in (0, 9), status
                last = check_store(path, max(acknowledged(), default=-1))
            operate(path)
            assert check_store(path, last + 4) == max(last, -1) + 4
            if status == 0:
                break
            ends += 1
    return f"{ends} ended at a system call of a store's creation, appends and compaction"


def run(rounds):
    # What the journal says when it cuts off a torn record.
    warnings.simplefilter("ignore", UserWarning)
    random.seed(rounds)
    for part in (kill_saves, kill_appends, kill_stores):
        with tempfile.TemporaryDirectory() as directory:
            print(part(rounds, directory), flush=True)
    with (
        tempfile.TemporaryDirectory() as directory,
        mock.patch.object(os, "fsync", no_sync),
        mock.patch.object(os, "fdatasync", no_sync),
    ):
        print(end_everywhere(directory))


if __name__ == "__main__":
    run(int(sys.argv[1]) if len(sys.argv) > 1 else 20)
