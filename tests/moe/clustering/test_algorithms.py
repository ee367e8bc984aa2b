"""The parts of clustering against hand-worked cases: retries, merging, fallback, noise, balance, neighbours, samples, the sweep."""

import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import linear_sum_assignment

from moe.clustering.algorithms import divide
from moe.clustering.assigner import Assigner, nearness
from moe.clustering.balanced import balanced_labels, size_bounds
from moe.clustering.clusters import UtteranceClusters
from moe.clustering.density import density_partition, falling_sizes
from moe.clustering.expert_count import best_number, sweep
from moe.clustering.noise import settle_noise
from moe.clustering.numbering import final_order
from moe.clustering.options import ClusteringOptions
from moe.clustering.partition import Partition, agreeing, entropy, merged, sharpened, soft_from_distances
from moe.clustering.spectral import spectral_partition
from moe.clustering.units import make_units, stratified_sample

LINE = np.array([[0.0], [1.0], [2.0], [10.0], [11.0], [12.0], [13.0], [30.0]])


def blobs(sizes: list[int], seed: int = 0) -> tuple[np.ndarray, list[str]]:
    rng = np.random.default_rng(seed)
    middle = np.repeat(rng.normal(size=(len(sizes), 3)) * 20, sizes, axis=0)
    return middle + rng.normal(size=middle.shape), [f"u{i:03d}" for i in range(len(middle))]


def dense(**options: object) -> ClusteringOptions:
    return ClusteringOptions(clustering_algorithm="hdbscan", cluster_unit="utterance", reduce="none", **options)


def line_partition() -> Partition:
    """Two clusters on a line, the last point noise."""
    labels = np.array([0, 0, 0, 1, 1, 1, 1, -1])
    sure = np.array([0.9, 1.0, 0.9, 0.9, 1.0, 1.0, 0.8, 0.3])
    memberships = np.zeros((8, 2))
    memberships[np.arange(8), np.where(labels < 0, 0, labels)] = sure  # what noise belongs to, faintly, is cluster 0
    return Partition(labels, memberships, "hdbscan")


@pytest.mark.parametrize(
    ("first", "retries", "n_points", "sizes"),
    [(60, 5, 1000, [60, 30, 15, 8, 4, 2]), (5, 5, 1000, [5, 4, 3, 2]), (5, 0, 1000, [5]), (60, 5, 20, [10, 8, 4, 2])],
)
def test_min_cluster_size_falls_to_two(first: int, retries: int, n_points: int, sizes: list[int]) -> None:
    assert falling_sizes(first, retries, n_points) == sizes


def test_each_retry_is_recorded_and_the_first_with_enough_clusters_is_taken() -> None:
    points, ids = blobs([8, 8, 8, 8])
    clusters = UtteranceClusters(dense(min_cluster_size=16, min_clusters=4, num_experts=4)).fit(points, ids)
    found = [attempt["n_clusters"] for attempt in clusters.attempts_]
    assert len(found) > 1 and found[-1] >= 4 and max(found[:-1]) < 4
    assert {"min_cluster_size", "min_samples", "n_noise", "relative_validity"} < set(clusters.attempts_[0])


def test_where_no_attempt_has_enough_clusters_the_richest_is_kept() -> None:
    points, _ = blobs([30, 30, 30])
    partition = density_partition(points, "euclidean", dense(min_clusters=8, min_samples=20, min_cluster_size=25))
    assert partition.n_clusters == max(attempt["n_clusters"] for attempt in partition.attempts) == 3
    assert len(partition.attempts) == 6


def test_random_clusters_are_of_one_size_and_know_nothing_of_the_points() -> None:
    options = ClusteringOptions(clustering_algorithm="random", num_experts=3)
    first, second = divide(LINE, "euclidean", 3, options), divide(LINE[::-1], "euclidean", 3, options)
    assert np.ptp(np.bincount(first.labels, minlength=3)) <= 1
    np.testing.assert_array_equal(first.labels, second.labels)
    other = divide(LINE, "euclidean", 3, dataclasses.replace(options, seed=1))
    assert (other.labels != first.labels).any()


def test_too_many_clusters_are_merged_nearest_first() -> None:
    points = np.array([[0.0], [1.0], [4.0], [5.0], [20.0], [21.0]])
    partition = Partition(np.array([0, 0, 1, 1, 2, 2]), np.eye(3).repeat(2, axis=0), "hdbscan", names=("a", "b", "c"))
    two = merged(partition, points, 2)
    assert two.labels.tolist() == [0, 0, 0, 0, 1, 1] and two.names == ("a + b", "c")
    np.testing.assert_array_equal(two.memberships, np.eye(2)[[0, 0, 0, 0, 1, 1]])


