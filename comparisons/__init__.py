"""How ranking (``dci``) compares with bucketing and graphs: rivals, data sets and a strict harness.

::

    __main__.py   python -m comparisons knn | memory
    knn.py        the k-NN question: which rivals run on which data, and the table
    harness.py    timing, recall recomputed from the returned ids, sweeps
    machine.py    what it is, memory of a child process, JSON on disk
    adapters.py   one class a rival, build and query arguments apart
    datasets.py   seeded, offline, cached data
    test_*.py     pytest-benchmark suites, one file a question
"""
