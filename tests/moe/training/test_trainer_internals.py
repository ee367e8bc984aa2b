"""The Trainer's private parts are where this version of transformers has them: a version that moves one fails here, by its name."""

import inspect

import pytest
import torch
from transformers import Trainer, TrainingArguments

from moe.training.trainer_internals import PRIVATE, PRIVATE_VALUES, OpenTrainer


@pytest.mark.parametrize("name", PRIVATE)
def test_the_trainer_has_the_method_with_these_parameters(name: str) -> None:
    assert tuple(inspect.signature(getattr(Trainer, name)).parameters) == PRIVATE[name], f"transformers has moved Trainer.{name}"


@pytest.mark.parametrize("name", PRIVATE)
def test_every_method_listed_is_overridden_and_no_other(name: str) -> None:
    ours = {each for each in vars(OpenTrainer) if each.startswith("_") and not each.startswith("__") and hasattr(Trainer, each)}
    assert ours == set(PRIVATE) and name in ours


class Seen(OpenTrainer):
    """Writes down what it was called for."""

    def __init__(self, **options) -> None:
        super().__init__(**options)
        self.seen: list[str] = []

    def gradient_known(self, model, norm) -> None:
        self.seen.append("gradient_known")

    def place_to_resume(self, max_updates: int, n_per_epoch: int) -> tuple[int, int]:
        self.seen.append("place_to_resume")
        return super().place_to_resume(max_updates, n_per_epoch)

    def restore_optimizer(self) -> None:
        self.seen.append("restore_optimizer")

    def save_state(self) -> None:
        self.seen.append(f"save_state after update {self.last_logged}, losses {float(self.loss_since_log):g}")


class Line(torch.nn.Module):
    """loss = w²."""

    def __init__(self) -> None:
        super().__init__()
        self.w = torch.nn.Parameter(torch.ones(()))

    def forward(self, labels: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"loss": self.w**2}


def test_the_loop_calls_each_moment(tmp_path) -> None:
    arguments = TrainingArguments(
        str(tmp_path),
        max_steps=2,
        save_strategy="steps",
        save_steps=1,
        logging_steps=1,
        report_to="none",
        use_cpu=True,
        disable_tqdm=True,
    )
    trainer = Seen(model=Line(), args=arguments, train_dataset=[{"labels": torch.zeros(())}] * 16)
    trainer.train()
    assert "place_to_resume" in trainer.seen
    assert trainer.seen.count("gradient_known") == 2
    assert [each for each in trainer.seen if each.startswith("save")] == [
        f"save_state after update {n}, losses 0" for n in (1, 2)
    ]
    assert all(hasattr(trainer, name) for name in PRIVATE_VALUES) and not list(tmp_path.iterdir())
