"""Every combination of clustering options either runs on a toy corpus or is refused before work starts."""

import itertools
import warnings

import numpy as np
import pytest

from moe.clustering.clusters import UtteranceClusters
from moe.clustering.options import ALGORITHMS, AUTO, CLUSTER_UNITS, HDBSCAN_BACKENDS, METRICS, NOISE_FATES, ClusteringOptions

GRID = [
    *itertools.product(ALGORITHMS, METRICS, ("none", "pca"), CLUSTER_UNITS, NOISE_FATES, (2,)),
    *itertools.product(ALGORITHMS, METRICS, ("pca",), ("speaker",), ("nearest",), (AUTO,)),
]


def corpus() -> tuple[np.ndarray, list[str], list[str], list[str]]:
    rng = np.random.default_rng(3)
    embeddings = rng.normal(size=(3, 6))[np.arange(48) % 3] * 4 + rng.normal(size=(48, 6))
    return embeddings, [f"u{i:02d}" for i in range(48)], [f"s{i % 12:02d}" for i in range(48)], [f"e{i % 3}" for i in range(48)]


def test_the_grid_runs_or_is_refused_up_front() -> None:
    """Pitfall 15: cosine crashed with soft clustering, after the embeddings had been read."""
    assert len(GRID) >= 60
    n_run, n_refused = 0, 0
    for algorithm, metric, reduce, unit, noise, number in GRID:
        chosen = {"clustering_algorithm": algorithm, "metric": metric, "reduce": reduce, "cluster_unit": unit, "noise": noise}
        try:
            options = ClusteringOptions(num_experts=number, min_clusters=2 if algorithm == "hdbscan" else 8, **chosen)
        except ValueError:
            n_refused += 1
            assert (algorithm != "hdbscan" and noise != "nearest") or (algorithm == "balanced" and metric in METRICS[3:]), chosen
            continue
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            clusters = UtteranceClusters(options).fit(*corpus())
        np.testing.assert_allclose(clusters.soft_labels_.sum(axis=1), 1.0, err_msg=str(chosen))
        assert clusters.n_clusters_ <= (48 if number == AUTO else number), chosen
        assert bool(clusters.sweep_) == (number == AUTO and algorithm != "by_etiology"), chosen
        n_run += 1
    assert n_run >= 60 and n_refused > 0


@pytest.mark.parametrize("backend", HDBSCAN_BACKENDS)
@pytest.mark.parametrize("metric", METRICS)
def test_every_backend_serves_every_metric(backend: str, metric: str) -> None:
    options = ClusteringOptions(
        clustering_algorithm="hdbscan", hdbscan_algorithm=backend, metric=metric, num_experts=3, min_clusters=2
    )
    clusters = UtteranceClusters(options).fit(*corpus())
    assert 2 <= clusters.n_clusters_ <= 3


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_experts": 0}, "num_experts=0: must be at least 1"),
        ({"min_experts": 9}, "min_experts=9: must be at most num_experts=8"),
        ({"num_experts": "auto", "no_reduce_experts": True}, "no_reduce_experts=true: needs a number"),
        ({"min_cluster_size": 9}, "min_cluster_size=9: only clustering_algorithm=hdbscan has it, not balanced"),
        ({"num_experts": "many"}, "num_experts='many': must be a whole number or auto"),
        ({"allow_single_cluster": True}, "allow_single_cluster=true: only clustering_algorithm=hdbscan"),
        ({"noise": "uniform"}, "noise=uniform: only clustering_algorithm=hdbscan"),
        ({"reduce": "none", "reduce_dim": 7}, "reduce_dim=7: reduce=none keeps all dimensions"),
        ({"clustering_algorithm": "balanced", "metric": "manhattan"}, "metric=manhattan: clustering_algorithm=balanced"),
        ({"clustering_algorithm": "kmeans"}, "clustering_algorithm='kmeans': must be one of"),
        (
            {"clustering_algorithm": "hdbscan", "noise": "own_expert", "num_experts": 1, "min_experts": 1},
            "noise=own_expert with num_experts=1",
        ),
    ],
)
def test_impossible_combinations_are_refused(options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ClusteringOptions(**options)


def test_all_faults_are_told_at_once() -> None:
    with pytest.raises(ValueError, match="min_experts=9.*; max_retries=2.*; reduce_dim=7"):
        ClusteringOptions(min_experts=9, max_retries=2, reduce="none", reduce_dim=7)
