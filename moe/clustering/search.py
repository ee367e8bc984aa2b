"""The whole search for a partition: number of experts, merging, the floor, and the fallback from HDBSCAN to spectral."""

import dataclasses
import logging

import numpy as np

from moe.clustering.algorithms import divide, divide_by_etiology, has_noise_expert
from moe.clustering.expert_count import best_number, candidate_numbers, sweep_numbers
from moe.clustering.options import ONLY_HDBSCAN, ClusteringOptions, default_of
from moe.clustering.partition import Partition

Sweep = tuple[dict[str, float], ...]

log = logging.getLogger(__name__)


def find_partition(points: np.ndarray, distance: str, etiologies: np.ndarray, options: ClusteringOptions) -> Partition:
    """A partition of points (n, n_dims) with a number of experts that the options allow.

    Raises:
        ValueError: fewer clusters than `num_experts` under `no_reduce_experts`, or than `min_experts` after every fallback.
    """
    if options.clustering_algorithm == "by_etiology":
        return _checked(divide_by_etiology(points, etiologies, options), options)
    chosen, n_clusters, swept = with_number(points, distance, options)
    partition = divide(points, distance, n_clusters, chosen)
    too_few = not partition.n_clusters or n_experts(partition, chosen) < chosen.min_experts
    if chosen.clustering_algorithm == "hdbscan" and too_few and not chosen.no_reduce_experts:
        return _fallback(partition, points, distance, etiologies, options)
    return dataclasses.replace(_checked(partition, chosen), sweep=swept)


def n_experts(partition: Partition, options: ClusteringOptions) -> int:
    """Number of experts that a partition will need."""
    return partition.n_clusters + has_noise_expert(partition, options)


def with_number(points: np.ndarray, distance: str, options: ClusteringOptions) -> tuple[ClusteringOptions, int, Sweep]:
    """The options with a number of experts, that number, and the rows of the sweep where it had to be chosen.

    Points are (n, n_dims). The number is the one that the sweep prefers; the smallest candidate where none could be judged.
    """
    if options.n_wanted is not None:
        return options, options.n_wanted, ()
    numbers = candidate_numbers(len(points), options)
    table = sweep_numbers(points, distance, numbers, options)
    number = best_number(table) if len(table) else numbers[0]
    log.info("num_experts=auto: %d of %s", number, ", ".join(map(str, table["n_experts"] if len(table) else numbers)))
    rows = table.astype(object).where(table.notna(), None).to_dict("records")
    return dataclasses.replace(options, num_experts=number), number, tuple(rows)


def _fallback(
    found: Partition, points: np.ndarray, distance: str, etiologies: np.ndarray, options: ClusteringOptions
) -> Partition:
    log.warning("HDBSCAN found %d clusters, fewer than min_experts=%d: spectral instead", found.n_clusters, options.min_experts)
    as_spectral = dataclasses.replace(
        options, clustering_algorithm="spectral", **{name: default_of(name) for name in ONLY_HDBSCAN}
    )
    partition = find_partition(points, distance, etiologies, as_spectral)
    return dataclasses.replace(
        partition, attempts=(*found.attempts, {"algorithm": "spectral", "n_clusters": partition.n_clusters})
    )


def _checked(partition: Partition, options: ClusteringOptions) -> Partition:
    found, wanted = n_experts(partition, options), options.n_wanted
    if options.no_reduce_experts and wanted is not None and found < wanted:
        raise ValueError(f"{found} clusters found by {partition.algorithm} for num_experts={wanted}, and no_reduce_experts=true")
    if found < options.min_experts:
        raise ValueError(f"{found} clusters found by {partition.algorithm}: min_experts={options.min_experts} are needed")
    return partition
