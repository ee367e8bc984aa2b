"""HDBSCAN with retries: `min_cluster_size` falls until enough clusters are found; each attempt is recorded.

Soft labels are HDBSCAN's membership vectors. What a row lacks to 1 is the probability of noise; it is kept as such, never
renormalised away, and goes where the option `noise` sends it.
"""

import logging
from typing import Any

import hdbscan
import numpy as np

from moe.clustering.options import ClusteringOptions
from moe.clustering.partition import NOISE, Partition, one_hot

MUCH_NOISE = 0.5
SMALLEST = 2  # HDBSCAN's own lower bound on min_cluster_size

log = logging.getLogger(__name__)


def density_partition(points: np.ndarray, distance: str, options: ClusteringOptions) -> Partition:
    """Of points (n, n_dims) the first attempt with `min_clusters` clusters, else the one with the most (then the least noise, then the earlier)."""
    attempts: list[dict[str, Any]] = []
    best: Any = None
    best_rank = (-1, 0)
    for size in falling_sizes(options.min_cluster_size, options.max_retries, len(points)):
        model = _fitted(points, size, distance, options)
        record = _record(model, size, options)
        attempts.append(record)
        log.info("HDBSCAN, min_cluster_size=%d: %d clusters, %d noise", size, record["n_clusters"], record["n_noise"])
        rank = (record["n_clusters"], -record["n_noise"])
        if best is None or rank > best_rank:
            best, best_rank = model, rank
        if record["n_clusters"] >= options.min_clusters:
            break
    noise_share = (best.labels_ == NOISE).mean()
    if noise_share > MUCH_NOISE:
        log.warning("HDBSCAN left %.0f %% of the points outside all clusters", 100 * noise_share)
    return Partition(best.labels_.copy(), memberships_of(best), "hdbscan", tuple(attempts))


def falling_sizes(first: int, max_retries: int, n_points: int) -> list[int]:
    """Values of min_cluster_size to try: even ratios from the first down to 2; none above half of the points."""
    sizes = np.rint(np.geomspace(first, SMALLEST, max_retries + 1)).astype(int) if max_retries else np.array([first])
    sizes = np.maximum(SMALLEST, np.minimum(sizes, n_points // 2))
    return sorted({int(size) for size in sizes}, reverse=True)


def memberships_of(model: hdbscan.HDBSCAN) -> np.ndarray:
    """Membership vectors (n, n_clusters) of a fitted model, rows summing to at most 1; a noise row may hold anything."""
    labels = model.labels_
    n_clusters = int(labels.max()) + 1
    if n_clusters < 2:  # HDBSCAN has no vectors for a single cluster, only strengths
        return one_hot(labels, n_clusters) * model.probabilities_[:, None]
    with np.errstate(divide="ignore", invalid="ignore"):
        vectors = np.asarray(hdbscan.all_points_membership_vectors(model), dtype=np.float64)
    broken = ~np.isfinite(vectors).all(axis=1)  # coinciding points divide by zero
    vectors[broken] = one_hot(labels, n_clusters)[broken]
    vectors = vectors.clip(0.0, 1.0)
    return vectors / np.maximum(1.0, vectors.sum(axis=1, keepdims=True))


def _fitted(points: np.ndarray, size: int, distance: str, options: ClusteringOptions) -> hdbscan.HDBSCAN:
    n_samples = min(options.min_samples or size, len(points) - 1)
    model = hdbscan.HDBSCAN(
        min_cluster_size=size,
        min_samples=n_samples,
        metric=distance,
        algorithm=options.hdbscan_algorithm,
        allow_single_cluster=options.allow_single_cluster,
        core_dist_n_jobs=1,
        prediction_data=True,
        gen_min_span_tree=True,
    )
    return model.fit(points)


def _record(model: hdbscan.HDBSCAN, size: int, options: ClusteringOptions) -> dict[str, Any]:
    n_clusters = int(model.labels_.max()) + 1
    return {
        "min_cluster_size": size,
        "min_samples": options.min_samples or size,
        "n_clusters": n_clusters,
        "n_noise": int((model.labels_ == NOISE).sum()),
        "relative_validity": float(model.relative_validity_) if n_clusters else 0.0,
    }
