"""Gate training on toys: it learns, repeats itself bit for bit, restores its best epoch and refuses what it cannot learn from."""

import dataclasses
import math

import numpy as np
import pytest
import torch

from moe.routing import gate_training
from moe.routing.gate_training import GateOptions, GateResult, train_gate
from moe.training.checkpoints import CheckpointOptions, Checkpoints, TrainingEvents

N_EXPERTS = 4
QUICK = GateOptions(gating_epochs=6)


def split(n: int, seed: int, noise: float = 1.0) -> tuple[np.ndarray, np.ndarray]:
    """Embeddings (n, 10) about four centres, and soft labels that favour the centre."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(N_EXPERTS, size=n)
    centres = np.random.default_rng(99).normal(size=(N_EXPERTS, 10)) * 2
    embeddings = centres[labels] + rng.normal(size=(n, 10)) * noise
    return embeddings * 50 + 300, 0.9 * np.eye(N_EXPERTS)[labels] + 0.1 / N_EXPERTS


def trained(options: GateOptions = QUICK, noise: float = 1.0, **keywords: object) -> GateResult:
    return train_gate(*split(400, 0, noise), *split(200, 1, noise), options, **keywords)


def test_the_gate_learns_the_clusters() -> None:
    """Pitfall 16: the gate took six minutes re-reading files; from one matrix it takes seconds."""
    metrics = trained(GateOptions(gating_epochs=30)).metrics
    assert metrics["dev/accuracy"] >= 0.97 and metrics["dev/top_k_accuracy"] >= metrics["dev/accuracy"]


@pytest.mark.parametrize("options", [QUICK, dataclasses.replace(QUICK, gating_hidden=8, gating_dropout=0.3)])
def test_training_twice_gives_the_same_bits(options: GateOptions) -> None:
    torch.rand(3)  # what the process drew before must not matter
    first = trained(options)
    torch.rand(5)
    again = trained(options)
    assert first.history == again.history and first.metrics == again.metrics
    assert all(torch.equal(a, b) for a, b in zip(first.gate.state_dict().values(), again.gate.state_dict().values(), strict=True))


def test_training_leaves_the_global_generator_as_it_was() -> None:
    state = torch.random.get_rng_state()
    trained(dataclasses.replace(QUICK, gating_epochs=1))
    assert torch.equal(torch.random.get_rng_state(), state)


def test_another_seed_gives_another_gate() -> None:
    assert trained().metrics != trained(dataclasses.replace(QUICK, seed=7)).metrics


def test_training_stops_early_and_restores_the_best_epoch() -> None:
    """Pitfall 12: the last weights were saved, not the best, and by a mixture of losses instead of a named metric."""
    options = GateOptions(gating_epochs=80, gating_learning_rate=0.1, gating_hidden=64, gating_patience=3, gate_calibration=False)
    result = trained(options, noise=6.0)
    kls = [epoch["dev/kl"] for epoch in result.history]
    assert result.selection_metric == "dev/kl"
    assert result.best_epoch == 1 + int(np.argmin(kls)) == len(kls) - 3 < 77
    assert result.metrics["dev/kl"] == pytest.approx(min(kls)) and result.metrics["dev/kl"] < kls[-1]


def test_each_epoch_is_reported() -> None:
    seen: list[tuple[int, dict[str, float]]] = []
    result = trained(report=lambda epoch, metrics: seen.append((epoch, metrics)))
    assert [epoch for epoch, _ in seen] == [1, 2, 3, 4, 5, 6]
    assert [{"epoch": epoch, **metrics} for epoch, metrics in seen] == result.history
    names = {"kl", "accuracy", "top_k_accuracy", "ece"}
    assert set(seen[0][1]) == {f"{part}/{name}" for part in ("train", "dev") for name in names}


def test_a_large_batch_size_leaves_no_small_corpus_untrained() -> None:
    few = train_gate(*split(32, 0), *split(20, 1), GateOptions(gating_epochs=3, gating_batch_size=4096))
    assert few.history[-1]["train/kl"] < 0.9 * few.history[0]["train/kl"]


def test_calibration_that_is_no_better_on_other_speakers_is_switched_off() -> None:
    """Two dev speakers whose gates should be sharp and flat: what is fitted on one is wrong for the other."""
    embeddings, soft = split(200, 1, 0.5)
    speakers = ["right", "wrong"] * 100
    for shift, is_kept in ((0, True), (1, False)):
        mixed = soft.copy()
        mixed[1::2] = np.roll(soft[1::2], shift, axis=0)  # labels of other utterances
        result = train_gate(*split(400, 0, 3.0), embeddings, mixed, GateOptions(gating_epochs=5), dev_speakers=speakers)
        assert (result.metrics["dev/ece_held_out"] < result.metrics["dev/ece_uncalibrated"]) == is_kept
        assert (result.metrics["temperature"] != 1.0) == is_kept and result.held_out.shape == (200, 4)


def test_an_update_whose_loss_is_not_finite_is_skipped_and_said_with_its_loss(monkeypatch: pytest.MonkeyPatch) -> None:
    plain, losses, said = gate_training.kl_divergence, list[float](), list[dict]()

    def spoilt(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        losses.append(math.nan if len(losses) == 3 else 1.0)
        return plain(logits, targets) * losses[-1]

    events = TrainingEvents()
    monkeypatch.setattr(events, "bad_updates", said.extend)
    monkeypatch.setattr(gate_training, "kl_divergence", spoilt)
    result = trained(QUICK, checkpoints=Checkpoints(None, CheckpointOptions(), events))
    assert [(record["update"], record["loss"]) for record in said] == [(4, "nan")]
    assert all(torch.isfinite(value).all() for value in result.gate.state_dict().values())


def test_calibration_keeps_the_choice_and_betters_confidence() -> None:
    options = GateOptions(gating_epochs=15, gating_learning_rate=0.05, gating_hidden=64, gating_patience=15)
    raw = trained(dataclasses.replace(options, gate_calibration=False), noise=3.0)
    fitted = trained(options, noise=3.0)
    assert fitted.metrics["temperature"] != 1.0 == raw.metrics["temperature"]
    assert fitted.metrics["dev/accuracy"] == raw.metrics["dev/accuracy"]
    assert fitted.metrics["dev/ece_uncalibrated"] == raw.metrics["dev/ece"]
    embeddings, soft = split(200, 1, 3.0)
    with torch.no_grad():
        losses = [
            float(torch.nn.functional.cross_entropy(result.gate(torch.tensor(embeddings)), torch.tensor(soft.argmax(axis=1))))
            for result in (raw, fitted)
        ]
    assert losses[1] < losses[0]


def test_label_smoothing_makes_the_gate_less_sure() -> None:
    def confidence(result: GateResult) -> float:
        with torch.no_grad():
            return float(torch.softmax(result.gate(torch.tensor(split(200, 1)[0])), dim=-1).max(dim=-1).values.mean())

    options = GateOptions(gating_epochs=10, gating_learning_rate=0.03, gate_calibration=False)
    smooth = dataclasses.replace(options, gating_label_smoothing=0.5)
    assert confidence(trained(smooth)) < confidence(trained(options)) - 0.1


@pytest.mark.parametrize(
    ("train", "dev", "options", "message"),
    [
        (split(20, 0), (np.zeros((0, 10)), np.zeros((0, 4))), QUICK, r"dev embeddings of shape \(0, 10\)"),
        (
            (split(20, 0)[0], split(19, 0)[1]),
            split(5, 1),
            QUICK,
            r"train embeddings of shape \(20, 10\) and soft labels of shape \(19, 4\)",
        ),
        ((split(20, 0)[0] * np.nan, split(20, 0)[1]), split(5, 1), QUICK, "train embeddings hold values that are not finite"),
        ((split(20, 0)[0], split(20, 0)[1] * 2), split(5, 1), QUICK, "train soft labels: each row"),
        (split(20, 0), (split(5, 1)[0][:, :9], split(5, 1)[1]), QUICK, "train and dev differ in dimensions"),
        (split(20, 0), split(5, 1), GateOptions(top_k=5), "top_k=5: must be at most the 4 experts"),
    ],
)
def test_what_cannot_be_learnt_from_is_refused(train, dev, options: GateOptions, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        train_gate(*train, *dev, options)
