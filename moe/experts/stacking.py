"""Several trainings from seeds of their own as one model: their adapters side by side, one of N times the rank, decoded in one pass.

The stack computes the mean of what the adapters add: Σ s·B_i A_i x / N (an average of functions, as Wortsman et al. 2022, arXiv:2203.05482,
take of weights). Weights of A and B themselves are not averaged: two trainings find other directions in another order.
"""

import dataclasses
import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from moe.experts.routed_lora import AdapterOptions, routed_layers
from moe.options import Options, option

SEED_STEP = 1000  # between the trainings of a stack, so that those of neighbouring seeds are not the same
RANK_AXES = {"lora_A": 1, "lora_B": 2, "shared_A": 0, "shared_B": 1}  # lora_A is (E, r, in), lora_B (E, out, r)


@dataclasses.dataclass(frozen=True)
class TrainingsOptions(Options):
    """How many trainings make a model."""

    group = "averaging"

    trainings: int = option(
        1,
        "trainings from seeds of their own, whose adapters are stacked as one of so many times the rank and averaged",
        low=1,
        high=16,
    )

    def seeds(self, seed: int) -> list[int]:
        """The seed of each training; the first has that of the step."""
        return [seed + SEED_STEP * number for number in range(self.trainings)]


def stacked_options(options: AdapterOptions, n: int) -> AdapterOptions:
    """The shape of `n` adapters side by side, at the scale of one; the total rank must have been divided."""
    alpha = options.lora_alpha * (math.sqrt(n) if options.rank_stabilised else n)
    shared_r = n * options.shared_rank or None
    return dataclasses.replace(options, lora_r=n * options.lora_r, shared_r=shared_r, lora_alpha=alpha)


def adapter_tensors(base: nn.Module) -> dict[str, Tensor]:
    """A copy of all adapters of a model, by layer and matrix."""
    return {
        f"{name}.{matrix}": getattr(layer, matrix).detach().clone() for name, layer in routed_layers(base) for matrix in RANK_AXES
    }


@torch.no_grad()
def stack(base: nn.Module, trainings: Sequence[dict[str, Tensor]]) -> None:
    """Fill a model of `stacked_options` with the adapters of several trainings, of `adapter_tensors`."""
    for name, layer in routed_layers(base):
        for matrix, axis in RANK_AXES.items():
            side_by_side = torch.cat([each[f"{name}.{matrix}"] for each in trainings], axis)
            getattr(layer, matrix).copy_(side_by_side / (len(trainings) if matrix.endswith("B") else 1))
