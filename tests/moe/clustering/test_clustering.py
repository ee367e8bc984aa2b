"""What must be true of fitted clusters whatever the data: same partition in any order, same answer one by one, nothing renamed."""

import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import adjusted_rand_score
from threadpoolctl import threadpool_limits

from moe.clustering.clusters import UtteranceClusters
from moe.clustering.options import ClusteringOptions

N_DIMS = 12


@dataclasses.dataclass(frozen=True)
class Toy:
    """Speakers about styles, utterances about speakers, a few outliers."""

    embeddings: np.ndarray
    ids: np.ndarray
    speakers: np.ndarray
    etiologies: np.ndarray

    def rows(self, chosen: np.ndarray) -> "Toy":
        return Toy(self.embeddings[chosen], self.ids[chosen], self.speakers[chosen], self.etiologies[chosen])

    def fit(self, **options: object) -> UtteranceClusters:
        return UtteranceClusters(ClusteringOptions(**options)).fit(self.embeddings, self.ids, self.speakers, self.etiologies)


def toy(n_styles: int = 3, n_speakers: int = 18, n_each: int = 6, spread: float = 0.5, n_outliers: int = 4, seed: int = 0) -> Toy:
    rng = np.random.default_rng(seed)
    style = np.arange(n_speakers) % n_styles
    profiles = rng.normal(size=(n_styles, N_DIMS))[style] * 3 + rng.normal(size=(n_speakers, N_DIMS)) * spread
    speaker = np.repeat(np.arange(n_speakers), n_each)
    embeddings = profiles[speaker] + rng.normal(size=(len(speaker), N_DIMS)) * spread
    embeddings[rng.choice(len(speaker), n_outliers, replace=False)] += rng.normal(size=(n_outliers, N_DIMS)) * 12
    ids = np.array([f"{speaker[i]:02d}-{i:04d}" for i in range(len(speaker))])
    return Toy(embeddings, ids, np.array([f"s{i:02d}" for i in speaker]), np.array([f"style {style[i]}" for i in speaker]))


DENSE = {"clustering_algorithm": "hdbscan", "cluster_unit": "utterance", "num_experts": 3, "min_clusters": 3, "reduce_dim": 4}
CHOICES = {
    "spectral profiles": {"num_experts": 3},
    "spectral utterances": {"num_experts": 3, "cluster_unit": "utterance"},
    "number chosen": {"num_experts": "auto"},
    "hdbscan nearest": DENSE,
    "hdbscan own expert": DENSE | {"noise": "own_expert", "num_experts": 4},
    "hdbscan uniform cosine": DENSE | {"noise": "uniform", "metric": "cosine"},
    "balanced": {"clustering_algorithm": "balanced", "num_experts": 4, "cluster_unit": "utterance"},
    "by etiology": {"clustering_algorithm": "by_etiology"},
    "sampled": {"num_experts": 3, "cluster_unit": "utterance", "max_fit": 50},
}
each_choice = pytest.mark.parametrize("options", CHOICES.values(), ids=CHOICES.keys())


@each_choice
def test_row_order_changes_neither_partition_nor_numbers(options: dict) -> None:
    """Pitfall 13: what was read in directory order was sampled with a seed."""
    corpus = toy()
    shuffled = np.random.default_rng(5).permutation(len(corpus.ids))
    straight, mixed = corpus.fit(**options), corpus.rows(shuffled).fit(**options)
    np.testing.assert_array_equal(straight.labels_[shuffled], mixed.labels_)
    np.testing.assert_allclose(straight.soft_labels_[shuffled], mixed.soft_labels_, atol=1e-9)
    np.testing.assert_array_equal(straight.noise_[shuffled], mixed.noise_)


@settings(max_examples=15)
@given(seed=st.integers(0, 10_000), spread=st.floats(0.3, 3.0), algorithm=st.sampled_from(["spectral", "balanced", "hdbscan"]))
def test_any_order_of_any_corpus_gives_the_same_partition(seed: int, spread: float, algorithm: str) -> None:
    corpus = toy(spread=spread, seed=seed)
    options = {"clustering_algorithm": algorithm, "num_experts": 3, "cluster_unit": "utterance"}
    shuffled = np.random.default_rng(seed).permutation(len(corpus.ids))
    np.testing.assert_array_equal(corpus.fit(**options).labels_[shuffled], corpus.rows(shuffled).fit(**options).labels_)


@each_choice
def test_number_of_threads_changes_nothing(options: dict) -> None:
    corpus = toy(spread=2.0)
    with threadpool_limits(1):
        one = corpus.fit(**options)
    with threadpool_limits(4):
        four = corpus.fit(**options)
    np.testing.assert_array_equal(one.labels_, four.labels_)
    np.testing.assert_allclose(one.soft_labels_, four.soft_labels_, atol=1e-6)


