"""Estimated times of building and searching, and every constant that they rest on.

The constants are measured anew by ``python -m comparisons calibrate-costs``. Only their ratios matter, and they are
constants so that a choice never depends on how busy the machine was.
"""

from typing import NamedTuple


class Costs(NamedTuple):
    """Nanoseconds on one core of a current processor, unless it says otherwise."""

    product: float = 0.009  # one coordinate of one point against one query, in a tile
    point: float = 0.05  # each point scanned, whatever its coordinates
    candidate: float = 25.0  # each candidate: selection and a cache miss
    coordinate: float = 0.3  # each coordinate of a candidate, in the distance computed in full
    cell: float = 1.5  # each cell: its score and the selection among cells
    ranked_query: float = 2000.0  # each ranked query, whatever it visits
    exact_query: float = 10_000.0  # each exact query: selection and the rounding-error check
    masked_point: float = 4.0  # each point in a call with a filter: the mask in the order of the cells
    build_product: float = 0.009  # one coordinate of one point against one direction or centre, while building
    tiny_query: float = 16_000.0  # an exact query below this is faster than any ranked one
    worthwhile: float = 0.75  # share of the exact time that a ranked query may take: the margin of these estimates


COSTS = Costs()


def exact_cost(n: int, dim: int) -> float:
    """Estimated time of one exact query in a batch, in ns."""
    return COSTS.exact_query + n * (dim * COSTS.product + COSTS.point)


def most_ranked_cost(n: int, dim: int) -> float:
    """Return what a ranked query may cost, in ns: above that exact search is the better way."""
    return COSTS.worthwhile * exact_cost(n, dim)


def ranked_cost(visits: float, candidates: float, width: int, dim: int, n_cells: int) -> float:
    """Estimated time of one ranked query in a batch, in ns, `width` being L * m."""
    scan = visits * (width * COSTS.product + COSTS.point)
    return COSTS.ranked_query + scan + rescore_cost(candidates, dim) + n_cells * (width * COSTS.product + COSTS.cell)


def rescore_cost(candidates: float, dim: int) -> float:
    """Estimated time of comparing candidates with a query in full, in ns."""
    return candidates * (COSTS.candidate + dim * COSTS.coordinate)


def selection_cost(candidates: float) -> float:
    """Estimated time of selecting candidates and of sorting them, in ns."""
    return candidates * COSTS.candidate


def mask_cost(n: int) -> float:
    """Estimated time of bringing a mask of n points into the order of the cells, in ns."""
    return n * COSTS.masked_point


def build_cost(n: int, dim: int, width: int, n_cells: int) -> float:
    """Estimated time of projecting n points and assigning them to cells, in ns.

    Points are projected twice, when they are assigned and when they are copied, and compared with a third of the
    centres: those around the region that they lie in.
    """
    return n * (2 * dim + n_cells / 3) * width * COSTS.build_product


def is_tiny(n: int, dim: int) -> bool:
    """Whether exact search of these points is faster than any ranking."""
    return exact_cost(n, dim) < COSTS.tiny_query
