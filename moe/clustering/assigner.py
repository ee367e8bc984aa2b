"""Gives clusters to points never seen: the clustered points themselves are the memory, weighted by nearness.

A reference point is its own nearest neighbour with overwhelming weight, so it gets its own label back, whatever the shape of the
clusters. Everything is plain arrays: the object just fitted and the one read from disk are the same.
"""

from collections.abc import Iterator

import numpy as np
from sklearn.neighbors import NearestNeighbors

from moe.clustering.partition import agreeing, one_hot
from moe.progress import counted

N_NEIGHBOURS = 5
EXACT = 1e-12  # share of the farthest neighbour's squared distance below which two points are the same
CHUNK = 32_768


class Assigner:
    """Nearest references: points (m, d), labels (m,), soft labels (m, n_experts), noise (m,) bool."""

    def __init__(self, points: np.ndarray, labels: np.ndarray, soft: np.ndarray, noise: np.ndarray, distance: str) -> None:
        points, soft = np.ascontiguousarray(points), np.ascontiguousarray(soft)  # the layout decides the last bits of a product
        self.points, self.labels, self.soft, self.noise, self.distance = points, labels, soft, noise, distance
        self._hard = one_hot(labels, soft.shape[1])
        self._search = NearestNeighbors(n_neighbors=min(N_NEIGHBOURS, len(points)), metric=distance, algorithm="brute").fit(
            points
        )

    def assign(self, points: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Labels (n,), soft labels (n, n_experts) and noise (n,) of points (n, d); each row depends on itself alone."""
        distances, neighbours = self._search.kneighbors(points)  # (n, k)
        if self.distance == "euclidean":  # the search expands the square, which leaves 1e-8 where 0 is meant
            distances = np.sqrt(((points[:, None] - self.points[neighbours]) ** 2).sum(axis=-1))
        weights = nearness(distances)
        labels = np.einsum("nk,nke->ne", weights, self._hard[neighbours]).argmax(axis=1)
        soft = np.einsum("nk,nke->ne", weights, self.soft[neighbours])
        noise = (weights * self.noise[neighbours]).sum(axis=1) > 0.5
        return labels, agreeing(soft / soft.sum(axis=1, keepdims=True), labels), noise

    def renumbered(self, order: np.ndarray) -> "Assigner":
        """The same with cluster `order[i]` called i; order (k,)."""
        return Assigner(self.points, np.argsort(order)[self.labels], self.soft[:, order], self.noise, self.distance)

    def joined(self, cluster_of: np.ndarray) -> "Assigner":
        """The same with cluster i called `cluster_of[i]`, several of which may be one; cluster_of (k,)."""
        return Assigner(self.points, cluster_of[self.labels], joined_columns(self.soft, cluster_of), self.noise, self.distance)


def joined_columns(soft: np.ndarray, cluster_of: np.ndarray) -> np.ndarray:
    """Sums of the columns (n, k) that become one, in the order of their new numbers."""
    return np.stack([soft[:, cluster_of == new].sum(axis=1) for new in range(cluster_of.max() + 1)], axis=1)


def nearness(distances: np.ndarray) -> np.ndarray:
    """Weights (n, k) of neighbours, rows summing to 1: inverse squared distance (Shepard 1968)."""
    squared = distances**2
    largest = squared.max(axis=1, keepdims=True)
    weights = 1.0 / (squared + EXACT * np.where(largest > 0, largest, 1.0))
    return weights / weights.sum(axis=1, keepdims=True)


def chunks(n_rows: int, what: str) -> Iterator[slice]:
    """Slices that cover `n_rows`, under a progress bar."""
    return counted([slice(start, start + CHUNK) for start in range(0, n_rows, CHUNK)], what, "chunks")
