"""Experts that a test over dev speakers finds no difference between become one; what differs, or cannot be told, stays as it is."""

import itertools
import math

import numpy as np
import pytest
import torch

from moe.experts.alike import AlikeExperts, Merging, MergingOptions, copy_adapters
from moe.experts.low_rank import low_rank_sum
from moe.experts.pair_tests import PairTest, least_speakers, pair_test
from moe.experts.reference_losses import reference_losses
from moe.experts.routed_lora import routed_layers
from moe.experts.stacking import adapter_tensors
from moe.recognition.decoding import decode
from moe.system import IGNORED, DecodingOptions
from moe.systems.whisper_moe.asks import FixedRouting
from moe.training.loop import fit
from tests.toys.models import system_of
from tests.toys.training import N_EXPERTS, Diary, dataset, one_hot_rows, plan, toy_base, toy_mixture, training, write_corpus

N, ALPHA = 15, 0.05
CLUSTERS, SPEAKERS = np.arange(N) % N_EXPERTS, np.array([f"s{number}" for number in range(N)])


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory):
    """Fifteen chords; the utterances of a cluster say the same words, those of another say others."""
    root = tmp_path_factory.mktemp("toy")
    manifest = write_corpus(root, N)
    said = [("oak elm", "fig ash", "yew fig")[cluster] for cluster in CLUSTERS]
    return manifest.assign(transcript=said, reference=said), root


@pytest.fixture(scope="module")
def trained(corpus) -> dict[str, torch.Tensor]:
    """Adapters of experts that have learnt what their own cluster says."""
    manifest, root = corpus
    model = toy_mixture(toy_base())
    routed = dataset(manifest, root, extras={"routing_weights": one_hot_rows(N)})
    fit(model, routed, training(plan(epochs=8, batch_size=N, learning_rate=0.05)), Diary())
    return adapter_tensors(model.base)


def experts(corpus, tensors: dict[str, torch.Tensor] | None = None, speakers: np.ndarray = SPEAKERS, twins: bool = False):
    """A mixture with its dev utterances, every expert on a third of them; twins: the first two experts are the same."""
    manifest, root = corpus
    system = system_of(toy_mixture(toy_base()))
    with torch.no_grad():
        for name, layer in routed_layers(system.module.base):
            for matrix in ("lora_A", "lora_B", "shared_A", "shared_B") if tensors else ():
                getattr(layer, matrix).copy_(tensors[f"{name}.{matrix}"])
            for each in (layer.lora_A, layer.lora_B) if twins else ():
                each[1] = each[0]
    return AlikeExperts(system, dataset(manifest, root), CLUSTERS, speakers, [4, 2, 6])


def added(layer, expert: int) -> torch.Tensor:
    return layer.lora_B[expert].detach() @ layer.lora_A[expert].detach()


def test_losses_are_those_of_each_expert_alone_summed_over_the_tokens(corpus) -> None:
    alike = experts(corpus)
    found = reference_losses(alike.system, alike.dev_set, [2, 0], batch_size=4)
    for column, expert in enumerate((2, 0)):
        ask = FixedRouting(weights=tuple(np.eye(N_EXPERTS)[expert]))
        alone = decode(alike.system, alike.dev_set, DecodingOptions(), ask, with_loss=True)
        means = np.array([each.utterance_loss for each in alone])
        np.testing.assert_allclose(found.sums[:, column] / found.n_tokens, means, rtol=1e-4)
    inputs = alike.dev_set.inputs
    labels = inputs.collate([alike.dev_set[number] for number in range(N)])["labels"]
    assert found.n_tokens.tolist() == (labels != IGNORED).sum(1).tolist()


def test_experts_that_are_the_same_become_one_and_the_others_stay(corpus, trained) -> None:
    alike = experts(corpus, trained, twins=True)
    merging = alike.merge(ALPHA, seed=0)
    assert merging.groups == ((0, 1), (2,)) and merging.expert_of_cluster == (0, 0, 1) and merging.n_that_differ == 2
    first = merging.tests[0]
    assert (first.first, first.second, first.difference, first.p_value) == ((0,), (1,), 0.0, 1.0)
    for name, layer in routed_layers(alike.system.module.base):
        before = alike.before[f"{name}.lora_B"][0] @ alike.before[f"{name}.lora_A"][0]
        torch.testing.assert_close(added(layer, 0), before, rtol=1e-4, atol=1e-6)


def test_experts_of_different_speech_are_not_merged(corpus, trained) -> None:
    alike = experts(corpus, trained)
    merging = alike.merge(ALPHA, seed=0)
    assert merging.groups == ((0,), (1,), (2,)) and merging.n_that_differ == 3
    assert all(test.differs and test.difference > 0 and test.p_value == 2.0**-10 for test in merging.tests)
    unchanged = adapter_tensors(alike.system.module.base)
    assert all(torch.equal(value, unchanged[name]) for name, value in alike.before.items())


def test_too_few_speakers_merge_nothing(corpus, trained) -> None:
    speakers = np.array([f"s{number % 2}" for number in range(N)])
    merging = experts(corpus, trained, speakers, twins=True).merge(ALPHA, seed=0)
    assert merging.groups == ((0,), (1,), (2,)) and merging.n_that_differ == 0
    assert not any(test.can_tell or test.is_alike or test.differs for test in merging.tests)
    assert all(math.isnan(test.p_value) and test.n_speakers == 2 for test in merging.tests)


def test_merging_is_undone_to_the_bit(corpus, trained) -> None:
    alike = experts(corpus, trained, twins=True)
    alike.merge(ALPHA, seed=0)
    alike.restore()
    again = adapter_tensors(alike.system.module.base)
    assert all(torch.equal(value, again[name]) for name, value in alike.before.items())


