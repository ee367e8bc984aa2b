"""The one training loop: transformers' Trainer with our batches, shared by pretraining, experts, joint training and baselines.

Trainings differ in the model they pass and in what their hooks do at an epoch's end; the loop knows neither MLflow nor what it trains. An
interrupted training goes on from its newest checkpoint and ends with the same bits.
"""

import dataclasses
import functools
import gc
import tempfile
from collections.abc import Callable, Sequence
from typing import Any, Self

import torch
from torch import nn
from transformers import set_seed

from moe.system import ParameterGroup
from moe.training import processes
from moe.training.batches import LengthGroupedSampler, TrainingSet, collate
from moe.training.checkpoints import Checkpoint, Checkpoints, TrainingEvents
from moe.training.hooks import Report, TrainingHooks
from moe.training.loading import Stall
from moe.training.plan import TrainingPlan, training_arguments
from moe.training.sharding import is_sharded, sharded
from moe.training.trainer import ResumableTrainer

OUT_OF_MEMORY = ("out of memory", "not enough memory", "can't allocate memory")


@dataclasses.dataclass(frozen=True)
class Training:
    """What surrounds a training: its plan, where metrics go, where checkpoints lie, and how often dev is scored.

    Attributes:
        report: called with an epoch or update and its metrics.
        eval_every: epochs between two validations; there is one after the last epoch in any case.
        eval_every_updates: updates between two validations, in place of epochs; None: by epochs.
    """

    plan: TrainingPlan
    report: Report
    checkpoints: Checkpoints = dataclasses.field(default_factory=Checkpoints)
    eval_every: int = 1
    eval_every_updates: int | None = None

    def of(self, number: int, seed: int) -> Self:
        """The same for one of several trainings: its own seed, checkpoints and names of metrics; the first has the usual names."""
        plan = dataclasses.replace(self.plan, seed=seed)
        if not number:
            return dataclasses.replace(self, plan=plan)
        name = f"training_{number}"
        return dataclasses.replace(self, plan=plan, report=self.report_under(name), checkpoints=self.checkpoints.below(name))

    def report_under(self, name: str) -> Report:
        """A report whose metrics are named below `name`."""
        return lambda number, values: self.report(number, {f"{name}/{metric}": value for metric, value in values.items()})


@dataclasses.dataclass(frozen=True)
class TrainingSummary:
    """What a training run did, interruptions included; `bad_updates` lists those skipped because they were not finite.

    `seconds` is wall time, `cpu_seconds` that of all threads, loaders and processes, `audio_seconds` the audio seen, repeats counted, and
    `stall` how long the updates waited for data.
    """

    n_updates: int
    n_epochs: int
    n_utterances: int
    seconds: float
    cpu_seconds: float = 0.0
    audio_seconds: float = 0.0
    bad_updates: tuple[dict[str, Any], ...] = ()
    stall: Stall = dataclasses.field(default_factory=Stall)

    def throughput(self) -> dict[str, float]:
        """Utterances by second of training, seconds of training by second of audio, and the share of the updates that waited for data."""
        return {
            "training_utterances_per_s": self.n_utterances / max(self.seconds, 1e-9),
            "training_real_time_factor": self.seconds / max(self.audio_seconds, 1e-9),
            "training_loader_stall": self.stall.share,
        }


def together(summaries: Sequence[TrainingSummary]) -> TrainingSummary:
    """Several trainings as one: sums of what they did."""
    names = ("n_updates", "n_epochs", "n_utterances", "seconds", "cpu_seconds", "audio_seconds")
    total = {name: sum(getattr(each, name) for each in summaries) for name in names}
    stall = Stall(sum(each.stall.waiting_s for each in summaries), sum(each.stall.updates_s for each in summaries))
    return TrainingSummary(**total, bad_updates=tuple(record for each in summaries for record in each.bad_updates), stall=stall)


