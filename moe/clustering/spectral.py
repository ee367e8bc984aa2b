"""Spectral clustering on a graph of nearest neighbours, regularised.

Ng, Jordan & Weiss 2002, with the locally scaled weights of Zelnik-Manor & Perona 2004. A small constant is added to every
pair (Joseph & Yu 2016): without it a handful of outliers is a component of the graph and takes an eigenvector, hence an expert.
"""

import numpy as np
from scipy import linalg, sparse
from scipy.sparse.linalg import LinearOperator, eigsh
from sklearn.cluster import KMeans
from sklearn.neighbors import NearestNeighbors

from moe.clustering.partition import Partition, soft_from_distances

MAX_NEIGHBOURS = 10
REGULARISER = 0.01  # added weight, as a share of the mean degree
DENSE_POINTS = 1000  # up to here all pairs are cheaper than an iteration


def spectral_partition(points: np.ndarray, n_clusters: int, distance: str, seed: int) -> Partition:
    """Exactly `n_clusters` clusters of points (n, n_dims), unless the points are too alike to be divided so often."""
    if n_clusters == 1:
        return Partition(np.zeros(len(points), dtype=int), np.ones((len(points), 1)), "spectral")
    graph = neighbour_graph(points, n_clusters, distance)
    vectors = leading_vectors(graph, n_clusters, seed)  # (n, n_clusters)
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    rows = vectors / np.where(lengths > 0, lengths, 1.0)
    means = KMeans(n_clusters, n_init=10, random_state=seed).fit(rows)
    found, labels = np.unique(means.labels_, return_inverse=True)
    squared = (means.transform(rows) ** 2)[:, found]
    return Partition(labels, soft_from_distances(squared, labels), "spectral")


def neighbour_graph(points: np.ndarray, n_clusters: int, distance: str) -> sparse.csr_array:
    """Symmetric weights (n, n) of each point's nearest neighbours, at most half of an even cluster's points."""
    n_points = len(points)
    n_neighbours = min(MAX_NEIGHBOURS, max(2, n_points // (2 * n_clusters)), n_points - 1)
    search = NearestNeighbors(n_neighbors=n_neighbours, metric=distance, n_jobs=1).fit(points)
    far, near = search.kneighbors()  # (n, n_neighbours), a point is not its own neighbour
    reach = np.maximum(far[:, -1], np.finfo(float).tiny ** 0.25)
    weights = np.exp(-(far**2) / (reach[:, None] * reach[near]))
    rows = np.repeat(np.arange(n_points), n_neighbours)
    graph = sparse.csr_array((weights.ravel(), (rows, near.ravel())), shape=(n_points, n_points))
    return (graph + graph.T) / 2


def leading_vectors(graph: sparse.csr_array, n_vectors: int, seed: int) -> np.ndarray:
    """Leading eigenvectors (n, n_vectors) of the regularised, degree-normalised graph."""
    n_points = graph.shape[0]
    degrees = np.asarray(graph.sum(axis=1)).ravel()
    added = REGULARISER * degrees.mean()
    root = 1.0 / np.sqrt(degrees + added)
    if n_points <= max(DENSE_POINTS, 4 * n_vectors):
        weights = root[:, None] * (graph.toarray() + added / n_points) * root
        return linalg.eigh(weights, subset_by_index=(n_points - n_vectors, n_points - 1))[1]

    def product(x: np.ndarray) -> np.ndarray:
        x = root * x.ravel()
        return root * (graph @ x + added / n_points * x.sum())

    start = np.random.default_rng(seed).standard_normal(n_points)
    operator = LinearOperator((n_points, n_points), matvec=product, dtype=np.float64)
    return eigsh(operator, n_vectors, which="LA", v0=start, ncv=min(n_points, max(4 * n_vectors, 40)), tol=1e-8)[1]
