"""The whole search for a partition: number of experts, merging, the floor, and the fallback from HDBSCAN to spectral."""

import dataclasses
import logging

import numpy as np

from moe.clustering.algorithms import divide, divide_by_etiology, has_noise_expert
from moe.clustering.options import ONLY_HDBSCAN, ClusteringOptions, default_of
from moe.clustering.partition import Partition
from moe.clustering.selection import best_number, candidate_numbers, sweep_numbers

log = logging.getLogger(__name__)


def find_partition(points: np.ndarray, distance: str, etiologies: np.ndarray, options: ClusteringOptions) -> Partition:
    """A partition of points (n, n_dims) with a number of experts that the options allow.

    Raises:
        ValueError: fewer clusters than `num_experts` under `no_reduce_experts`, or than `min_experts` after every fallback.
    """
    if options.clustering_algorithm == "by_etiology":
        return _checked(divide_by_etiology(points, etiologies, options), options)
    if options.clustering_algorithm != "hdbscan":
        number = options.num_experts or chosen_number(points, distance, options)
        return _checked(divide(points, distance, number, options), options)
    partition = divide(points, distance, options.num_experts, options)
    if n_experts(partition, options) >= options.min_experts and partition.n_clusters or options.no_reduce_experts:
        return _checked(partition, options)
    return _checked(_fallback(partition, points, distance, options), options)


def n_experts(partition: Partition, options: ClusteringOptions) -> int:
    """Number of experts that a partition will need."""
    return partition.n_clusters + has_noise_expert(partition, options)


def chosen_number(points: np.ndarray, distance: str, options: ClusteringOptions) -> int:
    """The number of clusters that the sweep prefers; the smallest candidate where no number could be judged."""
    numbers = candidate_numbers(len(points), options)
    table = sweep_numbers(points, distance, numbers, options)
    return best_number(table) if len(table) else numbers[0]


def _fallback(found: Partition, points: np.ndarray, distance: str, options: ClusteringOptions) -> Partition:
    log.warning("HDBSCAN found %d clusters, fewer than min_experts=%d: spectral instead", found.n_clusters, options.min_experts)
    as_spectral = dataclasses.replace(options, clustering_algorithm="spectral", **{name: default_of(name) for name in ONLY_HDBSCAN})
    number = options.num_experts or chosen_number(points, distance, as_spectral)
    partition = divide(points, distance, number, as_spectral)
    return dataclasses.replace(partition, attempts=(*found.attempts, {"algorithm": "spectral", "n_clusters": partition.n_clusters}))


def _checked(partition: Partition, options: ClusteringOptions) -> Partition:
    found, wanted = n_experts(partition, options), options.num_experts
    if options.no_reduce_experts and found < wanted:
        raise ValueError(f"{found} clusters found by {partition.algorithm} for num_experts={wanted}, and no_reduce_experts=true")
    if found < options.min_experts:
        raise ValueError(f"{found} clusters found by {partition.algorithm}: min_experts={options.min_experts} are needed")
    return partition