def fit(
    model: nn.Module,
    train_set: TrainingSet,
    training: Training,
    hooks: TrainingHooks,
    groups: Sequence[ParameterGroup] | None = None,
) -> TrainingSummary:
    """Train `model` in place, from its newest checkpoint where there is one.

    Args:
        model: forward(**batch) → {"loss": (), "utterance_loss": (B,)}.
        groups: what trains at which learning rate; by default everything that requires gradient at the plan's.

    Returns:
        counts and wall time. The model keeps its last weights, or their average; hooks that select the best restore them.

    Raises:
        ValueError: no group trains, or the plan has fewer updates than the learning rate rises in.
        TooManyBadUpdates: the loss or gradient of too many updates was not finite.
        RuntimeError: memory does not suffice even for parts of a batch.
    """
    processes.join()
    plan, checkpoints = training.plan, training.checkpoints
    if groups is None:
        groups = [ParameterGroup("all", tuple(each for each in model.parameters() if each.requires_grad), plan.learning_rate)]
    if not any(group.parameters for group in groups):
        raise ValueError("nothing trains: no parameter is in any group")
    if plan.gradient_checkpointing:
        model.enable_checkpointing()  # type: ignore[operator]  # every module that trains has it
    with tempfile.TemporaryDirectory() as output_dir:
        with training_arguments(plan, len(train_set), output_dir).main_process_first(local=False):
            start = checkpoints.newest()
        with sharded(model, plan.strategy, groups) as held:
            trainer_from = functools.partial(_trainer, model, train_set, plan, hooks, held, checkpoints, output_dir)
            rest = _run(trainer_from, start, plan, checkpoints.events)
    n_utterances = round(rest["share"] * len(train_set))
    audio_s = rest["share"] * float(train_set.durations.sum())
    times = (rest["seconds"], rest["cpu_seconds"], audio_s)
    return TrainingSummary(
        rest["update"], round(rest["share"]), n_utterances, *times, tuple(rest["bad_updates"]), Stall(**rest["stall"])
    )


def _trainer(
    model: nn.Module,
    train_set: TrainingSet,
    plan: TrainingPlan,
    hooks: TrainingHooks,
    groups: Sequence[ParameterGroup],
    checkpoints: Checkpoints,
    output_dir: str,
    start: Checkpoint | None,
) -> "SpeechTrainer":
    n_parts = start.values["n_parts"] if start else plan.n_parts
    decays = [plan.weight_decay if group.weight_decay is None else group.weight_decay for group in groups]
    parameters = [
        {"params": list(group.parameters), "lr": group.learning_rate, "weight_decay": decay, "name": group.name}
        for group, decay in zip(groups, decays, strict=True)
    ]
    one_by_one = {"foreach": False} if is_sharded(model) else {}  # some of them are parts, and some are whole
    optimizer = torch.optim.AdamW(
        parameters, lr=plan.learning_rate, betas=plan.betas, weight_decay=plan.weight_decay, **one_by_one
    )
    return SpeechTrainer(
        hooks,
        checkpoints,
        start,
        {"n_parts": n_parts},
        plan.averaging,
        shards_together=plan.shards_together,
        model=model,
        args=training_arguments(plan, len(train_set), output_dir, n_parts),
        train_dataset=train_set,
        data_collator=functools.partial(collate, train_set),
        optimizers=(optimizer, None),
    )


def _run(
    trainer_from: Callable[[Checkpoint | None], "SpeechTrainer"],
    start: Checkpoint | None,
    plan: TrainingPlan,
    events: TrainingEvents,
) -> dict[str, Any]:
    """Run a trainer to its end; where memory is short, go on once with every batch in parts: the same utterances in an update."""
    trainer = trainer_from(start)
    try:
        trainer.run()
        return trainer.rest.values
    except (RuntimeError, MemoryError) as error:
        n_parts = plan.n_parts * smallest_divisor(plan.batch_size // plan.n_parts)
        if not is_out_of_memory(error):
            raise
        if trainer.notes["n_parts"] >= n_parts or not trainer.whole or processes.n_processes() > 1:
            raise RuntimeError(f"out of memory with batches of {trainer.args.per_device_train_batch_size}: {error}") from error
        events.report(
            "out_of_memory",
            f"each batch of {plan.batch_size} is now {n_parts} of {plan.batch_size // n_parts}, accumulated: {error}",
        )
        start = trainer.checkpoint()
    start.values["n_parts"] = n_parts
    del trainer
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    return _run(trainer_from, start, plan, events)


def is_out_of_memory(error: BaseException) -> bool:
    """Did an allocation fail, on the device or on the machine?"""
    said = str(error).lower()
    return isinstance(error, (torch.OutOfMemoryError, MemoryError)) or any(words in said for words in OUT_OF_MEMORY)


def smallest_divisor(number: int) -> int:
    """The smallest divisor above 1; 1 has none but itself."""
    return next((divisor for divisor in range(2, number + 1) if number % divisor == 0), 1)


class SpeechTrainer(ResumableTrainer):
    """The Trainer with length-grouped batches whose order is a function of (seed, epoch)."""

    train_dataset: TrainingSet

    def __init__(self, *given: Any, shards_together: int | None = None, **options: Any) -> None:
        super().__init__(*given, **options)
        self.shards_together = shards_together

    def sampler_of(self) -> LengthGroupedSampler:
        batch_size = self.args.per_device_train_batch_size * self.n_parts  # in parts or not, the same come together
        shards = getattr(self.train_dataset, "shards", None) if self.shards_together else None
        return LengthGroupedSampler(self.train_dataset.durations, batch_size, self.args.seed, shards, self.shards_together)


def seed_everything(seed: int) -> None:
    """Seed Python, NumPy and torch before a model is made."""
    set_seed(seed)
