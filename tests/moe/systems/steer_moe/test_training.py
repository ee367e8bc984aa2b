"""SteerMoE is trained at four rates, clipped apart, analysed, interrupted and stopped."""

from pathlib import Path

import jiwer
import pandas as pd
import pytest
import torch

from moe.recognition.decoding import decode
from moe.system import DecodingOptions
from moe.systems.steer_moe.measurements import Use, measures, warnings
from moe.systems.steer_moe.system import SteerSystem
from moe.systems.steer_moe.training import WARNING, SteerHooks, SteerTrainingOptions, TrainedSteer, clip_steering, train
from moe.training import loop
from moe.training.checkpoints import CheckpointOptions, Checkpoints
from moe.training.dataset import SpeechDataset
from moe.training.loop import seed_everything
from tests.toys.checkpoints import Recorded, killed_after
from tests.toys.models import write_corpus
from tests.toys.steer import RATES, toy_steer
from tests.toys.training import Notes, changed, plan, training, weights


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> tuple[pd.DataFrame, Path]:
    root = tmp_path_factory.mktemp("toy")
    return write_corpus(root, tuple(0.4 + 0.02 * (number * 7 % 5) for number in range(6))), root


def trained(
    system: SteerSystem, corpus, checkpoints: Checkpoints | None = None, report: Notes | None = None, epochs: int = 2, **options
) -> TrainedSteer:
    manifest, root = corpus
    given = SteerTrainingOptions(**{"steering_log_every": 2} | options)
    around = training(plan(epochs=epochs, batch_size=2, max_grad_norm=float("inf")), report, checkpoints)
    sets = SpeechDataset(manifest, root, system.inputs, trains=True), SpeechDataset(manifest.head(3), root, system.inputs)
    return train(system, *sets, given, around, dict(zip(manifest["utterance_id"], manifest["etiology"], strict=True)))


def test_four_groups_train_at_four_rates_each_logged_and_only_they_are_kept_in_checkpoints(
    corpus, tmp_path: Path, monkeypatch
) -> None:
    system, report, seen = toy_steer(tmp_path / "model"), Notes(), []
    begins = loop.SpeechTrainer.training_begins
    monkeypatch.setattr(loop.SpeechTrainer, "training_begins", lambda self: seen.append(self.optimizer) or begins(self))
    checkpoints = Checkpoints(tmp_path / "checkpoints", CheckpointOptions(save_every_n_updates=1), Recorded())
    trained(system, corpus, checkpoints, report, epochs=1)
    groups = {group["name"]: group for group in seen[0].param_groups}
    assert {name: group["initial_lr"] for name, group in groups.items()} == RATES
    assert {name: len(group["params"]) for name, group in groups.items()} == {
        "vectors": 1, "scales": 1, "routers": 1, "projector": 2,
    }  # fmt: skip
    logged = {name for _, values in report.reported for name in values if name.startswith("train/learning_rate/")}
    assert logged == {f"train/learning_rate/{name}" for name in RATES}
    kept = checkpoints.newest()
    assert kept is not None and set(kept.tensors["weights"]) == set(system.trained())


def test_a_gradient_of_100_reaches_the_optimizer_as_1_in_vectors_and_scales_alone(corpus, tmp_path: Path, monkeypatch) -> None:
    system, norms = toy_steer(tmp_path), []

    def planted(self, model):
        for parameter in system.trained().values():
            parameter.grad = torch.full_like(parameter, 100 / parameter.numel() ** 0.5)
        return torch.tensor(1.0)

    def step(self, *_, **__):
        steering = system.module.encoder.steering
        together = torch.cat([steering.vectors.grad.flatten(), steering.scales.grad]).norm()
        norms.append(
            [float(each) for each in (together, steering.routers.grad.norm(), system.module.prompt.projector.weight.grad.norm())]
        )

    monkeypatch.setattr(loop.SpeechTrainer, "_clip_grad_norm", planted)
    monkeypatch.setattr(torch.optim.AdamW, "step", step)
    trained(system, corpus, epochs=1)
    assert norms == [pytest.approx([1.0, 100.0, 100.0], rel=1e-4)] * 3


def test_what_an_update_gathers_is_balanced_together_and_no_two_updates_are(corpus, tmp_path: Path, monkeypatch) -> None:
    system, earlier = toy_steer(tmp_path, balance=0.5), []
    monkeypatch.setattr(
        "moe.systems.steer_moe.model.balance_loss",
        lambda sums, before: earlier.append(None if before is None else float(before[0].sum())) or sums.sum() * 0.0,
    )
    manifest, root = corpus
    sets = SpeechDataset(manifest, root, system.inputs, trains=True), SpeechDataset(manifest.head(3), root, system.inputs)
    around = training(plan(epochs=2, batch_size=1, accumulation=3, max_grad_norm=float("inf")))
    train(system, *sets, SteerTrainingOptions(), around, dict.fromkeys(manifest["utterance_id"], "als"))
    updates = [earlier[start : start + 3] for start in range(0, len(earlier), 3)]
    assert len(updates) == 4 and all(update[0] is None and 0 < update[1] < update[2] for update in updates)
    assert system.module.used is None


