"""Balanced clusters: k-means whose assignment step must fill all clusters alike, sizes within ±10 % of the even share.

Sizes are numbers of what is clustered: of utterances, or of speakers with cluster_unit=speaker.

The assignment is an optimal transport with equal column sums, solved approximately by Sinkhorn's iteration (Cuturi 2013), then
repaired by the cheapest moves until every size lies within the bounds.
"""

import math

import numpy as np
from sklearn.cluster import KMeans

from moe.clustering.partition import Partition, centres, soft_from_distances

TOLERANCE = 0.10
N_ROUNDS = 30
N_SINKHORN = 30
N_WEIGHTS = 8
CONVERGED = 1e-2  # relative error of sizes; the repair sees to the rest
SINKHORN_SHARPNESS = 0.02  # entropy's weight, as a share of the mean squared distance to the nearest centre


def balanced_partition(points: np.ndarray, n_clusters: int, seed: int) -> Partition:
    """`n_clusters` clusters of points (n, n_dims) whose sizes lie within `size_bounds`."""
    means = KMeans(n_clusters, n_init=4, random_state=seed).fit(points)
    labels, middle = means.labels_, means.cluster_centers_  # (n_clusters, n_dims)
    for _ in range(N_ROUNDS):
        squared = ((points**2).sum(axis=1)[:, None] - 2 * points @ middle.T + (middle**2).sum(axis=1)).clip(min=0)
        before, labels = labels, balanced_labels(squared)
        middle = centres(points, labels, n_clusters)
        if np.array_equal(before, labels):
            break
    return Partition(labels, soft_from_distances(squared, labels), "balanced")


def size_bounds(n_points: int, n_clusters: int) -> tuple[int, int]:
    """Smallest and largest allowed size: 10 % around the even share, and never tighter than whole points permit."""
    even = n_points / n_clusters
    low, high = math.ceil(even * (1 - TOLERANCE)), math.floor(even * (1 + TOLERANCE))
    return min(low, math.floor(even)), max(high, math.ceil(even))


def balanced_labels(squared: np.ndarray) -> np.ndarray:
    """Labels (n,) from squared distances (n, n_clusters), nearly the cheapest with sizes within `size_bounds`."""
    labels = (squared - column_prices(squared)).argmin(axis=1)
    low, high = size_bounds(*squared.shape)
    sizes = np.bincount(labels, minlength=squared.shape[1])
    while sizes.max() > high or sizes.min() < low:
        over = sizes.max() > high
        donors = sizes > (high if over else low)
        takers = sizes < (high if over else low)
        point, target = _cheapest_move(squared, labels, donors, takers)
        sizes[labels[point]] -= 1
        sizes[target] += 1
        labels[point] = target
    return labels


def column_prices(squared: np.ndarray) -> np.ndarray:
    """What each cluster pays for a point (n_clusters,) so that all are chosen about equally often.

    The entropy's weight falls step by step (ε-scaling): at once small, prices would creep to where they must be.
    """
    smallest = SINKHORN_SHARPNESS * (squared.min(axis=1).mean() or 1.0)
    prices = np.zeros(squared.shape[1])
    for weight in np.geomspace(max(smallest, squared.mean()), smallest, N_WEIGHTS):
        for _ in range(N_SINKHORN):
            rows = _log_sum((prices - squared) / weight, axis=1)  # (n, 1)
            columns = _log_sum(-squared / weight - rows, axis=0).ravel()  # (n_clusters,)
            step = weight * (columns.mean() - columns) - prices
            prices += step
            if np.abs(step).max() < CONVERGED * weight:
                break
    return prices


def _log_sum(scores: np.ndarray, axis: int) -> np.ndarray:
    largest = scores.max(axis=axis, keepdims=True)
    return largest + np.log(np.exp(scores - largest).sum(axis=axis, keepdims=True))


def _cheapest_move(squared: np.ndarray, labels: np.ndarray, donors: np.ndarray, takers: np.ndarray) -> tuple[int, int]:
    movable, targets = np.flatnonzero(donors[labels]), np.flatnonzero(takers)
    cost = squared[np.ix_(movable, targets)] - squared[movable, labels[movable]][:, None]
    row, column = np.unravel_index(cost.argmin(), cost.shape)
    return int(movable[row]), int(targets[column])
