"""Training a CTC: what no checkpoint provided first, the head alone where asked, then all that is to train; the best epoch is kept."""

import dataclasses
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
from torch import nn

from moe.experts.joint_training import JointHooks
from moe.options import Options, option
from moe.recognition.dev_scores import RATES, BestOnDev
from moe.routing.curriculum import CurriculumOptions
from moe.systems.wav2vec2_ctc.beams import missing_extra
from moe.systems.wav2vec2_ctc.folder import plain_name
from moe.systems.wav2vec2_ctc.mixture_system import CTCMixtureSystem
from moe.systems.wav2vec2_ctc.system import CTCSystem, part_of
from moe.training.averaging import AveragingOptions
from moe.training.best_epoch import Trained
from moe.training.dataset import SpeechDataset
from moe.training.hooks import TrainingHooks
from moe.training.loop import Training, TrainingSummary, fit, together
from moe.training.plan import TrainingPlan

LM_ORDERS = (0, 3, 5)
TRAINED = {"all": ("encoder", "adapter", "head"), "lora": ("lora", "head"), "adapter": ("adapter", "head"), "head": ("head",)}


@dataclasses.dataclass(frozen=True)
class CTCTrainingOptions(Options):
    """How a CTC is trained."""

    group = "ctc"

    ctc_epochs: int = option(8, "passes over the training subset", low=1)
    ctc_batch_size: int = option(16, "utterances per batch", low=1)
    ctc_batch_frames: int = option(
        12_000,
        "padded frames per batch at most; a batch is cut in equal parts until the longest utterances fit, and an update stays the same",
        low=1,
    )
    ctc_learning_rate: float | None = option(
        None,
        "learning rate (none: 2e-3 from scratch and for LoRA, 5e-4 for the shipped small model, 3e-5 for any other)",
        above=0,
    )
    ctc_train: str = option("all", "what trains; the head always does, and what a checkpoint lacks", choices=tuple(TRAINED))
    head_epochs: int = option(0, "epochs in which the head trains alone, before the rest", low=0)
    gate_learning_rate: float = option(1e-4, "learning rate of the gate in joint training", above=0)
    head_updates: int = option(60, "updates in which only what a checkpoint lacks trains, before the rest", low=0)
    selection: str = option("cer", "error rate of dev by which the best epoch is kept", choices=tuple(RATES))
    ctc_patience: int = option(10, "epochs without improvement of that rate after which training ends", low=1)
    ctc_lm_order: int = option(
        0, "order of a character language model of the train transcripts, 3 or 5, which beams ask (0: none)", low=0
    )
    lm_weight: float | None = option(None, "weight of the language model beside the network (none: chosen on dev)", above=0)
    lm_score: float | None = option(None, "added for each character that beams write (none: chosen on dev)", low=0)
    min_character_count: int = option(2, "a character that the train split has less often is unknown", low=1)

    def faults(self) -> list[str]:
        """Another order than is asked for usefully, and a language model without what searches with it."""
        if self.ctc_lm_order not in LM_ORDERS:
            return [f"ctc_lm_order={self.ctc_lm_order}: must be one of {', '.join(map(str, LM_ORDERS))}"]
        missing = missing_extra() if self.ctc_lm_order else None
        return [f"ctc_lm_order={self.ctc_lm_order}: {missing}"] if missing else []

    def idle(self) -> dict[str, str]:
        """How much a language model weighs that is not made."""
        return {} if self.ctc_lm_order else dict.fromkeys(("lm_weight", "lm_score"), "ctc_lm_order=0 makes no language model")


@dataclasses.dataclass(frozen=True)
class TrainedCTC(Trained):
    """What training did, and expert load (E,) per epoch.

    Attributes:
        phases: what came before: of what a checkpoint lacked and of the head, where there were such phases.
    """

    phases: tuple[TrainingSummary, ...] = ()
    loads: tuple[np.ndarray, ...] = ()

    @property
    def earlier(self) -> dict[str, float]:
        """What the phases took."""
        done = together(self.phases)
        return {
            "n_utterances_seen": done.n_utterances,
            "n_updates": done.n_updates,
            "seconds": done.seconds,
            "cpu_seconds": done.cpu_seconds,
        }


