"""Clusters, and what the tests of shards ask."""

import os
import signal
import threading
import time

import numpy as np
import pytest

try:
    import dask
    import distributed
except ImportError:  # it is an extra
    collect_ignore_glob = ["test_*.py"]


class Workers:
    """Two worker processes, started again when they are killed; all anew where that fails on a busy machine."""

    def __init__(self):
        self.local = None

    def start(self):
        self.stop()
        quick = {"distributed.comm.timeouts.connect": "10s"}  # or a worker tries for 30 s to reach another that is dead
        options = {"n_workers": 2, "threads_per_worker": 1, "dashboard_address": ":0", "silence_logs": 50}
        with dask.config.set(quick):
            self.local = distributed.LocalCluster(**options)

    def stop(self):
        if self.local is not None:
            self.local.close()

    def client(self):
        if self.local is not None:
            client = distributed.Client(self.local, set_as_default=False)
            try:
                client.wait_for_workers(2, timeout=20)
                return client
            except TimeoutError:
                client.close()
        self.start()
        return distributed.Client(self.local, set_as_default=False)


@pytest.fixture(scope="module")
def workers():
    some = Workers()
    yield some
    some.stop()


@pytest.fixture
def client(workers):
    with workers.client() as one:
        yield one


@pytest.fixture
def killer(tmp_path):
    """Return a victim, a function for tasks: the first worker that calls it waits until it is killed.

    Whether somebody was, `victim.killed` tells after the test.
    """
    marker, killed = tmp_path / "victim", threading.Event()
    path = str(marker)

    def victim(value):
        try:
            descriptor = os.open(path + ".new", os.O_CREAT | os.O_EXCL | os.O_WRONLY)
        except FileExistsError:
            return value
        os.write(descriptor, str(os.getpid()).encode())
        os.close(descriptor)
        os.rename(path + ".new", path + ".new2")
        os.link(path + ".new2", path + ".new")
        os.rename(path + ".new2", path)
        time.sleep(60)
        return value

    def kill():
        for _ in range(1200):
            if marker.exists():
                os.kill(int(marker.read_text()), signal.SIGKILL)
                killed.set()
                return
            time.sleep(0.05)

    thread = threading.Thread(target=kill, daemon=True)
    thread.start()
    yield victim
    assert killed.wait(5), "nobody was killed"


def assert_same(found, expected):
    np.testing.assert_array_equal(found.distances, expected.distances)
    np.testing.assert_array_equal(found.indices, expected.indices)


@pytest.fixture(scope="session")
def same():
    return assert_same