@each_choice
def test_training_points_are_assigned_their_own_labels(options: dict) -> None:
    corpus = toy(spread=1.5)
    clusters = corpus.fit(**options)
    labels, soft = clusters.assign(corpus.embeddings, corpus.speakers)
    assert (labels == clusters.labels_).mean() >= 0.995
    assert not clusters.exceptions_ or len(clusters.exceptions_) <= 0.005 * clusters.n_units_
    np.testing.assert_allclose(soft[labels == clusters.labels_], clusters.soft_labels_[labels == clusters.labels_], atol=1e-6)


def test_what_assign_labels_otherwise_is_listed() -> None:
    corpus = toy(n_outliers=0)
    embeddings = corpus.embeddings.copy()
    embeddings[1] = embeddings[0]  # two utterances that cannot be told apart, of two etiologies
    etiologies = corpus.etiologies.copy()
    etiologies[1] = "another"
    options = ClusteringOptions(clustering_algorithm="by_etiology", cluster_unit="utterance")
    clusters = UtteranceClusters(options).fit(embeddings, corpus.ids, corpus.speakers, etiologies)
    labels, _ = clusters.assign(embeddings)
    assert clusters.exceptions_ == corpus.ids[labels != clusters.labels_].tolist() != []


@each_choice
def test_batch_and_one_by_one_agree(options: dict) -> None:
    clusters, new = toy().fit(**options), toy(seed=7, spread=2.0)
    labels, soft = clusters.assign(new.embeddings)
    singly = [clusters.assign(new.embeddings[[i]]) for i in range(40)]
    assert [single[0][0] for single in singly] == labels[:40].tolist()
    np.testing.assert_allclose(np.concatenate([single[1] for single in singly]), soft[:40], atol=1e-9)


def test_a_speaker_is_assigned_as_the_mean_of_the_utterances_given() -> None:
    clusters, new = toy().fit(num_experts=3), toy(seed=7)
    labels, _ = clusters.assign(new.embeddings, new.speakers)
    for speaker in np.unique(new.speakers):
        mine = new.speakers == speaker
        assert set(labels[mine]) == set(clusters.assign(new.embeddings[mine].mean(axis=0, keepdims=True))[0])


@each_choice
def test_soft_labels_are_distributions_that_agree_with_the_labels(options: dict) -> None:
    clusters = toy(spread=1.5).fit(**options)
    soft = clusters.soft_labels_
    np.testing.assert_allclose(soft.sum(axis=1), 1.0)
    assert soft.min() >= 0 and soft.shape[1] == clusters.n_clusters_ == len(clusters.names_)
    rows = np.arange(len(soft))
    np.testing.assert_allclose(soft[rows, clusters.labels_], soft.max(axis=1))


@pytest.mark.parametrize("algorithm", ["spectral", "balanced", "hdbscan"])
def test_soft_labels_are_sharp_even_in_many_dimensions(algorithm: str) -> None:
    """Pitfall 14: targets made of similarities were almost flat, so the gate had nothing to learn."""
    rng = np.random.default_rng(0)
    middle = rng.normal(size=(4, 64)) * 0.8
    embeddings = middle[np.arange(400) % 4] + rng.normal(size=(400, 64))
    options = ClusteringOptions(clustering_algorithm=algorithm, cluster_unit="utterance", num_experts=4)
    clusters = UtteranceClusters(options).fit(embeddings, [f"{i:03d}" for i in range(400)])
    assert clusters.n_clusters_ > 1 and clusters.soft_entropy_ <= 0.26


@pytest.mark.parametrize("seed", range(4))
def test_clusters_are_numbered_by_size_then_by_smallest_id(seed: int) -> None:
    corpus = toy(n_outliers=0, seed=seed)
    keep = ~((corpus.etiologies == "style 1") & (np.arange(len(corpus.ids)) % 2 == 0))  # style 1 is half as large as the others
    clusters = corpus.rows(keep).fit(num_experts=3, clustering_algorithm="spectral", cluster_unit="utterance", seed=seed)
    of_style = {style: set(clusters.labels_[corpus.etiologies[keep] == style]) for style in np.unique(corpus.etiologies)}
    assert of_style == {"style 0": {0}, "style 2": {1}, "style 1": {2}}


def test_separable_styles_are_found_by_every_algorithm() -> None:
    corpus = toy(n_outliers=0)
    for algorithm in ("spectral", "balanced", "hdbscan", "by_etiology"):
        for unit in ("utterance", "speaker"):
            clusters = corpus.fit(clustering_algorithm=algorithm, cluster_unit=unit, num_experts=3, reduce="none")
            assert adjusted_rand_score(corpus.etiologies, clusters.labels_) == pytest.approx(1.0), (algorithm, unit)


