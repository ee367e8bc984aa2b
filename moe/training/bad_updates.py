"""A Trainer that steps over an update whose loss or gradient is not finite, and remembers which utterances were in it.

Such an update changes neither weights nor optimizer nor buffers; what is logged of it is the loss that it had. One NaN label would
otherwise leave all weights NaN.
"""

import math
from typing import Any

import torch
from torch import Tensor, nn
from transformers import TrainerCallback

from moe.training import processes
from moe.training.checkpoints import Checkpoints
from moe.training.hooks import TrainingHooks
from moe.training.loading import LoadingTrainer
from moe.training.random_state import seed_update


class TooManyBadUpdates(RuntimeError):
    """The loss or gradient of more updates than allowed was not finite."""


class CarefulTrainer(LoadingTrainer):
    """A Trainer that skips what is not finite.

    Attributes:
        epoch: that of the next update.
        bad_updates: of each update skipped: update, epoch, loss, utterance_ids.
    """

    def __init__(self, hooks: TrainingHooks, checkpoints: Checkpoints, **options: Any) -> None:
        super().__init__(**options)
        self.hooks, self.checkpoints = hooks, checkpoints
        self.epoch = 0
        self.bad_updates: list[dict[str, Any]] = []
        self._batches: list[tuple[list[str], Tensor | None, Tensor]] = []  # of this update: ids, utterance_loss (B,), loss ()
        self._buffers: dict[str, Tensor] = {}  # as they were before it
        self.add_callback(_UpdateBegins(self))

    def update_begins(self) -> None:
        """Forget the update before."""
        self.checkpoints.events.update_begins()
        if processes.number():
            seed_update(self.args.seed, self.state.global_step, processes.number())
        self._batches.clear()
        self._buffers = self.buffers()
        self.hooks.update_begins(self.state.global_step + 1)

    def buffers(self) -> dict[str, Tensor]:
        """A copy of the model's buffers."""
        return {name: buffer.detach().clone() for name, buffer in self.model.named_buffers()}

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Any:
        """The Trainer's loss, (); whose it is stays known until the update is done."""
        inputs = self.of_one_width(inputs)
        loss, outputs = super().compute_loss(model, inputs, return_outputs=True, num_items_in_batch=num_items_in_batch)
        self._batches.append((inputs.get("utterance_ids", []), outputs.get("utterance_loss"), loss.detach()))
        return (loss, outputs) if return_outputs else loss

    def gradient_known(self, model: nn.Module, norm: Tensor | float) -> None:
        """Where the gradient's norm, (), or a loss is not finite, the update becomes one that changes nothing."""
        losses = all(bool(torch.isfinite(loss)) for _, _, loss in self._batches)
        gradient = self.accelerator.scaler is not None or bool(torch.isfinite(torch.as_tensor(norm)))  # a scaler skips by itself
        if processes.most(int(not (losses and gradient))):
            self._skip(model)
        else:
            self.hooks.gradient_known(self.state.global_step + 1)

    def _skip(self, model: nn.Module) -> None:
        model.zero_grad(set_to_none=True)  # without a gradient an optimizer leaves a weight and its moments as they are
        for name, buffer in self.model.named_buffers():
            buffer.copy_(self._buffers[name])
        losses = [float(loss) for _, _, loss in self._batches]
        loss = processes.total([sum(losses) / max(1, len(losses))])[0] / processes.n_processes()
        update = self.state.global_step + 1
        record = {"update": update, "epoch": self.epoch, "loss": str(loss), "utterance_ids": self._culprits()}
        self.bad_updates.append(record)
        self.hooks.metrics({"n_bad_updates": len(self.bad_updates)}, update)
        self.checkpoints.events.bad_updates(self.bad_updates)
        most = self.checkpoints.options.max_bad_updates
        if len(self.bad_updates) > most:
            names = sorted({name for record in self.bad_updates for name in record["utterance_ids"]})
            raise TooManyBadUpdates(
                f"the loss or gradient of {len(self.bad_updates)} updates was not finite, max_bad_updates={most}; "
                f"their utterances: {', '.join(names)}"
            )

    def _culprits(self) -> list[str]:
        """Utterances whose own loss is not finite; all of the update, in every process, where that is none of them."""
        known = [(ids, losses.tolist()) for ids, losses, _ in self._batches if losses is not None]
        bad = [name for ids, losses in known for name, loss in zip(ids, losses, strict=True) if not math.isfinite(loss)]
        shares = processes.gathered((bad, [name for ids, _, _ in self._batches for name in ids]))
        return sorted({name for bad, _ in shares for name in bad} or {name for _, names in shares for name in names})


class _UpdateBegins(TrainerCallback):
    def __init__(self, trainer: CarefulTrainer) -> None:
        self.trainer = trainer

    def on_step_begin(self, *_: Any, **__: Any) -> None:
        self.trainer.update_begins()
