"""Joint training: gate, experts and shared adapter together under top-k routing; also one LoRA, which is the case without experts.

The best epoch by dev WER is kept, or what training began with, where every epoch is worse: few data are soon learnt by heart. Expert
load and routing entropy are measured on the dev split after every epoch, so that a collapse shows while it happens; and on the last
utterances of training, where the curriculum and the noise are at work.
"""

import dataclasses
import math
from typing import Any

import numpy as np
import torch
from torch import Tensor

from moe.options import Options, option
from moe.recognition.decoding import DecodingOptions, Hypothesis, decode
from moe.routing.curriculum import CurriculumOptions, phase
from moe.routing.losses import BalanceOptions, routing_entropy
from moe.routing.options import RoutingOptions
from moe.systems.whisper.features import AudioContextOptions
from moe.systems.whisper_moe.model import WhisperMoE
from moe.text.word_errors import word_error_rate
from moe.training.checkpoints import Checkpoints
from moe.training.dataset import SpeechDataset
from moe.training.hooks import Report, TrainingHooks
from moe.training.loop import TrainingPlan, TrainingSummary, fit

START = -1  # among epochs: before the first


@dataclasses.dataclass(frozen=True)
class JointOptions(Options):
    """How the mixture is trained as one."""

    group = "asr"

    asr_batch_size: int = option(16, "utterances per batch", low=1, common=True)
    asr_epochs: int = option(1, "passes over the training subset", low=0, common=True)
    asr_learning_rate: float = option(1e-3, "learning rate of the adapters", above=0)
    gate_learning_rate: float = option(1e-4, "learning rate of the gate in joint training", above=0)
    freeze_gate: bool = option(False, "leave the gate as gate training made it")
    asr_patience: int = option(5, "epochs without improvement of the dev WER after which training ends", low=1)

    def faults(self) -> list[str]:
        """What a frozen gate leaves without effect."""
        if self.freeze_gate and self.is_changed("gate_learning_rate"):
            return [f"gate_learning_rate={self.gate_learning_rate:g}: freeze_gate=true trains no gate"]
        return []


@dataclasses.dataclass(frozen=True)
class TrainedMixture:
    """What joint training did: the epoch kept (None: the start), its dev WER and that of the start, metrics and expert load (E,) per epoch.

    A row of a mixture also holds `temperature` and `top_k`, with which the epoch was trained, and the entropy of the gate then.
    """

    summary: TrainingSummary
    epoch: int | None
    wer: float
    start_wer: float
    history: tuple[dict[str, float], ...]
    loads: tuple[np.ndarray, ...]

    @property
    def kept(self) -> str:
        """What was kept, in words."""
        if self.epoch is not None:
            return f"Epoch {self.epoch}"
        return "The start (every epoch was worse)" if self.history else "The start (there was no epoch)"


def train_jointly(
    model: WhisperMoE,
    train_set: SpeechDataset,
    dev_set: SpeechDataset,
    options: JointOptions,
    curriculum: CurriculumOptions,
    plan: TrainingPlan,
    context: AudioContextOptions,
    report: Report,
    eval_every: int = 1,
    checkpoints: Checkpoints | None = None,
) -> TrainedMixture:
    """Train `model` in place and leave it at its best epoch, or as it was."""
    hooks = JointHooks(model, dev_set, options, curriculum, context, report, eval_every)
    model.use_precision(plan.precision)
    summary = fit(model, train_set, plan, context, hooks, parameter_groups(model, options), checkpoints)
    hooks.judge_start()  # where there was no epoch to begin
    hooks.restore_best()
    epoch = None if hooks.best_epoch == START else hooks.best_epoch
    return TrainedMixture(summary, epoch, hooks.best_wer, hooks.start_wer, tuple(hooks.history), tuple(hooks.loads))