def test_every_utterance_takes_its_speakers_cluster() -> None:
    corpus = toy(spread=2.0)
    clusters = corpus.fit(num_experts=3)
    assert all(len(set(clusters.labels_[corpus.speakers == speaker])) == 1 for speaker in np.unique(corpus.speakers))


def test_fitting_a_sample_labels_the_rest_and_keeps_every_etiology() -> None:
    corpus = toy(n_speakers=60, n_outliers=0)
    clusters = corpus.fit(num_experts=3, cluster_unit="utterance", max_fit=60)
    assert clusters.n_fitted_ == 60 and clusters.n_units_ == len(clusters.labels_) == 360
    assert adjusted_rand_score(corpus.etiologies, clusters.labels_) == pytest.approx(1.0)


@each_choice
def test_clusters_read_from_disk_assign_as_those_just_fitted(options: dict, tmp_path) -> None:
    clusters, new = toy().fit(**options), toy(seed=7)
    clusters.save(tmp_path / "clusters")
    loaded = UtteranceClusters.load(tmp_path / "clusters")
    for ours, theirs in zip(loaded.assign(new.embeddings), clusters.assign(new.embeddings), strict=True):
        np.testing.assert_array_equal(ours, theirs)
    assert loaded.summary() == clusters.summary() and loaded.options == clusters.options
    assert {file.suffix for file in (tmp_path / "clusters").iterdir()} == {".safetensors", ".json"}


def test_umap_finds_the_styles_twice_alike_and_needs_no_pickle(tmp_path) -> None:
    corpus = toy(n_outliers=0)
    options = {
        "reduce": "umap",
        "reduce_dim": 3,
        "clustering_algorithm": "hdbscan",
        "cluster_unit": "utterance",
        "num_experts": 3,
    }
    clusters, again = (corpus.fit(**options, min_clusters=3, min_cluster_size=20) for _ in range(2))
    np.testing.assert_array_equal(clusters.soft_labels_, again.soft_labels_)
    assert adjusted_rand_score(corpus.etiologies, clusters.labels_) == pytest.approx(1.0)
    clusters.save(tmp_path / "clusters")
    assert (UtteranceClusters.load(tmp_path / "clusters").assign(corpus.embeddings)[0] == clusters.labels_).all()


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"embeddings": np.zeros((0, 4))}, r"shape \(0, 4\)"),
        ({"embeddings": np.full((108, 4), np.nan)}, "108 embeddings hold values that are not finite"),
        ({"embeddings": np.ones((108, 4))}, "num_experts=8: the embeddings of all 18 speakers are the same"),
        ({"ids": np.array(["a"] * 108)}, "utterance_id 'a' occurs more than once"),
        ({"speakers": np.array(["s"] * 107)}, "107 speakers for 108 embeddings"),
        ({"speakers": np.array(["s"] * 108)}, "num_experts=8: only 1 speakers to cluster"),
        ({"speakers": None}, "cluster_unit=speaker needs the speaker"),
    ],
)
def test_input_that_cannot_be_clustered_is_refused(changed: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(toy(), **changed).fit()


def test_embeddings_of_another_width_are_refused() -> None:
    with pytest.raises(ValueError, match="embeddings of 5 dimensions: clusters were fitted on 12"):
        toy().fit(num_experts=3).assign(np.zeros((2, 5)))


@each_choice
def test_clusters_that_become_one_keep_their_members(options: dict, tmp_path) -> None:
    corpus = toy()
    clusters = corpus.fit(**options)
    cluster_of = [0, *range(clusters.n_clusters_ - 1)]  # the first two are one
    joined = clusters.joined(cluster_of)
    before, soft_before = clusters.assign(corpus.embeddings, corpus.speakers)
    labels, soft = joined.assign(corpus.embeddings, corpus.speakers)
    np.testing.assert_array_equal(labels, np.array(cluster_of)[before])
    np.testing.assert_allclose(soft.sum(axis=1), 1)
    np.testing.assert_array_equal(soft.argmax(axis=1), labels)
    assert joined.n_clusters_ == clusters.n_clusters_ - 1 == soft.shape[1] and " and " in joined.names_[0]
    joined.save(tmp_path / "joined")
    again = UtteranceClusters.load(tmp_path / "joined")
    np.testing.assert_array_equal(again.assign(corpus.embeddings, corpus.speakers)[0], labels)
    assert clusters.assign(corpus.embeddings, corpus.speakers)[1].shape == soft_before.shape, (
        "those joined from stay as they were"
    )
