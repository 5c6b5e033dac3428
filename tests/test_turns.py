"""Tests that have to be alone are, and nobody waits for ever."""

import threading
from concurrent.futures import ThreadPoolExecutor


def test_alone_means_without_others(take_turn, tmp_path):
    running, together = set(), []
    lock = threading.Lock()

    def work(number):
        alone = number % 5 == 0
        with take_turn(tmp_path, alone):
            with lock:
                running.add((number, alone))
                together.append((len(running), any(other for _, other in running)))
            pause.wait(0.002)
            with lock:
                running.remove((number, alone))

    pause = threading.Event()
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(work, range(60)))
    assert max(count for count, _ in together) > 1
    assert all(count == 1 for count, alone in together if alone)