def experts_faults(
    n_experts: int, routing: RoutingOptions, curriculum: CurriculumOptions, balance: BalanceOptions
) -> list[str]:
    """Options that this many experts leave without effect, or cannot satisfy."""
    if balance.minimum_usage * n_experts > 1:
        return [f"minimum_usage={balance.minimum_usage:g}: {n_experts} experts can have {1 / n_experts:.3g} each at most"]
    if n_experts == 1:
        asked = [(curriculum, ("soft_epochs", "router_noise"))]
        asked.append((balance, ("minimum_usage", "entropy_coefficient", "alignment_coefficient")))
        return [f"{name}: one expert leaves nothing to route" for options, names in asked for name in names if options.is_changed(name)]
    if curriculum.soft_epochs and curriculum.temperature_start == 1 and routing.top_k >= n_experts:
        return [f"soft_epochs={curriculum.soft_epochs}: top_k={routing.top_k} routes to all {n_experts} experts in every epoch"]
    return []


def parameter_groups(model: WhisperMoE, options: JointOptions) -> list[dict]:
    """Everything that trains: adapters at one learning rate, the gate at its own unless frozen."""
    if model.gate is not None:
        model.gate.requires_grad_(not options.freeze_gate)
    trainable = model.trainable_parameters()
    groups = [{"params": [p for name, p in trainable.items() if not name.startswith("gate.")], "lr": options.asr_learning_rate}]
    gate = [parameter for name, parameter in trainable.items() if name.startswith("gate.")]
    return groups + ([{"params": gate, "lr": options.gate_learning_rate}] if gate else [])