def train(
    system: CTCSystem, train_set: SpeechDataset, dev_set: SpeechDataset, options: CTCTrainingOptions, training: Training
) -> TrainedCTC:
    """Train a system in place; it keeps the weights of its best epoch."""
    network = system.module.network
    lacking = _lacking(system)
    train_only(network, {name for name, _ in network.named_parameters() if part_of(name) in TRAINED[options.ctc_train]} | lacking)
    phases = []
    if lacking and options.head_updates:
        plan = dataclasses.replace(training.plan, max_updates=options.head_updates, decay_share=0.0)
        phases.append(_train_alone(system, lacking, train_set, training, plan, "missing"))
    if options.head_epochs:
        head = {name for name, _ in network.named_parameters() if part_of(name) == "head"}
        plan = dataclasses.replace(training.plan, epochs=options.head_epochs, decay_share=0.0)
        phases.append(_train_alone(system, head, train_set, training, plan, "head"))
    hooks = _hooks(system, dev_set, options, training)
    summary = fit(system.module, train_set, training, hooks, system.parameter_groups())
    hooks.restore_best()
    loads = tuple(hooks.loads) if isinstance(hooks, JointHooks) else ()
    return TrainedCTC(**vars(hooks.trained(summary)), phases=tuple(phases), loads=loads)


def train_only(network: nn.Module, names: set[str]) -> None:
    """Let these parameters train and no others."""
    for name, parameter in network.named_parameters():
        parameter.requires_grad_(name in names)


def parts_of_batch(options: CTCTrainingOptions, most_frames: int, num_processes: int = 1) -> int:
    """Parts in which a process's share of a batch, of utterances of `most_frames` padded frames, holds at most `ctc_batch_frames`.

    Raises:
        ValueError: a single such utterance does not.
    """
    size, bound = options.ctc_batch_size // num_processes, options.ctc_batch_frames
    for n_parts in (number for number in range(1, size + 1) if size % number == 0):
        if size // n_parts * most_frames <= bound:
            return n_parts
    raise ValueError(f"ctc_batch_frames={bound}: the longest train utterance alone has {most_frames}; set at least as many")


def _lacking(system: CTCSystem) -> set[str]:
    """Names of what a checkpoint lacked; empty where there was none."""
    names = {name for name, _ in system.module.network.named_parameters() if plain_name(name) in system.missing}
    n_own = sum(part_of(name) != "lora" for name, _ in system.module.network.named_parameters())
    return names if len(names) < n_own else set()


def _hooks(system: CTCSystem, dev_set: SpeechDataset, options: CTCTrainingOptions, training: Training) -> BestOnDev:
    if isinstance(system, CTCMixtureSystem):
        return JointHooks(system, dev_set, options.ctc_patience, CurriculumOptions(), training, options.selection)
    return BestOnDev(system, dev_set, training, options.ctc_patience, options.selection)


def _train_alone(
    system: CTCSystem, names: set[str], train_set: SpeechDataset, training: Training, plan: TrainingPlan, phase: str
) -> TrainingSummary:
    """A phase of its own, with checkpoints of its own, in which only these parameters train."""
    plan = dataclasses.replace(plan, warmup_updates=None, averaging=AveragingOptions())
    around = dataclasses.replace(training, plan=plan, checkpoints=training.checkpoints.below(phase))
    with _only(system, names):
        return fit(system.module, train_set, around, TrainingHooks(), system.parameter_groups())


@contextmanager
def _only(system: CTCSystem, names: set[str]) -> Iterator[None]:
    module = system.module
    trains = {name for name, parameter in module.named_parameters() if parameter.requires_grad}
    train_only(module, {f"network.{name}" for name in names})
    try:
        yield
    finally:
        train_only(module, trains)
