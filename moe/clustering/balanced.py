"""Balanced clusters: k-means whose assignment step must fill all clusters alike, sizes within ±10 %.

The assignment is an optimal transport with equal column sums, solved approximately by Sinkhorn's iteration (Cuturi 2013), then
repaired by the cheapest moves until every size lies within the bounds.
"""

import math

import numpy as np
from scipy.special import logsumexp
from sklearn.cluster import KMeans

from moe.clustering.partition import Partition, centres, soft_from_distances

TOLERANCE = 0.10
N_ROUNDS = 30
N_SINKHORN = 200
SINKHORN_SHARPNESS = 0.02  # entropy's weight, as a share of the mean squared distance to the nearest centre


def balanced_partition(points: np.ndarray, n_clusters: int, seed: int) -> Partition:
    """`n_clusters` clusters of points (n, n_dims) whose sizes lie within `size_bounds`."""
    labels = KMeans(n_clusters, n_init=4, random_state=seed).fit(points).labels_
    squared = np.zeros((len(points), n_clusters))
    for _ in range(N_ROUNDS):
        middle = centres(points, labels, n_clusters)
        squared = ((points**2).sum(axis=1)[:, None] - 2 * points @ middle.T + (middle**2).sum(axis=1)).clip(min=0)
        before, labels = labels, balanced_labels(squared)
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
    """What each cluster pays for a point (n_clusters,) so that all are chosen about equally often."""
    weight = SINKHORN_SHARPNESS * (squared.min(axis=1).mean() or 1.0)
    scores = -squared / weight
    prices = np.zeros(squared.shape[1])
    for _ in range(N_SINKHORN):
        rows = logsumexp(scores + prices, axis=1, keepdims=True)
        columns = logsumexp(scores - rows, axis=0)
        step = (columns.mean() - columns) - prices
        prices += step
        if np.abs(step).max() < 1e-6:
            break
    return prices * weight


def _cheapest_move(squared: np.ndarray, labels: np.ndarray, donors: np.ndarray, takers: np.ndarray) -> tuple[int, int]:
    movable, targets = np.flatnonzero(donors[labels]), np.flatnonzero(takers)
    cost = squared[np.ix_(movable, targets)] - squared[movable, labels[movable]][:, None]
    row, column = np.unravel_index(cost.argmin(), cost.shape)
    return int(movable[row]), int(targets[column])
