"""A partition: what an algorithm returns, before noise has met its fate and clusters have their final numbers."""

import dataclasses
from typing import Any

import numpy as np

NOISE = -1
MAX_ENTROPY = 0.25  # of soft labels, where 1 is flat
SHARPNESS = 0.1  # temperature of soft labels, as a share of the mean squared distance to the own centre


@dataclasses.dataclass(frozen=True)
class Partition:
    """Clusters of n points."""

    labels: np.ndarray  # (n,) int, NOISE for noise
    memberships: np.ndarray  # (n, n_clusters), rows sum to at most 1; what is missing is noise
    algorithm: str
    attempts: tuple[dict[str, Any], ...] = ()
    sweep: tuple[dict[str, float], ...] = ()  # rows of the table by which the number of experts was chosen
    names: tuple[str, ...] | None = None  # of clusters that have a meaning

    @property
    def n_clusters(self) -> int:
        """Number of clusters, noise not counted."""
        return self.memberships.shape[1]


def soft_from_distances(squared: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Memberships (n, n_clusters) from squared distances to centres: softmax at a temperature that keeps them sharp.

    The temperature is a tenth of the mean squared distance to the own centre, so that only points near a border are shared.
    """
    own = squared[np.arange(len(labels)), labels]
    scale = SHARPNESS * (own.mean() or 1.0)
    scores = -(squared - squared.min(axis=1, keepdims=True)) / scale
    weights = np.exp(scores)
    return weights / weights.sum(axis=1, keepdims=True)


def agreeing(soft: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Soft labels (n, k) whose largest entry is the label, of (n,): where another is larger, the two change places."""
    soft, rows = soft.copy(), np.arange(len(labels))
    best = soft.argmax(axis=1)
    rows = rows[soft[rows, labels] < soft[rows, best]]
    own, other = soft[rows, labels[rows]], soft[rows, best[rows]]
    soft[rows, labels[rows]], soft[rows, best[rows]] = other, own
    return soft


def sharpened(memberships: np.ndarray) -> np.ndarray:
    """Memberships (n, n_clusters) raised to the smallest power that makes them sharp; the sum of each row stays.

    Distances to all centres are almost the same in many dimensions, so memberships made of them are almost flat, and a gate
    trained on those learns nothing. The power is the smallest ≥ 1 that brings the mean `entropy` of the rows to MAX_ENTROPY.
    """
    sums = memberships.sum(axis=1, keepdims=True)
    shares = (memberships / np.where(sums > 0, sums, 1.0))[sums.ravel() > 0]
    if memberships.shape[1] < 2 or entropy(shares) <= MAX_ENTROPY:
        return memberships
    low, high = 1.0, 1e6
    for _ in range(40):
        middle = np.sqrt(low * high)
        low, high = (middle, high) if entropy(_power(shares, middle)) > MAX_ENTROPY else (low, middle)
    sharp = memberships.copy()
    sharp[sums.ravel() > 0] = _power(shares, high)
    return sharp * sums


def _power(shares: np.ndarray, exponent: float) -> np.ndarray:
    raised = (shares / shares.max(axis=1, keepdims=True)) ** exponent
    return raised / raised.sum(axis=1, keepdims=True)


def entropy(soft: np.ndarray) -> float:
    """Mean entropy of soft labels (n, n_clusters) as a share of its maximum: 0 is one-hot, 1 is uniform."""
    if soft.shape[1] < 2:
        return 0.0
    logs = np.log(np.where(soft > 0, soft, 1.0))
    return max(0.0, float(-(soft * logs).sum(axis=1).mean() / np.log(soft.shape[1])))


def one_hot(labels: np.ndarray, n_clusters: int) -> np.ndarray:
    """Memberships (n, n_clusters) of labels (n,); a row of zeros for noise."""
    return (labels[:, None] == np.arange(n_clusters)).astype(np.float64)


def centres(points: np.ndarray, labels: np.ndarray, n_clusters: int) -> np.ndarray:
    """Mean point of each cluster, (n_clusters, n_dims)."""
    return np.stack([points[labels == i].mean(axis=0) for i in range(n_clusters)])


def merged(partition: Partition, points: np.ndarray, n_wanted: int) -> Partition:
    """The two clusters of points (n, n_dims) with the nearest centres made one, again and again, until `n_wanted` are left; noise stays."""
    labels, memberships = partition.labels.copy(), partition.memberships
    names = list(partition.names) if partition.names else None
    while memberships.shape[1] > n_wanted:
        keep, drop = _nearest_pair(centres(points, labels, memberships.shape[1]))
        memberships = memberships.copy()
        memberships[:, keep] += memberships[:, drop]
        memberships = np.delete(memberships, drop, axis=1)
        labels[labels == drop] = keep
        labels[labels > drop] -= 1
        if names:
            names[keep] = f"{names[keep]} + {names.pop(drop)}"
    return dataclasses.replace(partition, labels=labels, memberships=memberships, names=tuple(names) if names else None)


def _nearest_pair(middle: np.ndarray) -> tuple[int, int]:
    squared = ((middle[:, None] - middle[None]) ** 2).sum(axis=-1)
    squared[np.tril_indices(len(middle))] = np.inf
    first, second = np.unravel_index(squared.argmin(), squared.shape)
    return int(first), int(second)
