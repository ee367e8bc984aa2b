"""Scoring after every few epochs, and the best epoch kept: what all trainings share beside the loop."""

import abc
import dataclasses
import math
from typing import Any

import torch
from torch import Tensor, nn

from moe.training.hooks import TrainingHooks
from moe.training.loop import Training, TrainingSummary

START = -1  # among epochs: before the first


@dataclasses.dataclass(frozen=True)
class Trained:
    """What a training did: the epoch kept (None: the start), its error rate of dev and that of the start, and metrics by epoch."""

    summary: TrainingSummary
    epoch: int | None
    rate: float
    start_rate: float
    history: tuple[dict[str, float], ...]

    @property
    def kept(self) -> str:
        """What was kept, in words; epochs are counted from 1."""
        if self.epoch is not None:
            return f"Epoch {self.epoch + 1}"
        return "The start (every epoch was worse)" if self.history else "The start (there was no epoch)"


class Validation(TrainingHooks, abc.ABC):
    """Judges the model every `eval_every` epochs, or `eval_every_updates` updates, and after the last; `history` has a row for each time."""

    def __init__(self, training: Training) -> None:
        self.training = training
        self.history: list[dict[str, float]] = []
        self.update = self.judged_update = 0

    @abc.abstractmethod
    def judge(self, epoch: int) -> dict[str, float]:
        """Metrics of the model as it is after an epoch."""

    def row(self, epoch: int) -> dict[str, float]:
        """Further columns of the epoch's row, which are not reported."""
        return {}

    def report_dev(self, number: int, metrics: dict[str, float]) -> None:
        """Report the metrics of an epoch, or of an update where validations go by updates."""
        self.training.report(number, {f"dev/{name}": value for name, value in metrics.items()})

    def judged(self, epoch: int, metrics: dict[str, float]) -> None:
        """After the model was judged, in an epoch or at its end."""

    def stops(self, epoch: int) -> bool:
        """Whether training ends with an epoch that was judged."""
        return False

    def update_ended(self, update: int) -> bool:
        self.update = update
        every = self.training.eval_every_updates
        return every is not None and update % every == 0 and update != self.judged_update

    def judge_update(self, epoch: int) -> None:
        self._validate(epoch)

    def epoch_ends(self, epoch: int, is_last: bool) -> bool:
        by_update = self.training.eval_every_updates is not None
        is_due = (not by_update and (epoch + 1) % self.training.eval_every == 0) or is_last
        if is_due and not (by_update and self.update == self.judged_update):
            self._validate(epoch)
        return (is_due or by_update) and self.stops(epoch)

    def _validate(self, epoch: int) -> None:
        by_update, metrics = self.training.eval_every_updates is not None, self.judge(epoch)
        number, place = (self.update, {"update": self.update}) if by_update else (epoch, {})
        self.history.append({"epoch": epoch, **place, **metrics, **self.row(epoch)})
        self.report_dev(number, metrics)
        self.judged(epoch, metrics)
        self.judged_update = self.update

    def metrics(self, values: dict[str, float], update: int) -> None:
        self.training.report(update, {f"train/{name}": value for name, value in values.items()})

    def state(self) -> tuple[dict[str, Any], dict[str, Tensor]]:
        return {"history": list(self.history), "judged_update": self.judged_update}, {}

    def restore(self, values: dict[str, Any], tensors: dict[str, Tensor]) -> None:
        self.history, self.judged_update = list(values["history"]), values["judged_update"]


class BestEpoch(Validation):
    """Keeps the weights with the lowest value of one metric, and ends a training that does not improve.

    Args:
        module: its trainable parameters are kept.
        selected: the metric, of those that `judge` gives.
        patience: validations without improvement after which training ends.
    """

    def __init__(self, module: nn.Module, training: Training, selected: str, patience: int) -> None:
        super().__init__(training)
        self.module, self.selected, self.patience = module, selected, patience
        self.best_value, self.best_epoch, self.best_state = math.inf, START, self.weights()
        self.start_value = math.inf
        self.n_without = 0  # validations since the best

    def candidate(self, value: float) -> None:
        """Make what training began with a candidate, where its value of the metric is known: an epoch must be as good to replace it."""
        self.start_value = self.best_value = value
        self.best_state = self.weights()

    def judged(self, epoch: int, metrics: dict[str, float]) -> None:
        value = metrics[self.selected]
        self.n_without += 1
        if value < self.best_value or (self.best_epoch == START and value == self.best_value):
            self.best_value, self.best_epoch, self.best_state, self.n_without = value, epoch, self.weights(), 0

    def stops(self, epoch: int) -> bool:
        return self.n_without >= self.patience

    def state(self) -> tuple[dict[str, Any], dict[str, Tensor]]:
        values, _ = super().state()
        best = {
            "best_value": self.best_value,
            "best_epoch": self.best_epoch,
            "start_value": self.start_value,
            "n_without": self.n_without,
        }
        return values | best, dict(self.best_state)

    def restore(self, values: dict[str, Any], tensors: dict[str, Tensor]) -> None:
        super().restore(values, tensors)
        self.best_value, self.best_epoch, self.best_state = values["best_value"], values["best_epoch"], tensors
        self.start_value, self.n_without = values["start_value"], values["n_without"]

    def is_best(self, epoch: int) -> bool:
        return epoch == self.best_epoch

    @torch.no_grad()
    def restore_best(self) -> None:
        """Put the best weights back."""
        for name, parameter in self.module.named_parameters():
            if name in self.best_state:
                parameter.copy_(self.best_state[name])

    def trained(self, summary: TrainingSummary) -> Trained:
        """What the training did that a summary counts."""
        epoch = None if self.best_epoch == START else self.best_epoch
        return Trained(summary, epoch, self.best_value, self.start_value, tuple(self.history))

    def weights(self) -> dict[str, Tensor]:
        """A copy of what trains."""
        return {name: each.detach().clone() for name, each in self.module.named_parameters() if each.requires_grad}
