"""What a kind of training adds to the loop that all kinds share: what happens around epochs, and what must survive an interruption."""

from collections.abc import Callable
from typing import Any

from torch import Tensor

Report = Callable[[int, dict[str, float]], None]  # called with the epoch or update, and its metrics


class TrainingHooks:
    """What a kind of training does around the loop; every hook may be left as it is."""

    title = "training"  # of its progress bar

    def epoch_begins(self, epoch: int) -> None:
        """Before the first update of an epoch (0-based), and before the first after an interruption."""

    def update_begins(self, update: int) -> None:
        """Before the first forward pass of an update."""

    def gradient_known(self, update: int) -> None:
        """The gradient of an update is finite, unscaled, clipped by the loop and about to be applied; it may be changed here."""

    def update_ended(self, update: int) -> bool:
        """After an update, and again where an interrupted training goes on from there; True asks for `judge_update`."""
        return False

    def judge_update(self, epoch: int) -> None:
        """Judge the model in the midst of an epoch, changing no weights."""

    def epoch_ends(self, epoch: int, is_last: bool) -> bool:
        """After its last update, while the model holds the average if there is one; changes no weights.

        True ends the training, which ends in any case where it `is_last`.
        """
        return False

    def epoch_ended(self, epoch: int) -> bool:
        """After `epoch_ends`, which an interruption may cut short and repeat; True where it set weights, of which no average is left."""
        return False

    def metrics(self, values: dict[str, float], update: int) -> None:
        """Loss, learning rate and gradient norm, every few updates; n_bad_updates after each of them."""

    def state(self) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """What the stage remembers, as values that JSON holds and tensors; neither may be changed in place later."""
        return {}, {}

    def restore(self, values: dict[str, Any], tensors: dict[str, Tensor]) -> None:
        """Remember again what `state` gave."""

    def is_best(self, epoch: int) -> bool:
        """Is this epoch, whose end has been judged, the best so far?"""
        return False
