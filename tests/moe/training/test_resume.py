"""Kill it anywhere, start it again, get the same bits: every training stage, with augmentation and dropout, whatever the workers.

Killed here means that an exception nobody catches leaves the loop and all objects are made anew, as in a new process. Real processes
under kill -9 are in `benchmarks/torture/__main__.py`.
"""

import dataclasses
import os
import signal
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from moe.audio.augmentation import AugmentationOptions
from moe.experts.expert_training import ExpertOptions, train_experts
from moe.experts.joint_training import JointOptions, train_jointly
from moe.experts.routed_lora import AdapterOptions
from moe.recognition import decoding
from moe.routing.curriculum import CurriculumOptions
from moe.routing.gate_training import GateOptions, train_gate
from moe.systems.whisper.base_model import BaseModel
from moe.systems.whisper.base_source import TOKEN_TABLE
from moe.systems.whisper.pretraining import PretrainingOptions, pretrain, pretraining_plan
from moe.systems.whisper_moe.zero_shot import base_wer
from moe.training import plan as training_plan
from moe.training.averaging import AveragingOptions
from moe.training.bad_updates import TooManyBadUpdates
from moe.training.checkpoints import PREFIX, CheckpointOptions, Checkpoints
from moe.training.loop import fit
from moe.training.trainer import ResumableTrainer
from tests.toys.checkpoints import Killed, Recorded
from tests.toys.models import system_of
from tests.toys.training import (
    CONTEXT,
    N_EXPERTS,
    Diary,
    Notes,
    Spoilt,
    dataset,
    one_hot_rows,
    plan,
    toy_base,
    toy_mixture,
    training,
    weights,
    write_corpus,
)

N = 12
AUGMENTED = AugmentationOptions(speed_factors="0.9,1.0,1.1", noise_share=0.5)
DROPOUT = AdapterOptions(lora_r=2, shared_r=None, lora_alpha=4.0, lora_dropout=0.2)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory):
    root = tmp_path_factory.mktemp("toy")
    return write_corpus(root, N), root


@pytest.fixture(autouse=True)
def logs_often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(training_plan, "LOG_EVERY", 3)  # not when a checkpoint is due


def sets(corpus, **extras):
    manifest, root = corpus
    return dataset(manifest, root, augmentation=AUGMENTED, seed=3, extras=extras), dataset(manifest.head(4), root)


def gate(corpus, report, checkpoints, num_workers):
    rng = np.random.default_rng(0)
    rows, soft = rng.normal(size=(20, 5)), np.eye(4)[rng.integers(4, size=20)]
    options = GateOptions(gating_epochs=2, gating_hidden=4, gating_dropout=0.3)  # 40 updates: so few rows have one in a batch
    result = train_gate(rows, soft, rows[:9], soft[:9], options, report, checkpoints)
    return result.gate, (result.history, result.metrics, result.best_epoch)


def experts(corpus, report, checkpoints, num_workers, options=ExpertOptions(), averaging=AveragingOptions()):
    model = toy_mixture(toy_base(dropout=0.1), adapters=DROPOUT)
    train_set, dev_set = sets(corpus, routing_weights=one_hot_rows(N))
    around = training(plan(epochs=3, num_workers=num_workers, averaging=averaging), report, checkpoints)
    done = train_experts(system_of(model), train_set, dev_set, np.arange(4) % N_EXPERTS, options, around)
    return model, (done.history, done.kept, done.wer, done.summary.n_updates)


def copied_experts(corpus, report, checkpoints, num_workers):
    """The shared adapter trains alone for an epoch and is then copied: once, however often the training is killed there."""
    options, averaging = ExpertOptions(shared_epochs=1, experts_init="shared"), AveragingOptions("ema", ema_decay=0.5)
    return experts(corpus, report, checkpoints, num_workers, options, averaging)


def averaged_joint(corpus, report, checkpoints, num_workers):
    return joint(corpus, report, checkpoints, num_workers, AveragingOptions("last", average_epochs=2))


def joint(corpus, report, checkpoints, num_workers, averaging=AveragingOptions()):
    model = toy_mixture(toy_base(dropout=0.1), adapters=DROPOUT)
    train_set, dev_set = sets(corpus)
    curriculum = CurriculumOptions(soft_epochs=2, temperature_start=2.0, router_noise=0.5)
    long = plan(epochs=3, batch_size=2, accumulation=2, num_workers=num_workers, decay_share=0.4, averaging=averaging)
    system = system_of(model, adapters=1e-2, gate=1e-2)
    done = train_jointly(
        system, train_set, dev_set, JointOptions(), curriculum, training(long, report, checkpoints, eval_every=2)
    )
    return model, (done.history, done.epoch, done.rate, [load.tolist() for load in done.loads])


