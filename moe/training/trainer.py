"""transformers' Trainer, able to stop after any update and go on as if it had not.

The Trainer's own loop stays. What it reads from and writes to a checkpoint is replaced, because its own are pickles, are written in
place, and know neither the stage nor the losses since the last log. Everything that changes from update to update is in `rest`, taken
when an update, a log line or an epoch is done; weights and optimizer are as they were at rest whenever `whole` is true.

Of several processes the first writes the checkpoint. It says nothing of how many there were, so another number may go on from it.
"""

import dataclasses
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PrinterCallback, TrainerCallback, TrainerState

from moe.training import processes
from moe.training.averaging import AveragingOptions, WeightAverage
from moe.training.bad_updates import CarefulTrainer
from moe.training.checkpoints import Checkpoint, Checkpoints
from moe.training.cost import cpu_seconds
from moe.training.hooks import TrainingHooks
from moe.training.interrupts import Interrupt
from moe.training.loading import Stall
from moe.training.random_state import generators, set_generators
from moe.training.sharding import as_held, is_sharded, whole, whole_model
from moe.training.trainer_internals import TRAINER_STATE_NAME
from moe.training.update_bar import UpdateBar

STOP = 2  # after an update: 0 goes on, 1 saves
LOGGED = {"loss": "loss", "learning_rate": "learning_rate", "grad_norm": "gradient_norm"}


