"""Routing weights: from gate logits to the experts of an utterance, shared by all routed layers of a model.

`Routing` is a plain object that every routed layer of one model holds. It is set once per forward; layers that see several rows
per utterance (beams) expand it themselves.
"""

import contextlib
import dataclasses
from collections.abc import Callable, Hashable, Iterator
from typing import Any, TypeVar

import torch
from torch import Tensor

from moe.routing.doubt import doubt

RENORMALISED, PROBABILITY, CERTAINTY = "renormalised", "probability", "certainty"

Kept = TypeVar("Kept")


@dataclasses.dataclass(frozen=True)
class RoutingWeights:
    """Weights of the experts for a batch.

    Attributes:
        weights: (B, E), at most `top_k` entries not zero; differentiable. A gate's are non-negative and sum to 1, or to less
            where the experts are scaled by the gate's probability or certainty; a person's own are free numbers, negative ones too.
        top_k: experts per utterance.
    """

    weights: Tensor
    top_k: int

    def selected(self) -> tuple[Tensor, Tensor]:
        """Indices and weights of the chosen experts, (B, k) each."""
        indices = self.weights.detach().topk(self.top_k, dim=-1).indices
        return indices, self.weights.gather(-1, indices)

    def shares(self) -> Tensor:
        """Share of each expert in the mixture, (B, E): the weights, rows summing to 1, or to 0 where no expert has any."""
        return self.weights / self.weights.sum(-1, keepdim=True).clamp_min(torch.finfo(self.weights.dtype).tiny)

    def repeat(self, times: int) -> "RoutingWeights":
        """Each row `times` times, one after the other, as beam search lays out its rows."""
        return RoutingWeights(self.weights.repeat_interleave(times, 0), self.top_k)


def top_k_weights(
    gate_logits: Tensor, top_k: int, temperature: float = 1.0, scaling: str = RENORMALISED
) -> tuple[RoutingWeights, Tensor]:
    """Keep the `top_k` most probable experts of each utterance and weight them (Shazeer et al. 2017, arXiv:1701.06538).

    Args:
        gate_logits: (B, E).
        scaling: `renormalised`: weights that sum to 1. `probability` leaves the chosen their probabilities (Switch: Fedus et al. 2021,
            arXiv:2101.03961, eq. 2). `certainty` multiplies the renormalised weights by the gate's certainty, 1 less its doubt.

    Returns:
        the routing weights, and the probabilities before selection, (B, E). With one expert kept the renormalised weight is
        the constant 1: the gate then learns from the balance and alignment terms only.
    """
    probabilities = torch.softmax(gate_logits.float() / temperature, dim=-1)  # (B, E)
    certainty = 1 - doubt(probabilities)[:, None] if scaling == CERTAINTY else 1.0  # (B, 1)
    if top_k >= gate_logits.shape[-1]:
        return RoutingWeights(probabilities * certainty, gate_logits.shape[-1]), probabilities
    values, indices = probabilities.topk(top_k, dim=-1)  # (B, k)
    if scaling != PROBABILITY:  # w / w is the constant 1, but its gradient is 0 only up to rounding, which differs by processor
        values = torch.ones_like(values) if top_k == 1 else values / values.sum(-1, keepdim=True)
    return RoutingWeights(torch.zeros_like(probabilities).scatter(-1, indices, values * certainty), top_k), probabilities


def one_hot(experts: Tensor, n_experts: int) -> RoutingWeights:
    """All weight on one expert per utterance; `experts` (B,) integers."""
    return RoutingWeights(torch.nn.functional.one_hot(experts, n_experts).float(), 1)


class Routing:
    """The routing weights in force; None routes nothing: experts and shared adapter are off and the base model answers."""

    def __init__(self) -> None:
        self.weights: RoutingWeights | None = None
        self.on = False
        self._kept: dict[Hashable, Any] = {}

    @contextlib.contextmanager
    def use(self, weights: RoutingWeights | None) -> Iterator[None]:
        """Adapters on, with these weights (None where there are no experts, only a shared adapter), inside the block."""
        before = self.snapshot()
        self._set((True, weights))
        try:
            yield
        finally:
            self._set(before)

    def snapshot(self) -> tuple[bool, RoutingWeights | None]:
        """What is in force now, for `restore`."""
        return self.on, self.weights

    @contextlib.contextmanager
    def restore(self, snapshot: tuple[bool, RoutingWeights | None]) -> Iterator[None]:
        """Put a snapshot back in force inside the block: gradient checkpointing recomputes after the forward has ended."""
        before = self.snapshot()
        self._set(snapshot)
        try:
            yield
        finally:
            self._set(before)

    def checkpoint_contexts(self) -> tuple[contextlib.AbstractContextManager, contextlib.AbstractContextManager]:
        """Contexts of forward and recomputation. A method, not a closure: a copied model takes its own context along."""
        return contextlib.nullcontext(), self.restore(self.snapshot())

    def rows(self, n_rows: int) -> RoutingWeights:
        """The weights expanded to `n_rows` rows.

        Raises:
            ValueError: nothing is routed, or the rows are no multiple of the utterances that were.
        """
        weights = self.weights
        if weights is None:
            raise ValueError("no routing is in force")
        n_routed = weights.weights.shape[0]
        if n_rows % n_routed:
            raise ValueError(f"{n_routed} utterances were routed, a layer sees {n_rows} rows: chunk long audio outside")
        return self.keep(n_rows, lambda: weights if n_rows == n_routed else weights.repeat(n_rows // n_routed))

    def keep(self, key: Hashable, make: Callable[[], Kept]) -> Kept:
        """What `make` gives, made once for `key` while these weights are in force."""
        if key not in self._kept:
            self._kept[key] = make()
        kept: Kept = self._kept[key]
        return kept

    def __deepcopy__(self, memo: dict) -> "Routing":
        memo[id(self)] = copy = Routing()  # the layers of a copied model share one copied context
        return copy

    def _set(self, state: tuple[bool, RoutingWeights | None]) -> None:
        self.on, self.weights = state
        self._kept = {}
