"""A batch on its way through a mixture: routed below the experts, then encoded with them."""

import dataclasses

from torch import Tensor

from moe.routing.weights import RoutingWeights


@dataclasses.dataclass(frozen=True)
class Routed:
    """A batch on its way: frames entering the first adapted layer (B, T, D), routing weights, gate logits and probabilities (B, E)."""

    hidden: Tensor
    weights: RoutingWeights | None
    gate_logits: Tensor | None = None
    probabilities: Tensor | None = None


@dataclasses.dataclass(frozen=True)
class Encoded:
    """An encoded batch: states (R, T, D), R = B, or B·k with weights `values` (B, k) where losses are mixed."""

    states: Tensor
    weights: RoutingWeights | None
    values: Tensor | None = None

    def rows(self, chosen: slice) -> "Encoded":
        """Some of the utterances."""
        k = 1 if self.values is None else self.values.shape[1]
        inner = slice(chosen.start * k, chosen.stop * k)
        weights = None if self.weights is None else RoutingWeights(self.weights.weights[inner], self.weights.top_k)
        return Encoded(self.states[inner], weights, None if self.values is None else self.values[chosen])