class ResumableTrainer(CarefulTrainer):
    """A Trainer whose state is a `Checkpoint`.

    Args:
        start: where an earlier training stopped.
        notes: values to keep in every checkpoint.
        averaging: which weights the hooks judge and the training leaves.
        options: the Trainer's own.
    """

    def __init__(
        self,
        hooks: TrainingHooks,
        checkpoints: Checkpoints,
        start: Checkpoint | None,
        notes: dict[str, Any] | None = None,
        averaging: AveragingOptions = AveragingOptions(),
        **options: Any,
    ) -> None:
        super().__init__(hooks, checkpoints, **options)
        self.start, self.notes = start, notes or {}
        self.n_parts = self.notes.get("n_parts", 1)
        self.rest = start or Checkpoint({}, {})
        self.whole = self.finished = False  # nothing is whole before training begins
        self.average = WeightAverage(averaging, self.model)
        self.n_in_epoch = 0  # updates done in the epoch
        self._interrupt, self._stops = Interrupt(), False
        self._earlier_s, self._began, self._saved_at = 0.0, time.monotonic(), time.monotonic()
        self._earlier_cpu_s, self._cpu_began = 0.0, cpu_seconds()
        self._generators_due = start is not None
        self._bar = UpdateBar(hooks.title)
        self.remove_callback(PrinterCallback)
        for callback in (_Moments(self), self._bar):
            self.add_callback(callback)

    def run(self) -> None:
        """Train to the end; nothing is left to do where the end had been reached.

        Raises:
            TooManyBadUpdates: naming the utterances.
            KeyboardInterrupt, or what else SIGTERM and Ctrl-C raise: a checkpoint is written.
        """
        if self.start is not None:
            self._restore(self.start)
        if not self.finished:
            self._train()
        self.average.apply()

    def checkpoint(self) -> Checkpoint:
        """Everything there is to know, as of the last moment of rest."""
        optimizer, scaler = self.optimizer.state_dict(), self.accelerator.scaler
        moments = {
            f"{index}/{name}": whole(value) for index, state in optimizer["state"].items() for name, value in state.items()
        }
        values = {
            "optimizer": optimizer["param_groups"],
            "scheduler": self.lr_scheduler.state_dict(),
            "scaler": scaler.state_dict() if scaler is not None else None,
        }
        weights = {name: whole(each.detach()) for name, each in self.model.named_parameters() if each.requires_grad}
        values["average"], average = self.average.state()
        averages = {name: whole(each) for name, each in average.items()}
        tensors = {"weights": weights, "optimizer": moments, "average": averages}
        return Checkpoint(self.rest.values | values, self.rest.tensors | tensors)

    # Moments that the Trainer calls.

    def training_begins(self) -> None:
        """Take up the losses since the last log line, which the Trainer has set to zero."""
        if self.start is None:
            self.rest, self.whole = self._resting(), True
            return
        self.loss_since_log.fill_(self.start.values["loss"])
        self.last_logged, self.whole = self.start.values["last_logged"], True
        self._update_ended()  # the interruption may have come before it was judged

    def epoch_begins(self) -> None:
        """Order, curriculum and the like follow from the epoch's number."""
        self.sampler.set_epoch(self.epoch)
        with whole_model(self.model), self._interrupt.interruptible():
            self.hooks.epoch_begins(self.epoch)

    def optimizer_steps(self) -> None:
        """From here to the update's end weights and optimizer are of different updates."""
        self.whole = False

    def update_ends(self) -> None:
        """A moment of rest; another once the stage has judged the update."""
        self.stall.update_ends()
        self.average.update_ends(self.epoch)
        self.n_in_epoch += 1
        self.whole, self.rest = True, self._resting()
        self._update_ended()
        every = self.checkpoints.options.save_every_n_updates
        self.control.should_save = self._is_time_to_save(every > 0 and self.state.global_step % every == 0)

    def _update_ended(self) -> None:
        if self.hooks.update_ended(self.state.global_step):
            with self.average.in_force(), whole_model(self.model), self._interrupt.interruptible():
                self.hooks.judge_update(self.epoch)
            self.model.train()
            self.rest = self._resting()

    def epoch_ends(self, model: nn.Module) -> None:
        """Let the stage judge; then a moment of rest."""
        if self._generators_due:  # all updates of the epoch were done before the interruption
            self.restore_generators()
        is_last = self.state.global_step >= self.state.max_steps
        with self.average.in_force(), whole_model(self.model), self._interrupt.interruptible():
            stops = self.hooks.epoch_ends(self.epoch, is_last)
        self.whole = False
        with whole_model(self.model):
            restarts = self.hooks.epoch_ended(self.epoch)
        if restarts:
            self.average.restart()
        model.train()
        self.finished = self.control.should_training_stop = stops or is_last
        every = self.checkpoints.options.save_every_n_epochs
        self.control.should_save = self._is_time_to_save(self.finished or (self.epoch + 1) % every == 0)
        self.epoch, self.n_in_epoch = self.epoch + 1, 0
        self.whole, self.rest = True, self._resting()

    def has_logged(self, logs: dict[str, Any]) -> None:
        """Pass the metrics on; a checkpoint that follows must know that they were reported."""
        values = {LOGGED[name]: float(value) for name, value in logs.items() if name in LOGGED}
        if values:
            values |= self._group_rates()
            self.loss_since_log.zero_()  # the Trainer subtracts the sum from itself, which leaves NaN where it was NaN
            self.hooks.metrics(values, self.state.global_step)
            self.rest = self._resting()

    def _group_rates(self) -> dict[str, float]:
        """The learning rate of each group, where there are several."""
        groups = self.optimizer.param_groups
        return {f"learning_rate/{group['name']}": float(group["lr"]) for group in groups if len(groups) > 1}

    # What the Trainer does with checkpoints, our way.

    def place_to_resume(self, max_updates: int, n_per_epoch: int) -> tuple[int, int]:
        if self.start is None:
            return 0, 0
        values = self.start.values
        self.state.global_step, self.state.epoch = values["update"], values["share"]
        n_done = n_per_epoch if values["update"] >= max_updates else values["n_in_epoch"]
        return values["epoch"], n_done * self.args.gradient_accumulation_steps

    def restore_optimizer(self) -> None:
        if self.start is None:
            return
        state: dict[int, dict[str, Tensor]] = {}
        trained = [each for group in self.optimizer.param_groups for each in group["params"]]
        for key, value in self.start.tensors["optimizer"].items():
            index, name = key.split("/")
            state.setdefault(int(index), {})[name] = as_held(value, trained[int(index)])
        groups = [group | {"betas": tuple(group["betas"])} for group in self.start.values["optimizer"]]
        self.optimizer.load_state_dict({"state": state, "param_groups": groups})
        self.lr_scheduler.load_state_dict(self.start.values["scheduler"])

    def restore_scaler(self) -> None:
        if self.start is not None and self.start.values["scaler"] is not None:
            self.accelerator.scaler.load_state_dict(self.start.values["scaler"])

    def restore_generators(self) -> None:
        self._generators_due = False
        if self.start is not None:
            set_generators(self.start.values["generators"])  # the first process's; the others have theirs by update

    def save_state(self) -> None:
        self._write(self.checkpoint())
        self.accelerator.wait_for_everyone()
        if self._stops:
            self._interrupt.raise_now()

    # The state.

    def _train(self) -> None:
        with self._interrupt.held():
            try:
                self.train(resume_from_checkpoint=self._marker())
            except BaseException:
                self._save_after_stop()
                raise
            finally:
                self._bar.close()

    def _resting(self) -> Checkpoint:
        stage_values, stage_tensors = self.hooks.state()
        loss, cpu_s = processes.total([self.loss_since_log.item(), cpu_seconds() - self._cpu_began])
        values = {
            "update": self.state.global_step,
            "share": self.state.epoch,
            "epoch": self.epoch,
            "n_in_epoch": self.n_in_epoch,
            "finished": self.finished,
            "loss": loss / processes.n_processes(),
            "last_logged": self.last_logged,
            "generators": generators(),
            "bad_updates": list(self.bad_updates),
            "seconds": self._earlier_s + time.monotonic() - self._began,
            "cpu_seconds": self._earlier_cpu_s + cpu_s,
            "stall": dataclasses.asdict(self.stall),
            "stage": stage_values,
        }
        return Checkpoint(values | self.notes, {"stage": stage_tensors, "buffers": self.buffers()})

    @torch.no_grad()
    def _restore(self, start: Checkpoint) -> None:
        values = start.values
        trained = {name: parameter for name, parameter in self.model.named_parameters() if parameter.requires_grad}
        buffers = dict(self.model.named_buffers())
        saved = set(start.tensors["weights"]) | set(start.tensors["buffers"])
        if saved != set(trained) | set(buffers):
            raise ValueError(
                f"the checkpoint is of another training ({len(saved)} tensors; here {len(trained) + len(buffers)}): "
                "resume=false starts afresh"
            )
        for name, tensor in (trained | buffers).items():
            tensor.copy_(as_held(start.tensors["weights" if name in trained else "buffers"][name], tensor))
        self.average.restore(values["average"], start.tensors["average"])
        self.hooks.restore(values["stage"], start.tensors["stage"])
        self.epoch, self.n_in_epoch, self.finished = values["epoch"], values["n_in_epoch"], values["finished"]
        self.bad_updates, self._earlier_s = list(values["bad_updates"]), values["seconds"]
        self._earlier_cpu_s, self.stall = values["cpu_seconds"], Stall(**values["stall"])

    def _marker(self) -> str | None:
        """What the Trainer takes for a checkpoint's folder."""
        folder = self.args.output_dir
        if self.start is None or folder is None:
            return None
        TrainerState().save_to_json(str(Path(folder) / TRAINER_STATE_NAME))
        return folder

    def _is_time_to_save(self, is_due: bool) -> bool:
        minutes = (time.monotonic() - self._saved_at) / 60
        is_due = self.checkpoints.folder is not None and (is_due or minutes >= self.checkpoints.options.save_every_minutes)
        answer = processes.most(STOP if self._interrupt.requested is not None else int(is_due))
        self._stops = answer == STOP
        return answer > 0

    def _write(self, checkpoint: Checkpoint) -> None:
        if self.checkpoints.folder is not None and processes.number() == 0:
            update, epoch, n_in_epoch = (checkpoint.values[name] for name in ("update", "epoch", "n_in_epoch"))
            self.checkpoints.save(checkpoint, update, epoch, is_best=n_in_epoch == 0 and self.hooks.is_best(epoch - 1))
        self._saved_at = time.monotonic()

    def _save_after_stop(self) -> None:
        """A signal took effect in an evaluation, or ended a loader's process: what the last moment of rest left is whole."""
        if self._interrupt.requested is None or self._stops:
            return
        if self.whole and not is_sharded(self.model):  # of parts all processes would have to be here
            self._write(self.checkpoint())
        self._interrupt.raise_now()


class _Moments(TrainerCallback):
    def __init__(self, trainer: ResumableTrainer) -> None:
        self.trainer = trainer

    def on_train_begin(self, *_: Any, **__: Any) -> None:
        self.trainer.training_begins()

    def on_epoch_begin(self, *_: Any, **__: Any) -> None:
        self.trainer.epoch_begins()

    def on_pre_optimizer_step(self, *_: Any, **__: Any) -> None:
        self.trainer.optimizer_steps()

    def on_step_end(self, *_: Any, **__: Any) -> None:
        self.trainer.update_ends()

    def on_epoch_end(self, *_: Any, **given: Any) -> None:
        self.trainer.epoch_ends(given["model"])

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **_: Any) -> None:
        self.trainer.has_logged(logs or {})
