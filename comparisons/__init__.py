"""How ranking (``dci``) compares with bucketing and graphs: rivals, data sets and a strict harness.

::

    __main__.py   python -m comparisons run | report | list | memory
    question.py   what a suite is
    suites.py     the questions about the index, and the list of all: what is measured on which data
    harness.py    timing, sweeps, rivals that take turns
    truth.py      recall recomputed from the returned ids
    results.py    a run on disk: steps, rows, going on after an interruption
    adapters.py   one class a rival, build and query arguments apart
    datasets.py   seeded, offline, checksummed data
    machine.py    what it is, memory of a child process
    bars.py       what is asked of dci
    tables.py     rows as text, and a recommendation in words
    figures.py    rows as figures (plots.py: what these share); report.py puts them on one page
    test_*.py     pytest-benchmark suites, one file a question

Attention's are suites_attention.py, harness_attention.py, adapters_attention.py, figures_attention.py, and

    heads.py      queries, keys and values: of a real encoder, from a seed, from a file
    adversarial.py  heads that are hard to approximate
    attention_truth.py  true errors against the bounds that are reported
    ranking.py    the attention mass that candidates hold
    decoding.py   token after token
"""
