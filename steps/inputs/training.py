"""What every training step reads and keeps: the corpus, its parts, the datasets, and how training is reported to MLflow."""

import contextlib
import dataclasses
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from mlflow.exceptions import MlflowException

from moe.routing.embeddings import Embeddings, embed, read_embeddings
from moe.routing.options import RoutingOptions
from moe.system import Inputs, Record, System
from moe.systems.whisper.base_model import BaseModel, load_base, read_training_record, use_language
from moe.systems.whisper.encoder import embedder
from moe.systems.whisper.features import AudioContextOptions
from moe.systems.whisper.inputs import WhisperInputs
from moe.training.averaging import AveragingOptions
from moe.training.checkpoints import CheckpointOptions, Checkpoints, TrainingEvents
from moe.training.cost import compute_seconds, device_name
from moe.training.dataset import SpeechDataset
from moe.training.example_memory import ExampleMemory
from moe.training.hooks import Report
from moe.training.loop import Training, TrainingSummary
from moe.training.plan import ComputeOptions, TrainingPlan
from moe.training.precision import precision
from steps.inputs.corpus import Prepared, read_prepared
from steps.options.step_options import ExportOptions, ReportOptions, TrainingStepOptions
from steps.registry.exports import export
from steps.tracking import artifacts, runs
from steps.tracking.dashboards import dashboard
from steps.tracking.names import is_by_group
from steps.tracking.pruning import Watch
from steps.tracking.step_run import StepRun

EMBEDDING_BATCH = 32
CHECKPOINTS, DAMAGED, BAD_UPDATES = "checkpoints", "damaged_checkpoints", "tables/bad_updates.json"
MAX_TAG = 4000


@dataclasses.dataclass(frozen=True)
class TrainingInputs:
    """What a training step works on.

    Attributes:
        train: rows of the train split's part that is trained on; `dev` those that are decoded after an epoch.
        memory: room for what the data sets keep from epoch to epoch.
    """

    options: TrainingStepOptions
    prepared: Prepared
    train: pd.DataFrame
    dev: pd.DataFrame
    training: Training
    memory: ExampleMemory

    def train_set(self, inputs: Inputs, extras: Mapping[str, np.ndarray] | None = None) -> SpeechDataset:
        """The rows to train on, augmented where the options ask for it."""
        options = self.options
        return SpeechDataset(
            self.train, self.prepared.root, inputs, options.augmentation, options.seed, extras, True, self.memory
        )

    def plain_set(self, inputs: Inputs) -> SpeechDataset:
        """The rows to train on, as they are."""
        return SpeechDataset(self.train, self.prepared.root, inputs, memory=self.memory)

    def dev_set(self, inputs: Inputs, extras: Mapping[str, np.ndarray] | None = None) -> SpeechDataset:
        """The rows to score."""
        return SpeechDataset(self.dev, self.prepared.root, inputs, extras=extras, memory=self.memory)


def training_inputs(step: StepRun, options: TrainingStepOptions, percent: float, plan: TrainingPlan) -> TrainingInputs:
    """The corpus as a training step reads it; logged as the run's inputs.

    Args:
        percent: part of the train split that the step works on.

    Raises:
        ValueError: shards are gone, or are to be shuffled together where there are none.
    """
    prepared = read_prepared(options.prepare_run_id, options)
    train = prepared.train(percent, options.data_percent, options.stage_floor, options.seed)
    dev = prepared.dev(len(train), options.eval_share, options.seed)
    prepared.refuse_missing(train, dev, shards_together=options.shards_together)
    prepared.log_input(step, train, "training")
    prepared.log_input(step, dev, "validation")
    watch = Watch(step)
    report, checkpoints = watch.watched(reporter(step, options)), checkpoints_of(step, options, watch)
    training = Training(plan, report, checkpoints, options.eval_every_n_epochs, options.eval_every_n_updates)
    return TrainingInputs(options, prepared, train, dev, training, options.example_memory)


def training_facts(
    system: System, summary: TrainingSummary, seed: int, earlier: Mapping[str, float] | None = None
) -> dict[str, float]:
    """What a record says of a training.

    Args:
        earlier: n_utterances_seen, n_updates and seconds (of CPU too) of a training that this one went on from.
    """
    earlier = earlier or {}
    seconds = {name: getattr(summary, name) + earlier.get(name, 0.0) for name in ("seconds", "cpu_seconds")}
    parameters = list(system.module.parameters())
    return {
        "n_trainable": sum(parameter.numel() for parameter in parameters if parameter.requires_grad),
        "n_total": sum(parameter.numel() for parameter in parameters),
        "n_utterances_seen": summary.n_utterances + earlier.get("n_utterances_seen", 0),
        "n_updates": summary.n_updates + earlier.get("n_updates", 0),
        "n_bad_updates": len(summary.bad_updates),
        "training_seconds": seconds["seconds"],
        "training_compute_seconds": compute_seconds(seconds["seconds"], seconds["cpu_seconds"]),
        **summary.throughput(),
        "seed": seed,
    }


