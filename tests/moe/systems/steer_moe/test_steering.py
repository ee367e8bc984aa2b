"""Steering against cases worked by hand, and what leaves a frame as it is."""

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from moe.systems.steer_moe.encoder import SteeredEncoder
from moe.systems.steer_moe.options import SteeringOptions
from moe.systems.steer_moe.steering import OFF, SHUFFLED, UNIFORM, LayerPass, Steering, balance_loss, use_sums
from moe.systems.whisper.encoder import encode
from tests.toys.models import inputs, toy_base

VALID = torch.tensor([[True, True, False]])


def steering(layers: tuple[int, ...] = (1,), width: int = 2, **options) -> Steering:
    torch.manual_seed(0)
    return Steering(layers, width, SteeringOptions(**{"steer_experts": 2} | options))


def by_hand(**options) -> tuple[Steering, Tensor]:
    """Two experts in two dimensions whose routers give e and 1 for the frame (1, 0): weights e/(e+1) and 1/(e+1)."""
    made = steering(steering_scale=0.5, **options)
    with torch.no_grad():
        made.routers.copy_(torch.tensor([[[1.0, 0.0], [0.0, 1.0]]]))
        made.vectors.copy_(torch.tensor([[[2.0, 0.0], [0.0, 4.0]]]))
    return made, torch.tensor([[[1.0, 0.0], [0.0, 1.0], [0.0, 0.0]]])


def test_a_frame_is_moved_by_the_scaled_mixture_of_its_layers_vectors() -> None:
    made, frames = by_hand()
    more = math.e / (math.e + 1)
    wanted = [[1 + 0.5 * 2 * more, 0.5 * 4 * (1 - more)], [0.5 * 2 * (1 - more), 1 + 0.5 * 4 * more], [0.5, 1.0]]
    torch.testing.assert_close(made(1, frames, VALID)[0], torch.tensor(wanted))


def test_an_utterance_has_one_decision_of_the_mean_of_its_valid_frames() -> None:
    made, frames = by_hand(steering_unit="utterance")
    moved = made(1, frames, VALID)[0] - frames[0]  # the mean is (½, ½), so both weigh ½
    torch.testing.assert_close(moved, torch.tensor([[0.5, 1.0]]).expand(3, 2))


def test_of_the_top_k_the_weights_add_up_to_one_and_the_others_are_nothing() -> None:
    made, frames = by_hand(steering_top_k=1)
    torch.testing.assert_close(made.weights(0, frames, VALID)[0, :2], torch.eye(2))


def test_other_routings_are_what_they_are_called() -> None:
    made, frames = by_hand()
    assert torch.equal(made(1, frames, VALID, OFF), frames) and torch.equal(made(2, frames, VALID), frames)
    torch.testing.assert_close(made(1, frames, VALID, UNIFORM) - frames, torch.tensor([[[0.5, 1.0]]]).expand(1, 3, 2))
    longer, valid = torch.randn(1, 9, 2, generator=torch.Generator().manual_seed(1)), torch.arange(9)[None] < 7
    usual, moved = made.weights(0, longer, valid), made.weights(0, longer, valid, SHUFFLED)
    assert not torch.equal(usual, moved) and torch.equal(usual[0, 7:], moved[0, 7:])
    torch.testing.assert_close(usual[0, :7].sort(0).values, moved[0, :7].sort(0).values)


def test_one_expert_is_a_bias_and_has_no_router() -> None:
    made = steering(steer_experts=1, steering_scale=0.3)
    frames = torch.randn(2, 4, 2)
    assert made.routers is None
    torch.testing.assert_close(made(1, frames, torch.ones(2, 4, dtype=torch.bool)), frames + 0.3 * made.vectors[0, 0])


def test_scales_that_are_not_learnt_stay_and_are_no_parameter() -> None:
    made = steering(use_layer_scales=False)
    assert {name for name, _ in made.named_parameters()} == {"vectors", "routers"} and made.scales.tolist() == [
        pytest.approx(0.1)
    ]


