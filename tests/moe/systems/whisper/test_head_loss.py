"""The loss of the frozen head is cross-entropy of its logits, in value and gradient, however few rows are held at a time."""

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from moe.system import IGNORED
from moe.systems.whisper import head_loss
from moe.systems.whisper.head_loss import head_cross_entropy, utterance_cross_entropy


def drawn(dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor, Tensor]:
    """States (3, 5, 8), a head of 40 tokens and labels, one utterance shorter and one without any."""
    generator = torch.Generator().manual_seed(0)
    states, head = (torch.randn(shape, generator=generator).to(dtype) for shape in ((3, 5, 8), (40, 8)))
    labels = torch.randint(0, 40, (3, 5), generator=generator)
    labels[0, 2:], labels[2] = IGNORED, IGNORED
    return states.requires_grad_(True), head, labels


def test_cross_entropy_is_the_mean_over_an_utterances_own_tokens() -> None:
    torch.manual_seed(0)
    logits, labels = torch.randn(2, 4, 7), torch.tensor([[1, 2, 3, 4], [5, 6, IGNORED, IGNORED]])
    expected = [F.cross_entropy(logits[0], labels[0]), F.cross_entropy(logits[1, :2], labels[1, :2])]
    torch.testing.assert_close(utterance_cross_entropy(logits, labels), torch.stack(expected))


def test_an_utterance_without_labels_costs_nothing_and_is_finite() -> None:
    logits = torch.randn(1, 2, 5, requires_grad=True)
    loss = utterance_cross_entropy(logits, torch.full((1, 2), IGNORED))
    loss.sum().backward()
    assert loss.item() == 0 and logits.grad.abs().sum() == 0


@pytest.mark.parametrize("n_logits", [1, 120, 1 << 24])
def test_losses_and_gradients_are_those_of_the_logits(n_logits: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(head_loss, "LOGITS", n_logits)
    states, head, labels = drawn()
    weights = torch.tensor([0.5, 2.0, 3.0])
    expected = utterance_cross_entropy(states @ head.T, labels)
    (wanted,) = torch.autograd.grad((expected * weights).sum(), states)
    found = head_cross_entropy(states, head, labels)
    (got,) = torch.autograd.grad((found * weights).sum(), states)
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(got, wanted)
    assert wanted[1].abs().max() > 0.1 and not got[0, 2:].any() and not got[2].any()


def test_its_gradient_is_that_of_finite_differences() -> None:
    generator = torch.Generator().manual_seed(1)
    states, head = (torch.randn(shape, generator=generator) for shape in ((1, 2, 3), (6, 3)))
    labels = torch.tensor([[4, 0]])
    (got,) = torch.autograd.grad(head_cross_entropy(states.requires_grad_(True), head, labels).sum(), states)
    for at in range(3):
        step = torch.zeros(1, 2, 3)
        step[0, 1, at] = 1e-2
        with torch.no_grad():
            slope = (head_cross_entropy(states + step, head, labels) - head_cross_entropy(states - step, head, labels)) / 2e-2
        torch.testing.assert_close(got[0, 1, at], slope[0], atol=1e-3, rtol=1e-3)


def test_without_gradient_nothing_is_kept() -> None:
    states, head, labels = drawn()
    assert not head_cross_entropy(states.detach(), head, labels).requires_grad
    with torch.no_grad():
        assert not head_cross_entropy(states, head, labels).requires_grad


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_under_autocast_the_softmax_is_in_single_precision(dtype: torch.dtype) -> None:
    states, head, labels = drawn()
    expected = utterance_cross_entropy(states @ head.T, labels)
    with torch.autocast("cpu", dtype):
        found = head_cross_entropy(states, head, labels)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, expected, atol=0.05, rtol=0.05)
    (got,) = torch.autograd.grad(found.sum(), states)
    (wanted,) = torch.autograd.grad(expected.sum(), states)
    assert got.dtype == torch.float32 and torch.cosine_similarity(got.flatten(), wanted.flatten(), dim=0) > 0.999
