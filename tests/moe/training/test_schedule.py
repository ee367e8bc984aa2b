"""The learning rate's course, against transformers' own schedules, and validations that go by updates."""

from pathlib import Path

import pytest
import torch
from transformers import get_scheduler

from moe.experts.joint_training import JointOptions, train_jointly
from moe.experts.routed_lora import AdapterOptions
from moe.routing.curriculum import CurriculumOptions
from moe.training.loop import fit
from moe.training.plan import training_arguments
from moe.training.schedule import SCHEDULES, ScheduleOptions
from tests.toys.models import system_of
from tests.toys.training import Diary, Notes, dataset, plan, toy_base, toy_mixture, training, weights, write_corpus

N = 8


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory):
    root = tmp_path_factory.mktemp("toy")
    return write_corpus(root, N), root


def rates(corpus, **changes) -> list[float]:
    manifest, root = corpus
    diary = Diary()
    fit(toy_mixture(toy_base(), n_experts=0), dataset(manifest, root), training(plan(log_every=1, **changes)), diary)
    return diary.values("learning_rate")


@pytest.mark.parametrize("name", [name for name in SCHEDULES if name != "warmup_stable_decay"])
def test_a_schedule_is_transformers_own(corpus, name: str) -> None:
    found = rates(corpus, epochs=3, batch_size=2, schedule=name, warmup_updates=4)
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1e-2)
    wanted, oracle = [], get_scheduler(name, optimizer, num_warmup_steps=4, num_training_steps=12)
    for _ in range(12):
        optimizer.step()
        wanted.append(oracle.get_last_lr()[0])
        oracle.step()
    assert found == pytest.approx(wanted) or found == pytest.approx([*wanted[1:], oracle.get_last_lr()[0]])


def test_a_rise_longer_than_the_training_is_refused_with_both_numbers(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="warmup_steps=2000: the training has 16 updates"):
        training_arguments(plan(epochs=2, batch_size=4, warmup_updates=2000), 32, str(tmp_path))


def test_a_share_beside_a_number_and_a_rise_without_room_are_refused() -> None:
    with pytest.raises(ValueError, match="warmup_ratio=0.2: warmup_steps=5 says it"):
        ScheduleOptions(warmup_steps=5, warmup_ratio=0.2)
    with pytest.raises(ValueError, match="warmup_ratio=0.7: at most 0.6 with lr_scheduler_type=warmup_stable_decay"):
        ScheduleOptions(warmup_ratio=0.7)
    assert ScheduleOptions(warmup_ratio=0.7, lr_scheduler_type="cosine").warmup_ratio == 0.7


def judged(corpus, every: int, **changes):
    """One LoRA, trained for two epochs of four updates and judged every so many."""
    manifest, root = corpus
    model = toy_mixture(toy_base(), n_experts=0, adapters=AdapterOptions(lora_r=2, shared_r=None, lora_alpha=4.0))
    around, notes = plan(epochs=2, batch_size=2, **changes), Notes()
    given = training(around, notes)
    given = type(given)(around, notes, given.checkpoints, eval_every_updates=every)
    system = system_of(model, adapters=1e-2)
    done = train_jointly(
        system, dataset(manifest, root), dataset(manifest.head(3), root), JointOptions(asr_patience=9), CurriculumOptions(), given
    )
    return model, done, notes


def test_validations_go_by_updates_and_one_follows_the_last(corpus) -> None:
    _, done, notes = judged(corpus, 3)
    assert [row["update"] for row in done.history] == [3, 6, 8] and [row["epoch"] for row in done.history] == [0, 1, 1]
    assert [number for number, _ in notes.of("dev/loss")] == [3, 6, 8]


def test_a_validation_in_an_epoch_changes_nothing_of_the_training(corpus) -> None:
    many, done, _ = judged(corpus, 1)
    once, other, _ = judged(corpus, 8)
    assert len(done.history) == 8 and len(other.history) == 1
    assert done.history[-1]["loss"] == other.history[-1]["loss"]


def test_activations_computed_again_give_the_same_weights(corpus) -> None:
    kept, _, _ = judged(corpus, 8)
    again, _, _ = judged(corpus, 8, gradient_checkpointing=True)
    for name, value in weights(kept).items():
        torch.testing.assert_close(dict(again.named_parameters())[name], value, atol=1e-5, rtol=1e-4)


def test_workers_that_stay_serve_the_same(corpus) -> None:
    kept, _, _ = judged(corpus, 8, num_workers=1, persistent_workers=True)
    alone, _, _ = judged(corpus, 8)
    assert all(torch.equal(value, weights(kept)[name]) for name, value in weights(alone).items())
