"""A batch on its way through a mixture: routed below the experts, then encoded with them."""

import dataclasses
from collections.abc import Sequence

from torch import Tensor

from moe.experts.people.person import Person
from moe.routing.weights import RoutingWeights


@dataclasses.dataclass(frozen=True)
class Routed:
    """A batch on its way.

    Attributes:
        hidden: frames entering the first adapted layer, (B, T, D).
        gate_logits, probabilities: (B, E).
        people: (B,) whose experts and weights it is encoded with, None for nobody's; None for nobody in the batch.
    """

    hidden: Tensor
    weights: RoutingWeights | None
    gate_logits: Tensor | None = None
    probabilities: Tensor | None = None
    people: Sequence[Person | None] | None = None


@dataclasses.dataclass(frozen=True)
class Encoded:
    """An encoded batch: states (R, T, D), R = B, or B·k with weights `values` (B, k) where losses are mixed; `people` as of `Routed`."""

    states: Tensor
    weights: RoutingWeights | None
    values: Tensor | None = None
    people: Sequence[Person | None] | None = None

    def rows(self, chosen: slice) -> "Encoded":
        """Some of the utterances."""
        k = 1 if self.values is None else self.values.shape[1]
        inner = slice(chosen.start * k, chosen.stop * k)
        weights = None if self.weights is None else RoutingWeights(self.weights.weights[inner], self.weights.top_k)
        values = None if self.values is None else self.values[chosen]
        return Encoded(self.states[inner], weights, values, None if self.people is None else self.people[chosen])
