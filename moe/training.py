"""The one training loop: transformers' Trainer with our batches, shared by pretraining, experts, joint training and baselines.

Stages differ in the model they pass and in what they do at an epoch's end; the loop knows neither MLflow nor what it trains.
"""

import dataclasses
import tempfile
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from transformers import Trainer, TrainerCallback, TrainingArguments, set_seed
from transformers.trainer_pt_utils import AcceleratorConfig

from moe.batches import LengthGroupedSampler, SpeechDataset, collator
from moe.features import AudioContext
from moe.options import Options, option

Report = Callable[[int, dict[str, float]], None]  # told the epoch or update, and its metrics
LOG_EVERY = 20  # updates between two loss metrics


@dataclasses.dataclass(frozen=True)
class Plan:
    """How long, how fast and how much at once."""

    epochs: int
    batch_size: int
    learning_rate: float
    seed: int = 0
    accumulation: int = 1
    warmup_share: float = 0.1
    decay_share: float = 0.4
    max_grad_norm: float = 1.0
    weight_decay: float = 0.0
    betas: tuple[float, float] = (0.9, 0.98)
    num_workers: int = 0
    precision: str = "fp32"
    max_updates: int | None = None


@dataclasses.dataclass(frozen=True)
class ComputeOptions(Options):
    """How a training step uses the machine; results do not depend on the number of workers."""

    num_workers: int = option(0, "loader processes", low=0)
    gradient_accumulation_steps: int = option(1, "batches per update", low=1)
    fp16: bool = option(False, "half precision in training, where the machine has it: bf16, else fp16")
    no_fp16: bool = option(False, "never half precision")
    eval_every_n_epochs: int = option(1, "epochs between validations", low=1)

    def faults(self) -> list[str]:
        return ["fp16=true and no_fp16=true contradict each other"] if self.fp16 and self.no_fp16 else []


def precision(options: ComputeOptions) -> str:
    """fp32, bf16 or fp16, by wish and capability: CUDA takes half precision unless told not to, a CPU only where told to."""
    if options.no_fp16 or not (options.fp16 or torch.cuda.is_available()):
        return "fp32"
    if not torch.cuda.is_available():
        return "bf16"
    return "bf16" if torch.cuda.is_bf16_supported() else "fp16"


@dataclasses.dataclass(frozen=True)
class Fitted:
    """What a training run did."""

    n_updates: int
    n_epochs: int
    n_utterances: int
    seconds: float


class Stage:
    """What a training stage does around the loop; every hook may be left as it is."""

    def epoch_begins(self, epoch: int) -> None:
        """Before the first update of an epoch (0-based)."""

    def epoch_ends(self, epoch: int) -> bool:
        """After its last update; True ends the training."""
        return False

    def metrics(self, values: dict[str, float], update: int) -> None:
        """Loss, learning rate and gradient norm, every few updates."""


def fit(
    model: nn.Module,
    train_set: SpeechDataset,
    plan: Plan,
    context: AudioContext,
    stage: Stage,
    groups: list[dict[str, Any]] | None = None,
) -> Fitted:
    """Train `model` in place.

    Args:
        groups: optimizer parameter groups; by default everything that requires gradient at one learning rate.

    Returns:
        counts and wall time. The model keeps its last weights; a stage that selects the best restores them itself.
    """
    groups = groups or [{"params": [parameter for parameter in model.parameters() if parameter.requires_grad]}]
    optimizer = torch.optim.AdamW(groups, lr=plan.learning_rate, betas=plan.betas, weight_decay=plan.weight_decay)
    start = time.perf_counter()
    with tempfile.TemporaryDirectory() as output_dir:
        trainer = SpeechTrainer(
            model=model,
            args=training_arguments(plan, len(train_set), output_dir),
            train_dataset=train_set,
            data_collator=collator(train_set.processor, context),
            optimizers=(optimizer, None),
            callbacks=[_StageCallback(stage)],
        )
        trainer.train()
    state = trainer.state
    return Fitted(state.global_step, round(state.epoch), round(state.epoch * len(train_set)), time.perf_counter() - start)


def training_arguments(plan: Plan, n_utterances: int, output_dir: str) -> TrainingArguments:
    """The Trainer's arguments for a plan: warm-up, constant, linear decay; nothing reported but through our callback."""
    n_updates = plan.max_updates or max(1, plan.epochs * updates_per_epoch(plan, n_utterances))
    n_warmup, n_decay = int(plan.warmup_share * n_updates), int(plan.decay_share * n_updates)
    return TrainingArguments(
        output_dir=output_dir,
        num_train_epochs=plan.epochs,
        max_steps=plan.max_updates or -1,
        per_device_train_batch_size=plan.batch_size,
        gradient_accumulation_steps=plan.accumulation,
        learning_rate=plan.learning_rate,
        lr_scheduler_type="warmup_stable_decay",
        lr_scheduler_kwargs={"num_decay_steps": n_decay, "decay_type": "linear", "min_lr_ratio": 0.01},
        warmup_steps=n_warmup,
        max_grad_norm=plan.max_grad_norm,
        bf16=plan.precision == "bf16",
        fp16=plan.precision == "fp16",
        seed=plan.seed,
        data_seed=plan.seed,
        dataloader_num_workers=plan.num_workers,
        accelerator_config=AcceleratorConfig(split_batches=False, dispatch_batches=False),
        remove_unused_columns=False,
        label_names=["labels"],
        logging_steps=min(LOG_EVERY, n_updates),  # a short run shows its loss at least once
        logging_nan_inf_filter=False,
        save_strategy="no",
        eval_strategy="no",
        report_to="none",
        disable_tqdm=False,  # else other libraries' log levels decide whether training shows a bar
        ddp_find_unused_parameters=False,
        use_cpu=not torch.cuda.is_available(),
    )


def updates_per_epoch(plan: Plan, n_utterances: int) -> int:
    """Optimizer updates in one pass over the data."""
    n_batches = -(-n_utterances // plan.batch_size)
    return -(-n_batches // plan.accumulation)


class SpeechTrainer(Trainer):
    """The Trainer with length-grouped batches whose order is a function of (seed, epoch)."""

    def _get_train_sampler(self, train_dataset: SpeechDataset | None = None) -> LengthGroupedSampler:
        dataset = train_dataset or self.train_dataset
        return LengthGroupedSampler(dataset.durations, self.args.train_batch_size, self.args.seed)


class _StageCallback(TrainerCallback):
    def __init__(self, stage: Stage) -> None:
        self.stage = stage
        self.epoch = -1  # counted here: `state.epoch` is a fraction where `max_updates` ends an epoch early

    def on_epoch_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.epoch += 1
        self.stage.epoch_begins(self.epoch)

    def on_epoch_end(self, args: Any, state: Any, control: Any, model: nn.Module, **kwargs: Any) -> None:
        stop = self.stage.epoch_ends(self.epoch)
        model.train()
        control.should_training_stop = control.should_training_stop or stop

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **kwargs: Any) -> None:
        names = {"loss": "loss", "learning_rate": "learning_rate", "grad_norm": "gradient_norm"}
        values = {names[name]: float(value) for name, value in (logs or {}).items() if name in names}
        if values:
            self.stage.metrics(values, state.global_step)


def seed_everything(seed: int) -> None:
    """Seed Python, NumPy and torch before a model is made."""
    set_seed(seed)
