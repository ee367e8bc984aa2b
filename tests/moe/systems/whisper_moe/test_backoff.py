"""Backing off: of the routed hypothesis and the shared adapter's the likelier counts."""

import dataclasses
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from moe.recognition.decoding import decode
from moe.routing.expert_dropout import without_some
from moe.routing.options import RoutingOptions
from moe.routing.weights import RoutingWeights
from moe.system import DecodingOptions, Hypothesis
from moe.systems.whisper_moe.asks import FixedRouting
from moe.systems.whisper_moe.backoff import BACKED_OFF, likelier
from moe.systems.whisper_moe.mixture_system import WhisperMoESystem
from moe.systems.whisper_moe.model import WhisperMoE
from tests.toys.models import ALL_LINEARS, N_EXPERTS, adapter_options, inputs, system_of, toy_mixture

MEL, N_FRAMES, LABELS = inputs()


@pytest.fixture(scope="module")
def system() -> WhisperMoESystem:
    found = system_of(toy_mixture(adapters=adapter_options(ALL_LINEARS)))
    assert isinstance(found, WhisperMoESystem)
    return found


def said(text: str, logprob: float) -> Hypothesis:
    return Hypothesis("u", text, np.array([0.7, 0.3]), mean_logprob=logprob, n_tokens=2, details={"words": [text]})


@pytest.mark.parametrize(
    ("routed", "alone", "text"),
    [
        (-0.2, -0.1, "alone"),
        (-0.1, -0.2, "routed"),
        (-0.1, -0.1, "routed"),
        (math.nan, -0.1, "routed"),
        (-0.1, math.nan, "routed"),
    ],
)
def test_the_likelier_counts_and_the_routed_one_where_they_tie(routed: float, alone: float, text: str) -> None:
    other = dataclasses.replace(said("alone", alone), routing_weights=np.zeros(2))
    found = likelier(said("routed", routed), other)
    assert (found.text, found.details) == (text, {"words": [text], BACKED_OFF: float(text == "alone")})
    assert found.routing_weights.tolist() == [0.7, 0.3], "what the gate chose"


def test_every_utterance_has_the_larger_of_two_probabilities(data, system) -> None:
    asks = system.ask_type(), FixedRouting(weights=(0.0,) * N_EXPERTS), system.ask_type(backoff=1.0)
    routed, alone, found = (decode(system, data, DecodingOptions(), ask) for ask in asks)
    for one, other, kept in zip(routed, alone, found, strict=True):
        is_off = other.mean_logprob > one.mean_logprob
        assert kept.text == (other if is_off else one).text and kept.details[BACKED_OFF] == is_off
        assert kept.mean_logprob == max(one.mean_logprob, other.mean_logprob)
        np.testing.assert_array_equal(kept.routing_weights, one.routing_weights)
    shares = {each.details[BACKED_OFF] for each in found}
    assert shares == {0.0, 1.0}, "both occur among the toys, or nothing is tested"


def test_words_and_losses_are_those_of_what_is_kept(data, system) -> None:
    options = DecodingOptions(word_times=True)
    found = decode(system, data, options, system.ask_type(backoff=1.0), with_loss=True)
    alone = decode(system, data, options, FixedRouting(weights=(0.0,) * N_EXPERTS), with_loss=True)
    off = [pair for pair in zip(found, alone, strict=True) if pair[0].details[BACKED_OFF]]
    assert off
    for kept, other in off:
        assert kept.details["words"] == other.details["words"] and kept.utterance_loss == other.utterance_loss


def test_it_is_refused_where_there_is_nothing_to_back_off_to() -> None:
    bare = system_of(toy_mixture(adapters=adapter_options(shared_expert=False)))
    bare.check(bare.ask_type())
    with pytest.raises(ValueError, match="^backoff=1: trained with shared_expert=false, the model has no shared adapter"):
        bare.check(bare.ask_type(backoff=1.0))


def test_what_is_said_surely_is_decoded_once(data, system, monkeypatch) -> None:
    """The less sure half goes through the decoder again."""
    routed, alone = (
        decode(system, data, DecodingOptions(), ask) for ask in (system.ask_type(), FixedRouting(weights=(0.0,) * N_EXPERTS))
    )
    threshold = math.exp(np.median([each.mean_logprob for each in routed]))
    seen: list[int] = []
    encode = WhisperMoE.encode
    monkeypatch.setattr(WhisperMoE, "encode", lambda model, each: seen.append(len(each.hidden)) or encode(model, each))
    found = decode(system, data, DecodingOptions(), system.ask_type(backoff=threshold))
    for one, other, kept in zip(routed, alone, found, strict=True):
        expected = other if one.mean_logprob < math.log(threshold) and other.mean_logprob > one.mean_logprob else one
        assert kept.text == expected.text and kept.mean_logprob == pytest.approx(expected.mean_logprob, abs=1e-5)
    assert sum(seen) == len(routed) + sum(math.exp(each.mean_logprob) < threshold for each in routed) < 2 * len(routed)