class JointHooks(TrainingHooks):
    """Sets the curriculum's phase before an epoch, scores and selects after it."""

    def __init__(
        self,
        model: WhisperMoE,
        dev_set: SpeechDataset,
        options: JointOptions,
        curriculum: CurriculumOptions,
        context: AudioContextOptions,
        report: Report,
        eval_every: int,
    ) -> None:
        self.model, self.dev_set, self.options, self.curriculum = model, dev_set, options, curriculum
        self.context, self.report, self.eval_every = context, report, eval_every
        self.history: list[dict[str, float]] = []
        self.loads: list[np.ndarray] = []
        self.best_wer, self.best_epoch, self.best_state = math.inf, START, {}
        self.start_wer = math.inf
        self.n_begun = 0

    def judge_start(self) -> None:
        """Score the model as it came, which is the best so far; once, also where training is interrupted."""
        if math.isinf(self.start_wer):
            self.model.phase = self._final_phase()
            self.start_wer = self._wer(decode(self.model, self.dev_set, self.context, DecodingOptions()))
            self.report(0, {"dev/wer_start": self.start_wer})
            self.best_wer, self.best_state = self.start_wer, self._state()

    def epoch_begins(self, epoch: int) -> None:
        self.judge_start()
        if self.model.n_experts:
            self.model.phase = self._phase(epoch)
        if self.model.n_experts and epoch >= self.n_begun:  # told once, though after an interruption an epoch begins again
            self.n_begun = epoch + 1
            self.report(
                epoch,
                {"curriculum/top_k": self.model.phase.top_k, "curriculum/temperature": self.model.phase.temperature},
            )

    def epoch_ends(self, epoch: int, is_last: bool) -> bool:
        watched = self._training_metrics()
        self.report(epoch, watched)
        if (epoch + 1) % self.eval_every and not is_last:
            return False
        self.model.phase = self._final_phase()  # scored as it will decode, whatever the curriculum's phase
        hypotheses = decode(self.model, self.dev_set, self.context, DecodingOptions(), with_loss=True)
        metrics = self._metrics(hypotheses)
        trained = {"training_entropy": watched["train/routing_entropy"]} if watched else {}
        self.history.append({"epoch": epoch, **metrics, **self._phase_values(epoch), **trained})
        self.report(epoch, {f"dev/{name}": value for name, value in metrics.items()})
        if metrics["wer"] < self.best_wer or (self.best_epoch == START and metrics["wer"] == self.best_wer):
            self.best_wer, self.best_epoch, self.best_state = metrics["wer"], epoch, self._state()
        return epoch - self.best_epoch >= self.options.asr_patience * self.eval_every

    def metrics(self, values: dict[str, float], update: int) -> None:
        self.report(update, {f"train/{name}": value for name, value in values.items()})

    def state(self) -> tuple[dict[str, Any], dict[str, Tensor]]:
        values = {"history": list(self.history), "loads": [load.tolist() for load in self.loads]}
        values |= {"best_wer": self.best_wer, "best_epoch": self.best_epoch, "start_wer": self.start_wer, "n_begun": self.n_begun}
        return values, dict(self.best_state)

    def restore(self, values: dict[str, Any], tensors: dict[str, Tensor]) -> None:
        self.history, self.loads = list(values["history"]), [np.array(load, np.float32) for load in values["loads"]]
        self.best_wer, self.best_epoch, self.best_state = values["best_wer"], values["best_epoch"], tensors
        self.start_wer, self.n_begun = values["start_wer"], values["n_begun"]

    def is_best(self, epoch: int) -> bool:
        return epoch == self.best_epoch

    @torch.no_grad()
    def restore_best(self) -> None:
        """Put the best weights back and route as decoding does."""
        for name, parameter in self.model.named_parameters():
            if name in self.best_state:
                parameter.copy_(self.best_state[name])
        self.model.phase = self._final_phase()

    def _phase_values(self, epoch: int) -> dict[str, float]:
        phase = self._phase(epoch)
        return {"temperature": phase.temperature, "top_k": phase.top_k} if self.model.n_experts else {}

    def _training_metrics(self) -> dict[str, float]:
        """The gate's probabilities for the last utterances trained on, under the epoch's temperature and noise."""
        rows = self.model.window.rows  # (n, E)
        if not len(rows) or not self.model.n_experts:
            return {}
        load = {f"train/load/expert_{expert}": share for expert, share in enumerate(rows.mean(0).tolist())}
        return load | {"train/routing_entropy": normalised_entropy(rows)}

    def _phase(self, epoch: int):
        return phase(self.curriculum, epoch, self.model.routing_options.top_k, self.model.n_experts)

    def _final_phase(self):
        return phase(CurriculumOptions(), 0, self.model.routing_options.top_k, max(1, self.model.n_experts))

    def _state(self) -> dict[str, Tensor]:
        return {name: parameter.detach().clone() for name, parameter in self.model.trainable_parameters().items()}

    def _wer(self, hypotheses: list[Hypothesis]) -> float:
        references = [row["reference"] for row in self.dev_set.rows]
        return word_error_rate(references, [hypothesis.text for hypothesis in hypotheses])

    def _metrics(self, hypotheses: list[Hypothesis]) -> dict[str, float]:
        metrics = {
            "wer": self._wer(hypotheses),
            "loss": float(np.mean([hypothesis.utterance_loss for hypothesis in hypotheses])),
        }
        if self.model.n_experts:
            weights = np.stack([hypothesis.routing_weights for hypothesis in hypotheses])  # (N, E)
            gate = np.stack([hypothesis.gate_probabilities for hypothesis in hypotheses])  # (N, E)
            metrics |= self._routing_metrics(weights) | {"routing_entropy": normalised_entropy(torch.from_numpy(gate))}
        return metrics

    def _routing_metrics(self, weights: np.ndarray) -> dict[str, float]:
        load = weights.mean(0)
        etiologies = np.array([row["etiology"] for row in self.dev_set.rows])
        self.loads.append(load)
        metrics = {f"load/expert_{expert}": float(share) for expert, share in enumerate(load)}
        for etiology in sorted(set(etiologies)):
            for expert, share in enumerate(weights[etiologies == etiology].mean(0)):
                metrics[f"load/{etiology}/expert_{expert}"] = float(share)
        return metrics


def normalised_entropy(probabilities: Tensor) -> float:
    """Mean entropy of the gate's whole distribution (n, E) by its maximum: 0 sure, 1 undecided; also where the top 1 alone is used."""
    n_experts = probabilities.shape[-1]
    return float(routing_entropy(probabilities)) / math.log(n_experts) if n_experts > 1 else 0.0
