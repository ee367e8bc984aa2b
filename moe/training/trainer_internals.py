"""The private parts of transformers' Trainer that training here stands on, all in this file; written for transformers 5.23.

Private names may change with any version. `PRIVATE` lists them with their parameters, and a test compares the list with the version
that is installed, so that a move is seen there, by name, and mended here. The classes above see the public methods only.
"""

import contextlib
from typing import Any

from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR
from transformers import Trainer
from transformers.trainer import TRAINER_STATE_NAME

from moe.training.sharding import average_gradients, is_sharded, whole

__all__ = ["PRIVATE", "PRIVATE_VALUES", "TRAINER_STATE_NAME", "OpenTrainer"]

PRIVATE = {
    "_clip_grad_norm": ("self", "model"),
    "_defer_fsdp_gradient_reduction": ("self",),
    "_get_grad_norm": ("self", "model", "grad_norm"),
    "_init_training_state": (
        "self",
        "max_steps",
        "num_update_steps_per_epoch",
        "num_train_epochs",
        "resume_from_checkpoint",
        "trial",
    ),
    "_load_from_checkpoint": ("self", "resume_from_checkpoint", "model"),
    "_load_optimizer_and_scheduler": ("self", "checkpoint"),
    "_load_scaler": ("self", "checkpoint"),
    "_load_rng_state": ("self", "checkpoint"),
    "_save_checkpoint": ("self", "model", "trial"),
    "_sync_replicated_trainable_parameters": ("self", "model"),
}
PRIVATE_VALUES = ("_tr_loss", "_globalstep_last_logged")  # set where training begins


class OpenTrainer(Trainer):
    """A Trainer whose private moments have names: each does what the Trainer does, or nothing, until a subclass says otherwise."""

    model: nn.Module
    optimizer: Optimizer  # this and the scheduler are made where training begins
    lr_scheduler: LambdaLR

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.is_distributed_loading_by_transformers = is_sharded(self.model)  # then it is not to be wrapped again

    def gradient_known(self, model: nn.Module, norm: Tensor | float) -> None:
        """An update's gradient is whole, clipped and about to be applied; its norm was `norm`, ()."""

    def place_to_resume(self, max_updates: int, n_per_epoch: int) -> tuple[int, int]:
        """Epoch and batch of the epoch to begin with; the Trainer's own state is to be set here too."""
        return 0, 0

    def restore_optimizer(self) -> None:
        """Optimizer and scheduler as they were."""

    def restore_scaler(self) -> None:
        """The gradient scaler as it was."""

    def restore_generators(self) -> None:
        """The random generators as they were."""

    def save_state(self) -> None:
        """Write a checkpoint; called after the Trainer has logged."""

    @property
    def loss_since_log(self) -> Tensor:
        """Sum of the losses since the last log line, ()."""
        return self._tr_loss

    @property
    def last_logged(self) -> int:
        """The update that was logged last."""
        return self._globalstep_last_logged

    @last_logged.setter
    def last_logged(self, update: int) -> None:
        self._globalstep_last_logged = update

    def _get_grad_norm(self, model: nn.Module, grad_norm: Tensor | float | None = None) -> Tensor | float:
        if grad_norm is None and self.is_distributed_loading_by_transformers:
            average_gradients(model)
        norm = whole(super()._get_grad_norm(model, grad_norm=grad_norm))
        self.gradient_known(model, norm)
        return norm

    def _clip_grad_norm(self, model: nn.Module) -> Any:
        if self.is_distributed_loading_by_transformers:
            average_gradients(model)
        return super()._clip_grad_norm(model)

    def _sync_replicated_trainable_parameters(self, model: nn.Module) -> None:
        """They are equal, and their gradients are averaged where they are clipped."""

    def _defer_fsdp_gradient_reduction(self) -> Any:
        return contextlib.nullcontext()  # the Trainer's own asks the model for a configuration of transformers

    def _init_training_state(
        self, max_steps: int, n_per_epoch: int, n_epochs: int, path: str | None, trial: Any
    ) -> tuple[int, int]:
        super()._init_training_state(max_steps, n_per_epoch, n_epochs, None, trial)
        return self.place_to_resume(max_steps, n_per_epoch)

    def _load_from_checkpoint(self, *_: Any) -> None:
        """Weights are restored before training begins."""

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        self.restore_optimizer()

    def _load_scaler(self, checkpoint: str | None) -> None:
        self.restore_scaler()

    def _load_rng_state(self, checkpoint: str | None) -> None:
        self.restore_generators()

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        self.save_state()
