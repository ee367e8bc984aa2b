"""Final numbers and names of clusters: by size, then by smallest id, so that the order of rows never renames a cluster."""

import numpy as np

from moe.clustering.partition import Partition

NOISE_NAME = "noise"


def final_order(labels: np.ndarray, n_experts: int, n_clusters: int) -> np.ndarray:
    """Present numbers in their final order (n_experts,): larger first, equals by their first row; the noise expert last.

    Args:
        labels: (n,) in an order that does not depend on the input's.
        n_experts: clusters and, where there is one, the noise expert.
        n_clusters: clusters without the noise expert.
    """
    sizes = np.bincount(labels, minlength=n_experts)
    firsts = np.full(n_experts, len(labels))
    np.minimum.at(firsts, labels, np.arange(len(labels)))
    is_noise = np.arange(n_experts) >= n_clusters
    return np.lexsort((firsts, -sizes, is_noise))


def cluster_names(partition: Partition, n_experts: int, order: np.ndarray) -> list[str]:
    """Names in the final order (k,): the etiologies of a cluster, or its number; `noise` for the noise expert."""
    if partition.names:
        return [partition.names[i] for i in order]
    return [NOISE_NAME if order[i] >= partition.n_clusters else f"cluster {i}" for i in range(n_experts)]


def labels_of_etiologies(etiologies: np.ndarray, sample: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Label (n,) of each unit by its etiology, where the labels of a sample with every etiology are known."""
    known = dict(zip(etiologies[sample].tolist(), labels.tolist(), strict=True))
    return np.array([known[etiology] for etiology in etiologies.tolist()])
