"""Is the recall that is asked for reached, on queries that calibration never saw? A full run takes about 2 minutes."""

from comparisons.knn.suites import CALIBRATION as SUITE


def test_calibration(asked, name):
    asked(SUITE, name)
