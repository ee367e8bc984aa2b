"""The fate of noise: every point gets a label and soft labels that sum to 1, by a rule that is stated.

`nearest`: a noise point joins the cluster of its nearest clustered point, and so does each point's noise probability.
`own_expert`: noise points are a cluster of their own, the last, whose column holds the noise probabilities.
`uniform`: a noise point has the nearest cluster's label but equal soft labels; noise probability is spread evenly.
"""

import numpy as np
from sklearn.neighbors import NearestNeighbors

from moe.clustering.partition import NOISE, Partition, agreeing, sharpened


def settle_noise(partition: Partition, points: np.ndarray, distance: str, fate: str) -> tuple[np.ndarray, np.ndarray]:
    """Labels (n,) without NOISE and soft labels (n, n_experts), rows summing to 1 and largest at the label."""
    is_noise = partition.labels == NOISE
    labels = nearest_labels(partition.labels, points, distance)
    soft = partition.memberships.copy()
    soft[~is_noise] = agreeing(soft[~is_noise], labels[~is_noise])
    soft = sharpened(soft)
    missing = np.clip(1.0 - soft.sum(axis=1), 0.0, 1.0)
    if fate == "own_expert" and is_noise.any():
        labels[is_noise] = partition.n_clusters
        soft = np.column_stack([soft, missing])
    elif fate == "uniform":
        soft = soft + missing[:, None] / soft.shape[1]
        soft[is_noise] = 1.0 / soft.shape[1]
    else:
        soft[np.arange(len(labels)), labels] += missing
    return labels, agreeing(soft / soft.sum(axis=1, keepdims=True), labels)


def nearest_labels(labels: np.ndarray, points: np.ndarray, distance: str) -> np.ndarray:
    """Labels (n,) where each noise point has that of its nearest clustered point."""
    is_noise = labels == NOISE
    filled = labels.copy()
    if is_noise.any():
        search = NearestNeighbors(n_neighbors=1, metric=distance, n_jobs=1).fit(points[~is_noise])
        nearest = search.kneighbors(points[is_noise], return_distance=False).ravel()
        filled[is_noise] = labels[~is_noise][nearest]
    return filled
