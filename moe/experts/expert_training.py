"""Expert training: all experts and the shared adapter beneath them in one pass over mixed batches, each utterance on its cluster's expert.

After each epoch every expert is scored on the dev utterances of its own cluster. Each keeps its best state and has stopped when it has
not improved for `patience` epochs; training ends when all have stopped. What is kept in the end is the better, by dev WER, of the
best whole epoch and the mixture assembled of every expert's own best. In `shared_epochs` at the start the shared adapter trains alone.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from moe.experts.adapter_folders import expert_name, experts_from_shared
from moe.experts.best_adapters import BestAdapters
from moe.options import Options, option
from moe.recognition.decoding import DecodingOptions, Hypothesis, decode
from moe.routing.weights import one_hot
from moe.systems.whisper.features import AudioContextOptions
from moe.systems.whisper_moe.model import WhisperMoE
from moe.text.word_errors import word_error_rate
from moe.training.checkpoints import Checkpoints
from moe.training.dataset import SpeechDataset
from moe.training.hooks import Report, TrainingHooks
from moe.training.loop import TrainingPlan, TrainingSummary, fit


@dataclasses.dataclass(frozen=True)
class ExpertOptions(Options):
    """How the experts are trained before the gate joins them."""

    group = "experts"

    expert_batch_size: int = option(16, "utterances per batch", low=1, common=True)
    expert_epochs: int = option(6, "passes over the experts' subset", low=0, common=True)
    expert_learning_rate: float = option(3e-3, "learning rate of all adapters", above=0)
    expert_patience: int = option(5, "epochs without improvement after which an expert has stopped", low=1)
    shared_epochs: int = option(0, "first of the expert_epochs, in which the shared adapter trains alone", low=0)
    experts_init: str = option(
        "zero",
        "experts start from zero (A random, B zero), or as copies of the shared adapter after shared_epochs, which then keeps half of itself",
        choices=("zero", "shared"),
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
        kept: `epoch <n>` or `best of each expert`.
        history: per epoch: wer, loss, and `wer/expert_<e>`, `loss/expert_<e>`.
    """

    summary: TrainingSummary
    kept: str
    wer: float
    history: tuple[dict[str, float], ...]


def train_experts(
    model: WhisperMoE,
    train_set: SpeechDataset,
    dev_set: SpeechDataset,
    dev_clusters: np.ndarray,
    options: ExpertOptions,
    plan: TrainingPlan,
    context: AudioContextOptions,
    report: Report,
    eval_every: int = 1,
    checkpoints: Checkpoints | None = None,
) -> TrainedExperts:
    """Train the adapters of `model` in place.

    Args:
        train_set: serves `routing_weights` (N, E), one-hot or soft, of each utterance's cluster.
        dev_clusters: (N_dev,) cluster of each dev utterance.
    """
    hooks = ExpertHooks(model, dev_set, dev_clusters, options, context, report, eval_every)
    model.use_precision(plan.precision)
    summary = fit(model, train_set, plan, context, hooks, checkpoints=checkpoints)
    kept, wer = hooks.keep_best()
    return TrainedExperts(summary, kept, wer, tuple(hooks.history))


class ExpertHooks(TrainingHooks):
    """Scores every expert after an epoch and keeps the best."""

    def __init__(
        self,
        model: WhisperMoE,
        dev_set: SpeechDataset,
        dev_clusters: np.ndarray,
        options: ExpertOptions,
        context: AudioContextOptions,
        report: Report,
        eval_every: int,
    ) -> None:
        self.model, self.dev_set, self.options, self.context = model, dev_set, options, context
        self.report, self.eval_every = report, eval_every
        self.clusters = dict(zip([row["utterance_id"] for row in dev_set.rows], dev_clusters.tolist(), strict=True))
        self.best = BestAdapters(model)
        self.history: list[dict[str, float]] = []

    def epoch_begins(self, epoch: int) -> None:
        self.model.phase = dataclasses.replace(self.model.phase, experts=epoch >= self.options.shared_epochs)

    def epoch_ends(self, epoch: int, is_last: bool) -> bool:
        return self._judge(epoch, is_last) and epoch + 1 > self.options.shared_epochs

    def epoch_ended(self, epoch: int) -> None:
        if self.options.experts_init == "shared" and epoch + 1 == self.options.shared_epochs:
            experts_from_shared(self.model.base)  # here and not when the next epoch begins, which may happen twice

    def _judge(self, epoch: int, is_last: bool) -> bool:
        if (epoch + 1) % self.eval_every and not is_last:
            return False
        metrics = self.score()
        self.history.append({"epoch": epoch, **metrics})
        self.report(epoch, {f"dev/{name}": value for name, value in metrics.items()})
        self.best.update(epoch, metrics)
        return self.best.all_stopped(epoch, self.options.expert_patience * self.eval_every)

    def metrics(self, values: dict[str, float], update: int) -> None:
        self.report(update, {f"train/{name}": value for name, value in values.items()})

    def state(self) -> tuple[dict[str, Any], dict[str, Tensor]]:
        values, tensors = self.best.state()
        return {"history": list(self.history), "best": values}, tensors

    def restore(self, values: dict[str, Any], tensors: dict[str, Tensor]) -> None:
        self.history = list(values["history"])
        self.best.restore(values["best"], tensors)

    def is_best(self, epoch: int) -> bool:
        return epoch == self.best.epoch

    def score(self) -> dict[str, float]:
        """WER and loss, of all dev utterances and of each expert's own, every utterance on its cluster's expert."""
        hypotheses = decode(self.model, self.dev_set, self.context, DecodingOptions(), self._policy, with_loss=True)
        references = {row["utterance_id"]: row["reference"] for row in self.dev_set.rows}
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
        return f"epoch {self.best.epoch}", self.best.wer

    def _policy(self, utterance_ids: Sequence[str]) -> Tensor:
        experts = torch.tensor([self.clusters[name] for name in utterance_ids])
        return one_hot(experts, self.model.n_experts).weights


def _scores(hypotheses: Sequence[Hypothesis], references: dict[str, str]) -> dict[str, float]:
    wer = word_error_rate([references[each.utterance_id] for each in hypotheses], [each.text for each in hypotheses])
    return {"wer": wer, "loss": float(np.mean([each.utterance_loss for each in hypotheses]))}