def test_the_same_experts_are_merged_the_same_way(corpus, trained) -> None:
    found = [experts(corpus, trained, twins=True) for _ in range(2)]
    merged = [each.merge(ALPHA, seed=3) for each in found]
    assert merged[0] == merged[1]
    first, second = (adapter_tensors(each.system.module.base) for each in found)
    assert all(torch.equal(value, second[name]) for name, value in first.items())


def test_fewer_experts_compute_what_the_merged_ones_did(corpus, trained) -> None:
    """The relabelling: an utterance on the expert of its cluster is computed as before."""
    alike = experts(corpus, trained, twins=True)
    merging = alike.merge(ALPHA, seed=0)
    reduced = toy_mixture(toy_base(), n_experts=len(merging.groups))
    copy_adapters(alike.system.module.base, reduced.base, merging.groups)
    ours = reference_losses(system_of(reduced), alike.dev_set, range(len(merging.groups)), 4).sums
    slots = [group[0] for group in merging.groups]
    theirs = reference_losses(alike.system, alike.dev_set, slots, 4).sums
    np.testing.assert_allclose(ours, theirs, rtol=1e-5)


def test_the_number_of_an_expert_is_its_place_among_those_left() -> None:
    for groups in (((0, 3), (1,), (2, 4, 5)), ((0,), (1,)), ((0, 1, 2),)):
        found = Merging(groups, ()).expert_of_cluster
        assert all(old in groups[new] for old, new in enumerate(found)) and set(found) == set(range(len(groups)))


@pytest.mark.parametrize("shares", [(0.5, 0.5), (0.25, 0.75)])
def test_a_merged_expert_adds_the_mean_where_one_can_hold_it(shares) -> None:
    generator = torch.Generator().manual_seed(0)
    a, b = [torch.randn(2, 7, generator=generator) for _ in "ab"], [torch.randn(9, 2, generator=generator) for _ in "ab"]
    mean = sum(share * each_b @ each_a for share, each_a, each_b in zip(shares, a, b, strict=True))
    new_a, new_b = low_rank_sum(a, b, shares, 4)
    torch.testing.assert_close(new_b @ new_a, mean, rtol=1e-5, atol=1e-6)
    u, values, v = np.linalg.svd(mean.double().numpy())
    nearest = (u[:, :2] * values[:2]) @ v[:2]
    cut_a, cut_b = low_rank_sum(a, b, shares, 2)
    assert cut_a.shape == (2, 7) and cut_b.shape == (9, 2)
    np.testing.assert_allclose(cut_b @ cut_a, nearest, atol=1e-5)


def test_an_expert_merged_from_zeros_can_still_learn() -> None:
    a, b = low_rank_sum([torch.ones(2, 5), torch.ones(2, 5)], [torch.zeros(6, 2)] * 2, (0.5, 0.5), 2)
    assert not b.any() and (a.norm(dim=1) > 0.9).all()


def a_test(gains: list[float], alpha: float = ALPHA) -> PairTest:
    """Two experts and one utterance of ten tokens for each speaker, who gains so much from its own."""
    n = len(gains)
    own, other = np.zeros(n), np.array(gains)
    clusters = np.arange(n) % 2
    losses = np.where(clusters == 0, own, other), np.where(clusters == 0, other, own)
    names = np.array([f"s{number}" for number in range(n)])
    return pair_test(((0,), (1,)), losses, np.full(n, 10), clusters, names, alpha, 0)


def test_signs_are_tried_one_and_all() -> None:
    assert a_test([1, 2, 3, 4, 5]).p_value == 1 / 32 and a_test([1, 2, 3, 4, 5]).differs
    gains = [3.0, -1.0, 2.0, 0.5, -0.25, 1.0]
    signs = np.array(list(itertools.product((1, -1), repeat=6)))
    assert a_test(gains).p_value == pytest.approx(np.mean(signs @ gains >= sum(gains)))
    assert a_test(gains).difference == pytest.approx(sum(gains) / 60)
    assert a_test([-1, -2, -3, -4, -5]).is_alike, "whose own is worse"


def test_many_speakers_are_drawn_from_the_seed() -> None:
    gains = np.random.default_rng(1).normal(0.3, 1, 40).tolist()
    assert a_test(gains).p_value == a_test(gains).p_value
    assert 0 < a_test(gains).p_value < 0.2


def test_a_speaker_counts_once_however_many_utterances_are_routed_to_both() -> None:
    losses = np.zeros(12), np.ones(12)
    speakers = np.repeat(["a", "b"], 6)
    found = pair_test(((0,), (1,)), losses, np.ones(12, int), np.zeros(12, int), speakers, ALPHA, 0)
    assert found.n_speakers == 2 and not found.can_tell and found.n_tokens == 12
    nobody = pair_test(((2,), (3,)), losses, np.ones(12, int), np.zeros(12, int), speakers, ALPHA, 0)
    assert nobody.n_speakers == 0 and math.isnan(nobody.difference) and not nobody.can_tell


@pytest.mark.parametrize(("alpha", "n"), [(0.05, 5), (0.25, 2), (0.0625, 4), (0.01, 7), (0.5, 1)])
def test_how_many_speakers_can_tell(alpha: float, n: int) -> None:
    assert least_speakers(alpha) == n and 2.0**-n <= alpha < 2.0 ** -(n - 1)


def test_a_level_without_a_test_does_nothing() -> None:
    assert MergingOptions().idle() == {"merge_alpha": "needs merge_experts=permutation"}
    assert MergingOptions(merge_experts="permutation").idle() == {}