def test_a_small_gradient_and_one_without_clip_stay_as_they_are(tmp_path: Path) -> None:
    steering = toy_steer(tmp_path).module.encoder.steering
    for norm, size in ((1.0, 0.001), (0.0, 50.0)):
        for parameter in steering.parameters():
            parameter.grad = torch.full_like(parameter, size)
        clip_steering(steering, norm)
        assert all(torch.equal(each.grad, torch.full_like(each, size)) for each in steering.parameters())


@pytest.mark.parametrize("update", [1, 4])
def test_killed_anywhere_and_started_again_it_ends_with_the_same_bits(corpus, tmp_path: Path, monkeypatch, update: int) -> None:
    def run(folder: Path, checkpoints: Checkpoints) -> tuple[SteerSystem, TrainedSteer]:
        system = toy_steer(folder, steering_dropout=0.3)
        seed_everything(0)
        return system, trained(system, corpus, checkpoints)

    whole, wanted = run(tmp_path / "a", Checkpoints())
    every = CheckpointOptions(save_every_n_updates=1)
    with killed_after(update, monkeypatch):
        run(tmp_path / "b", Checkpoints(tmp_path / "kept", every, Recorded()))
    resumed, found = run(tmp_path / "c", Checkpoints(tmp_path / "kept", every, Recorded()))
    assert not changed(weights(whole.module), resumed.module)
    assert vars(found) | {"summary": None} == vars(wanted) | {"summary": None}


def test_it_stops_after_the_epochs_without_improvement_and_keeps_the_start_where_all_are_worse(
    corpus, tmp_path: Path, monkeypatch
) -> None:
    system, rates = toy_steer(tmp_path), iter([0.5, 0.6, 0.7, 0.8, 0.9])
    before = weights(system.module)
    monkeypatch.setattr(SteerHooks, "rate", lambda self, name, hypotheses: next(rates) if name == "cer" else 1.0)
    done = trained(system, corpus, epochs=9, steer_patience=2)
    assert len(done.history) == 2 and done.epoch is None and done.rate == 0.5 and not changed(before, system.module)


def test_without_epochs_nothing_trains_and_the_selection_is_jiwers_cer(corpus, tmp_path: Path) -> None:
    system, report = toy_steer(tmp_path), Notes()
    before = weights(system.module)
    done = trained(system, corpus, report=report, epochs=0)
    manifest, root = corpus
    hypotheses = decode(system, SpeechDataset(manifest.head(3), root, system.inputs), DecodingOptions())
    texts = manifest.head(3)["reference"].tolist(), [each.text for each in hypotheses]
    assert (
        done.rate == jiwer.cer(*texts)
        and (0, {"dev/wer_start": jiwer.wer(*texts), "dev/cer_start": done.rate}) in report.reported
    )
    assert not changed(before, system.module) and done.history == () and done.summary.n_updates == 0


def test_steering_is_analysed_every_few_updates_and_use_is_counted_by_hand(corpus, tmp_path: Path) -> None:
    system, report, events = toy_steer(tmp_path, steering_scale=0.5), Notes(), Recorded()
    done = trained(system, corpus, Checkpoints(events=events), report)
    assert [row["update"] for row in done.analyses] == [2, 4, 6]
    names = ("scale", "norm", "strength", "entropy_of_use", "entropy_of_decisions", "mutual_information")
    assert {f"steering/{name}/layer_{layer}" for name in names for layer in (1, 2)} <= set(done.steering)
    assert any("scale 0.5" in text for text in events.of(WARNING))
    use = Use(
        use=torch.tensor([[[1.0, 0.0], [0.5, 0.5]], [[0.0, 1.0], [0.5, 0.5]]]).numpy(),
        entropy=torch.zeros(2, 2).numpy(),
        strength=torch.ones(2, 2).numpy(),
        n_frames=torch.tensor([3.0, 1.0]).numpy(),
    )
    found = measures(system.module.encoder.steering, use, ["als", "typical"])
    assert [found[f"steering/use/layer_1/expert_{e}"] for e in (0, 1)] == [0.75, 0.25]
    assert found["steering/mutual_information/layer_1"] == pytest.approx(found["steering/entropy_of_use/layer_1"])
    assert found["steering/strength"] == 1.0 and 2 * found["steering/mutual_information"] == pytest.approx(
        found["steering/mutual_information/layer_1"]
    )
    assert found["steering/mutual_information/layer_2"] == pytest.approx(0.0, abs=1e-12)
    assert found["steering/use_by_etiology/layer_1/als/expert_0"] == 1.0


def test_the_documents_claims_are_warned_of_where_they_do_not_hold() -> None:
    values = {"steering/scale/layer_1": -0.1, "steering/scale/layer_2": 0.01, "steering/scale/layer_3": 0.3}
    values |= {"steering/use/layer_1/expert_0": 0.9, "steering/use/layer_1/expert_1": 0.1, "steering/use/layer_2/expert_0": 1.0}
    assert warnings(values) == [
        "layer 2: scale 0.010 is outside 0.05 to 0.2",
        "layer 3: scale 0.300 is outside 0.05 to 0.2",
        "layer 1: expert 0 has 90 % of the frames",
    ]
