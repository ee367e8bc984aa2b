"""How many experts? A sweep over the number of clusters, judged by separation and by stability under resampling.

Silhouette (Rousseeuw 1987) and DBCV (Moulavi et al. 2014) look at one partition; stability is the mean adjusted Rand index
between it and partitions of random subsets (Ben-Hur, Elisseeff & Guyon 2002). All three lie in [−1, 1].
"""

from collections.abc import Callable, Sequence

import numpy as np
import pandas as pd
from hdbscan.validity import validity_index
from sklearn.metrics import adjusted_rand_score, silhouette_score
from threadpoolctl import threadpool_limits

from moe.clustering.algorithms import divider, has_noise_expert
from moe.clustering.options import ClusteringOptions
from moe.clustering.partition import NOISE, Partition
from moe.clustering.reduction import fitted_points
from moe.clustering.units import make_units, stratified_sample

N_RESAMPLES = 5
SUBSET_SHARE = 0.8
MAX_POINTS = 1000  # the sweep looks at a sample of so many
MAX_SWEPT = 12
Resampled = tuple[np.ndarray, Callable[[int], Partition]]  # rows of a subset, and what divides it
SCIPY_NAMES = {"manhattan": "cityblock"}  # DBCV asks SciPy for its distances


def sweep(
    embeddings: np.ndarray,
    utterance_ids: Sequence[str],
    options: ClusteringOptions,
    speakers: Sequence[str] | None = None,
    etiologies: Sequence[str] | None = None,
    numbers: Sequence[int] | None = None,
) -> pd.DataFrame:
    """The table by which a number of experts is chosen, for embeddings (N, n_dims); see `sweep_numbers` for its columns.

    Args:
        numbers: numbers of clusters to look at; by default those that `num_experts=auto` would choose from.

    Raises:
        ValueError: by_etiology, whose number is that of the etiologies; or input that cannot be clustered.
    """
    if options.clustering_algorithm == "by_etiology":
        raise ValueError("clustering_algorithm=by_etiology has as many clusters as etiologies: there is no number to choose")
    units = make_units(embeddings, utterance_ids, speakers, etiologies, options.cluster_unit)
    sample = stratified_sample(units.etiologies, min(options.max_fit, MAX_POINTS), options.seed)
    with threadpool_limits(1):
        points, distance = fitted_points(units.vectors[sample], options)[1:]
        return sweep_numbers(points, distance, numbers or candidate_numbers(len(points), options), options)


def sweep_numbers(points: np.ndarray, distance: str, numbers: Sequence[int], options: ClusteringOptions) -> pd.DataFrame:
    """One row for each number of experts that could be made of points (n, n_dims).

    Returns:
        n_experts (noise of an expert of its own counted), silhouette, dbcv, stability, smallest_share, largest_share, score (mean of silhouette and stability).
    """
    rng = np.random.default_rng(options.seed)
    if len(points) > MAX_POINTS:
        points = points[np.sort(rng.choice(len(points), MAX_POINTS, replace=False))]
    n_subset = max(2, round(SUBSET_SHARE * len(points)))
    subsets = [np.sort(rng.choice(len(points), n_subset, replace=False)) for _ in range(N_RESAMPLES)]
    divided = divider(points, distance, options)
    resampled = [(subset, divider(points[subset], distance, options)) for subset in subsets]
    rows = [
        _judged(points, distance, divided(number), number, resampled, options) for number in numbers if 2 <= number < n_subset
    ]
    found = pd.DataFrame([row for row in rows if row is not None])
    return found.drop_duplicates("n_experts", ignore_index=True) if len(found) else found


def best_number(table: pd.DataFrame) -> int:
    """The number with the best score; of equals the smaller."""
    return int(table.sort_values(["score", "n_experts"], ascending=[False, True], kind="stable")["n_experts"].iloc[0])


def candidate_numbers(n_points: int, options: ClusteringOptions) -> range:
    """What `num_experts=auto` chooses from: min_experts (at least 2) to 12, at most half of the points."""
    first = max(2, options.min_experts)
    return range(first, max(first, min(MAX_SWEPT, n_points // 2)) + 1)


def _judged(
    points: np.ndarray,
    distance: str,
    partition: Partition,
    number: int,
    resampled: Sequence[Resampled],
    options: ClusteringOptions,
) -> dict[str, float] | None:
    labels = partition.labels
    clustered = labels != NOISE
    n_found = len(np.unique(labels[clustered]))
    if not 2 <= n_found < clustered.sum():
        return None
    sizes = np.bincount(labels[clustered]) / len(labels)
    silhouette = silhouette_score(points[clustered], labels[clustered], metric=distance)
    stability = np.mean([adjusted_rand_score(labels[subset], divided(number).labels) for subset, divided in resampled])
    return {
        "n_experts": n_found + has_noise_expert(partition, options),
        "silhouette": float(silhouette),
        "dbcv": _dbcv(points, labels, distance),
        "stability": float(stability),
        "smallest_share": float(sizes.min()),
        "largest_share": float(sizes.max()),
        "score": float((silhouette + stability) / 2),
    }


def _dbcv(points: np.ndarray, labels: np.ndarray, distance: str) -> float:
    sizes = np.bincount(labels[labels != NOISE])
    if sizes.min() < 2 or len(np.unique(points, axis=0)) < len(points):
        return float("nan")  # undefined for single points and for points that coincide
    with np.errstate(all="ignore"):
        return float(validity_index(np.ascontiguousarray(points), labels, metric=SCIPY_NAMES.get(distance, distance)))