def by_updates(corpus, report, checkpoints, num_workers):
    """Judged in the midst of epochs, under a curriculum."""
    model = toy_mixture(toy_base(dropout=0.1), adapters=DROPOUT)
    train_set, dev_set = sets(corpus)
    curriculum = CurriculumOptions(soft_epochs=2, temperature_start=2.0)
    around = training(plan(epochs=2, num_workers=num_workers, schedule="cosine"), report, checkpoints)
    around = dataclasses.replace(around, eval_every_updates=2)
    done = train_jointly(system_of(model, adapters=1e-2, gate=1e-2), train_set, dev_set, JointOptions(), curriculum, around)
    return model, (done.history, done.epoch, done.rate)


def single_lora(corpus, report, checkpoints, num_workers):
    model = toy_mixture(toy_base(dropout=0.1), n_experts=0, adapters=DROPOUT)
    train_set, dev_set = sets(corpus)
    around = training(plan(max_updates=8, num_workers=num_workers, warmup_share=0.3), report, checkpoints)
    system, options = system_of(model, adapters=1e-2), JointOptions(asr_patience=8)
    done = train_jointly(system, train_set, dev_set, options, CurriculumOptions(), around)
    return model, (done.history, done.epoch, done.summary.n_utterances, done.summary.n_epochs)


def base(corpus, report, checkpoints, num_workers):
    made = toy_base(dropout=0.1)
    made = BaseModel(made.model, made.processor, (TOKEN_TABLE, "model.decoder.layer_norm.bias"))
    manifest, root = corpus
    train_set = dataset(
        manifest, root, augmentation=AugmentationOptions(), seed=3, extras={"phonemes": np.ones((N, 50), np.int64)}
    )
    options = PretrainingOptions(pretrain_updates=5, missing_updates=4, pretrain_batch_size=4)
    around = training(
        pretraining_plan(options, seed=5, num_workers=num_workers, precision="fp32"), report, checkpoints, eval_every=2
    )
    dev_set = dataset(manifest.head(2), root)
    done = pretrain(made, train_set, lambda: base_wer(made, dev_set, CONTEXT), options, around, n_phonemes=3)
    return done.base.model, (done.history, [(summary.n_updates, summary.n_epochs) for summary in done.summaries])


STAGES = {
    "gate": gate,
    "experts": experts,
    "copied_experts": copied_experts,
    "joint": joint,
    "averaged_joint": averaged_joint,
    "by_updates": by_updates,
    "single_lora": single_lora,
    "base": base,
}
MOMENTS = ("optimizer_steps", "update_ends", "epoch_ends", "has_logged", "checkpoint")