# --- expert_dropout, which teaches the shared adapter to stand alone


def in_epoch(model: WhisperMoE, epoch: int) -> WhisperMoE:
    model.phase = dataclasses.replace(model.phase, draws=f"0/{epoch}")
    return model


def losses(model: WhisperMoE, weights: torch.Tensor | None = None) -> torch.Tensor:
    """Of three utterances, (3,)."""
    found: torch.Tensor = model(MEL, N_FRAMES, LABELS, routing_weights=weights)["utterance_loss"]
    return found


@pytest.mark.parametrize("routed_by", ["weights", "gate"])
@torch.no_grad()
def test_in_training_an_utterance_has_its_experts_or_the_shared_adapter_alone(routed_by: str) -> None:
    """Both where weights are given, as in the experts' stage, and where the gate decides."""
    model = toy_mixture(adapters=adapter_options(ALL_LINEARS), routing=RoutingOptions(expert_dropout=0.5))
    weights = torch.eye(N_EXPERTS)[[2, 0, 3]] if routed_by == "weights" else None
    routed, alone = losses(model, weights), losses(model, torch.zeros(3, N_EXPERTS))
    assert (routed - alone).abs().min() > 1e-3
    model.train().base.eval()  # the base's own dropout off
    rows = torch.stack([losses(in_epoch(model, epoch), weights) for epoch in range(40)])  # (40, 3)
    dropped = (rows - alone).abs() < (rows - routed).abs()
    torch.testing.assert_close(rows, alone.where(dropped, routed), atol=1e-4, rtol=0)
    assert 0.3 < dropped.float().mean() < 0.7 and len(dropped.unique(dim=0)) > 4, "each utterance by itself, anew in each epoch"
    model.eval()
    assert torch.equal(losses(model, weights), routed), "never in decoding"


def test_a_dropped_utterance_teaches_the_shared_adapter_and_no_expert() -> None:
    model = toy_mixture(adapters=adapter_options(ALL_LINEARS), routing=RoutingOptions(expert_dropout=0.9)).train()
    ones = RoutingWeights(torch.ones(3, N_EXPERTS), N_EXPERTS)
    dropped = [epoch for epoch in range(20) if not without_some(ones, 0.9, f"0/{epoch}", ["0", "1", "2"]).weights.any()]
    in_epoch(model, dropped[0])(MEL, N_FRAMES, LABELS, routing_weights=torch.eye(N_EXPERTS)[[2, 0, 3]])["loss"].backward()
    found = {name: parameter.grad for name, parameter in model.trainable_parameters().items() if parameter.grad is not None}
    assert all(not grad.any() for name, grad in found.items() if name.endswith((".lora_A", ".lora_B")))
    assert any(grad.any() for name, grad in found.items() if name.endswith(".shared_B"))


def test_nothing_is_drawn_from_the_generator_of_the_training() -> None:
    """So that the base's own dropout is the same with it and without."""
    model = toy_mixture(adapters=adapter_options(ALL_LINEARS), routing=RoutingOptions(expert_dropout=0.5)).train()
    model.base.eval()  # the base's own dropout off
    before = torch.get_rng_state()
    losses(model)
    assert torch.equal(torch.get_rng_state(), before)


IDS = [f"u{number}" for number in range(400)]


def kept(share: float, draws: str, ids: list[str] = IDS) -> torch.Tensor:
    """Whether each utterance keeps its experts, (B,)."""
    return without_some(RoutingWeights(torch.ones(len(ids), 1), 1), share, draws, ids).weights[:, 0] > 0


@settings(deadline=None)
@given(share=st.floats(0, 0.9), seed=st.integers(0, 99), epoch=st.integers(0, 99), cut=st.integers(1, 399))
def test_what_is_drawn_follows_from_seed_epoch_and_utterance(share: float, seed: int, epoch: int, cut: int) -> None:
    """So any number of processes draws the same, in any order; six standard errors of 400 are 0.15."""
    drawn = kept(share, f"{seed}/{epoch}")
    assert torch.equal(drawn, torch.cat([kept(share, f"{seed}/{epoch}", ids) for ids in (IDS[:cut], IDS[cut:])]))
    assert abs(drawn.float().mean() - (1 - share)) <= 6 * (0.25 / len(IDS)) ** 0.5
    if share > 0.1:
        assert not torch.equal(drawn, kept(share, f"{seed}/{epoch + 1}")) and not torch.equal(
            drawn, kept(share, f"{seed + 1}/{epoch}")
        )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"expert_dropout": 0.5, "mixing": "loss"},
            "expert_dropout=0.5 with mixing=loss: losses are mixed only where there are experts",
        ),
        ({"expert_dropout": 1.0}, "expert_dropout=1"),
    ],
)
def test_what_it_cannot_go_with_is_refused(options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        RoutingOptions(**options)
