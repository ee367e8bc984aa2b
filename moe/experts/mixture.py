"""What expert and joint training need of a recogniser: a module that knows its experts, its gate and the phase that it is in."""

import abc
from typing import Protocol, Self

from torch import nn

from moe.routing.curriculum import Phase
from moe.routing.gate import Gate
from moe.routing.losses import BalanceWindow
from moe.routing.options import RoutingOptions
from moe.system import System


class Mixture(nn.Module, abc.ABC):
    """A base model with routed layers.

    Attributes:
        base: holds the routed layers.
        n_experts: routed experts; 0 where the shared adapter is alone.
        phase: what the curriculum asks for now.
        window: the gate's probabilities for the last utterances.
    """

    base: nn.Module
    gate: Gate | None
    n_experts: int
    routing_options: RoutingOptions
    phase: Phase
    window: BalanceWindow

    @abc.abstractmethod
    def use_precision(self, name: str) -> Self:
        """Compute in `fp32`, `bf16` or `fp16` from now on."""


class MixtureSystem(System, Protocol):
    """A system whose module is such a mixture."""

    @property
    def module(self) -> Mixture:
        """The mixture."""
