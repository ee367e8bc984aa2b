"""Joint training: gate, experts and shared adapter together under top-k routing; also one LoRA, which is the case without experts.

The best epoch by dev WER is kept, or what training began with, where every epoch is worse: few data are soon learnt by heart. Expert
load and routing entropy are measured on the dev split after every epoch, so that a collapse shows while it happens; and on the last
utterances of training, where the curriculum and the noise are at work.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
from torch import Tensor

from moe.experts.mixture import Mixture, MixtureSystem
from moe.options import Options, option, to_text
from moe.recognition.decoding import decode
from moe.recognition.dev_scores import BestOnDev
from moe.routing.curriculum import CurriculumOptions, Phase, phase
from moe.routing.losses import BalanceOptions, normalised_entropy
from moe.routing.options import RoutingOptions
from moe.system import DecodingOptions, Hypothesis, Routes, routing_weights
from moe.training.best_epoch import Trained
from moe.training.dataset import SpeechDataset
from moe.training.loop import Training, fit


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
class TrainedMixture(Trained):
    """What joint training did, by the dev WER, and expert load (E,) per epoch.

    A row of a mixture's history also holds `temperature` and `top_k`, with which the epoch was trained, and the entropy of the gate then.
    """

    loads: tuple[np.ndarray, ...]


def train_jointly(
    system: MixtureSystem,
    train_set: SpeechDataset,
    dev_set: SpeechDataset,
    options: JointOptions,
    curriculum: CurriculumOptions,
    training: Training,
) -> TrainedMixture:
    """Train a mixture, or one LoRA, in place and leave it at its best epoch, or as it was."""
    if options.freeze_gate and system.module.gate is not None:
        system.module.gate.requires_grad_(False)
    hooks = JointHooks(system, dev_set, options.asr_patience, curriculum, training)
    system.module.use_precision(training.plan.precision)
    summary = fit(system.module, train_set, training, hooks, system.parameter_groups())
    hooks.judge_start()  # where there was no epoch to begin
    hooks.restore_best()
    return TrainedMixture(**vars(hooks.trained(summary)), loads=tuple(hooks.loads))


def experts_faults(n_experts: int, routing: RoutingOptions, curriculum: CurriculumOptions, balance: BalanceOptions) -> list[str]:
    """Options that this many experts leave without effect, or cannot satisfy."""
    if balance.minimum_usage * n_experts > 1:
        return [f"minimum_usage={balance.minimum_usage:g}: {n_experts} experts can have {1 / n_experts:.3g} each at most"]
    if n_experts == 1:
        asked: list[tuple[Options, tuple[str, ...]]] = [
            (routing, ("gate_scaling",)),
            (curriculum, ("soft_epochs", "router_noise")),
        ]
        asked.append((balance, ("minimum_usage", "entropy_coefficient", "alignment_coefficient")))
        return [
            f"{name}={to_text(getattr(options, name))}: num_experts=1 leaves nothing to route"
            for options, names in asked
            for name in names
            if options.is_changed(name)
        ]
    if curriculum.soft_epochs and curriculum.temperature_start == 1 and routing.top_k >= n_experts:
        return [f"soft_epochs={curriculum.soft_epochs}: top_k={routing.top_k} routes to all {n_experts} experts in every epoch"]
    return []


class JointHooks(BestOnDev):
    """Sets the curriculum's phase before an epoch; measures load by etiology after it."""

    module: Mixture

    def __init__(
        self,
        system: MixtureSystem,
        dev_set: SpeechDataset,
        patience: int,
        curriculum: CurriculumOptions,
        training: Training,
        selected: str = "wer",
    ) -> None:
        super().__init__(system, dev_set, training, patience, selected)
        self.curriculum, self.routes = curriculum, isinstance(system, Routes)
        self.loads: list[np.ndarray] = []
        self.n_begun = 0

    def judge_start(self) -> None:
        self.module.phase = self._final_phase()
        super().judge_start()

    def epoch_begins(self, epoch: int) -> None:
        self.judge_start()
        if not self.routes:
            return
        self.module.phase = self._phase(epoch)
        if epoch >= self.n_begun:  # reported once, though after an interruption an epoch begins again
            self.n_begun = epoch + 1
            values = {"curriculum/top_k": self.module.phase.top_k, "curriculum/temperature": self.module.phase.temperature}
            self.training.report(epoch, values)

    def judge_update(self, epoch: int) -> None:
        super().judge_update(epoch)
        if self.routes:
            self.module.phase = self._phase(epoch)  # as it was before

    def epoch_ends(self, epoch: int, is_last: bool) -> bool:
        self.training.report(epoch, self._training_metrics())
        return super().epoch_ends(epoch, is_last)

    def judge(self, epoch: int) -> dict[str, float]:
        self.module.phase = self._final_phase()  # scored as it will decode, whatever the curriculum's phase
        hypotheses = decode(self.system, self.dev_set, DecodingOptions(), with_loss=True)
        return self.scores(hypotheses) | self.system.measures(hypotheses) | (self._loads(hypotheses) if self.routes else {})

    def row(self, epoch: int) -> dict[str, float]:
        if not self.routes:
            return {}
        phase, watched = self._phase(epoch), self._training_metrics()
        course = {f"training_{name.removeprefix('train/').removeprefix('routing_')}": value for name, value in watched.items()}
        return {"temperature": phase.temperature, "top_k": phase.top_k, **course}

    def state(self) -> tuple[dict[str, Any], dict[str, Tensor]]:
        values, tensors = super().state()
        return values | {"loads": [load.tolist() for load in self.loads], "n_begun": self.n_begun}, tensors

    def restore(self, values: dict[str, Any], tensors: dict[str, Tensor]) -> None:
        super().restore(values, tensors)
        self.loads, self.n_begun = [np.array(load, np.float32) for load in values["loads"]], values["n_begun"]

    def restore_best(self) -> None:
        """Put the best weights back and route as decoding does."""
        super().restore_best()
        self.module.phase = self._final_phase()

    def _training_metrics(self) -> dict[str, float]:
        """The gate's probabilities for the last utterances trained on, under the epoch's temperature and noise."""
        rows = self.module.window.rows  # (n, E)
        if not self.routes or not len(rows):
            return {}
        load = {f"train/load/expert_{expert}": share for expert, share in enumerate(rows.mean(0).tolist())}
        return load | {"train/routing_entropy": normalised_entropy(rows)}

    def _loads(self, hypotheses: Sequence[Hypothesis]) -> dict[str, float]:
        """Load of every expert by etiology; the load over all is kept."""
        weights = routing_weights(hypotheses)  # (N, E)
        self.loads.append(weights.mean(0))
        etiologies = np.array(self.dev_set.rows.column("etiology"))
        return {
            f"load/{etiology}/expert_{expert}": float(share)
            for etiology in sorted(set(etiologies))
            for expert, share in enumerate(weights[etiologies == etiology].mean(0))
        }

    def _phase(self, epoch: int) -> Phase:
        found = phase(self.curriculum, epoch, self.module.routing_options.top_k, self.module.n_experts)
        return dataclasses.replace(found, draws=f"{self.training.plan.seed}/{epoch}")

    def _final_phase(self) -> Phase:
        return phase(CurriculumOptions(), 0, self.module.routing_options.top_k, max(1, self.module.n_experts))
