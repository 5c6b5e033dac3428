"""Queries with a filter beside exact search: what the command measures and prints."""

from comparisons.__main__ import main
from comparisons.knn import filters


def test_pairs_take_turns():
    """Each round times both; who starts changes."""
    order = []

    def timed(name, seconds):
        def run():
            order.append(name)
            return seconds

        return run

    assert filters._paired(timed("a", 3.0), timed("b", 2.0), 4) == (3.0, 2.0, 1.5)
    assert "".join(order) == "ab" + "ba" + "ab" + "ba" + "ab"


def test_the_command_prints_a_row_a_filter(capsys):
    assert main(["filters", "--smoke", "--threads", "1"]) == 0
    out = capsys.readouterr().out
    header, _, *rows = [line for line in out.splitlines() if line.startswith("|")]
    names = ["allowed", "queries", "filter", "dci", "exact", "ratio"]
    assert [cell.strip() for cell in header.strip("|").split("|")] == names
    sizes = filters.SMOKE
    assert len(rows) == len(sizes.allowed) * len(sizes.batches) * len(filters.KINDS)
    assert "times exact search of the allowed points" in out
