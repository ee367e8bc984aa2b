"""Steering of a frozen encoder: after a steered layer, every frame is moved by a mixture of that layer's vectors.

    x ← h + s_l · Σ_e softmax(W_l h)_e · v_{l,e}

(document 002.) Each layer has vectors, a scale and a router of its own, and its router is computed at that layer alone. Vectors of
different layers have nothing to do with each other.
"""

import dataclasses
import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from moe.systems.steer_moe.options import UTTERANCE, SteeringOptions
from moe.training.processes import sum_of_batch

ROUTER, UNIFORM, SHUFFLED, OFF = "router", "uniform", "shuffled", "off"
ROUTINGS = (ROUTER, UNIFORM, SHUFFLED, OFF)


@dataclasses.dataclass(frozen=True)
class LayerPass:
    """What one layer did in one pass: weights (B, T, E) of its vectors, and ‖steering‖ / ‖h‖ of every frame, (B, T)."""

    weights: Tensor
    strength: Tensor


class Steering(nn.Module):
    """Vectors, scales and routers of the steered layers.

    Parameters: `vectors` (L, E, D), `scales` (L,), `routers` (L, E, D). A single vector needs no router.

    Args:
        layers: the steered layers, counted from 1.
        width: D, of the encoder.
    """

    scales: Tensor
    routers: Tensor | None

    def __init__(self, layers: Sequence[int], width: int, options: SteeringOptions) -> None:
        super().__init__()
        self.layers, self.n_experts, self.options = tuple(layers), options.steer_experts, options
        shape = (len(self.layers), self.n_experts, width)
        self.vectors = nn.Parameter(options.steering_std * torch.randn(shape))
        scales = torch.full((len(self.layers),), options.steering_scale)
        if options.use_layer_scales:
            self.scales = nn.Parameter(scales)
        else:
            self.register_buffer("scales", scales, persistent=False)
        self.routers = nn.Parameter((2 * torch.rand(shape) - 1) / math.sqrt(width)) if self.n_experts > 1 else None
        self.dropout = nn.Dropout(options.steering_dropout)

    def forward(
        self, layer: int, hidden: Tensor, valid: Tensor, routing: str = ROUTER, passes: list[LayerPass] | None = None
    ) -> Tensor:
        """Frames that leave a layer, (B, T, D), moved; as they are where the layer is not steered.

        Args:
            layer: counted from 1.
            valid: the frames that hold audio, (B, T).
            routing: the router's, or one of `ROUTINGS` in its place.
            passes: takes what the layer did.
        """
        if layer not in self.layers or routing == OFF:
            return hidden
        place = self.layers.index(layer)
        weights = self.weights(place, hidden, valid, routing)  # (B, T, E), or T = 1 where all frames share them
        moved = self.scales[place] * self.dropout(weights.to(self.vectors.dtype) @ self.vectors[place])
        if passes is not None:
            strength = moved.detach().float().norm(dim=-1) / hidden.detach().float().norm(dim=-1).clamp_min(1e-9)  # (B, T)
            passes.append(LayerPass(weights.expand(*hidden.shape[:2], -1), strength))
        steered: Tensor = hidden + moved.to(hidden.dtype)
        return steered

    def weights(self, place: int, hidden: Tensor, valid: Tensor, routing: str = ROUTER) -> Tensor:
        """Weights of a layer's vectors, (B, T, E), or (B, 1, E) where an utterance has one decision; float32."""
        batch = hidden.shape[0]
        if self.routers is None or routing == UNIFORM:
            return hidden.new_full((batch, 1, self.n_experts), 1 / self.n_experts, dtype=torch.float32)
        if self.options.steering_unit == UTTERANCE:
            share = (valid / valid.sum(1, keepdim=True).clamp_min(1)).to(hidden.dtype)  # (B, T)
            hidden = share[:, None] @ hidden  # (B, 1, D)
        weights = _top_k(F.linear(hidden, self.routers[place].to(hidden.dtype)).float().softmax(-1), self.options.steering_top_k)
        return _shuffled(weights, valid) if routing == SHUFFLED else weights


def _top_k(weights: Tensor, k: int | None) -> Tensor:
    """The k largest of each row (…, E), adding up to 1; the others 0."""
    if k is None or k >= weights.shape[-1]:
        return weights
    largest = weights.topk(k, dim=-1)
    kept = torch.zeros_like(weights).scatter(-1, largest.indices, largest.values)
    return kept / kept.sum(-1, keepdim=True)


def _shuffled(weights: Tensor, valid: Tensor) -> Tensor:
    """Decisions (B, T, E) exchanged among the valid frames of each utterance; the same every time."""
    rows = []
    for row, n_frames in zip(weights, valid.sum(1).tolist(), strict=True):
        n_frames = min(n_frames, len(row))
        order = torch.randperm(n_frames, generator=torch.Generator().manual_seed(n_frames)).to(row.device)
        rows.append(torch.cat([row[order], row[n_frames:]]))
    return torch.stack(rows)


def balance_loss(sums: Tensor, earlier: Tensor | None = None) -> Tensor:
    """KL(uniform ‖ mean use of each layer's vectors) in nats, mean over the layers, ().

    Args:
        sums: `use_sums` of a batch, (L, E).
        earlier: those of the batches that an update gathered before, (L, E). The mean is then over all of them, since a small batch need
            not be balanced by itself; its gradient is that of this batch's own mean.
    """
    own = mean = _shares(sums)
    if earlier is not None:
        mean = _shares(earlier + sums.detach()) + own - own.detach()
    return -(mean.shape[-1] * mean.clamp_min(1e-9)).log().mean()


def _shares(sums: Tensor) -> Tensor:
    """Sums (L, E) by the number of frames, which the weights of a layer add up to."""
    return sums / sums.detach().sum(-1, keepdim=True).clamp_min(1)


def use_sums(passes: Sequence[LayerPass], valid: Tensor) -> Tensor:
    """Weights of each vector, summed over the valid frames of a batch, of which this process has its share (B, T): (L, E)."""
    return sum_of_batch(torch.stack([(each.weights * valid[:, :, None]).sum((0, 1)) for each in passes]))
