"""Training SteerMoE: four groups at four rates, vectors and scales clipped apart, steering analysed, the best epoch by dev kept."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from moe.options import Options, option
from moe.recognition.decoding import decode
from moe.recognition.dev_scores import RATES, BestOnDev
from moe.system import DecodingOptions
from moe.systems.steer_moe.measurements import Use, measures, use_of, warnings
from moe.systems.steer_moe.model import SteeredWriter
from moe.systems.steer_moe.system import SteerSystem
from moe.training import processes
from moe.training.best_epoch import Trained
from moe.training.dataset import SpeechDataset
from moe.training.loop import Training, fit

WARNING = "steering_warning"  # event, and tag of the run


@dataclasses.dataclass(frozen=True)
class SteerTrainingOptions(Options):
    """How SteerMoE is trained; presets/steermoe.yaml holds document 002's values."""

    group = "steer"

    steering_learning_rate: float = option(0.1, "learning rate of the steering vectors", above=0)
    scale_learning_rate: float = option(3e-3, "learning rate of the layers' scales", above=0)
    router_learning_rate: float = option(3e-3, "learning rate of the routers", above=0)
    steer_learning_rate: float = option(3e-3, "learning rate of the projector, and of a LoRA in place of steering", above=0)
    steering_gradient_clip: float = option(
        1.0, "norm to which the gradient of vectors and scales, and only theirs, is clipped (0: not)", low=0
    )
    steering_balance_coefficient: float = option(
        0.0, "weight of the KL of uniform to each layer's mean use of its vectors in an update", low=0
    )
    steer_batch_size: int = option(16, "utterances per batch", low=1)
    steer_epochs: int = option(10, "passes over the training subset; 0 trains nothing", low=0)
    steer_percent: float = option(100.0, "part of the train split, percent", above=0, high=100)
    steer_weight_decay: float = option(0.0, "weight decay", low=0)
    steer_select: str = option("cer", "error rate of dev by which the best epoch is kept", choices=tuple(RATES))
    steer_patience: int = option(3, "epochs without improvement of that rate after which training ends", low=1)
    steering_log_every: int = option(100, "updates between two analyses of the steering", low=1)

    @property
    def rates(self) -> dict[str, float]:
        """Learning rate of each group."""
        return {
            "vectors": self.steering_learning_rate,
            "scales": self.scale_learning_rate,
            "routers": self.router_learning_rate,
            "projector": self.steer_learning_rate,
        }


@dataclasses.dataclass(frozen=True)
class TrainedSteer(Trained):
    """What training did.

    Attributes:
        analyses: of the steering, per update. steering: the same of the kept model on dev.
    """

    analyses: tuple[dict[str, float], ...]
    steering: dict[str, float]

    @property
    def warnings(self) -> list[str]:
        """Where the kept model is not as the document says."""
        return warnings(self.steering)


class SteerHooks(BestOnDev):
    """Clips, analyses, and keeps the best epoch.

    Args:
        etiologies: of the utterances of train and dev, by id.
    """

    title = "steer"
    module: SteeredWriter

    def __init__(
        self,
        system: SteerSystem,
        dev_set: SpeechDataset,
        training: Training,
        options: SteerTrainingOptions,
        etiologies: Mapping[str, str],
    ) -> None:
        super().__init__(system, dev_set, training, options.steer_patience, options.steer_select)
        self.options, self.etiologies = options, etiologies
        self.steering = system.module.encoder.steering
        self.analyses: list[dict[str, float]] = []
        self.warned: tuple[str, ...] = ()

    def update_begins(self, update: int) -> None:
        self.module.watched = self.steering is not None and update % self.options.steering_log_every == 0
        self.module.seen, self.module.used = [], None

    def gradient_known(self, update: int) -> None:
        if self.steering is None:
            return
        clip_steering(self.steering, self.options.steering_gradient_clip)
        if self.module.watched:
            self._analyse(update)

    def state(self) -> tuple[dict[str, Any], dict[str, Tensor]]:
        values, tensors = super().state()
        return values | {"analyses": list(self.analyses), "warned": list(self.warned)}, tensors

    def restore(self, values: dict[str, Any], tensors: dict[str, Tensor]) -> None:
        super().restore(values, tensors)
        self.analyses, self.warned = list(values["analyses"]), tuple(values["warned"])

    def analyse_dev(self) -> dict[str, float]:
        """Measures of the model as it is, on dev; empty without steering."""
        if self.steering is None:
            return {}
        hypotheses = decode(self.system, self.dev_set, DecodingOptions())
        etiologies = [self.etiologies[each.utterance_id] for each in hypotheses]
        return measures(self.steering, Use.of_hypotheses(hypotheses), etiologies)

    def _analyse(self, update: int) -> None:
        """Measure what the layers did in the update, in all processes, and warn of what is new."""
        if self.steering is None:
            return
        parts = [(use_of(encoded), list(encoded.utterance_ids)) for encoded in self.module.seen]
        gathered = [each for share in processes.gathered(parts) for each in share]
        use = Use.join([part for part, _ in gathered])
        found = measures(self.steering, use, [self.etiologies[name] for _, names in gathered for name in names])
        self.training.report(update, found)
        self.analyses = [*self.analyses, {"update": update, **found}]
        said = tuple(warnings(found))
        if set(said) - set(self.warned):
            self.training.checkpoints.events.report(WARNING, f"update {update}: {'; '.join(said)}")
        self.warned = tuple(dict.fromkeys([*self.warned, *said]))


def clip_steering(steering: nn.Module, norm: float) -> None:
    """Scale the gradients of vectors and scales, together and no others, to a norm where they have a larger one; 0: leave them."""
    if norm:
        nn.utils.clip_grad_norm_([parameter for name, parameter in steering.named_parameters() if name != "routers"], norm)


def train(
    system: SteerSystem,
    train_set: SpeechDataset,
    dev_set: SpeechDataset,
    options: SteerTrainingOptions,
    training: Training,
    etiologies: Mapping[str, str],
) -> TrainedSteer:
    """Train a system in place; it keeps the weights of its best epoch, or those it began with where every epoch is worse."""
    hooks = SteerHooks(system, dev_set, training, options, etiologies)
    summary = fit(system.module, train_set, training, hooks, system.parameter_groups())
    hooks.judge_start()  # where there was no epoch to begin
    hooks.restore_best()
    system.module.watched, system.module.seen, system.module.used = False, [], None
    return TrainedSteer(**vars(hooks.trained(summary)), analyses=tuple(hooks.analyses), steering=hooks.analyse_dev())
