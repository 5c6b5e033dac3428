"""A race, planted: two threads write one output. `make sanitize-threads` has to see it, or it would see none."""

import threading

import numpy as np

from dci._native import rows as native_rows

if __name__ == "__main__":
    rows = native_rows.Rows(np.ones((20_000, 64), np.float32))
    panels, bias = native_rows.panels_of(np.ones((32, 64), np.float32)), np.zeros(32, np.float32)
    out = np.empty((20_000, 32), np.float32)

    def project():
        for _ in range(3):
            native_rows.project(rows, np.arange(20_000, dtype=np.int32), panels, bias, out)

    threads = [threading.Thread(target=project) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
