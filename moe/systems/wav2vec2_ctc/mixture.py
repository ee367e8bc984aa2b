"""A CTC with experts: a gate that reads the pooled feature projection or a layer, routed LoRA on the Conformer's projections above it.

The gate's view is taken by a pass of its own, without dropout and adapters, so that it is the same in training and decoding. Before the
first layer that costs one projection.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers import Wav2Vec2BertForCTC

from moe.experts.mixture import Mixture
from moe.experts.routed_lora import AdapterOptions
from moe.routing import pooling
from moe.routing.curriculum import Phase
from moe.routing.gate import Gate
from moe.routing.losses import BalanceOptions, BalanceWindow, routing_loss
from moe.routing.options import RoutingOptions
from moe.routing.weights import RoutingWeights, top_k_weights
from moe.systems.wav2vec2_ctc.model import CTCModel, valid_frames
from moe.training.dropout import without_dropout
from moe.training.processes import rows_of_batch

Routed = tuple[RoutingWeights, Tensor | None, Tensor | None]  # weights, gate logits (B, E), probabilities (B, E)


class CTCMixture(CTCModel, Mixture):
    """The mixture; see the module docstring.

    Args:
        gate: None where routing weights are always given from outside.

    Raises:
        ValueError: the gate's layer is above the last.
    """

    def __init__(
        self,
        network: Wav2Vec2BertForCTC,
        adapters: AdapterOptions,
        n_experts: int,
        routing: RoutingOptions,
        gate: Gate | None = None,
        balance: BalanceOptions | None = None,
    ) -> None:
        n_layers = network.config.num_hidden_layers
        if routing.layer is not None and routing.layer > n_layers:
            raise ValueError(f"gate_layer={routing.layer}: the model has layers 0 to {n_layers}")
        super().__init__(network, adapters, n_experts, routing.layer or 0)
        self.routing_options, self.gate, self.balance = routing, gate, balance or BalanceOptions()
        self.window = BalanceWindow(n_experts, self.balance.balance_window)
        self.phase = Phase(top_k=min(routing.top_k, n_experts))

    @property
    def base(self) -> nn.Module:  # type: ignore[override]  # the network has one name already
        """The module that holds the routed layers."""
        return self.network

    def forward(
        self,
        features: Tensor,
        n_frames: Tensor,
        labels: Tensor,
        n_labels: Tensor,
        mask: Tensor | None = None,
        feature_mask: Tensor | None = None,
        utterance_ids: Sequence[str] = (),
        embedding: Tensor | None = None,
        routing_weights: Tensor | None = None,
        cluster_weights: Tensor | None = None,
    ) -> dict[str, Tensor]:
        """features (B, T, D), labels (B, N) → loss (), utterance_loss (B,), probabilities (B, E).

        Args:
            embedding: what the gate reads, (B, D'); computed where absent. routing_weights: (B, E) in its place.
            cluster_weights: (B, E) targets of the alignment loss.
        """
        weights, logits, probabilities = self.route(features, n_frames, embedding, routing_weights)
        said = self.log_probabilities(features, n_frames, mask, feature_mask, weights)  # (B, T', V)
        outputs = self.ctc_outputs(said, n_frames, labels, n_labels)
        if logits is None or probabilities is None:
            return outputs
        if self.training:
            recent = self.window.join(rows_of_batch(probabilities, utterance_ids))  # (n, E)
            outputs["loss"] = outputs["loss"] + routing_loss(
                self.balance, probabilities, recent, weights.top_k, logits, cluster_weights
            )
        return outputs | {"probabilities": probabilities.detach()}

    def route(
        self, features: Tensor, n_frames: Tensor, embedding: Tensor | None = None, routing_weights: Tensor | None = None
    ) -> Routed:
        """The experts' weights for a batch, (B, E); arguments as of `forward`, features (B, T, D).

        Raises:
            ValueError: there is no gate, and no weights are given.
        """
        if routing_weights is not None:
            return RoutingWeights(routing_weights, int((routing_weights > 0).sum(-1).max())), None, None
        if self.gate is None:
            raise ValueError("the model has no gate: routing_weights must be given")
        with torch.autocast(features.device.type, enabled=False):  # the gate is small, and its answer decides
            logits = self.gate((self.embed(features, n_frames) if embedding is None else embedding).float())
        weights, probabilities = top_k_weights(logits, self.phase.top_k, self.phase.temperature)
        return weights, logits, probabilities

    @torch.no_grad()
    def embed(self, features: Tensor, n_frames: Tensor) -> Tensor:
        """What the gate reads of a batch, (B, D'): features (B, T, D)."""
        trunk, layer = self.network.wav2vec2_bert, self.routing_options.layer
        with without_dropout(trunk):
            hidden = trunk.feature_projection(features)[0]  # (B, T, H)
            if layer != 0:
                last = len(trunk.encoder.layers) if layer is None else layer
                hidden = _after_layer(trunk.encoder, last, hidden, valid_frames(features, n_frames))
        window = self.frames.n_window
        return pooling.pool(hidden, 2 * n_frames, self.routing_options.pooling, window)  # it counts in pairs, as Whisper's mels


def _after_layer(encoder: nn.Module, number: int, hidden: Tensor, valid: Tensor) -> Tensor:
    """What leaves a layer of the encoder, counted from 1: hidden (B, T, H), valid (B, T) → (B, T, H)."""
    seen: list[Tensor] = []
    layers: Any = encoder.layers
    handle = layers[number - 1].register_forward_hook(lambda module, given, output: seen.append(output))
    try:
        encoder(hidden, attention_mask=valid.long())
    finally:
        handle.remove()
    return seen[0]
