"""Is a mapped index of 10 million points asked within 2 GB? A full run takes about 9 minutes and 15 GB of memory.

Bars: 2 GB resident, of both kinds; a file of 1 GB open within 50 ms; recall.
"""

from comparisons.knn.suites import OUT_OF_CORE as SUITE


def test_out_of_core(asked, name):
    asked(SUITE, name)
