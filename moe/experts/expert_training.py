"""Expert training: all experts and the shared adapter beneath them in one pass over mixed batches, each utterance on its cluster's expert.

After each epoch every expert is scored on the dev utterances of its own cluster. Each keeps its best state and has stopped when it has
not improved for `patience` epochs; training ends when all have stopped. What is kept in the end is the better, by dev WER, of the
best whole epoch and the mixture assembled of every expert's own best. In `shared_epochs` at the start the shared adapter trains alone.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from moe.experts.adapter_folders import expert_name, experts_from_shared
from moe.experts.best_adapters import BestAdapters
from moe.experts.mixture import Mixture, MixtureSystem
from moe.experts.routed_lora import routed_layers
from moe.options import Options, option
from moe.recognition.decoding import decode
from moe.routing.weights import one_hot
from moe.system import DecodingOptions, Hypothesis, ParameterGroup
from moe.text.error_rates import word_error_rate
from moe.training.best_epoch import Validation
from moe.training.dataset import SpeechDataset
from moe.training.loop import Training, TrainingSummary, fit


@dataclasses.dataclass(frozen=True)
class ExpertOptions(Options):
    """How the experts are trained before the gate joins them."""

    group = "experts"

    expert_batch_size: int = option(16, "utterances per batch", low=1, common=True)
    expert_epochs: int = option(6, "passes over the experts' subset", low=0, common=True)
    expert_learning_rate: float = option(1e-3, "learning rate of all adapters", above=0)
    expert_patience: int = option(5, "epochs without improvement after which an expert has stopped", low=1)
    shared_epochs: int = option(0, "first of the expert_epochs, in which the shared adapter trains alone", low=0)
    experts_init: str = option(
        "zero",
        "experts start from zero (A random, B zero), or as copies of the shared adapter after shared_epochs, which then keeps half of itself",
        choices=("zero", "shared"),
    )
    expert_rate_share: float = option(
        1.0,
        "learning rate of the experts, as a part of the shared adapter's: below 1 they are small deviations from it",
        above=0,
        high=1,
    )
    expert_decay: float = option(
        0.0, "weight decay of the experts: towards zero, and so towards the shared adapter", low=0, high=1
    )
    drop_experts: bool = option(
        False, "an expert that is no better on its dev utterances than the shared adapter alone ends at zero"
    )

    def faults(self) -> list[str]:
        """What would leave nothing to train or to copy."""
        found = []
        if self.shared_epochs and self.shared_epochs >= self.expert_epochs:
            found.append(f"shared_epochs={self.shared_epochs}: leaves none of expert_epochs={self.expert_epochs} to the experts")
        if self.experts_init == "shared" and not self.shared_epochs:
            found.append("experts_init=shared: shared_epochs=0 leaves the shared adapter zero, so there is nothing to copy")
        return found


@dataclasses.dataclass(frozen=True)
class TrainedExperts:
    """What expert training did.

    Attributes:
        kept: `epoch <n>`, counted from 1, or `best of each expert`.
        history: per epoch: wer, loss, and `wer/expert_<e>`, `loss/expert_<e>`.
        start: the same of the start, before the first epoch; empty where there was no epoch.
    """

    summary: TrainingSummary
    kept: str
    wer: float
    history: tuple[dict[str, float], ...]
    start: Mapping[str, float]


def train_experts(
    system: MixtureSystem,
    train_set: SpeechDataset,
    dev_set: SpeechDataset,
    dev_clusters: np.ndarray,
    options: ExpertOptions,
    training: Training,
) -> TrainedExperts:
    """Train the adapters of a mixture in place.

    Args:
        train_set: serves `routing_weights` (N, E), one-hot or soft, of each utterance's cluster.
        dev_set: gets `routing_weights` of `dev_clusters`, by which it is decoded.
        dev_clusters: (N_dev,) cluster of each dev utterance.
    """
    hooks = _hooks(system, dev_set, dev_clusters, options, training)
    system.module.use_precision(training.plan.precision)
    groups = parameter_groups(system.module, options, training.plan.learning_rate)
    summary = fit(system.module, train_set, training, hooks, groups)
    kept, wer = hooks.keep_best()
    if not options.drop_experts:
        return TrainedExperts(summary, kept, wer, tuple(hooks.history), hooks.start)
    dropped = hooks.drop_idle()
    said = f"{kept}, with {len(dropped)} of {system.module.n_experts} experts at zero"
    return TrainedExperts(summary, said, hooks.score()["wer"], tuple(hooks.history), hooks.start)


def parameter_groups(model: Mixture, options: ExpertOptions, learning_rate: float) -> list[ParameterGroup]:
    """The experts at a rate and a decay of their own, and all else that trains."""
    parts: dict[bool, list[nn.Parameter]] = {False: [], True: []}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            parts[name.endswith((".lora_A", ".lora_B"))].append(parameter)
    shared = ParameterGroup("shared", tuple(parts[False]), learning_rate)
    experts = ParameterGroup("experts", tuple(parts[True]), learning_rate * options.expert_rate_share, options.expert_decay)
    return [group for group in (shared, experts) if group.parameters]


def dev_wer(
    system: MixtureSystem, dev_set: SpeechDataset, dev_clusters: np.ndarray, options: ExpertOptions, training: Training
) -> float:
    """WER of a mixture as it is, each dev utterance on the expert of its cluster, (N_dev,)."""
    return _hooks(system, dev_set, dev_clusters, options, training).score()["wer"]


class ExpertHooks(Validation):
    """Scores every expert after an epoch and keeps the best of each; `dev_clusters` (N_dev,) are the clusters of the dev utterances."""

    title = "experts"

    def __init__(
        self, system: MixtureSystem, dev_set: SpeechDataset, dev_clusters: np.ndarray, options: ExpertOptions, training: Training
    ) -> None:
        super().__init__(training)
        self.system, self.model, self.dev_set, self.options = system, system.module, dev_set, options
        self.clusters = dict(zip(dev_set.utterance_ids, dev_clusters.tolist(), strict=True))
        self.best = BestAdapters(self.model)
        self.start: dict[str, float] = {}

    def epoch_begins(self, epoch: int) -> None:
        draws, has_experts = f"{self.training.plan.seed}/{epoch}", epoch >= self.options.shared_epochs
        self.model.phase = dataclasses.replace(self.model.phase, experts=has_experts, draws=draws)
        if not self.start:
            self.start = self.score()
            self.training.report(0, {"dev/wer_start": self.start["wer"]})

    def epoch_ended(self, epoch: int) -> bool:
        is_copied = self.options.experts_init == "shared" and epoch + 1 == self.options.shared_epochs
        if is_copied:
            experts_from_shared(self.model.base)  # here and not when the next epoch begins, which may happen twice
        return is_copied

    def judge(self, epoch: int) -> dict[str, float]:
        return self.score()

    def judged(self, epoch: int, metrics: dict[str, float]) -> None:
        self.best.update(epoch, metrics)

    def stops(self, epoch: int) -> bool:
        stopped = self.best.all_stopped(epoch, self.options.expert_patience * self.training.eval_every)
        return stopped and epoch + 1 > self.options.shared_epochs

    def state(self) -> tuple[dict[str, Any], dict[str, Tensor]]:
        values, tensors = self.best.state()
        return super().state()[0] | {"best": values, "start": self.start}, tensors

    def restore(self, values: dict[str, Any], tensors: dict[str, Tensor]) -> None:
        super().restore(values, tensors)
        self.best.restore(values["best"], tensors)
        self.start = dict(values["start"])

    def is_best(self, epoch: int) -> bool:
        return epoch == self.best.epoch

    @torch.no_grad()
    def drop_idle(self) -> list[int]:
        """Set every expert to zero that is no better on its own dev utterances than the shared adapter alone; which they are."""
        routed, own = self.dev_set.extras["routing_weights"], self.score()
        self.dev_set.extras["routing_weights"] = torch.zeros_like(routed)
        alone = self.score()
        self.dev_set.extras["routing_weights"] = routed
        names = {expert: f"wer/{expert_name(expert)}" for expert in range(self.model.n_experts)}
        dropped = [expert for expert, name in names.items() if name in own and alone[name] <= own[name]]
        for _, layer in routed_layers(self.model.base):
            layer.lora_B[dropped] = 0
        return dropped

    def score(self) -> dict[str, float]:
        """WER and loss, of all dev utterances and of each expert's own, every utterance on its cluster's expert."""
        hypotheses = decode(self.system, self.dev_set, DecodingOptions(), with_loss=True)
        references = dict(zip(self.dev_set.utterance_ids, self.dev_set.references, strict=True))
        metrics = _scores(hypotheses, references)
        for expert in range(self.model.n_experts):
            own = [hypothesis for hypothesis in hypotheses if self.clusters[hypothesis.utterance_id] == expert]
            if own:
                metrics |= {f"{name}/{expert_name(expert)}": value for name, value in _scores(own, references).items()}
        return metrics

    def keep_best(self) -> tuple[str, float]:
        """Restore the best adapters into the model: what was kept, and its dev WER."""
        if not self.history:
            return "last epoch", float("nan")
        self.best.restore_each()
        assembled = self.score()["wer"]
        if assembled <= self.best.wer:
            return "best of each expert", assembled
        self.best.restore_epoch()
        return f"epoch {self.best.epoch + 1}", self.best.wer


def _hooks(
    system: MixtureSystem, dev_set: SpeechDataset, dev_clusters: np.ndarray, options: ExpertOptions, training: Training
) -> ExpertHooks:
    dev_set.extras["routing_weights"] = one_hot(torch.from_numpy(dev_clusters), system.module.n_experts).weights
    return ExpertHooks(system, dev_set, dev_clusters, options, training)


def _scores(hypotheses: Sequence[Hypothesis], references: dict[str, str]) -> dict[str, float]:
    wer = word_error_rate([references[each.utterance_id] for each in hypotheses], [each.text for each in hypotheses])
    return {"wer": wer, "loss": float(np.mean([each.utterance_loss for each in hypotheses]))}
