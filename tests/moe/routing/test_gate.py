"""The gate: its logits by hand, its statistics, its form on disk, and the metrics by which it is judged."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from moe.routing.gate import Gate, GateConfig
from moe.routing.gate_metrics import calibration_error, cross_calibrated, fitted_temperature, gate_metrics, kl_divergence


def test_a_linear_gate_is_softmax_regression_on_z_scores() -> None:
    gate = Gate(GateConfig(input_dim=2, n_experts=3, temperature=2.0))
    gate.set_statistics(torch.tensor([[1.0, 5.0], [3.0, 5.0]]))  # means 2 and 5, scales 1 and, constant, 1
    weight, bias = gate.output.weight.detach(), gate.output.bias.detach()
    expected = (weight @ torch.tensor([2.0, -1.0]) + bias) / 2
    torch.testing.assert_close(gate(torch.tensor([[4.0, 4.0]]))[0].detach(), expected)


def test_statistics_are_no_parameters_but_are_saved() -> None:
    gate = Gate(GateConfig(4, 3, hidden=5))
    names = {name for name, _ in gate.named_parameters()}
    assert names == {"hidden.weight", "hidden.bias", "output.weight", "output.bias"}
    assert set(gate.state_dict()) == names | {"mean", "scale"}


def test_same_seed_same_weights_and_the_global_generator_untouched() -> None:
    state = torch.random.get_rng_state()
    first, again, other = (Gate(GateConfig(6, 3, hidden=4), seed) for seed in (1, 1, 2))
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), again.parameters(), strict=True))
    assert not torch.equal(first.output.weight, other.output.weight)
    assert torch.equal(torch.random.get_rng_state(), state)


@pytest.mark.parametrize("hidden", [0, 7])
def test_a_gate_read_from_disk_routes_as_before(tmp_path, hidden: int) -> None:
    gate = Gate(GateConfig(5, 4, hidden, dropout=0.3), seed=3).eval()
    embeddings = torch.randn(20, 5, generator=torch.Generator().manual_seed(0))
    gate.set_statistics(embeddings)
    gate.set_temperature(1.7)
    gate.save(tmp_path / "gate")
    loaded = Gate.load(tmp_path / "gate")
    assert loaded.gate_config == gate.gate_config and not loaded.training
    assert torch.equal(loaded(embeddings), gate(embeddings))
    assert {file.suffix for file in (tmp_path / "gate").iterdir()} == {".safetensors", ".json"}


@pytest.mark.parametrize("hidden", [0, 7])
def test_where_experts_were_merged_their_probabilities_are_summed(tmp_path, hidden: int) -> None:
    gate = Gate(GateConfig(5, 4, hidden, temperature=1.7), seed=3).eval()
    embeddings = torch.randn(20, 5, generator=torch.Generator().manual_seed(0))
    joined = gate.joined([0, 1, 0, 2])
    classes = torch.softmax(gate(embeddings), -1)
    expected = torch.stack([classes[:, 0] + classes[:, 2], classes[:, 1], classes[:, 3]], 1)
    torch.testing.assert_close(torch.softmax(joined(embeddings), -1), expected)
    assert (joined.gate_config.n_experts, joined.gate_config.n_classes) == (3, 4) and gate.gate_config.expert_of_class is None
    joined.save(tmp_path / "gate")
    loaded = Gate.load(tmp_path / "gate")
    assert loaded.gate_config == joined.gate_config and torch.equal(loaded(embeddings), joined(embeddings))
    again = loaded.joined([0, 1, 1])
    torch.testing.assert_close(torch.softmax(again(embeddings), -1)[:, 1], expected[:, 1] + expected[:, 2])
    assert again.gate_config.expert_of_class == (0, 1, 0, 1)


def test_a_joined_gate_learns_in_every_class() -> None:
    gate = Gate(GateConfig(5, 3), seed=3).joined([0, 1, 1])
    torch.nn.functional.cross_entropy(gate(torch.randn(6, 5)), torch.tensor([0, 1] * 3)).backward()
    assert gate.output.weight.grad is not None and (gate.output.weight.grad.abs().sum(1) > 0).all()


def test_a_folder_without_a_gate_is_refused(tmp_path) -> None:
    with pytest.raises(ValueError, match=r"no gate there, gate.safetensors and gate.json missing"):
        Gate.load(tmp_path)


def test_kl_by_hand() -> None:
    logits = torch.tensor([[0.0, 0.0], [math.log(3.0), 0.0]], dtype=torch.float64)
    targets = torch.tensor([[1.0, 0.0], [0.75, 0.25]], dtype=torch.float64)
    assert float(kl_divergence(logits, targets)) == pytest.approx(math.log(2) / 2)  # ln 2 and 0


def test_accuracies_by_hand() -> None:
    targets = torch.tensor([[0.6, 0.4, 0.0], [0.1, 0.8, 0.1], [0.2, 0.2, 0.6], [1.0, 0.0, 0.0]])
    logits = torch.tensor([[3.0, 2.0, 1.0], [3.0, 2.0, 1.0], [3.0, 2.0, 1.0], [3.0, 2.0, 1.0]])
    metrics = gate_metrics(logits, targets, top_k=2)
    assert metrics["accuracy"] == 0.5 and metrics["top_k_accuracy"] == 0.75
    assert gate_metrics(logits, targets, top_k=3)["top_k_accuracy"] == 1.0


def test_calibration_error_by_hand() -> None:
    sure = math.log(0.9 / 0.1)
    logits = torch.tensor([[sure, 0.0]] * 4 + [[0.0, math.log(0.6 / 0.4)]] * 2, dtype=torch.float64)
    labels = torch.tensor([0, 0, 0, 1, 1, 1])  # sure of 0.9, right in 3 of 4; sure of 0.6, right in 2 of 2
    assert calibration_error(logits, labels) == pytest.approx((4 * 0.15 + 2 * 0.4) / 6)


@settings(max_examples=20)
@given(scale=st.floats(0.5, 4.0), seed=st.integers(0, 99))
def test_the_temperature_of_made_up_confidence_is_found(scale: float, seed: int) -> None:
    """Labels are drawn from softmax(logits); a gate that says `scale` times the logits needs the temperature `scale`."""
    rng = np.random.default_rng(seed)
    logits = rng.normal(size=(8000, 4)) * 2
    probabilities = torch.softmax(torch.from_numpy(logits), dim=-1).numpy()
    labels = torch.from_numpy((probabilities.cumsum(axis=1) < rng.random((8000, 1))).sum(axis=1).clip(max=3))
    assert fitted_temperature(torch.from_numpy(logits * scale), labels) == pytest.approx(scale, rel=0.1)


def test_a_gate_that_is_always_right_is_not_made_infinitely_sure() -> None:
    assert fitted_temperature(torch.eye(3).repeat(5, 1) * 4, torch.arange(3).repeat(5)) == pytest.approx(0.25, rel=0.05)


def test_each_half_is_calibrated_by_the_temperature_of_the_other() -> None:
    generator = torch.Generator().manual_seed(0)
    logits, labels = torch.randn(60, 3, generator=generator) * 4, torch.arange(60) % 3
    half = torch.arange(60) < 20
    found = cross_calibrated(logits, labels, half)
    ours, theirs = (fitted_temperature(logits[side], labels[side]) for side in (half, ~half))
    assert torch.allclose(found[half], logits[half].double() / theirs) and torch.allclose(
        found[~half], logits[~half].double() / ours
    )
    assert torch.equal(cross_calibrated(logits, labels, half | True), logits.double())  # one speaker: nothing to fit on
