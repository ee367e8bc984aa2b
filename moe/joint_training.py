"""Joint training: gate, experts and shared adapter together under top-k routing; also one LoRA, which is the case without experts.

The best epoch by dev WER is kept. Expert load and routing entropy are measured on the dev split after every epoch, so that a
collapse shows while it happens.
"""

import dataclasses

import numpy as np
import torch
from torch import Tensor

from moe.batches import SpeechDataset
from moe.curriculum import CurriculumOptions, phase
from moe.decoding import DecodingOptions, Hypothesis, decode, word_error_rate
from moe.features import AudioContext
from moe.options import Options, option
from moe.training import Fitted, Plan, Report, Stage, fit
from moe.whisper_moe import WhisperMoE


@dataclasses.dataclass(frozen=True)
class JointOptions(Options):
    """How the mixture is trained as one."""

    asr_batch_size: int = option(16, "utterances per batch", low=1)
    asr_epochs: int = option(1, "passes over the training subset", low=0)
    asr_learning_rate: float = option(1e-3, "learning rate of the adapters", above=0)
    gate_learning_rate: float = option(1e-4, "learning rate of the gate in joint training", above=0)
    freeze_gate: bool = option(False, "leave the gate as gate training made it")
    asr_patience: int = option(5, "epochs without improvement of the dev WER after which training ends", low=1)


@dataclasses.dataclass(frozen=True)
class TrainedMixture:
    """What joint training did: the epoch kept, its dev WER, one row of metrics per epoch, load by etiology of the epoch kept."""

    fitted: Fitted
    epoch: int
    wer: float
    history: tuple[dict[str, float], ...]
    loads: tuple[np.ndarray, ...]


def train_jointly(
    model: WhisperMoE,
    train_set: SpeechDataset,
    dev_set: SpeechDataset,
    options: JointOptions,
    curriculum: CurriculumOptions,
    plan: Plan,
    context: AudioContext,
    report: Report,
    eval_every: int = 1,
) -> TrainedMixture:
    """Train `model` in place and leave it at its best epoch."""
    stage = JointStage(model, dev_set, options, curriculum, context, report, eval_every)
    fitted = fit(model, train_set, plan, context, stage, parameter_groups(model, options))
    stage.restore_best()
    return TrainedMixture(fitted, stage.best_epoch, stage.best_wer, tuple(stage.history), tuple(stage.loads))


def parameter_groups(model: WhisperMoE, options: JointOptions) -> list[dict]:
    """Everything that trains: adapters at one learning rate, the gate at its own unless frozen."""
    if model.gate is not None:
        model.gate.requires_grad_(not options.freeze_gate)
    trainable = model.trainable_parameters()
    groups = [{"params": [p for name, p in trainable.items() if not name.startswith("gate.")], "lr": options.asr_learning_rate}]
    gate = [parameter for name, parameter in trainable.items() if name.startswith("gate.")]
    return groups + ([{"params": gate, "lr": options.gate_learning_rate}] if gate else [])


class JointStage(Stage):
    """Sets the curriculum's phase before an epoch, scores and selects after it."""

    def __init__(
        self,
        model: WhisperMoE,
        dev_set: SpeechDataset,
        options: JointOptions,
        curriculum: CurriculumOptions,
        context: AudioContext,
        report: Report,
        eval_every: int,
    ) -> None:
        self.model, self.dev_set, self.options, self.curriculum = model, dev_set, options, curriculum
        self.context, self.report, self.eval_every = context, report, eval_every
        self.history: list[dict[str, float]] = []
        self.loads: list[np.ndarray] = []
        self.best_wer, self.best_epoch, self.best_state = float("inf"), -1, {}

    def epoch_begins(self, epoch: int) -> None:
        if self.model.n_experts:
            self.model.phase = self._phase(epoch)
            self.report(
                epoch,
                {"curriculum/top_k": self.model.phase.top_k, "curriculum/temperature": self.model.phase.temperature},
            )

    def epoch_ends(self, epoch: int) -> bool:
        if (epoch + 1) % self.eval_every:
            return False
        self.model.phase = self._final_phase()  # scored as it will decode, whatever the curriculum's phase
        hypotheses = decode(self.model, self.dev_set, self.context, DecodingOptions(), with_loss=True)
        metrics = self._metrics(hypotheses)
        self.history.append({"epoch": epoch, **metrics})
        self.report(epoch, {f"dev/{name}": value for name, value in metrics.items()})
        if metrics["wer"] < self.best_wer:
            self.best_wer, self.best_epoch, self.best_state = metrics["wer"], epoch, self._state()
        return epoch - self.best_epoch >= self.options.asr_patience * self.eval_every

    def metrics(self, values: dict[str, float], update: int) -> None:
        self.report(update, {f"train/{name}": value for name, value in values.items()})

    @torch.no_grad()
    def restore_best(self) -> None:
        """Put the best epoch's weights back and route as decoding does."""
        for name, parameter in self.model.named_parameters():
            if name in self.best_state:
                parameter.copy_(self.best_state[name])
        self.model.phase = self._final_phase()

    def _phase(self, epoch: int):
        return phase(self.curriculum, epoch, self.model.routing_options.top_k, self.model.n_experts)

    def _final_phase(self):
        return phase(CurriculumOptions(), 0, self.model.routing_options.top_k, max(1, self.model.n_experts))

    def _state(self) -> dict[str, Tensor]:
        return {name: parameter.detach().clone() for name, parameter in self.model.trainable_parameters().items()}

    def _metrics(self, hypotheses: list[Hypothesis]) -> dict[str, float]:
        references = [row["reference"] for row in self.dev_set.rows]
        metrics = {
            "wer": word_error_rate(references, [hypothesis.text for hypothesis in hypotheses]),
            "loss": float(np.mean([hypothesis.utterance_loss for hypothesis in hypotheses])),
        }
        if self.model.n_experts:
            weights = np.stack([hypothesis.routing_weights for hypothesis in hypotheses])  # (N, E)
            metrics |= self._routing_metrics(weights)
        return metrics

    def _routing_metrics(self, weights: np.ndarray) -> dict[str, float]:
        load = weights.mean(0)
        etiologies = np.array([row["etiology"] for row in self.dev_set.rows])
        self.loads.append(load)
        metrics = {f"load/expert_{expert}": float(share) for expert, share in enumerate(load)}
        metrics["routing_entropy"] = float(-(weights * np.log(np.clip(weights, 1e-12, None))).sum(1).mean())
        for etiology in sorted(set(etiologies)):
            for expert, share in enumerate(weights[etiologies == etiology].mean(0)):
                metrics[f"load/{etiology}/expert_{expert}"] = float(share)
        return metrics
