"""From gate logits to routing weights, and the context all routed layers of a model share."""

import copy
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from moe.experts.routed_lora import routed_layers
from moe.routing.doubt import doubt
from moe.routing.weights import CERTAINTY, PROBABILITY, Routing, RoutingWeights, one_hot, top_k_weights
from tests.toys.models import toy_mixture

LOGITS = torch.log(torch.tensor([[0.5, 0.3, 0.2], [0.1, 0.1, 0.8]]))


def test_the_top_k_are_kept_and_renormalised_by_hand() -> None:
    routed, probabilities = top_k_weights(LOGITS, 2)
    torch.testing.assert_close(probabilities, LOGITS.exp())
    torch.testing.assert_close(routed.weights[0], torch.tensor([0.625, 0.375, 0.0]))
    assert routed.top_k == 2


@given(st.integers(1, 6), st.integers(1, 7), st.integers(0, 10**6), st.sampled_from([0.5, 1.0, 3.0]))
def test_rows_sum_to_one_with_at_most_k_experts(n_experts: int, top_k: int, seed: int, temperature: float) -> None:
    logits = torch.randn(5, n_experts, generator=torch.Generator().manual_seed(seed)) * 4
    routed, probabilities = top_k_weights(logits, top_k, temperature)
    torch.testing.assert_close(routed.weights.sum(1), torch.ones(5))
    assert routed.top_k == min(top_k, n_experts) and ((routed.weights > 0).sum(1) <= routed.top_k).all()
    assert (routed.weights.argmax(1) == logits.argmax(1)).all()
    indices, values = routed.selected()
    torch.testing.assert_close(torch.zeros(5, n_experts).scatter(1, indices, values), routed.weights)
    torch.testing.assert_close(probabilities, torch.softmax(logits / temperature, -1))


def test_at_top_1_the_renormalised_weight_is_a_constant() -> None:
    weights, probabilities = top_k_weights(torch.randn(64, 5, requires_grad=True), 1)
    assert not weights.weights.requires_grad and weights.weights.sort(1).values.unique(dim=0).tolist() == [
        [0.0, 0.0, 0.0, 0.0, 1.0]
    ]
    assert probabilities.requires_grad and torch.equal(weights.weights.argmax(1), probabilities.argmax(1))


def test_at_top_1_a_probability_teaches_the_gate() -> None:
    """Switch's weight is the probability p, whose derivative by its own logit is p (1 - p) (Fedus et al. 2021, eq. 2)."""
    logits = torch.tensor([[math.log(3.0), 0.0]], requires_grad=True)
    weights, probabilities = top_k_weights(logits, 1, scaling=PROBABILITY)
    weights.selected()[1].sum().backward()
    assert probabilities[0].tolist() == pytest.approx([0.75, 0.25]) and weights.weights[0].tolist() == pytest.approx([0.75, 0.0])
    assert weights.shares().tolist() == [[1.0, 0.0]]
    assert logits.grad[0].tolist() == pytest.approx([0.75 * 0.25, -0.75 * 0.25])


def test_doubt_by_hand() -> None:
    """Two of four experts alike have half the entropy of all four alike; one expert alone leaves no doubt."""
    rows = torch.tensor([[0.25, 0.25, 0.25, 0.25], [0.5, 0.5, 0.0, 0.0], [0.0, 1.0, 0.0, 0.0]])
    torch.testing.assert_close(doubt(rows), torch.tensor([1.0, 0.5, 0.0]))
    assert doubt(torch.ones(2, 1)).tolist() == [0.0, 0.0]


@given(st.integers(1, 6), st.integers(1, 7), st.integers(0, 10**6), st.sampled_from([0.1, 4.0, 1e4]))
def test_certainty_scales_the_renormalised_weights(n_experts: int, top_k: int, seed: int, spread: float) -> None:
    logits = (torch.randn(5, n_experts, generator=torch.Generator().manual_seed(seed)) * spread).requires_grad_(True)
    scaled, probabilities = top_k_weights(logits, top_k, scaling=CERTAINTY)
    usual = top_k_weights(logits, top_k)[0].weights
    torch.testing.assert_close(scaled.weights, usual * (1 - doubt(probabilities)[:, None]))
    assert (scaled.weights >= 0).all() and (scaled.weights.sum(1) < 1 + 1e-5).all()
    scaled.weights.sum().backward()
    assert logits.grad is None or logits.grad.isfinite().all()


def test_selected_weights_carry_the_gates_gradient() -> None:
    logits = LOGITS.clone().requires_grad_(True)
    indices, values = top_k_weights(logits, 2)[0].selected()
    values[0, 0].backward()
    p, q = 0.625, 0.375
    torch.testing.assert_close(logits.grad[0], torch.tensor([p * q, -p * q, 0.0]))


def test_rows_expand_as_beams_lie() -> None:
    routing = Routing()
    with routing.use(one_hot(torch.tensor([2, 0]), 3)):
        assert routing.rows(6).weights.argmax(1).tolist() == [2, 2, 2, 0, 0, 0]
        assert routing.rows(2).weights.argmax(1).tolist() == [2, 0]
        assert routing.rows(6) is routing.rows(6)


def test_rows_that_are_no_multiple_are_refused() -> None:
    routing = Routing()
    with (
        routing.use(one_hot(torch.tensor([0, 1]), 2)),
        pytest.raises(ValueError, match="2 utterances were routed, a layer sees 3 rows"),
    ):
        routing.rows(3)


def test_the_context_ends_with_its_block_even_by_an_error() -> None:
    routing, weights = Routing(), one_hot(torch.tensor([0]), 2)
    with pytest.raises(KeyError), routing.use(weights):
        raise KeyError
    assert routing.snapshot() == (False, None)
    with routing.use(weights):
        with routing.use(None):
            assert routing.snapshot() == (True, None)
        assert routing.snapshot() == (True, weights)


def test_new_weights_do_not_meet_old_expansions() -> None:
    routing = Routing()
    for expert in (0, 1):
        with routing.use(one_hot(torch.tensor([expert]), 2)):
            assert routing.rows(4).weights.argmax(1).tolist() == [expert] * 4


def test_a_snapshot_comes_back_with_its_own_expansions() -> None:
    routing, first = Routing(), one_hot(torch.tensor([0]), 2)
    with routing.use(first):
        snapshot = routing.snapshot()
        routing.rows(3)
    with routing.use(one_hot(torch.tensor([1]), 2)):
        routing.rows(3)
        with routing.restore(snapshot):
            assert routing.rows(3).weights.argmax(1).tolist() == [0, 0, 0]
        assert routing.rows(3).weights.argmax(1).tolist() == [1, 1, 1]


def test_the_layers_of_a_copied_model_share_one_context_of_their_own() -> None:
    model = toy_mixture()
    twin = copy.deepcopy(model)
    contexts = {id(layer.routing) for _, layer in routed_layers(twin.base)}
    assert contexts == {id(twin.routing)} and twin.routing is not model.routing
    with model.routing.use(RoutingWeights(torch.eye(4), 1)):
        assert twin.routing.snapshot() == (False, None)
