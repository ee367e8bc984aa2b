"""From points to a partition: the algorithm asked for, at a given number of clusters.

HDBSCAN finds its own number, so it is merged down to the number wanted; spectral, balanced and random clustering make that number.
"""

from collections.abc import Callable

import numpy as np

from moe.clustering.balanced import balanced_partition
from moe.clustering.density import density_partition
from moe.clustering.options import ClusteringOptions
from moe.clustering.partition import NOISE, Partition, merged, one_hot
from moe.clustering.spectral import spectral_partition


def divide(points: np.ndarray, distance: str, n_clusters: int, options: ClusteringOptions) -> Partition:
    """A partition of points (n, n_dims) by any algorithm but by_etiology; with hdbscan `n_clusters` is an upper bound."""
    if options.clustering_algorithm == "random":
        return random_partition(len(points), n_clusters, options.seed)
    if options.clustering_algorithm == "balanced":
        return balanced_partition(points, n_clusters, options.seed)
    if options.clustering_algorithm == "spectral":
        return spectral_partition(points, n_clusters, distance, options.seed)
    return merged_to(density_partition(points, distance, options), points, n_clusters, options)


def random_partition(n: int, n_clusters: int, seed: int) -> Partition:
    """`n` points in clusters of one size, whatever they are: what routing wins over it, it wins by the clusters."""
    labels = np.random.default_rng(seed).permutation(np.arange(n) % n_clusters)
    return Partition(labels, one_hot(labels, n_clusters), "random")


def divider(points: np.ndarray, distance: str, options: ClusteringOptions) -> Callable[[int], Partition]:
    """`divide` for several numbers of clusters of the same points (n, n_dims); HDBSCAN, which finds its own, runs once."""
    if options.clustering_algorithm != "hdbscan":
        return lambda n_clusters: divide(points, distance, n_clusters, options)
    found = density_partition(points, distance, options)
    return lambda n_clusters: merged_to(found, points, n_clusters, options)


def divide_by_etiology(points: np.ndarray, etiologies: np.ndarray, options: ClusteringOptions) -> Partition:
    """One cluster for each etiology (n,); the nearest are merged where they are more than `num_experts`."""
    names, labels = np.unique(etiologies.astype(str), return_inverse=True)
    partition = Partition(labels, one_hot(labels, len(names)), "by_etiology", names=tuple(names.tolist()))
    return merged_to(partition, points, options.n_wanted, options)


def merged_to(partition: Partition, points: np.ndarray, n_experts: int | None, options: ClusteringOptions) -> Partition:
    """The partition of points (n, n_dims) with at most `n_experts` clusters, the noise expert counted where noise has one."""
    if n_experts is None:
        return partition
    return merged(partition, points, n_experts - has_noise_expert(partition, options))


def has_noise_expert(partition: Partition, options: ClusteringOptions) -> bool:
    """Whether noise becomes one more expert."""
    return options.noise == "own_expert" and bool((partition.labels == NOISE).any())
