"""How good a clustering is: agreement with the etiologies, separation, sizes, and how sharp its soft labels are.

Noise carries the label −1. It counts as a group of its own where agreement is measured and is left out where separation is,
because it has no centre; both are said in the result.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from sklearn.metrics import adjusted_rand_score, silhouette_score

from analysis.routing import entropy

NOISE = -1
SILHOUETTE_SAMPLE = 10_000  # silhouette compares all pairs; above this many points a seeded sample is used


@dataclass(frozen=True)
class ClusterScores:
    """Figures of one clustering; `silhouette` is NaN below two clusters, `soft_entropy` NaN without soft labels."""

    n_clusters: int
    n_points: int
    n_noise: int
    adjusted_rand: float
    silhouette: float
    soft_entropy: float


def cluster_scores(
    labels: np.ndarray,
    groups: Sequence[str],
    points: np.ndarray | None = None,
    soft_labels: np.ndarray | None = None,
    seed: int = 0,
) -> ClusterScores:
    """All figures of a clustering.

    Args:
        labels: cluster of each point, shape (n_points,), −1 for noise.
        groups: what the clusters are compared with, usually the etiology of each point.
        points: the vectors that were clustered, shape (n_points, n_dimensions).
        soft_labels: (n_points, n_clusters), rows summing to 1.

    Raises:
        ValueError: labels and groups differ in length.
    """
    labels = np.asarray(labels)
    if len(labels) != len(groups):
        raise ValueError(f"{len(labels)} cluster labels but {len(groups)} groups; there must be one of each per point")
    return ClusterScores(
        n_clusters=len(set(labels.tolist()) - {NOISE}),
        n_points=len(labels),
        n_noise=int((labels == NOISE).sum()),
        adjusted_rand=float(adjusted_rand_score([str(group) for group in groups], labels)),
        silhouette=float("nan") if points is None else silhouette(points, labels, seed),
        soft_entropy=float("nan") if soft_labels is None else soft_entropy(soft_labels),
    )


def silhouette(points: np.ndarray, labels: np.ndarray, seed: int = 0) -> float:
    """Mean silhouette (Rousseeuw 1987) of points (n, n_dims) with labels (n,), noise left out; NaN below two clusters."""
    inside = np.asarray(labels) != NOISE
    points, labels = np.asarray(points)[inside], np.asarray(labels)[inside]
    if not 1 < len(set(labels.tolist())) < len(labels):
        return float("nan")
    if len(labels) > SILHOUETTE_SAMPLE:
        chosen = np.sort(np.random.default_rng(seed).choice(len(labels), SILHOUETTE_SAMPLE, replace=False))
        points, labels = points[chosen], labels[chosen]
    return float(silhouette_score(points, labels))


def soft_entropy(soft_labels: np.ndarray) -> float:
    """Mean normalised entropy of soft labels (N, E): 0 every label is certain, 1 every label is uniform and teaches nothing."""
    return float(entropy(soft_labels).mean())


def cluster_sizes(labels: np.ndarray, noise: np.ndarray | None = None) -> pd.DataFrame:
    """Columns cluster, n_utterances, n_noise (those of them that were noise and were sent there), share.

    Args:
        labels: cluster of each point, (n_points,); noise that was sent nowhere is −1 and comes first.
        noise: which points were noise, (n_points,) bool.
    """
    noise = np.asarray(labels) == NOISE if noise is None else np.asarray(noise)
    clusters, where, counts = np.unique(np.asarray(labels), return_inverse=True, return_counts=True)
    n_noise = np.bincount(where[noise], minlength=len(clusters))
    return pd.DataFrame({"cluster": clusters, "n_utterances": counts, "n_noise": n_noise, "share": counts / counts.sum()})