def log_system(
    step: StepRun,
    system: System,
    facts: Mapping[str, Any],
    options: ExportOptions = ExportOptions(),
    further: Mapping[str, Path] | None = None,
) -> Record:
    """Log a trained system as the artifact `model`, its facts in its record, and return the record.

    Args:
        options: where else the model goes.
        further: folders to lay beside it, by name.
    """
    facts = {**facts, "training_device": device_name()}
    record = dataclasses.replace(system.record, facts={**system.record.facts, **facts})
    system.record = record
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary) / artifacts.MODEL
        system.save(folder)
        for name, path in (further or {}).items():
            shutil.copytree(path, folder / name)
        step.log_folder(folder, artifacts.MODEL)
        export(step, folder, options)
    return record


def base_record(pretrain_run_id: str) -> dict[str, Any]:
    """How the base model of a `pretrain` run was made; empty for one from elsewhere."""
    return read_training_record(artifacts.upstream(pretrain_run_id, artifacts.BASE))


def read_base(pretrain_run_id: str, language: str, dropout: float | None = None) -> tuple[BaseModel, Path]:
    """The base model of a `pretrain` run with the prompt of a language, and its folder.

    Args:
        dropout: in place of the checkpoint's own.

    Raises:
        ValueError: the base does not have the language.
    """
    folder = artifacts.upstream(pretrain_run_id, artifacts.BASE)
    return use_language(load_base(str(folder), dropout), language), folder


def embeddings_of(
    prepared: Prepared,
    rows: pd.DataFrame,
    base: BaseModel,
    routing: RoutingOptions,
    context: AudioContextOptions,
    embed_run_id: str | None,
    computed_in: str = "fp32",
) -> Embeddings:
    """Cached embeddings where a run has them all; otherwise they are computed now, never skipped."""
    if embed_run_id not in (None, "none"):
        cached = read_embeddings(artifacts.upstream(embed_run_id, artifacts.EMBEDDINGS))
        if set(rows["utterance_id"]) <= set(cached.utterance_ids):
            return cached
    with tempfile.TemporaryDirectory() as folder:
        dataset = SpeechDataset(rows, prepared.root, WhisperInputs(base.processor, context))
        return embed(embedder(base.model, routing.layer, routing.pooling, computed_in), dataset, Path(folder), EMBEDDING_BATCH)


def plan_of(options: TrainingStepOptions, epochs: int, batch_size: int, learning_rate: float) -> TrainingPlan:
    """The training loop's plan from a step's options."""
    return TrainingPlan(
        epochs=epochs,
        batch_size=batch_size,
        learning_rate=learning_rate,
        seed=options.seed,
        accumulation=options.gradient_accumulation_steps,
        warmup_share=options.warmup_ratio,
        warmup_updates=options.warmup_steps,
        schedule=options.lr_scheduler_type,
        precision=precision(options),
        averaging=options.part(AveragingOptions),
        strategy=options.strategy,
        **compute_arguments(options),
    )


def compute_arguments(options: ComputeOptions) -> dict[str, Any]:
    """What a plan takes as it is of the options of every step that trains."""
    return {
        "num_workers": options.num_workers,
        "persistent_workers": options.persistent_workers,
        "shards_together": options.shards_together,
        "gradient_checkpointing": options.gradient_checkpointing,
        "log_every": options.logging_steps,
    }


class RunEvents(TrainingEvents):
    """What happens to a training, as tags and tables of its run and in the log."""

    def __init__(self, step: StepRun, watch: Watch | None = None) -> None:
        self.step, self.watch = step, watch
        self.reported: dict[str, list[str]] = {}

    def update_begins(self) -> None:
        """Stop where a sweep has no more use for the training."""
        if self.watch is not None:
            self.watch.goes_on()

    def report(self, event: str, text: str) -> None:
        """Add to the tag `moe.<event>`; a store that does not answer must not end the training."""
        super().report(event, text)
        self.reported.setdefault(event, []).append(text)
        with contextlib.suppress(MlflowException):
            self.step.set_tags({f"moe.{event}": "; ".join(self.reported[event])[-MAX_TAG:]})

    def damaged(self, path: Path, text: str) -> None:
        """Keep it for inspection: the folder it lies in goes when the run is FINISHED."""
        super().damaged(path, text)
        with contextlib.suppress(MlflowException, OSError):
            self.step.log_folder(path, f"{DAMAGED}/{path.name}")

    def bad_updates(self, records: Sequence[dict[str, Any]]) -> None:
        """Log them all, each time: the run may fail at the next."""
        super().bad_updates(records)
        with contextlib.suppress(MlflowException):
            rows = [record | {"utterance_ids": ", ".join(record["utterance_ids"])} for record in records]
            self.step.log_table(pd.DataFrame(rows), BAD_UPDATES)

    def saving(self) -> None:
        """Metrics first: a resumed training will not tell them again."""
        self.step.keep_metrics()


def checkpoints_of(step: StepRun, options: CheckpointOptions, watch: Watch | None = None) -> Checkpoints:
    """Where a step's training keeps its state until the run is FINISHED."""
    return Checkpoints(runs.work_dir(step) / CHECKPOINTS, options.part(CheckpointOptions), RunEvents(step, watch))


def reporter(step: StepRun, options: ReportOptions) -> Report:
    """Metrics of training into the step's run, as they come, and where else the options say; those by group go there alone."""
    second = dashboard(options.report_to, step, options.as_parameters())

    def report(number: int, values: dict[str, float]) -> None:
        step.log_metrics({name: value for name, value in values.items() if not is_by_group(name)}, number)
        if second is not None:
            second(number, values)

    return report
