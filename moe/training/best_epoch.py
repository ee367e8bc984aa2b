"""Scoring after every few epochs, and the best epoch kept: what all trainings share beside the loop."""

import abc
import math
from typing import Any

import torch
from torch import Tensor, nn

from moe.training.hooks import TrainingHooks
from moe.training.loop import Training

START = -1  # among epochs: before the first


class Validation(TrainingHooks, abc.ABC):
    """Judges the model every `eval_every` epochs and after the last; `history` has a row of metrics for each time."""

    def __init__(self, training: Training) -> None:
        self.training = training
        self.history: list[dict[str, float]] = []

    @abc.abstractmethod
    def judge(self, epoch: int) -> dict[str, float]:
        """Metrics of the model as it is after an epoch."""

    def row(self, epoch: int) -> dict[str, float]:
        """Further columns of the epoch's row, which are not reported."""
        return {}

    def report_dev(self, epoch: int, metrics: dict[str, float]) -> None:
        """Report an epoch's metrics."""
        self.training.report(epoch, {f"dev/{name}": value for name, value in metrics.items()})

    def judged(self, epoch: int, metrics: dict[str, float]) -> bool:
        """After an epoch was judged; True ends the training."""
        return False

    def epoch_ends(self, epoch: int, is_last: bool) -> bool:
        if (epoch + 1) % self.training.eval_every and not is_last:
            return False
        metrics = self.judge(epoch)
        self.history.append({"epoch": epoch, **metrics, **self.row(epoch)})
        self.report_dev(epoch, metrics)
        return self.judged(epoch, metrics)

    def metrics(self, values: dict[str, float], update: int) -> None:
        self.training.report(update, {f"train/{name}": value for name, value in values.items()})

    def state(self) -> tuple[dict[str, Any], dict[str, Tensor]]:
        return {"history": list(self.history)}, {}

    def restore(self, values: dict[str, Any], tensors: dict[str, Tensor]) -> None:
        self.history = list(values["history"])


class BestEpoch(Validation):
    """Keeps the weights with the lowest value of one metric, and ends a training that does not improve.

    Args:
        module: its trainable parameters are kept.
        selected: the metric, of those that `judge` gives.
        patience: epochs without improvement after which training ends.
    """

    def __init__(self, module: nn.Module, training: Training, selected: str, patience: int) -> None:
        super().__init__(training)
        self.module, self.selected, self.patience = module, selected, patience
        self.best_value, self.best_epoch, self.best_state = math.inf, START, self.weights()
        self.start_value = math.inf

    def candidate(self, value: float) -> None:
        """Make what training began with a candidate, where its value of the metric is known: an epoch must be as good to replace it."""
        self.start_value = self.best_value = value
        self.best_state = self.weights()

    def judged(self, epoch: int, metrics: dict[str, float]) -> bool:
        value = metrics[self.selected]
        if value < self.best_value or (self.best_epoch == START and value == self.best_value):
            self.best_value, self.best_epoch, self.best_state = value, epoch, self.weights()
        return epoch - self.best_epoch >= self.patience * self.training.eval_every

    def state(self) -> tuple[dict[str, Any], dict[str, Tensor]]:
        values, _ = super().state()
        best = {"best_value": self.best_value, "best_epoch": self.best_epoch, "start_value": self.start_value}
        return values | best, dict(self.best_state)

    def restore(self, values: dict[str, Any], tensors: dict[str, Tensor]) -> None:
        super().restore(values, tensors)
        self.best_value, self.best_epoch, self.best_state = values["best_value"], values["best_epoch"], tensors
        self.start_value = values["start_value"]

    def is_best(self, epoch: int) -> bool:
        return epoch == self.best_epoch

    @torch.no_grad()
    def restore_best(self) -> None:
        """Put the best weights back."""
        for name, parameter in self.module.named_parameters():
            if name in self.best_state:
                parameter.copy_(self.best_state[name])

    def weights(self) -> dict[str, Tensor]:
        """A copy of what trains."""
        return {name: each.detach().clone() for name, each in self.module.named_parameters() if each.requires_grad}
