"""scikit-learn's view of the index: a transformer from points to their k-nearest-neighbour graph.

scikit-learn is an optional extra; only this module imports it.
"""

import math
from typing import Any, Literal, overload

import numpy as np
import numpy.typing as npt
from scipy.sparse import csr_matrix

try:
    from sklearn.base import BaseEstimator, ClassNamePrefixFeaturesOutMixin, TransformerMixin
    from sklearn.utils.validation import check_is_fitted, validate_data
except ImportError as error:
    raise ImportError("dci.sklearn needs scikit-learn 1.6 or newer: pip install 'dci-attention[sklearn]'") from error

from dci import DCI

from ._api.validation import as_points, check_choice, check_count, check_metric
from ._runtime.scalars import describe, is_real
from ._runtime.types import FloatArray, IndexArray
from .errors import InvalidTypeError, InvalidValueError

ObjectArray = npt.NDArray[np.object_]


class DCITransformer(ClassNamePrefixFeaturesOutMixin, TransformerMixin, BaseEstimator):
    """Transform points into the sparse graph of their nearest training points.

    A drop-in for `sklearn.neighbors.KNeighborsTransformer` in front of estimators that take a
    precomputed neighbour graph (TSNE, Isomap, DBSCAN, the classifiers of `sklearn.neighbors`, ...).

    Parameters
    ----------
    mode : {"distance", "connectivity"}
        Weights of the graph: distances, or ones.
    n_neighbors : int
        Neighbours of a point. In mode ``"distance"``, rows have one entry more, since a training
        point is its own first neighbour and estimators differ in whether they count it.
    metric : {"l2", "euclidean", "cosine"}
        Inner products are not distances; use `dci.DCI` for them.
    recall : float
        Wanted share of true neighbours, in (0, 1]; 1.0, or 1, is exact.
    radius : float
        What `radius_neighbors` and `radius_neighbors_graph` take where they are given none; `transform` ignores it.
    directions, ranking, n_composite, n_simple, n_levels, random_state, num_threads, verbose
        See `dci.DCI`.

    Attributes
    ----------
    index_ : dci.DCI
        The fitted index.
    n_samples_fit_ : int
        Number of training points.
    n_features_in_ : int
        Their dimension.

    See Also
    --------
    sklearn.neighbors.KNeighborsTransformer : The exact one, of the same conventions.
    sklearn.neighbors.NearestNeighbors : Has `radius_neighbors` and `radius_neighbors_graph`, as this.

    Examples
    --------
    >>> import numpy as np
    >>> from dci.sklearn import DCITransformer
    >>> X = np.random.default_rng(0).normal(size=(100, 8))
    >>> graph = DCITransformer(n_neighbors=5, random_state=0).fit_transform(X)
    >>> graph.shape, graph.nnz
    ((100, 100), 600)
    """

    def __init__(
        self,
        *,
        mode: str = "distance",
        n_neighbors: int = 5,
        metric: str = "l2",
        recall: float = 0.95,
        radius: float = 1.0,
        directions: Any = "auto",
        ranking: str = "auto",
        n_composite: int | str = "auto",
        n_simple: int | str = "auto",
        n_levels: int | str = "auto",
        random_state: Any = None,
        num_threads: int | None = None,
        verbose: bool = False,
    ) -> None:
        self.mode = mode
        self.n_neighbors = n_neighbors
        self.metric = metric
        self.recall = recall
        self.radius = radius
        self.directions = directions
        self.ranking = ranking
        self.n_composite = n_composite
        self.n_simple = n_simple
        self.n_levels = n_levels
        self.random_state = random_state
        self.num_threads = num_threads
        self.verbose = verbose

    def fit(self, X: npt.ArrayLike, y: Any = None) -> "DCITransformer":
        """Build the index.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features)
            Training points.
        y : ignored

        Returns
        -------
        self : DCITransformer
        """
        check_choice(self.mode, "mode", ("distance", "connectivity"))
        check_choice(check_metric(self.metric), "metric", ("l2", "cosine"))
        check_count(self.n_neighbors, "n_neighbors")
        _check_radius(self.radius)
        self._fit_X = as_points(validate_data(self, X))[0]
        self.index_ = DCI(
            self.metric,
            directions=self.directions,
            ranking=self.ranking,
            n_composite=self.n_composite,
            n_simple=self.n_simple,
            n_levels=self.n_levels,
            recall=self.recall,
            random_state=self.random_state,
            num_threads=self.num_threads,
            verbose=self.verbose,
        ).fit(self._fit_X)
        self.n_samples_fit_ = self._n_features_out = len(self._fit_X)
        return self

    def transform(self, X: npt.ArrayLike) -> csr_matrix:
        """Graph from points to their nearest training points.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features)

        Returns
        -------
        graph : csr_matrix of shape (n_samples, n_samples_fit_), float32
            Entries of a row are ascending in distance: ``n_neighbors + 1`` in mode ``"distance"``,
            ``n_neighbors`` in mode ``"connectivity"``.
        """
        check_is_fitted(self)
        distances, indices = self.kneighbors(X, self._n_entries())
        return self._graph(distances, indices)

    def fit_transform(self, X: npt.ArrayLike, y: Any = None) -> csr_matrix:
        """Fit, and transform the training points; the diagonal of the graph is always explicit.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features)
        y : ignored

        Returns
        -------
        graph : csr_matrix of shape (n_samples, n_samples), float32
            As `transform` returns it.
        """
        self.fit(X)
        distances, indices = self.kneighbors(self._fit_X, self._n_entries())
        rows = np.arange(len(indices))
        indices[rows, _own_column(indices)] = rows
        return self._graph(distances, indices)

    @overload
    def kneighbors(
        self,
        X: npt.ArrayLike | None = None,
        n_neighbors: int | None = None,
        return_distance: Literal[True] = True,
    ) -> tuple[FloatArray, IndexArray]: ...

    @overload
    def kneighbors(
        self,
        X: npt.ArrayLike | None = None,
        n_neighbors: int | None = None,
        *,
        return_distance: Literal[False],
    ) -> IndexArray: ...

    def kneighbors(
        self,
        X: npt.ArrayLike | None = None,
        n_neighbors: int | None = None,
        return_distance: bool = True,
    ) -> tuple[FloatArray, IndexArray] | IndexArray:
        """Nearest training points.

        Parameters
        ----------
        X : array-like of shape (n_queries, n_features), optional
            Queries. By default the training points, none of which is its own neighbour then.
        n_neighbors : int, optional
            By default the parameter of the transformer.
        return_distance : bool
            Whether to return distances too.

        Returns
        -------
        distances : ndarray of shape (n_queries, n_neighbors), float32
            Ascending; only if `return_distance`.
        indices : ndarray of shape (n_queries, n_neighbors), int64

        Raises
        ------
        InvalidValueError
            More neighbours are wanted than there are training points.
        """
        check_is_fitted(self)
        k = self.n_neighbors if n_neighbors is None else n_neighbors
        k = check_count(k, "n_neighbors")
        own = X is None
        queries = self._fit_X if own else validate_data(self, X, reset=False)
        if k + own > self.n_samples_fit_:
            raise InvalidValueError(
                f"Expected n_neighbors {'<' if own else '<='} n_samples_fit, but "
                f"n_neighbors = {k}, n_samples_fit = {self.n_samples_fit_}, n_samples = {len(queries)}"
            )
        distances, indices = self.index_.query(queries, k + own)
        if own:
            others = np.ones(indices.shape, dtype=np.bool_)
            others[np.arange(len(indices)), _own_column(indices)] = False
            distances = distances[others].reshape(-1, k)
            indices = indices[others].reshape(-1, k)
        return (distances, indices) if return_distance else indices

    @overload
    def radius_neighbors(
        self,
        X: npt.ArrayLike | None = None,
        radius: float | None = None,
        return_distance: Literal[True] = True,
        sort_results: bool = False,
    ) -> tuple[ObjectArray, ObjectArray]: ...

    @overload
    def radius_neighbors(
        self,
        X: npt.ArrayLike | None = None,
        radius: float | None = None,
        *,
        return_distance: Literal[False],
        sort_results: bool = False,
    ) -> ObjectArray: ...

    def radius_neighbors(
        self,
        X: npt.ArrayLike | None = None,
        radius: float | None = None,
        return_distance: bool = True,
        sort_results: bool = False,
    ) -> tuple[ObjectArray, ObjectArray] | ObjectArray:
        """Training points within a radius.

        Parameters
        ----------
        X : array-like of shape (n_queries, n_features), optional
            Queries. By default the training points, none of which is its own neighbour then.
        radius : float, optional
            Largest distance, which is within; by default the parameter of the transformer.
        return_distance : bool
            Whether to return distances too.
        sort_results : bool
            Without effect: neighbours are ascending in distance always. scikit-learn's callers pass it.

        Returns
        -------
        distances : ndarray of shape (n_queries,) of arrays of float32
            Only if `return_distance`.
        indices : ndarray of shape (n_queries,) of arrays of int64
            Of each query, as many as there are; of all of them, the `recall` of the transformer is found.

        Raises
        ------
        InvalidValueError, InvalidTypeError
            `radius` is no number of at least 0.
        """
        offsets, distances, indices = self._within(X, radius)
        found = _arrays(indices, offsets)
        return (_arrays(distances, offsets), found) if return_distance else found

    def radius_neighbors_graph(
        self,
        X: npt.ArrayLike | None = None,
        radius: float | None = None,
        mode: str = "connectivity",
        sort_results: bool = False,
    ) -> csr_matrix:
        """Graph from points to the training points within a radius.

        Parameters
        ----------
        X : array-like of shape (n_queries, n_features), optional
            By default the training points, none of which is its own neighbour then.
        radius : float, optional
            By default the parameter of the transformer.
        mode : {"connectivity", "distance"}
            Weights: ones, or distances.
        sort_results : bool
            Without effect, as for `radius_neighbors`.

        Returns
        -------
        graph : csr_matrix of shape (n_queries, n_samples_fit_), float32
            Entries of a row are ascending in distance.

        Raises
        ------
        InvalidValueError, InvalidTypeError
            As for `radius_neighbors`; an unknown mode.

        Examples
        --------
        >>> import numpy as np
        >>> from sklearn.cluster import DBSCAN
        >>> from dci.sklearn import DCITransformer
        >>> X = np.r_[np.zeros((4, 2)), np.ones((5, 2))]
        >>> graph = DCITransformer(radius=0.5).fit(X).radius_neighbors_graph(mode="distance")
        >>> DBSCAN(eps=0.5, min_samples=4, metric="precomputed").fit_predict(graph)
        array([0, 0, 0, 0, 1, 1, 1, 1, 1])
        """
        check_choice(mode, "mode", ("connectivity", "distance"))
        offsets, distances, indices = self._within(X, radius)
        if mode == "connectivity":
            distances = np.ones_like(distances)
        return csr_matrix((distances, indices, offsets), shape=(len(offsets) - 1, self.n_samples_fit_))

    def _within(self, X: npt.ArrayLike | None, radius: float | None) -> tuple[IndexArray, FloatArray, IndexArray]:
        """Offsets, distances and indices of the training points within a radius."""
        check_is_fitted(self)
        radius = _check_radius(self.radius if radius is None else radius)
        queries = self._fit_X if X is None else validate_data(self, X, reset=False)
        offsets, distances, indices = self.index_.query_radius(queries, radius)
        if X is None:
            rows = np.repeat(np.arange(len(queries)), np.diff(offsets))
            others = indices != rows
            offsets = np.concatenate([[0], np.cumsum(np.bincount(rows[others], minlength=len(queries)))])
            distances, indices = distances[others], indices[others]
        return offsets, distances, indices

    def _n_entries(self) -> int:
        return self.n_neighbors + (self.mode == "distance")

    def _graph(self, distances: FloatArray, indices: IndexArray) -> csr_matrix:
        if self.mode == "connectivity":
            distances = np.ones_like(distances)
        n_rows, n_entries = indices.shape
        starts = np.arange(0, n_rows * n_entries + 1, n_entries)
        return csr_matrix((distances.ravel(), indices.ravel(), starts), shape=(n_rows, self.n_samples_fit_))

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.transformer_tags.preserves_dtype = ["float32"]
        return tags


def _own_column(indices: IndexArray) -> IndexArray:
    """Column of every row's own id in a set's neighbours with itself.

    The last column where a point is missing among its neighbours: it then has more duplicates than
    neighbours, and what stands there is as near as the point itself.
    """
    own = indices == np.arange(len(indices))[:, np.newaxis]
    columns: IndexArray = np.where(own.any(axis=1), own.argmax(axis=1), indices.shape[1] - 1)
    return columns


def _check_radius(radius: Any) -> float:
    if not is_real(radius):
        raise InvalidTypeError(f"radius: expected a number >= 0, received {describe(radius)}")
    if math.isnan(radius) or radius < 0:
        raise InvalidValueError(f"radius: expected a number >= 0, received {radius}")
    return float(radius)


def _arrays(values: npt.NDArray[Any], offsets: IndexArray) -> ObjectArray:
    """Parts of an array as an array of arrays, which NumPy would make a matrix of where all have one length."""
    parts = np.empty(len(offsets) - 1, dtype=object)
    for i in range(len(parts)):
        parts[i] = values[offsets[i] : offsets[i + 1]]
    return parts
