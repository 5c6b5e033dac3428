"""The ranked index: projected points in cells, searched in batches."""

from copy import copy
from dataclasses import dataclass

import numpy as np

from .._api.answers import Request
from .._geometry.kmeans import BLOCK, Nearest, center_panels, k_means, nearest_of
from .._geometry.metric import MetricEmbedding
from .._geometry.quantization import Matrix
from .._native import cell_search
from .._native.cell_edit import Insertion, remove
from .._native.cells import CellArrays, Cells
from .._native.kernels import LANES, Reservoirs
from .._native.panels import lay_out, sizes_of
from .._native.rows import Rows, pack, pack_short, panels_of, project
from .._runtime.cached import cached
from .._runtime.threads import Work, blocks, even_blocks
from .._runtime.types import FloatArray, IdArray, IndexArray
from .exact import block_rows
from .read_rows import FileRows, rescorer

MOST_CELLS = (1 << 27) - 1  # each wastes up to 15 positions, of which there are 2^32
_BLOCK_PRODUCTS = 1 << 32  # of one block of queries: well under a second, so that Ctrl-C is answered
# To measure anew: `python -m comparisons run --suite construction,knn`.
_KEPT_BYTES = 64 << 20  # of coordinates that are kept from assigning points to copying them to their cells
_SAMPLE_PER_CELL = 16  # points that k-means sees
_OUTLIER = 6.0  # times the mean squared distance to the own centre
_MAX_OUTLIERS = 0.01  # of all points; one panel is scanned as a whole anyway
# How much farther from their centres, in the mean of squares, new points may lie than those that the cells were made
# for before they count as from elsewhere: points of the same distribution lie 1.2 - 1.45 times as far.
# To measure anew: `python -m comparisons run --suite dynamic`.
_LIKE_OTHERS, _SURPRISE_RATE, _MOST_SURPRISE = 1.4, 4.0, 10.0


@dataclass(frozen=True)
class RankingPlan:
    """How a structure ranks.

    Attributes
    ----------
    for_points, for_queries : (width, L * m) float32
        Directions of each composite index, one after the other.
    directions : {"random", "principal", "query", "array"}
    n_composite : L
    n_simple : m
    ranking : {"max", "sum"}
    n_cells : int
        Cells that points belong to; 0 for the flat algorithm.
    quantized : bool
        Coordinates are kept in 16 bits: half of the memory, which is what a single query waits for.
    """

    for_points: FloatArray
    for_queries: FloatArray
    directions: str
    n_composite: int
    n_simple: int
    ranking: str
    n_cells: int
    quantized: bool = False


