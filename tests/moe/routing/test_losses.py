"""Losses against hand-worked values, and balance asked of a window."""

import math

import pytest
import torch
from torch.nn import functional as F

from moe.routing.losses import (
    BalanceOptions,
    BalanceWindow,
    alignment,
    dispatched,
    kl_balance,
    routing_entropy,
    switch_balance,
    usage_shortfall,
)


def test_balance_terms_by_hand() -> None:
    uniform, collapsed = torch.full((4,), 0.25), torch.tensor([1.0, 0.0, 0.0, 0.0])
    assert kl_balance(uniform).item() == pytest.approx(0, abs=1e-6)
    assert kl_balance(collapsed).item() == pytest.approx(math.log(4))
    assert switch_balance(uniform, uniform).item() == pytest.approx(1)
    assert switch_balance(collapsed, collapsed).item() == pytest.approx(4)
    assert switch_balance(torch.tensor([0.5, 0.5]), torch.tensor([0.9, 0.1])).item() == pytest.approx(1.0)


def test_an_expert_costs_what_it_lacks_of_its_minimum_and_a_busier_one_nothing() -> None:
    mean = torch.tensor([0.7, 0.25, 0.05, 0.0], requires_grad=True)
    loss = usage_shortfall(mean, 0.1)
    loss.backward()
    assert loss.item() == pytest.approx(0.5 + 1.0)
    assert mean.grad.tolist() == pytest.approx([0, 0, -10, -10])


def test_choices_are_counted_by_hand() -> None:
    rows = torch.tensor([[0.5, 0.3, 0.2], [0.1, 0.2, 0.7]])
    assert dispatched(rows, 1).tolist() == [0.5, 0.0, 0.5]
    assert dispatched(rows, 2).tolist() == [0.25, 0.5, 0.25]
    assert dispatched(rows, 9).tolist() == pytest.approx([1 / 3] * 3)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"balance": "none", "balance_coefficient": 0.5}, "balance_coefficient=0.5: balance=none"),
        ({"balance": "none", "balance_window": 8}, "balance_window=8: balance=none"),
        ({"minimum_usage_coefficient": 1.0}, "minimum_usage_coefficient=1: minimum_usage=0"),
    ],
)
def test_what_would_have_no_effect_is_refused(options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        BalanceOptions(**options)
    assert BalanceOptions(balance="none", minimum_usage=0.1, balance_window=8, minimum_usage_coefficient=1.0).teaches_gate
    assert not BalanceOptions(balance="none").teaches_gate and not BalanceOptions(balance_coefficient=0).teaches_gate


def test_balance_terms_have_finite_gradients_at_the_edge() -> None:
    for term in (
        kl_balance,
        lambda p: usage_shortfall(p, 0.1),
        lambda p: routing_entropy(p[None]),
        lambda p: switch_balance(p, p),
    ):
        logits = torch.tensor([200.0, 0.0, 0.0], requires_grad=True)
        term(torch.softmax(logits, -1)).backward()
        assert logits.grad.isfinite().all()


def test_entropy_and_alignment_by_hand() -> None:
    rows = torch.tensor([[0.5, 0.5], [1.0, 0.0]])
    assert routing_entropy(rows).item() == pytest.approx(math.log(2) / 2)
    logits = torch.tensor([[0.0, 0.0], [0.0, 0.0]])
    assert alignment(logits, rows).item() == pytest.approx(math.log(2) / 2)  # KL of a certain label to the uniform gate
    assert alignment(rows[:1].log(), rows[:1]).item() == pytest.approx(0)


def specialised(n_experts: int = 4, each: int = 4) -> list[torch.Tensor]:
    """Gate logits of micro-batches that each hold one expert's own utterances: balanced over the window, not within a batch."""
    return [3.0 * F.one_hot(torch.full((each,), expert), n_experts).float() for expert in range(n_experts)]


def last_gradient(window: BalanceWindow, batches: list[torch.Tensor]) -> torch.Tensor:
    """Balance gradient on the gate logits of the last of some micro-batches."""
    for logits in batches:
        logits = logits.clone().requires_grad_(True)
        kl_balance(window.join(torch.softmax(logits, -1)).mean(0)).backward()
    return logits.grad


def test_balance_over_the_window_leaves_specialised_micro_batches_alone() -> None:
    """Pitfall 10: on micro-batches the term pushes every small batch to uniform and fights specialisation."""
    batches = specialised()
    micro = last_gradient(BalanceWindow(4, 4), batches)
    whole = last_gradient(BalanceWindow(4, 16), batches)
    assert micro.abs().max() > 0.02  # the defect put back: a window of one micro-batch
    assert whole.abs().max() < 1e-6


def test_a_batch_gets_the_windows_gradient_as_strong_as_if_it_were_alone() -> None:
    """It was weaker by batch / window, so that a coefficient meant something else in every window and with every accumulation."""
    torch.manual_seed(1)
    logits = torch.randn(12, 3, requires_grad=True)
    kl_balance(torch.softmax(logits, -1).mean(0)).backward()
    got = last_gradient(BalanceWindow(3, 12), list(logits.detach().split(4)))
    torch.testing.assert_close(got, 12 / 4 * logits.grad[8:])


def test_a_window_forgets_the_oldest() -> None:
    window = BalanceWindow(2, 4)
    for share in (0.0, 0.25, 0.5):
        mean = window.join(torch.tensor([[share, 1 - share]] * 2)).mean(0)
    torch.testing.assert_close(mean, torch.tensor([0.375, 0.625]))  # the last two batches of two
    mean = window.join(torch.tensor([[1.0, 0.0]])).mean(0)
    torch.testing.assert_close(mean, torch.tensor([(1 + 0.5 * 2 + 0.25) / 4, (0.5 * 2 + 0.75) / 4]))


def test_a_batch_larger_than_the_window_is_balanced_as_it_is() -> None:
    window, batch = BalanceWindow(2, 3), torch.softmax(torch.randn(5, 2), -1)
    torch.testing.assert_close(window.join(batch).mean(0), batch.mean(0))
    torch.testing.assert_close(window.join(batch[:1]).mean(0), (batch[:1].sum(0) + batch[:2].sum(0)) / 3)


def test_a_window_tells_what_it_holds_newest_first() -> None:
    window = BalanceWindow(2, 3)
    assert window.rows.shape == (0, 2)
    joined = [window.join(torch.tensor([[share, 1 - share]] * 2)) for share in (0.25, 0.5)]
    assert [rows[:, 0].tolist() for rows in joined] == [[0.25, 0.25], [0.5, 0.5, 0.25]]
    assert window.rows[:, 0].tolist() == [0.5, 0.5, 0.25]


def test_a_window_is_saved_with_the_model() -> None:
    window, other = BalanceWindow(2, 4), BalanceWindow(2, 4)
    window.join(torch.tensor([[0.9, 0.1]]))
    other.load_state_dict(window.state_dict())
    batch = torch.tensor([[0.2, 0.8]])
    torch.testing.assert_close(other.join(batch), window.join(batch))
