"""The curriculum's phase follows from the epoch."""

import pytest

from moe.routing.curriculum import CurriculumOptions, Phase, phase
from moe.routing.weights import top_k_weights
from tests.toys.models import N_EXPERTS, inputs, toy_mixture


def test_phases_by_hand() -> None:
    """Pitfall 3: the curriculum never advanced, so that every expert ran on every batch."""
    options = CurriculumOptions(soft_epochs=2, temperature_start=3.0, router_noise=0.5)
    assert [phase(options, epoch, 2, 8) for epoch in range(4)] == [
        Phase(8, 3.0, 0.5, "soft"),
        Phase(8, 2.0, 0.5, "soft"),
        Phase(2, 1.0, 0.5, "top_k"),
        Phase(2, 1.0, 0.5, "top_k"),
    ]


def test_without_soft_epochs_it_is_top_k_from_the_start() -> None:
    assert phase(CurriculumOptions(), 0, 2, 8) == Phase(2)
    assert phase(CurriculumOptions(), 0, 5, 3).top_k == 3


def test_the_phase_decides_how_many_experts_an_utterance_gets() -> None:
    """Pitfall 3 again, where it counts: in the model."""
    model, (mel, n_frames, _) = toy_mixture(), inputs()
    options, used = CurriculumOptions(soft_epochs=1), []
    for epoch in range(2):
        model.phase = phase(options, epoch, 2, N_EXPERTS)
        used.append((model.route(mel, n_frames).weights.weights > 0).sum(1).tolist())
    assert used == [[N_EXPERTS] * 3, [2] * 3]


def test_a_higher_temperature_is_flatter() -> None:
    model, (mel, n_frames, _) = toy_mixture(), inputs()
    logits = model.route(mel, n_frames).gate_logits
    sharp, flat = (top_k_weights(logits, N_EXPERTS, temperature)[1].max(1).values for temperature in (1.0, 4.0))
    assert (flat < sharp).all()


def test_a_temperature_that_no_epoch_would_use_is_refused() -> None:
    with pytest.raises(ValueError, match="temperature_start=3 has no effect without soft_epochs"):
        CurriculumOptions(temperature_start=3.0)


def test_a_temperature_below_one_or_negative_epochs_are_refused() -> None:
    with pytest.raises(ValueError, match="soft_epochs=-1.*temperature_start=0.5"):
        CurriculumOptions(soft_epochs=-1, temperature_start=0.5)