def test_an_encoder_steered_by_zeros_is_the_plain_encoder_to_the_bit() -> None:
    mel, n_frames, _ = inputs()
    base = toy_base().model.model.encoder
    made = Steering((1, 2), 32, SteeringOptions(steering_std=0.0))
    with torch.no_grad():
        assert torch.equal(SteeredEncoder(base, made).eval()(mel, n_frames)[0], encode(base, mel))


def test_only_the_layers_asked_for_are_steered_and_backward_ends_at_the_lowest() -> None:
    mel, n_frames, _ = inputs()
    encoder = SteeredEncoder(toy_base().model.model.encoder, steering((2,), 32)).eval()
    left: list[bool] = []
    for layer in encoder.encoder.layers:
        layer.register_forward_hook(lambda _, __, output: left.append(output.requires_grad))
    states, _ = encoder(mel, n_frames)
    assert left == [False, False] and states.requires_grad  # what leaves layer 2 is steered after it


def test_each_layer_asks_its_own_router_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """The original computed the outputs of all layers' routers at every layer."""
    made, asked, linear = steering((1, 2), 32), [], torch.nn.functional.linear
    monkeypatch.setattr("moe.systems.steer_moe.steering.F.linear", lambda *given: asked.append(given[1]) or linear(*given))
    hidden, valid = torch.randn(1, 3, 32), torch.ones(1, 3, dtype=torch.bool)
    for layer in (1, 2):
        made(layer, hidden, valid)
    assert [each.shape for each in asked] == [(2, 32)] * 2
    assert all(torch.equal(each, router) for each, router in zip(asked, made.routers, strict=True))


@pytest.mark.parametrize("layers", ["3", "0,1", "1,x"])
def test_layers_that_the_encoder_lacks_are_refused(layers: str) -> None:
    with pytest.raises(ValueError, match="steering_layers"):
        SteeringOptions(steering_layers=layers).layers(2)


def test_use_counts_valid_frames_alone_and_balance_is_zero_where_it_is_even() -> None:
    weights = torch.tensor([[[1.0, 0.0], [0.5, 0.5], [0.0, 1.0]]])  # the last frame is no audio
    passes = [LayerPass(weights, VALID.float())]
    assert use_sums(passes, VALID).tolist() == [[1.5, 0.5]]
    wanted = 0.5 * math.log(0.5 / 0.75) + 0.5 * math.log(0.5 / 0.25)
    assert float(balance_loss(use_sums(passes, VALID))) == pytest.approx(wanted)
    even = [LayerPass(torch.full((1, 3, 2), 0.5), VALID.float())]
    assert float(balance_loss(use_sums(even, VALID))) == pytest.approx(0.0, abs=1e-7)


def test_balance_is_asked_of_all_batches_of_an_update_and_each_learns_by_its_own_mean() -> None:
    """Worked by hand: what this batch uses too much, the one before used too little, so together they are even."""
    weights = torch.tensor([[[0.5, 0.5], [0.9, 0.1], [0.0, 1.0]]], requires_grad=True)  # the last frame is no audio
    loss = balance_loss(use_sums([LayerPass(weights, VALID.float())], VALID), torch.tensor([[0.1, 0.9]]))
    loss.backward()
    assert float(loss.detach()) == pytest.approx(0.0, abs=1e-6) and weights.grad is not None
    slope = -1 / (2 * 0.5)  # of −½ Σ log(2 m_e) where both m_e are a half
    wanted = torch.full((1, 3, 2), slope / 2) * VALID[:, :, None]  # a frame is half of the batch's mean
    torch.testing.assert_close(weights.grad, wanted)


def test_what_is_not_audio_changes_nothing_of_the_audio_prompt() -> None:
    made = steering((1, 2), 32, steering_unit="utterance")
    encoder, (mel, n_frames, _) = SteeredEncoder(toy_base().model.model.encoder, made).eval(), inputs()
    hidden = torch.randn(3, 50, 32)
    valid = encoder(mel, n_frames)[1]
    changed = torch.where(valid[:, :, None], hidden, torch.randn(3, 50, 32))
    np.testing.assert_array_equal(valid.sum(1), (n_frames + 1) // 2)
    torch.testing.assert_close(made.weights(0, hidden, valid), made.weights(0, changed, valid))
