"""Training a CTC: what no checkpoint provided first, then all that is to train; the best epoch by dev is kept."""

import dataclasses
from collections.abc import Iterator
from contextlib import contextmanager

import pandas as pd
from torch import nn

from moe.audio.waveforms import SAMPLE_RATE
from moe.options import Options, option
from moe.recognition.dev_scores import RATES, BestOnDev
from moe.systems.wav2vec2_ctc.inputs import CTCInputs
from moe.systems.wav2vec2_ctc.system import CTCSystem, part_of
from moe.training.averaging import AveragingOptions
from moe.training.best_epoch import START
from moe.training.dataset import SpeechDataset
from moe.training.hooks import TrainingHooks
from moe.training.loop import Training, TrainingSummary, fit

TRAINED = {"all": ("encoder", "adapter", "head"), "adapter": ("adapter", "head"), "head": ("head",)}


@dataclasses.dataclass(frozen=True)
class CTCTrainingOptions(Options):
    """How a CTC is trained."""

    group = "ctc"

    ctc_epochs: int = option(8, "passes over the training subset", low=1)
    ctc_batch_size: int = option(16, "utterances per batch", low=1)
    ctc_learning_rate: float = option(2e-3, "learning rate; 3e-5 suits a checkpoint", above=0)
    ctc_train: str = option("all", "what trains; the head always does", choices=tuple(TRAINED))
    head_updates: int = option(60, "updates in which only what a checkpoint lacks trains, before the rest", low=0)
    selection: str = option("cer", "error rate of dev by which the best epoch is kept", choices=tuple(RATES))
    ctc_patience: int = option(10, "epochs without improvement of that rate after which training ends", low=1)
    min_character_count: int = option(2, "a character that the train split has less often is unknown", low=1)


@dataclasses.dataclass(frozen=True)
class TrainedCTC:
    """What training did: the epoch kept (None: the start), its dev error rate and that of the start, and metrics per epoch.

    `summaries` are of each phase: of what a checkpoint lacked, where there was such a phase, and of the rest.
    """

    summaries: tuple[TrainingSummary, ...]
    epoch: int | None
    rate: float
    start_rate: float
    history: tuple[dict[str, float], ...]

    @property
    def earlier(self) -> dict[str, float]:
        """What all phases but the last took."""
        return {
            "n_utterances_seen": sum(each.n_utterances for each in self.summaries[:-1]),
            "n_updates": sum(each.n_updates for each in self.summaries[:-1]),
            "seconds": sum(each.seconds for each in self.summaries[:-1]),
        }


def train(
    system: CTCSystem, train_set: SpeechDataset, dev_set: SpeechDataset, options: CTCTrainingOptions, training: Training
) -> TrainedCTC:
    """Train a system in place; it keeps the weights of its best epoch."""
    network = system.module.network
    is_partial = 0 < len(system.missing) < len(list(network.parameters()))
    train_only(network, {name for name, _ in network.named_parameters() if part_of(name) in TRAINED[options.ctc_train]})
    summaries = []
    if is_partial and options.head_updates:
        summaries.append(_train_missing(system, train_set, options.head_updates, training))
    hooks = BestOnDev(system, dev_set, training, options.ctc_patience, options.selection)
    summaries.append(fit(system.module, train_set, training, hooks, system.parameter_groups()))
    hooks.restore_best()
    epoch = None if hooks.best_epoch == START else hooks.best_epoch
    return TrainedCTC(tuple(summaries), epoch, hooks.best_value, hooks.start_value, tuple(hooks.history))


def train_only(network: nn.Module, names: set[str]) -> None:
    """Let these parameters train and no others."""
    for name, parameter in network.named_parameters():
        parameter.requires_grad_(name in names)


def infeasible(rows: pd.DataFrame, inputs: CTCInputs) -> pd.DataFrame:
    """Those rows that have an infinite loss, as a table: utterance_id, duration_s, reference, reason."""
    reasons = [
        inputs.refusal(round(seconds * SAMPLE_RATE), reference)
        for seconds, reference in zip(rows["duration_s"], rows["reference"], strict=True)
    ]
    table = rows[["utterance_id", "duration_s", "reference"]].assign(reason=reasons)
    return table[[reason is not None for reason in reasons]].reset_index(drop=True)


def _train_missing(system: CTCSystem, train_set: SpeechDataset, n_updates: int, training: Training) -> TrainingSummary:
    """A phase of its own, with checkpoints of its own."""
    plan = dataclasses.replace(
        training.plan, max_updates=n_updates, decay_share=0.0, warmup_updates=None, averaging=AveragingOptions()
    )
    phase = dataclasses.replace(training, plan=plan, checkpoints=training.checkpoints.below("missing"))
    with _only_missing(system):
        return fit(system.module, train_set, phase, TrainingHooks(), system.parameter_groups())


@contextmanager
def _only_missing(system: CTCSystem) -> Iterator[None]:
    network = system.module.network
    trains = {name for name, parameter in network.named_parameters() if parameter.requires_grad}
    train_only(network, set(system.missing))
    try:
        yield
    finally:
        train_only(network, trains)