def test_num_experts_is_the_upper_bound_of_hdbscan_and_of_etiologies() -> None:
    points, ids = blobs([20] * 5)
    etiologies = [f"e{i // 20}" for i in range(100)]
    assert UtteranceClusters(dense(num_experts=3, min_clusters=5)).fit(points, ids).n_clusters_ == 3
    by_etiology = {"clustering_algorithm": "by_etiology", "cluster_unit": "utterance"}
    clusters = UtteranceClusters(ClusteringOptions(**by_etiology, num_experts=3)).fit(points, ids, None, etiologies)
    assert clusters.n_clusters_ == 3 and sorted(" + ".join(clusters.names_).split(" + ")) == [f"e{i}" for i in range(5)]
    assert UtteranceClusters(ClusteringOptions(**by_etiology)).fit(points, ids, None, etiologies).n_clusters_ == 5


def test_hdbscan_falls_back_to_spectral_below_min_experts_and_says_so() -> None:
    points = np.random.default_rng(0).normal(size=(60, 8))
    options = dense(num_experts=4, min_experts=3, min_cluster_size=20, max_retries=0)
    clusters = UtteranceClusters(options).fit(points, [f"{i:02d}" for i in range(60)])
    assert clusters.algorithm_ == "spectral" and clusters.n_clusters_ == 4
    assert clusters.attempts_[-1] == {"algorithm": "spectral", "n_clusters": 4}


def test_no_reduce_experts_fails_instead() -> None:
    points, ids = blobs([30, 30, 30])
    with pytest.raises(ValueError, match="3 clusters found by hdbscan for num_experts=5, and no_reduce_experts=true"):
        UtteranceClusters(dense(num_experts=5, no_reduce_experts=True, min_samples=20, min_cluster_size=25)).fit(points, ids)


def test_allow_single_cluster_lets_one_cluster_be_found() -> None:
    points, ids = blobs([40])
    options = {"num_experts": 1, "min_experts": 1, "min_cluster_size": 10, "max_retries": 0}
    assert UtteranceClusters(dense(**options, allow_single_cluster=True)).fit(points, ids).algorithm_ == "hdbscan"
    assert UtteranceClusters(dense(**options)).fit(points, ids).algorithm_ == "spectral"


def test_nearest_noise_joins_the_nearest_cluster_with_its_whole_mass() -> None:
    labels, soft = settle_noise(line_partition(), LINE, "euclidean", "nearest")
    assert labels.tolist() == [0, 0, 0, 1, 1, 1, 1, 1]
    np.testing.assert_allclose(soft[[0, 7]], [[1.0, 0.0], [0.3, 0.7]])


def test_own_expert_noise_is_a_cluster_and_its_probability_a_column() -> None:
    """Pitfall 14: the noise column was dropped and the rest renormalised, so outliers became confident targets."""
    labels, soft = settle_noise(line_partition(), LINE, "euclidean", "own_expert")
    assert labels.tolist() == [0, 0, 0, 1, 1, 1, 1, 2]
    np.testing.assert_allclose(soft[[0, 6, 7]], [[0.9, 0.0, 0.1], [0.0, 0.8, 0.2], [0.3, 0.0, 0.7]])


def test_uniform_noise_has_equal_soft_labels() -> None:
    labels, soft = settle_noise(line_partition(), LINE, "euclidean", "uniform")
    assert labels[7] == 1
    np.testing.assert_allclose(soft[[0, 7]], [[0.95, 0.05], [0.5, 0.5]])


@pytest.mark.parametrize("fate", ["nearest", "own_expert", "uniform"])
def test_fate_of_noise_shows_in_the_fitted_clusters(fate: str) -> None:
    points, ids = blobs([30, 30, 30])
    points[::15] += np.random.default_rng(1).normal(size=points[::15].shape) * 60
    clusters = UtteranceClusters(dense(num_experts=4, min_clusters=3, min_cluster_size=15, noise=fate)).fit(points, ids)
    assert 0 < clusters.noise_.sum() < 20
    flat = np.isclose(clusters.soft_labels_.max(axis=1), clusters.soft_labels_.min(axis=1))
    is_own = np.array([name == "noise" for name in clusters.names_])[clusters.labels_]
    np.testing.assert_array_equal(flat, clusters.noise_ & (fate == "uniform"))
    np.testing.assert_array_equal(is_own, clusters.noise_ & (fate == "own_expert"))


