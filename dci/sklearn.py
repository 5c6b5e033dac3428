"""scikit-learn's view of the index: a transformer from points to their k-nearest-neighbour graph.

scikit-learn is an optional extra; only this module imports it.
"""

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
from ._runtime.types import FloatArray, IndexArray
from .errors import InvalidValueError


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
