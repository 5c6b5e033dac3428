"""How ranking (``dci``) compares with bucketing and graphs: rivals, data sets and a strict harness.

::

    __main__.py  python -m comparisons run | report | list | memory | calibrate-costs
    knn/         suites.py: the questions about the index, and the list of all; adapters.py: one class a rival;
                 bench.py: timing, sweeps, rivals that take turns; costs.py: the constants of the cost model, measured
                 anew; test_*.py: pytest-benchmark suites
    attention/   the same for attention; truth.py: true errors against the bounds that are reported;
                 ranking.py: the attention mass that candidates hold; decoding.py: token after token
    tasks/       what models keep of their accuracy: swap.py puts a contender in the place of their attention;
                 models.py, training.py, registry.py: small models trained here; data/: what they are asked; suites.py;
                 generation.py: token after token; __main__.py  python -m comparisons.tasks train | page | list
    data/        datasets.py: seeded, offline, checksummed; heads.py: queries, keys and values of a real encoder, from
                 a seed, from a file; adversarial.py: heads that are hard to approximate
    harness/     question.py: what a suite is; results.py: a run on disk, and going on after an interruption; truth.py:
                 recall recomputed from the returned ids; machine.py: what it is, memory of a child process
    report/      bars*.py: what is asked; tables*.py, figures_*.py, plots.py; page.py puts them on one page,
                 page_tasks.py those of tasks into README.md
"""
