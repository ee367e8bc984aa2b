"""The space in which distances are taken: z-score, then PCA or UMAP or neither, then the metric.

The linear part is a few arrays and is kept for new speakers. UMAP has no form without pickle, so it serves to find the partition
only; the assigner then works in the linear space beneath it.
"""

import dataclasses
import logging

import numpy as np
from sklearn.decomposition import PCA

from moe.clustering.options import ANGLE_METRICS, ClusteringOptions

UMAP_INPUT_DIMS = 50  # PCA beneath UMAP: its neighbour search gains nothing from more
UMAP_NEIGHBOURS = 15

log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Reduction:
    """A fitted linear map from embeddings to the space of distances."""

    mean: np.ndarray  # (n_dims,)
    scale: np.ndarray  # (n_dims,), 1 where a dimension is constant
    components: np.ndarray | None  # (n_reduced, n_dims)
    metric: str

    def transform(self, embeddings: np.ndarray) -> np.ndarray:
        """Points (n, n_reduced) float64 of embeddings (n, n_dims); each row depends on itself alone."""
        points = (np.asarray(embeddings, dtype=np.float64) - self.mean) / self.scale
        if self.components is not None:
            points = points @ self.components.T
        return unit_length(points, self.metric)

    @property
    def distance(self) -> str:
        """Metric between points: Euclidean where the angle metric was turned into unit vectors."""
        return "euclidean" if self.metric in ANGLE_METRICS else self.metric


def fit_reduction(vectors: np.ndarray, options: ClusteringOptions) -> Reduction:
    """Statistics and principal components of vectors (n, n_dims); no more components than n − 1."""
    vectors = np.asarray(vectors, dtype=np.float64)
    mean, scale = vectors.mean(axis=0), vectors.std(axis=0)
    scale = np.where(scale > 1e-12 * np.maximum(1.0, np.abs(mean)), scale, 1.0)
    components = None
    if options.reduce != "none":
        wanted = options.reduce_dim if options.reduce == "pca" else UMAP_INPUT_DIMS
        n_components = max(1, min(wanted, len(vectors) - 1, vectors.shape[1]))
        pca = PCA(n_components, random_state=options.seed)
        with np.errstate(divide="ignore", invalid="ignore"):  # shares of variance, unused, are 0/0 where nothing varies
            components = np.ascontiguousarray(pca.fit((vectors - mean) / scale).components_)
    return Reduction(mean, scale, components, options.metric)


def fitted_points(vectors: np.ndarray, options: ClusteringOptions) -> tuple[Reduction, np.ndarray, str]:
    """The reduction of vectors (n, n_dims), the points to cluster (n, n_reduced) and the metric between them."""
    reduction = fit_reduction(vectors, options)
    points = reduction.transform(vectors)
    if options.reduce == "umap":
        return reduction, umap_points(points, reduction, options), "euclidean"
    return reduction, points, reduction.distance


def unit_length(points: np.ndarray, metric: str) -> np.ndarray:
    """Points (n, n_dims) prepared so that Euclidean distance stands for an angle metric; other metrics leave them as they are."""
    if metric not in ANGLE_METRICS:
        return points
    if metric == "correlation":
        points = points - points.mean(axis=1, keepdims=True)
    lengths = np.linalg.norm(points, axis=1, keepdims=True)
    return points / np.where(lengths > 0, lengths, 1.0)


def umap_points(points: np.ndarray, reduction: Reduction, options: ClusteringOptions) -> np.ndarray:
    """UMAP's map of points, (n, n_dims) → (n, k), k at most reduce_dim, float64 (McInnes, Healy & Melville 2018); one thread, because it is seeded.

    Raises:
        ValueError: too few points.
    """
    from umap import UMAP  # imports and compiles for seconds: only who asks for it waits

    n_points = len(points)
    if n_points < 5:
        raise ValueError(f"reduce=umap with {n_points} units: needs at least 5; use reduce=pca")
    n_dims = min(options.reduce_dim, n_points - 3)
    log.info("UMAP of %d units to %d dimensions, on one thread so that the seed decides the result", n_points, n_dims)
    neighbours = min(UMAP_NEIGHBOURS, n_points - 1)
    mapper = UMAP(neighbours, n_dims, metric=reduction.distance, min_dist=0.0, random_state=options.seed, n_jobs=1)
    return mapper.fit_transform(points).astype(np.float64)
