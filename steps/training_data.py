"""What the training steps share: datasets with cached embeddings, a fresh mixture, and how training is told to MLflow."""

import dataclasses
import tempfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pandas as pd

from moe.augmentation import Augmentation
from moe.base_model import BaseModel, load_base
from moe.batches import SpeechDataset
from moe.embeddings import Embeddings, embed, read_embeddings
from moe.features import AudioContext
from moe.options import option
from moe.routed_lora import AdapterOptions
from moe.training import ComputeOptions, Plan, Report, precision
from moe.whisper_moe import RoutingOptions
from steps import tracking
from steps.embed import StagePercent
from steps.prepared import Prepared
from steps.step_run import StepRun

EMBEDDING_BATCH = 32


@dataclasses.dataclass(frozen=True)
class MixtureStep(AdapterOptions, RoutingOptions, StagePercent, Augmentation, ComputeOptions):
    """Options that every step training adapters has."""

    prepare_run_id: str = option("none", "run that made the manifest")
    pretrain_run_id: str = option("none", "run that holds the base model")
    augment: bool = option(False, "SpecAugment and loudness in adapter training too (on the demo it cost both systems WER)")
    no_plot: bool = option(False, "make no plots")

    not_in_fingerprint = frozenset({"num_workers", "no_plot"})

    def faults(self) -> list[str]:
        """Faults between fields."""
        return RoutingOptions.faults(self) + ComputeOptions.faults(self)


def read_base(pretrain_run_id: str) -> tuple[BaseModel, Path]:
    """The base model of a `pretrain` run, and its folder."""
    folder = tracking.upstream(pretrain_run_id, tracking.BASE)
    return load_base(str(folder)), folder


def speech_set(
    prepared: Prepared,
    rows: pd.DataFrame,
    base: BaseModel,
    options: MixtureStep | None = None,
    extras: Mapping[str, np.ndarray] | None = None,
) -> SpeechDataset:
    """A dataset of manifest rows; augmented where options ask for it."""
    augmentation = options.part(Augmentation) if options is not None and options.augment else None
    seed = options.seed if options is not None else 0
    longest = base.model.config.max_target_positions if options is not None else None  # what is trained on must fit the decoder
    return SpeechDataset(rows, Path(prepared.root), base.processor, augmentation, seed, extras, longest)


def embeddings_of(
    prepared: Prepared, rows: pd.DataFrame, base: BaseModel, routing: RoutingOptions, context: AudioContext, embed_run_id: str | None
) -> Embeddings:
    """Cached embeddings where a run has them all; otherwise they are computed now, never skipped."""
    if embed_run_id not in (None, "none"):
        cached = read_embeddings(tracking.upstream(embed_run_id, tracking.EMBEDDINGS))
        if set(rows["utterance_id"]) <= set(cached.utterance_ids):
            return cached
    with tempfile.TemporaryDirectory() as folder:
        dataset = SpeechDataset(rows, Path(prepared.root), base.processor)
        return embed(base.model, dataset, Path(folder), context, routing.layer, routing.pooling, EMBEDDING_BATCH)


def plan_of(options: MixtureStep, epochs: int, batch_size: int, learning_rate: float) -> Plan:
    """The training loop's plan from a step's options."""
    return Plan(
        epochs=epochs,
        batch_size=batch_size,
        learning_rate=learning_rate,
        seed=options.seed,
        accumulation=options.gradient_accumulation_steps,
        num_workers=options.num_workers,
        precision=precision(options),
    )


def reporter(step: StepRun) -> Report:
    """Metrics of training into the step's run, as they come."""
    return lambda update, values: step.log_metrics(values, update)
