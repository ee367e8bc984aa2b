"""What the training steps share: datasets with cached embeddings, a fresh mixture, and how training is told to MLflow."""

import contextlib
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from mlflow.exceptions import MlflowException

from moe.audio.augmentation import AugmentationOptions
from moe.routing.embeddings import Embeddings, embed, read_embeddings
from moe.routing.options import RoutingOptions
from moe.systems.whisper.base_model import BaseModel, load_base
from moe.systems.whisper.features import AudioContextOptions
from moe.training.checkpoints import CheckpointOptions, Checkpoints, TrainingEvents
from moe.training.dataset import SpeechDataset
from moe.training.hooks import Report
from moe.training.loop import TrainingPlan
from moe.training.precision import precision
from steps.inputs.corpus import Prepared
from steps.options.step_options import MixtureStepOptions
from steps.tracking import artifacts, runs
from steps.tracking.step_run import StepRun

EMBEDDING_BATCH = 32
CHECKPOINTS, DAMAGED, BAD_UPDATES = "checkpoints", "damaged_checkpoints", "tables/bad_updates.json"
MAX_TAG = 4000


def read_base(pretrain_run_id: str) -> tuple[BaseModel, Path]:
    """The base model of a `pretrain` run, and its folder."""
    folder = artifacts.upstream(pretrain_run_id, artifacts.BASE)
    return load_base(str(folder)), folder


def speech_set(
    prepared: Prepared,
    rows: pd.DataFrame,
    base: BaseModel,
    options: MixtureStepOptions | None = None,
    extras: Mapping[str, np.ndarray] | None = None,
) -> SpeechDataset:
    """A dataset of manifest rows; augmented where options ask for it."""
    augmentation = options.part(AugmentationOptions) if options is not None and options.augment else None
    seed = options.seed if options is not None else 0
    longest = base.model.config.max_target_positions if options is not None else None  # what is trained on must fit the decoder
    return SpeechDataset(rows, prepared.root, base.processor, augmentation, seed, extras, longest)


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
        dataset = SpeechDataset(rows, prepared.root, base.processor)
        return embed(base.model, dataset, Path(folder), context, routing.layer, routing.pooling, EMBEDDING_BATCH, computed_in)


def plan_of(options: MixtureStepOptions, epochs: int, batch_size: int, learning_rate: float) -> TrainingPlan:
    """The training loop's plan from a step's options."""
    return TrainingPlan(
        epochs=epochs,
        batch_size=batch_size,
        learning_rate=learning_rate,
        seed=options.seed,
        accumulation=options.gradient_accumulation_steps,
        num_workers=options.num_workers,
        precision=precision(options),
    )


class RunEvents(TrainingEvents):
    """What happens to a training, as tags and tables of its run and in the log."""

    def __init__(self, step: StepRun) -> None:
        self.step = step
        self.reported: dict[str, list[str]] = {}

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


def checkpoints_of(step: StepRun, options: CheckpointOptions) -> Checkpoints:
    """Where a step's training keeps its state until the run is FINISHED."""
    return Checkpoints(runs.work_dir(step) / CHECKPOINTS, options.part(CheckpointOptions), RunEvents(step))


def reporter(step: StepRun) -> Report:
    """Metrics of training into the step's run, as they come."""
    return lambda update, values: step.log_metrics(values, update)