@settings(max_examples=60)
@given(n=st.integers(4, 200), k=st.integers(1, 7), seed=st.integers(0, 999), skew=st.floats(0, 8))
def test_balanced_sizes_lie_within_ten_percent(n: int, k: int, seed: int, skew: float) -> None:
    k = min(k, n)
    squared = np.random.default_rng(seed).random((n, k)) + skew * np.arange(k)
    sizes = np.bincount(balanced_labels(squared), minlength=k)
    low, high = size_bounds(n, k)
    assert low <= sizes.min() and sizes.max() <= high
    assert (low >= 0.9 * n / k or low == n // k) and (high <= 1.1 * n / k or high == -(-n // k))


def test_balanced_labels_cost_little_more_than_the_best_exact_balance() -> None:
    squared = np.random.default_rng(4).random((120, 4)) + np.array([0.0, 0.3, 0.3, 0.3])
    rows, columns = linear_sum_assignment(np.repeat(squared, 30, axis=1))
    labels = balanced_labels(squared)
    assert squared[np.arange(120), labels].sum() <= 1.03 * np.repeat(squared, 30, axis=1)[rows, columns].sum()


def test_balanced_clusters_of_a_lopsided_corpus_are_balanced() -> None:
    points, ids = blobs([300, 40, 20])
    clusters = UtteranceClusters(
        ClusteringOptions(clustering_algorithm="balanced", cluster_unit="utterance", num_experts=3)
    ).fit(points, ids)  # fmt: skip
    assert (np.abs(np.bincount(clusters.labels_) - 120) <= 12).all()


def test_spectral_follows_rings_that_means_cannot_tell_apart() -> None:
    angle = np.linspace(0, 2 * np.pi, 120, endpoint=False)
    ring = np.column_stack([np.cos(angle), np.sin(angle)])
    labels = spectral_partition(np.concatenate([ring, 4 * ring]), 2, "euclidean", 0).labels
    assert len(set(labels[:120])) == len(set(labels[120:])) == 1 and labels[0] != labels[-1]


def test_spectral_gives_no_cluster_to_a_few_outliers() -> None:
    points = np.random.default_rng(0).normal(size=(200, 2)) + np.repeat([[0.0, 0.0], [8.0, 0.0]], 100, axis=0)
    points[:3] = [[400.0, 400.0], [400.5, 400.0], [400.0, 400.5]]
    sizes = np.bincount(spectral_partition(points, 2, "euclidean", 0).labels)
    assert sizes.min() > 50


def test_iterated_and_dense_eigenvectors_give_the_same_partition(monkeypatch) -> None:
    points, _ = blobs([100, 80, 60, 40])
    dense_labels = spectral_partition(points, 4, "euclidean", 0).labels
    monkeypatch.setattr("moe.clustering.spectral.DENSE_POINTS", 10)
    np.testing.assert_array_equal(spectral_partition(points, 4, "euclidean", 0).labels, dense_labels)


def test_neighbours_count_by_inverse_square() -> None:
    np.testing.assert_allclose(nearness(np.array([[1.0, 2.0, 4.0]]))[0], np.array([16, 4, 1]) / 21, atol=1e-9)
    np.testing.assert_allclose(nearness(np.array([[0.0, 2.0]]))[0], [1, 0], atol=1e-9)
    np.testing.assert_allclose(nearness(np.zeros((1, 4)))[0], [0.25] * 4)


def test_assignment_votes_with_the_nearest_references() -> None:
    labels = np.array([0, 0, 0, 1, 1, 1])
    points = np.array([[0.0], [1.0], [2.0], [10.0], [11.0], [12.0]])
    assigner = Assigner(points, labels, np.eye(2)[labels], np.zeros(6, dtype=bool), "euclidean")
    given_labels, soft, noise = assigner.assign(np.array([[1.5], [10.4], [2.0]]))
    assert given_labels.tolist() == [0, 1, 0] and not noise.any()
    np.testing.assert_allclose(soft[2], [1, 0], atol=1e-9)


@settings(max_examples=50)
@given(n=st.integers(1, 30), k=st.integers(2, 9), seed=st.integers(0, 999), scale=st.floats(0.01, 50))
def test_sharpening_keeps_sums_and_order_and_bounds_entropy(n: int, k: int, seed: int, scale: float) -> None:
    rng = np.random.default_rng(seed)
    raw = rng.dirichlet(np.full(k, scale), size=n) * rng.uniform(0.2, 1, size=(n, 1))
    sharp = sharpened(raw)
    np.testing.assert_allclose(sharp.sum(axis=1), raw.sum(axis=1))
    np.testing.assert_array_equal(sharp.argmax(axis=1), raw.argmax(axis=1))
    assert entropy(sharp / sharp.sum(axis=1, keepdims=True)) <= max(0.2501, 1e-3 * n)


def test_entropy_runs_from_one_hot_to_uniform() -> None:
    assert entropy(np.eye(4)) == 0 and entropy(np.full((3, 4), 0.25)) == pytest.approx(1)
    assert entropy(np.array([[0.5, 0.5, 0, 0]])) == pytest.approx(0.5)


def test_soft_labels_of_distances_and_their_agreement() -> None:
    soft = soft_from_distances(np.array([[1.0, 2.0], [3.0, 1.0]]), np.array([0, 1]))
    np.testing.assert_allclose(soft[:, 0] / soft[:, 1], [np.exp(10), np.exp(-20)])
    np.testing.assert_allclose(agreeing(np.array([[0.2, 0.5, 0.3]]), np.array([2])), [[0.2, 0.3, 0.5]])


def test_final_order_is_by_size_then_first_row_with_noise_last() -> None:
    labels = np.array([3, 2, 2, 1, 1, 0, 3, 3, 3])  # 3: four rows and noise; 2 and 1: two each, 2 first; 0: one
    assert final_order(labels, n_experts=4, n_clusters=3).tolist() == [2, 1, 0, 3]


def test_profiles_are_means_and_take_the_commonest_etiology() -> None:
    units = make_units(
        np.array([[1.0], [9.0], [3.0], [5.0]]), list("dcba"), ["y", "x", "y", "y"], ["p", "q", "a", "p"], "speaker"
    )
    assert units.ids.tolist() == ["x", "y"] and units.vectors.ravel().tolist() == [9.0, 3.0]
    assert units.etiologies.tolist() == ["q", "p"] and units.unit_of_row.tolist() == [1, 0, 1, 1]


@settings(max_examples=50)
@given(counts=st.lists(st.integers(1, 80), min_size=1, max_size=6), share=st.floats(0.1, 1.0), seed=st.integers(0, 99))
def test_a_stratified_sample_keeps_proportions(counts: list[int], share: float, seed: int) -> None:
    etiologies = np.repeat([f"e{i}" for i in range(len(counts))], counts)
    n_wanted = max(len(counts), round(share * len(etiologies)))
    sample = stratified_sample(etiologies, n_wanted, seed)
    assert (np.diff(sample) > 0).all() and abs(len(sample) - n_wanted) < len(counts)
    kept = np.array([(etiologies[sample] == f"e{i}").sum() for i in range(len(counts))])
    assert (kept >= 1).all() and (np.abs(kept - np.array(counts) * n_wanted / len(etiologies)) <= 1.0 + 1e-9).all()


@pytest.mark.parametrize("algorithm", ["spectral", "balanced", "hdbscan"])
def test_the_sweep_prefers_the_true_number(algorithm: str) -> None:
    points, ids = blobs([25] * 4, seed=2)
    options = ClusteringOptions(clustering_algorithm=algorithm, cluster_unit="utterance", num_experts="auto")
    table = sweep(points, ids, options, numbers=range(2, 7))
    assert {"n_experts", "silhouette", "dbcv", "stability", "smallest_share", "largest_share", "score"} == set(table)
    assert best_number(table) == 4
    at_four = table.set_index("n_experts").loc[4]
    assert at_four["stability"] == pytest.approx(1.0) and at_four["silhouette"] > 0.8 and at_four["dbcv"] > 0.5


def test_number_of_experts_auto_takes_the_sweeps_choice() -> None:
    points, ids = blobs([25] * 4, seed=2)
    clusters = UtteranceClusters(ClusteringOptions(cluster_unit="utterance", num_experts="auto")).fit(points, ids)
    assert clusters.n_clusters_ == 4


def test_there_is_no_number_to_choose_by_etiology() -> None:
    with pytest.raises(ValueError, match="by_etiology has as many clusters as etiologies"):
        sweep(*blobs([4, 4]), ClusteringOptions(clustering_algorithm="by_etiology"))