class Killer:
    """Kills at the n-th of all moments that a trainer goes through from now on."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.left = -1
        for name in MOMENTS:
            monkeypatch.setattr(ResumableTrainer, name, self._counting(getattr(ResumableTrainer, name)))

    def _counting(self, moment: Callable) -> Callable:
        def counted(*arguments, **options):
            self.left -= 1
            if self.left == 0:
                raise Killed
            return moment(*arguments, **options)

        return counted


def often(folder: Path | None) -> Checkpoints:
    return Checkpoints(folder, CheckpointOptions(save_every_n_updates=2, save_every_n_epochs=2), Recorded())


@pytest.mark.parametrize("stage", STAGES)
def test_killed_again_and_again_it_ends_with_the_same_bits_and_metrics(corpus, tmp_path: Path, monkeypatch, stage: str) -> None:
    """Stack pitfall: resumed in the common Trainer, 22 of 22 later updates differed with augmentation."""
    undisturbed = Notes()
    model, outcome = STAGES[stage](corpus, undisturbed, None, 0)
    killer, lives, random = Killer(monkeypatch), Notes(), np.random.default_rng(len(stage))
    for n_lives in range(1, 40):
        killer.left = int(random.integers(6, 14))
        try:
            resumed, reached = STAGES[stage](corpus, lives, often(tmp_path), 2 * (n_lives % 2))
            break
        except Killed:
            continue
    assert n_lives > 2, "never killed"
    assert reached == outcome
    assert all(torch.equal(value, weights(resumed)[name]) for name, value in weights(model).items())
    assert reported(lives) == reported(undisturbed)


def reported(notes: Notes) -> dict[tuple[str, int], float]:
    """Every metric by (name, update); what a life before told again must be the same."""
    found: dict[tuple[str, int], float] = {}
    for number, values in notes.reported:
        for name, value in values.items():
            assert found.setdefault((name, number), value) == value, (name, number)
    return found


def test_a_finished_training_is_not_done_again(corpus, tmp_path: Path) -> None:
    model, outcome = experts(corpus, Notes(), often(tmp_path), 0)
    notes = Notes()
    again, reached = experts(corpus, notes, often(tmp_path), 0)
    assert reached == outcome and not notes.of("train/loss")
    assert all(torch.equal(value, weights(again)[name]) for name, value in weights(model).items())


class Terminated(KeyboardInterrupt):
    """What SIGTERM raises in a step."""


@pytest.fixture
def terminates():
    def raise_it(number, frame) -> None:
        raise Terminated

    before = signal.signal(signal.SIGTERM, raise_it)
    yield raise_it
    assert signal.getsignal(signal.SIGTERM) is raise_it
    signal.signal(signal.SIGTERM, before)


@pytest.mark.parametrize(
    ("where", "nth", "saved_as"),
    [("update", 2, "00000002"), ("start", 1, "00000000"), ("evaluation", 3, "00000006_epoch_0001")],
    ids=["update", "start", "evaluation"],
)
def test_sigterm_ends_with_a_checkpoint_of_the_last_update(
    corpus, tmp_path: Path, monkeypatch, terminates, where: str, nth: int, saved_as: str
) -> None:
    model, outcome = single_lora(corpus, Notes(), None, 0)
    owner, name = (ResumableTrainer, "optimizer_steps") if where == "update" else (decoding, "decode_ways")
    with monkeypatch.context() as patch:
        called: list[int] = []

        def asked(*arguments, **options):
            called.append(1)
            if len(called) == nth:
                os.kill(os.getpid(), signal.SIGTERM)
            return original(*arguments, **options)

        original = getattr(owner, name)
        patch.setattr(owner, name, asked)
        with pytest.raises(Terminated):
            single_lora(corpus, Notes(), Checkpoints(tmp_path), 0)
    saved = sorted(path.name for path in tmp_path.glob(f"{PREFIX}*"))
    assert saved[-1].startswith(f"{PREFIX}{saved_as}")
    resumed, reached = single_lora(corpus, Notes(), Checkpoints(tmp_path), 0)
    assert reached == outcome
    assert all(torch.equal(value, weights(resumed)[name]) for name, value in weights(model).items())


def lora_and_data(corpus, **changes):
    model = toy_mixture(toy_base(), n_experts=0)
    manifest, root = corpus
    return model, dataset(manifest, root, **changes)


def finite(model: torch.nn.Module) -> bool:
    return all(bool(torch.isfinite(parameter).all()) for parameter in model.parameters())


@pytest.mark.parametrize("where", ["audio", "label", "gradient"])
def test_an_update_that_is_not_finite_is_stepped_over_and_its_utterances_named(corpus, monkeypatch, where: str) -> None:
    """Stack pitfall: one NaN label, and all logged losses stayed finite while all weights became NaN."""
    monkeypatch.setattr(training_plan, "LOG_EVERY", 1)
    model, data = lora_and_data(corpus)
    events, diary = Recorded(), Diary()
    summary = fit(Spoilt(model, "u5", where), data, training(plan(epochs=2), checkpoints=Checkpoints(events=events)), diary)
    assert finite(model) and summary.n_updates == 6 and len(summary.bad_updates) == 2
    for record in summary.bad_updates:
        assert (
            record["utterance_ids"] == ["u5"]
            if where != "gradient"
            else "u5" in record["utterance_ids"] and len(record["utterance_ids"]) == 4
        )
    assert [value for _, values in diary.logged for name, value in values.items() if name == "n_bad_updates"] == [1, 2]
    losses = diary.values("loss")
    assert any(np.isfinite(losses)), "one bad update must not blind the log for ever"
    assert where == "gradient" or not all(np.isfinite(losses)), "nothing is filtered"


def test_a_bad_update_leaves_weights_and_buffers_as_they_were(corpus) -> None:
    model = toy_mixture(toy_base())
    manifest, root = corpus
    before, window = weights(model), model.window.recent.clone()
    summary = fit(Spoilt(model, "u5", "audio"), dataset(manifest, root), training(plan(batch_size=N, max_updates=1)), Diary())
    assert len(summary.bad_updates) == 1 and torch.equal(window, model.window.recent)
    assert all(torch.equal(value, weights(model)[name]) for name, value in before.items())


def test_too_many_bad_updates_fail_by_name(corpus) -> None:
    model, data = lora_and_data(corpus)
    checkpoints = Checkpoints(None, CheckpointOptions(max_bad_updates=1), Recorded())
    with pytest.raises(TooManyBadUpdates, match="2 updates was not finite, max_bad_updates=1; their utterances: u5"):
        fit(Spoilt(model, "u5", "audio"), data, training(plan(epochs=4), checkpoints=checkpoints), Diary())


class Hungry(torch.nn.Module):
    """A model for which more than so many utterances do not fit."""

    accepts_loss_kwargs = False

    def __init__(self, model: torch.nn.Module, most: int, error: Callable[[], Exception]) -> None:
        super().__init__()
        self.model, self.most, self.error, self.served = model, most, error, []

    def forward(self, utterance_ids, **batch):
        if len(utterance_ids) > self.most and len(self.served) >= 4:  # not at once: the longest batch comes late
            raise self.error()
        self.served.append(utterance_ids)
        return self.model(utterance_ids=utterance_ids, **batch)


ERRORS = [
    lambda: torch.OutOfMemoryError("CUDA out of memory"),
    MemoryError,
    lambda: RuntimeError("DefaultCPUAllocator: can't allocate memory"),
]


@pytest.mark.parametrize("error", ERRORS)
def test_out_of_memory_halves_the_batch_once_and_goes_on_with_the_same_updates(corpus, error) -> None:
    roomy, data = lora_and_data(corpus)
    fit(roomy, data, training(plan(epochs=2)), Diary())
    tight, events = lora_and_data(corpus)[0], Recorded()
    hungry = Hungry(tight, 2, error)
    summary = fit(hungry, data, training(plan(epochs=2), checkpoints=Checkpoints(events=events)), Diary())
    assert summary.n_updates == 6 and "each batch of 4 is now 2 of 2" in events.of("out_of_memory")[0]
    assert [len(ids) for ids in hungry.served] == [4] * 4 + [2] * 4
    for name, value in weights(roomy).items():
        torch.testing.assert_close(dict(tight.named_parameters())[name], value, atol=1e-4, rtol=1e-3)


def test_out_of_memory_a_second_time_is_an_error_that_says_so(corpus) -> None:
    model, data = lora_and_data(corpus)
    with pytest.raises(RuntimeError, match="out of memory with batches of 2"):
        fit(Hungry(model, 0, MemoryError), data, training(plan(epochs=2), checkpoints=Checkpoints(events=Recorded())), Diary())


def test_halved_batches_stay_halved_after_an_interruption(corpus, tmp_path: Path, monkeypatch) -> None:
    def run(checkpoints: Checkpoints):
        model, data = lora_and_data(corpus)
        hungry = Hungry(model, 2, MemoryError)
        fit(hungry, data, training(plan(epochs=3), checkpoints=checkpoints), Diary())
        return model, hungry

    undisturbed, _ = run(Checkpoints(events=Recorded()))
    killer = Killer(monkeypatch)
    killer.left = 22
    with pytest.raises(Killed):
        run(often(tmp_path))
    killer.left = -1
    resumed, hungry = run(often(tmp_path))
    assert {len(ids) for ids in hungry.served} == {2}
    assert all(torch.equal(value, weights(resumed)[name]) for name, value in weights(undisturbed).items())


def test_a_checkpoint_of_another_model_is_refused(corpus, tmp_path: Path) -> None:
    model, data = lora_and_data(corpus)
    fit(model, data, training(plan(epochs=1), checkpoints=Checkpoints(tmp_path, events=Recorded())), Diary())
    other = toy_mixture(toy_base(), n_experts=0, adapters=dataclasses.replace(DROPOUT, lora_targets="q_proj"))
    with pytest.raises(ValueError, match="the checkpoint is of another training"):
        fit(other, data, training(plan(epochs=1), checkpoints=Checkpoints(tmp_path, events=Recorded())), Diary())