class Ranker:
    """Projected points in cells.

    Parameters
    ----------
    embedding : MetricEmbedding
    plan : RankingPlan
    rng : numpy.random.Generator
    work : Work
    known : (n, >= L * m) float32, optional
        The coordinates of all points, if somebody has them.

    Notes
    -----
    Memory of a point: L * m numbers, of 16 bits if quantized, else of 32, and 2 L + 1 floats.
    Time to build: n * L * m * (2 * width + n_cells) products.
    """

    def __init__(
        self,
        embedding: MetricEmbedding,
        plan: RankingPlan,
        rng: np.random.Generator,
        work: Work,
        known: FloatArray | None = None,
    ) -> None:
        self._set_up(embedding, plan)
        self._known: FloatArray | None = known
        centers = self._choose_centers(rng, work)
        rows = np.arange(embedding.points.size, dtype=np.int32)
        cell_of, gap = self._assign(rows, centers, work)
        self.mean_gap = float(gap.mean(dtype=np.float64))
        if len(centers):
            cell_of[_outliers(gap, self.mean_gap, max(LANES, int(_MAX_OUTLIERS * len(gap))))] = len(centers)
        self.cells = self._fill(rows, cell_of, centers, work)
        self._known = None

    def _set_up(self, embedding: MetricEmbedding, plan: RankingPlan) -> None:
        self.embedding = embedding
        self.plan = plan
        self._point_panels = panels_of(plan.for_points.T)
        self._query_panels = panels_of(plan.for_queries.T)
        self._no_bias = np.zeros(self._point_panels.shape[0] * LANES, np.float32)
        self._nearest: Nearest | None = None  # of the centres, once it was needed

    @classmethod
    def restored(cls, embedding: MetricEmbedding, plan: RankingPlan, cells: Cells, mean_gap: float) -> "Ranker":
        """Return a ranker of parts that another one had."""
        ranker = cls.__new__(cls)
        ranker._set_up(embedding, plan)
        ranker._known = None
        ranker.cells, ranker.mean_gap = cells, mean_gap
        return ranker

    def with_rows(self, embedding: MetricEmbedding, start: int, work: Work) -> tuple["Ranker", float]:
        """Return a ranker that holds the rows from `start` on of a longer embedding as well.

        Centres and directions stay. Also returns how badly the new rows fit the cells: their number, times 1 where they
        lie about as far from their centres as the rows that the cells were made for, up to 10 where they lie farther.
        """
        grown = copy(self)  # with what it knows of its centres
        grown.embedding = embedding
        rows = np.arange(start, embedding.points.size, dtype=np.int32)
        centers = center_rows(self.cells)
        cell_of, gap = grown._assign(rows, centers, work)
        if len(centers):
            taken = int(self.cells.arrays.sizes[len(centers) :].sum())
            room = max(LANES, int(_MAX_OUTLIERS * embedding.points.size)) - taken
            cell_of[_outliers(gap, self.mean_gap, max(room, 0))] = len(centers)
        new = grown._fill(rows, cell_of, centers, work)
        insertion = Insertion(self.cells, new, self.plan.ranking == "max")
        work.run(lambda some: insertion.copy(*some), even_blocks(self.cells.n_cells, MOST_CELLS, work.num_threads))
        grown.cells = insertion.result()
        least = float(np.finfo(np.float32).tiny)  # the mean is 0 where all points equal their centre
        farther = np.clip(gap.astype(np.float64) / max(self.mean_gap, least), 1.0, _MOST_SURPRISE).mean()
        surprise = np.clip(1.0 + _SURPRISE_RATE * (farther - _LIKE_OTHERS), 1.0, _MOST_SURPRISE)
        return grown, float(surprise) * len(rows)

    def without_rows(self, rows: IndexArray) -> "Ranker":
        """Return a ranker that does not hold these rows."""
        reduced = copy(self)
        ids = self.cells.arrays.ids
        position_of = np.empty(self.embedding.points.size, np.int64)
        held = np.flatnonzero(ids >= 0)
        position_of[ids[held]] = held
        reduced.cells = remove(self.cells, position_of[rows], self.plan.ranking == "max")
        return reduced

    def project_points(self, ids: IdArray) -> FloatArray:
        """Coordinates of points, (len(ids), M rounded up to 16, or more); 0 where an id is negative."""
        if self._known is not None:
            found = self._known[ids]
            found[ids < 0] = 0.0
            return found
        return self._project(self.embedding.points, ids, self._point_panels)

    def project_queries(self, rows: Rows, start: int, stop: int) -> FloatArray:
        """Coordinates of queries start:stop, (stop - start, M rounded up to 16)."""
        return self._project(rows, np.arange(start, stop, dtype=np.int32), self._query_panels)

    @cached
    def scoring_panels(self) -> tuple[FloatArray, FloatArray]:
        """Panels and bias that bring queries to what `cell_search.search` takes."""
        factor = 1.0 if self.plan.ranking == "max" else -2.0  # a power of two: sums are rounded as without
        return self._query_panels * np.float32(factor), self._no_bias

    def _project(self, rows: Rows, ids: IdArray, panels: FloatArray) -> FloatArray:
        out = np.empty((len(ids), panels.shape[0] * LANES), np.float32)
        project(rows, ids, panels, self._no_bias, out)
        return out

    def _choose_centers(self, rng: np.random.Generator, work: Work) -> FloatArray:
        """Centres by a few rounds of k-means on a sample, in the projection, (n_cells, M)."""
        n, n_cells = self.embedding.points.size, self.plan.n_cells
        size = min(n, _SAMPLE_PER_CELL * n_cells)
        ids = rng.choice(n, size, replace=False).astype(np.int32)
        sample = self.project_points(ids)
        width = self.plan.for_points.shape[1]
        return k_means(sample[:, :width], n_cells, work)

    def _assign(self, rows: IdArray, centers: FloatArray, work: Work) -> tuple[IdArray, FloatArray]:
        """Find the nearest centre of rows and the squared distance to it."""
        n = len(rows)
        cell_of = np.zeros(n, np.int32)
        gap = np.zeros(n, np.float32)
        if len(centers) == 0:
            work.tick(n)
            return cell_of, gap
        nearest = self._nearest = self._nearest or nearest_of(centers, work)
        width = self._point_panels.shape[0] * LANES
        kept = None
        if self._known is None and n == self.embedding.points.size and n * width * 4 <= _KEPT_BYTES:
            kept = np.empty((n, width), np.float32)

        def assign(block: tuple[int, int]) -> None:
            start, stop = block
            coordinates = self.project_points(rows[start:stop])
            if kept is not None:
                kept[start:stop] = coordinates
            nearest(coordinates, cell_of[start:stop], gap[start:stop])
            work.tick(stop - start)

        work.run(assign, blocks(n, BLOCK))
        if kept is not None:
            self._known = kept  # they are copied to their cells next
        return cell_of, gap

    def _fill(self, rows: IdArray, cell_of: IdArray, centers: FloatArray, work: Work) -> Cells:
        """Copy the coordinates of rows to where their cell keeps them."""
        plan = self.plan
        n_centers = len(centers)
        n_cells = n_centers + 1  # the last one is opened by every query
        kind = np.uint16 if n_cells < 1 << 16 else np.int32  # 16 bits are sorted by radix
        order = np.argsort(cell_of.astype(kind), kind="stable").astype(np.int32)
        sizes = sizes_of(cell_of, n_cells)
        first_panel, position = lay_out(sizes)
        total = int(first_panel[-1])
        ids = np.full(total * LANES, -1, np.int32)
        ids[position] = rows[order]
        m = plan.n_simple
        shape = plan.n_composite, total, m, LANES
        coordinates = np.empty(shape, np.int16 if plan.quantized else np.float32)
        bias = np.empty((plan.n_composite, total * LANES), np.float32)
        steps = np.empty_like(bias) if plan.quantized else None

        def fill(block: tuple[int, int]) -> None:
            start, stop = block
            lanes = slice(start * LANES, stop * LANES)
            here = ids[lanes]
            rows = self.project_points(here)
            for composite in range(plan.n_composite):
                first, last = composite * m, (composite + 1) * m
                panels, norms = coordinates[composite, start:stop], bias[composite, lanes]
                if steps is not None:
                    pack_short(rows, first, last, panels, steps[composite, lanes], norms)
                else:
                    pack(rows, first, last, panels)
                    np.einsum("ij,ij->i", rows[:, first:last], rows[:, first:last], out=norms)
                if self.embedding.product:
                    norms[:] = 0.0
                norms[here < 0] = np.inf
                if plan.ranking == "max":
                    mark_empty(coordinates[composite, start:stop], here)
            work.tick(int(np.count_nonzero(here >= 0)))

        work.run(fill, blocks(total, BLOCK // LANES))
        arrays = CellArrays(
            coordinates, bias, ids, first_panel.astype(np.int32), sizes.astype(np.int32),
            *center_panels(centers, self.embedding.product), n_centers, steps,
        )  # fmt: skip
        return Cells(arrays)

    def search(
        self,
        X: Matrix,
        request: Request,
        visits: int,
        candidates: int,
        work: Work,
    ) -> tuple[FloatArray, IndexArray]:
        """Find the k nearest among the best `candidates` of each composite index.

        Only allowed points count as visits.
        """
        Q, k, exclude = request.queries, request.k, request.exclude
        distances = np.empty((len(Q), k), np.float32)
        indices = np.empty((len(Q), k), np.int64)
        rows = self.embedding.queries(Q, request.absmax)
        n_composite = self.plan.n_composite
        lanes, sizes = None, None
        if request.allowed is not None:
            lanes, sizes = cell_search.allowed_lanes(self.cells, request.allowed.mask.view(np.uint8))
        keep = min(candidates, len(X))

        width = n_composite * self.plan.n_simple
        most = block_rows(keep, width, n_composite)
        metric, absmax = self.embedding.metric, self.embedding.absmax
        file_rows = FileRows.of(X, metric, absmax)
        rescore = rescorer(X, metric, absmax, file_rows)
        if file_rows is not None:
            most = min(most, file_rows.at_once(keep * n_composite))
        parts = even_blocks(len(Q), min(most, _BLOCK_PRODUCTS // (visits * width) + 1), work.num_threads)
        size = max((stop - start for start, stop in parts), default=0)
        spare: list[Reservoirs] = []  # used again: touching new memory costs a page fault a page

        def answer(block: tuple[int, int]) -> None:
            start, stop = block
            try:
                reservoirs = spare.pop()
            except IndexError:
                reservoirs = Reservoirs(n_composite * size, keep)
            self.rank(rows, start, stop, visits, reservoirs, lanes, sizes)
            work.tick()
            own = None if exclude is None else exclude[start:stop]
            found, ids = (distances[start:stop], indices[start:stop]), self.cells.arrays.ids
            rescore(Q[start:stop], reservoirs, keep, ids, own, found)
            spare.append(reservoirs)
            work.tick(stop - start)

        work.run(answer, parts)
        return distances, indices

    def rank(
        self,
        rows: Rows,
        start: int,
        stop: int,
        visits: int,
        reservoirs: Reservoirs,
        allowed: np.ndarray | None = None,
        sizes: IdArray | None = None,
    ) -> None:
        """Put candidates of queries start:stop, as positions in the cells, into L * (stop - start) reservoirs."""
        use_max = self.plan.ranking == "max"
        coordinates = self._project(rows, np.arange(start, stop, dtype=np.int32), self.scoring_panels[0])
        reservoirs.clear(self.plan.n_composite * (stop - start))
        cell_search.search(self.cells, coordinates, visits, use_max, reservoirs, allowed, sizes)

    def candidates(self, rows: Rows, i: int, visits: int, keep: int, limited: bool) -> list[np.ndarray]:
        """Candidates of one query by composite index, ids in the order of their ranks.

        `limited`: with one level, only points that all m sorted lists have reached within `visits`
        entries of the composite index, as in the papers.
        """
        ids = self.cells.arrays.ids
        if not limited:
            reservoirs = Reservoirs(self.plan.n_composite, keep)
            self.rank(rows, i, i + 1, visits, reservoirs)
            places = cell_search.positions(reservoirs, keep)
            return [ids[row[row >= 0]] for row in places]
        m = self.plan.n_simple
        query = self.project_queries(rows, i, i + 1)[0]
        found = []
        for composite in range(self.plan.n_composite):
            panels = self.cells.arrays.coordinates[composite]
            points = panels.transpose(0, 2, 1).reshape(-1, m)[ids >= 0]
            gaps = np.abs(points - query[composite * m : (composite + 1) * m])
            last = np.partition(gaps.ravel(), visits - 1)[visits - 1]
            score = gaps.max(1) if self.plan.ranking == "max" else np.square(gaps).sum(1)
            score[gaps.max(1) > last] = np.inf
            order = np.argsort(score, kind="stable")[:keep]
            found.append(ids[ids >= 0][order[score[order] < np.inf]])
        return found


def mark_empty(panels: FloatArray, ids: IdArray) -> None:
    """Set lanes without a point to infinity, so that ranking by max never keeps them."""
    panel, lane = np.divmod(np.flatnonzero(ids < 0), LANES)
    panels[panel, :, lane] = np.inf


def center_rows(cells: Cells) -> FloatArray:
    """Centres of the cells, (n_centers, L * m)."""
    panels = cells.arrays.centers
    rows: FloatArray = panels.transpose(0, 2, 1).reshape(-1, panels.shape[1])[: cells.n_centers]
    return np.ascontiguousarray(rows)


def _outliers(gap: FloatArray, mean_gap: float, most: int) -> np.ndarray:
    """Points far from their cell's centre, which would stand for them badly, at most so many."""
    outliers = np.flatnonzero(gap > _OUTLIER * mean_gap)
    if len(outliers) > most:
        farthest = np.argsort(-gap[outliers], kind="stable")[:most]
        outliers = outliers[farthest]
    return outliers
