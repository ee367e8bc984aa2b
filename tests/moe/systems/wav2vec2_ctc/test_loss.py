"""The loss and its gradient against every path written out, and what is divided by what."""

import itertools
import math

import pytest
import torch

from moe.systems.wav2vec2_ctc.decoding import scores
from moe.systems.wav2vec2_ctc.frames import frames_needed
from moe.systems.wav2vec2_ctc.model import ctc_losses
from tests.toys.ctc import toy_ctc

N_TOKENS = 3
CASES = [
    (n_outputs, labels)
    for n_outputs in range(1, 7)
    for n_labels in range(4)
    for labels in itertools.product(range(1, N_TOKENS), repeat=n_labels)
]


def written(path: tuple[int, ...]) -> tuple[int, ...]:
    """What a path writes: repeats merged, then blanks left out."""
    return tuple(token for token, _ in itertools.groupby(path) if token)


def brute_force(said: torch.Tensor, labels: tuple[int, ...]) -> torch.Tensor:
    """−log of the sum over all paths (T, V)."""
    paths = [path for path in itertools.product(range(N_TOKENS), repeat=len(said)) if written(path) == labels]
    if not paths:
        return torch.tensor(math.inf, dtype=said.dtype)
    return -torch.stack([said[range(len(said)), path].sum() for path in map(list, paths)]).logsumexp(0)


def logits_of(n_outputs: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(n_outputs)
    return torch.randn(n_outputs, N_TOKENS, generator=generator, dtype=torch.float64, requires_grad=True)


def ours(logits: torch.Tensor, labels: tuple[int, ...]) -> torch.Tensor:
    said = logits.log_softmax(-1)[None]
    return ctc_losses(said, torch.tensor([len(logits)]), torch.tensor([labels], dtype=torch.long), torch.tensor([len(labels)]))[0]


@pytest.mark.parametrize(("n_outputs", "labels"), CASES)
def test_loss_and_gradient_are_those_of_all_paths(n_outputs: int, labels: tuple[int, ...]) -> None:
    logits = logits_of(n_outputs)
    wanted, found = brute_force(logits.log_softmax(-1), labels), ours(logits, labels)
    torch.testing.assert_close(found, wanted)
    assert math.isinf(found.item()) == (frames_needed(labels) > n_outputs)
    if not math.isinf(found.item()):
        gradients = [torch.autograd.grad(loss, logits, retain_graph=True)[0] for loss in (wanted, found)]
        torch.testing.assert_close(*gradients)


def test_the_score_of_a_text_is_its_probability_over_all_paths_by_its_labels() -> None:
    logits = torch.stack([logits_of(4), logits_of(4) + 1.0]).detach()
    said = logits.log_softmax(-1)
    means, counts = scores(said, torch.tensor([4, 3]), [[1, 2], []])
    assert counts == [2, 1]
    assert means == pytest.approx([-float(brute_force(said[0], (1, 2))) / 2, -float(brute_force(said[1][:3], ()))])


@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_mean_divides_each_utterance_by_its_labels_and_sum_by_nothing(reduction: str) -> None:
    module = toy_ctc(ctc_loss_reduction=reduction).module
    features, n_frames = torch.randn(2, 16, 160), torch.tensor([16, 12])
    labels, n_labels = torch.tensor([[3, 4, 5, 6], [4, 4, 0, 0]]), torch.tensor([4, 2])
    totals = ctc_losses(module.log_probabilities(features, n_frames), n_frames, labels, n_labels)
    found = module(features, n_frames, labels, n_labels)
    wanted = totals if reduction == "sum" else totals / n_labels
    torch.testing.assert_close(found["utterance_loss"], wanted.detach())
    torch.testing.assert_close(found["loss"], wanted.sum() if reduction == "sum" else wanted.mean())
    assert not torch.allclose(totals, totals / n_labels)


def test_an_infinite_loss_counts_as_nothing_where_it_is_asked_for() -> None:
    said = logits_of(1).log_softmax(-1)[None].detach()
    arguments = said, torch.tensor([1]), torch.tensor([[1, 1]]), torch.tensor([2])
    assert math.isinf(ctc_losses(*arguments)[0]) and ctc_losses(*arguments, zero_infinity=True)[0] == 0
