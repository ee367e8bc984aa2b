"""The average of a training's own late weights, kept beside it: what is validated, kept and saved in place of the last ones.

Exponential (Polyak & Juditsky 1992; Morales-Brotons et al. 2024, arXiv:2411.18704) or the mean over the last epochs (stochastic weight
averaging: Izmailov et al. 2018, arXiv:1803.05407). Only what trains is averaged; training itself goes on from its own weights.
"""

import dataclasses
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_swa_avg_fn

from moe.options import NONE, Options, option
from moe.training.sharding import as_held

EMA, LAST = "ema", "last"
Rule = Callable[[Tensor, Tensor, Tensor | int], Tensor]  # average so far, new weights, number averaged → average


@dataclasses.dataclass(frozen=True)
class AveragingOptions(Options):
    """Which weights a training is judged by and leaves."""

    group = "averaging"

    averaging: str = option(
        NONE,
        "weights that are validated, kept and saved: those of the last update (none), their exponential average (ema), or their mean "
        "over the last epochs (last); it costs nothing in decoding",
        choices=(NONE, EMA, LAST),
    )
    ema_decay: float = option(
        0.99, "share of the average that stays at an update; less in the first updates", above=0, high=0.99999
    )
    average_epochs: int = option(2, "newest epochs over whose updates the mean is taken", low=1)

    def idle(self) -> dict[str, str]:
        """What another average, or none, does not read."""
        used = {EMA: "ema_decay", LAST: "average_epochs"}
        return {name: f"needs averaging={kind}" for kind, name in used.items() if kind != self.averaging}


class WeightAverage:
    """An average of what trains in a model, over `torch.optim.swa_utils.AveragedModel`.

    The mean over epochs has a part for each epoch, so that the oldest can be dropped; the exponential average is one part.
    """

    def __init__(self, options: AveragingOptions, model: nn.Module) -> None:
        self.options = options
        trained = {name: each for name, each in model.named_parameters() if each.requires_grad}
        self.names, self.trained = list(trained), nn.ParameterList(trained.values())
        self.parts: dict[int, AveragedModel] = {}

    @property
    def is_on(self) -> bool:
        """Whether anything is averaged."""
        return self.options.averaging != NONE

    def update_ends(self, epoch: int) -> None:
        """Take the weights after an update of an epoch into the average."""
        if not self.is_on:
            return
        part = epoch if self.options.averaging == LAST else 0
        self.parts = {number: each for number, each in self.parts.items() if number > part - self.options.average_epochs}
        self._part(part).update_parameters(self.trained)

    def restart(self) -> None:
        """Forget everything: the weights were set to something else."""
        self.parts = {}

    @torch.no_grad()
    def apply(self) -> None:
        """Put the average into the model, for good."""
        for parameter, mean in zip(self.trained, self._mean(), strict=bool(self.parts)):
            parameter.copy_(mean)

    @contextmanager
    def in_force(self) -> Iterator[None]:
        """The model holds the average inside the block, and the training's own weights after it."""
        own = [parameter.detach().clone() for parameter in self.trained] if self.parts else []
        self.apply()
        try:
            yield
        finally:
            with torch.no_grad():
                for parameter, weight in zip(self.trained, own, strict=bool(own)):
                    parameter.copy_(weight)

    def state(self) -> tuple[dict[str, int], dict[str, Tensor]]:
        """Number of updates in each part, and the parts as tensors named `<part>/<parameter>`."""
        counts = {str(number): int(part.n_averaged) for number, part in self.parts.items()}
        tensors = {
            f"{number}/{name}": each.detach()
            for number, part in self.parts.items()
            for name, each in zip(self.names, part.parameters(), strict=True)
        }
        return counts, tensors

    @torch.no_grad()
    def restore(self, counts: dict[str, int], tensors: dict[str, Tensor]) -> None:
        """Take up what `state` gave."""
        self.parts = {}
        for number, n_averaged in counts.items():
            part = self._part(int(number))
            part.n_averaged.fill_(n_averaged)
            for name, each in zip(self.names, part.parameters(), strict=True):
                each.copy_(as_held(tensors[f"{number}/{name}"], each))

    def _part(self, number: int) -> AveragedModel:
        if number not in self.parts:
            self.parts[number] = AveragedModel(self.trained, avg_fn=_rule(self.options))
        return self.parts[number]

    def _mean(self) -> list[Tensor]:
        """The average, in the order of the parameters; empty before the first update."""
        parts = list(self.parts.values())
        if len(parts) < 2:
            return [each.detach() for part in parts for each in part.parameters()]
        counts = torch.tensor([float(part.n_averaged) for part in parts])
        shares: list[float] = (counts / counts.sum()).tolist()
        together = zip(*(part.parameters() for part in parts), strict=True)
        return [torch.stack([s * each.detach() for s, each in zip(shares, same, strict=True)]).sum(0) for same in together]


def _rule(options: AveragingOptions) -> Rule:
    if options.averaging == LAST:
        rule: Rule = get_swa_avg_fn()
        return rule

    def exponential(average: Tensor, weights: Tensor, n_averaged: Tensor | int) -> Tensor:
        """As TensorFlow's moving average with `num_updates`: the start, which is no result of training, is soon forgotten."""
        n = float(n_averaged)
        return torch.lerp(average, weights, 1 - min(options.ema_decay, (1 + n) / (10 + n)))

    return exponential
