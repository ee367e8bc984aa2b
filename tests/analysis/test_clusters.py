"""Figures of a clustering against cases whose answer is known."""

import numpy as np
import pytest

from analysis.clusters import cluster_scores, cluster_sizes, silhouette, soft_entropy


def test_renamed_clusters_agree_perfectly_and_random_ones_not_at_all():
    groups = np.repeat(["ALS", "stroke", "typical"], 40)
    assert cluster_scores(np.repeat([2, 0, 1], 40), groups).adjusted_rand == 1.0
    shuffled = np.random.default_rng(0).permutation(np.repeat([0, 1, 2], 40))
    assert cluster_scores(shuffled, groups).adjusted_rand == pytest.approx(0, abs=0.05)


def test_adjusted_rand_of_a_hand_worked_table():
    """Hubert & Arabie (1985) on the 2 × 2 table [[2, 1], [1, 2]]: (2 − 6·6/15) / (6 − 6·6/15)."""
    found = cluster_scores(np.array([0, 0, 0, 1, 1, 1]), ["a", "a", "b", "a", "b", "b"])
    assert found.adjusted_rand == pytest.approx((2 - 36 / 15) / (6 - 36 / 15))


def test_noise_is_counted_apart_and_lowers_the_agreement():
    labels = np.array([0] * 10 + [1] * 8 + [-1] * 2)
    found = cluster_scores(labels, ["a"] * 10 + ["b"] * 10)
    assert (found.n_clusters, found.n_noise, found.n_points) == (2, 2, 20) and found.adjusted_rand < 1


def test_silhouette_leaves_noise_out_and_is_undefined_for_one_cluster():
    points = np.array([[0.0, 0], [0, 1], [9, 0], [9, 1], [500, 500]])
    assert silhouette(points, np.array([0, 0, 1, 1, -1])) == pytest.approx(silhouette(points[:4], np.array([0, 0, 1, 1])))
    assert np.isnan(silhouette(points, np.zeros(5, int)))


def test_soft_labels_that_are_almost_flat_are_seen():
    """Pitfall 14: a softmax of cosine similarities was almost uniform, so the gate learned nothing."""
    assert soft_entropy(np.eye(4)) == 0.0
    assert soft_entropy(np.full((3, 4), 0.25)) == pytest.approx(1.0)
    assert soft_entropy(np.array([[0.26, 0.25, 0.25, 0.24]])) > 0.99


def test_sizes_add_up():
    sizes = cluster_sizes(np.array([1, -1, 0, 1]))
    assert sizes["cluster"].tolist() == [-1, 0, 1] and sizes["n_utterances"].tolist() == [1, 1, 2] and sizes["share"].sum() == 1
    assert sizes["n_noise"].tolist() == [1, 0, 0]


def test_noise_that_joined_a_cluster_is_still_counted_as_noise():
    sizes = cluster_sizes(np.array([1, 0, 0, 1]), np.array([True, False, False, False]))
    assert sizes["n_utterances"].tolist() == [2, 2] and sizes["n_noise"].tolist() == [0, 1]


def test_labels_and_groups_of_different_length_are_refused():
    with pytest.raises(ValueError, match="3 cluster labels but 2 groups"):
        cluster_scores(np.zeros(3, int), ["a", "b"])
