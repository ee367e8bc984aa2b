"""Whisper-MoE: one frozen Whisper, a gate that reads one of its layers, routed LoRA experts above that layer.

One encoder pass serves gate and transcription: up to `gate_layer` nothing is adapted and nothing trained, so that part runs without
gradient; its pooled frames route the utterance; the rest runs with the chosen experts. `gate_layer=last` routes on a pass of its
own through the bare encoder and adapts every layer. Without experts the same class is one LoRA, or the base model itself.
"""

import dataclasses
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any, Self

import torch
from torch import Tensor, nn
from transformers import WhisperForConditionalGeneration
from transformers.modeling_outputs import BaseModelOutput

from moe.experts.mixture import Mixture
from moe.experts.people import personal_lora
from moe.experts.people.person import Layout, Person
from moe.experts.routed_lora import AdapterOptions, attach
from moe.routing import pooling
from moe.routing.curriculum import Phase
from moe.routing.expert_dropout import without_some
from moe.routing.gate import Gate
from moe.routing.losses import BalanceOptions, BalanceWindow, routing_loss
from moe.routing.options import RoutingOptions
from moe.routing.weights import Routing, RoutingWeights, one_hot, top_k_weights
from moe.systems.whisper import encoder as whisper_encoder
from moe.systems.whisper.beams import beams
from moe.systems.whisper.greedy import greedy
from moe.systems.whisper.head_loss import head_cross_entropy
from moe.systems.whisper.mixing import mixed_head
from moe.systems.whisper.next_token import NextToken
from moe.systems.whisper.said import Said
from moe.systems.whisper.tokens import decoder_inputs
from moe.systems.whisper_moe.passes import Encoded, Routed
from moe.training.dropout import without_dropout
from moe.training.precision import computing, hold_frozen
from moe.training.processes import mean_of_batch, rows_of_batch


class WhisperMoE(Mixture):
    """The mixture as one module; see the module docstring.

    Args:
        base: Whisper; frozen, its target layers are replaced by routed ones.
        n_experts: 0 for one LoRA (the shared adapter alone) or, without a shared adapter, the bare base model.
        gate: None where routing weights are always given from outside.
    """

    base: WhisperForConditionalGeneration
    accepts_loss_kwargs = False  # the Trainer would otherwise multiply the loss by the accumulation steps

    def __init__(
        self,
        base: WhisperForConditionalGeneration,
        n_experts: int,
        adapters: AdapterOptions,
        routing: RoutingOptions,
        gate: Gate | None = None,
        balance: BalanceOptions | None = None,
    ) -> None:
        super().__init__()
        self.n_experts, self.adapter_options, self.routing_options = n_experts, adapters, routing
        whisper_encoder.layer_index(
            base.model.encoder, routing.layer
        )  # an impossible layer is refused before anything is changed
        base.requires_grad_(False)
        base.generation_config.max_length = None  # decoding bounds the new tokens itself
        self.routing = attach(base, n_experts, adapters, self.first_layer) if self.is_adapted else Routing()
        self.people = personal_lora.People()
        self.base, self.gate, self.balance = base, gate, balance or BalanceOptions()
        self.window = BalanceWindow(max(1, n_experts), self.balance.balance_window)
        self.phase = Phase(top_k=min(routing.top_k, max(1, n_experts)))
        self.precision = "fp32"

    def use_precision(self, name: str) -> Self:
        """Compute in `fp32`, `bf16` or `fp16` from now on, and hold the frozen matrices in it; what trains stays float32."""
        self.precision = name
        hold_frozen(self.base, name)
        return self

    def make_room(self, layout: Layout) -> None:
        """Put the layers of people with experts of this layout above its own, where there are none yet."""
        personal_lora.attach(self.base, layout.layers, self.people)

    @property
    def is_adapted(self) -> bool:
        """Whether it has any adapter: experts, or a shared one."""
        return self.n_experts > 0 or self.adapter_options.shared_rank > 0

    @property
    def first_layer(self) -> int:
        """The first encoder layer with adapters: all layers where routing has a pass of its own or there is nothing to route."""
        return (self.routing_options.layer or 0) if self.n_experts else 0

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return self.base.device

    def forward(
        self,
        mel: Tensor,
        n_frames: Tensor,
        labels: Tensor,
        embedding: Tensor | None = None,
        routing_weights: Tensor | None = None,
        cluster_weights: Tensor | None = None,
        utterance_ids: list[str] | None = None,
    ) -> dict[str, Tensor]:
        """Losses of a batch.

        Args:
            mel: (B, n_mels, F); n_frames: (B,) valid mel frames; labels: (B, N).
            embedding: (B, D) cached pooled vectors; computed where absent.
            routing_weights: (B, E) given routing; the gate decides where absent. A phase without experts sets it to zero.
            cluster_weights: (B, E) targets of the alignment loss.
            utterance_ids: (B,), by which a training draws those that have no experts; their numbers where absent.

        Returns:
            loss (), utterance_loss (B,), and for routed batches probabilities (B, E).
        """
        ids = utterance_ids or [str(number) for number in range(len(mel))]
        routed = self._without_some(self.route(mel, n_frames, embedding, routing_weights), ids)
        loss = self.transcription_loss(routed, labels)  # (B,)
        total = mean_of_batch(loss.mean(), len(loss)) + self._routing_loss(routed, cluster_weights, ids)
        outputs = {"loss": total, "utterance_loss": loss.detach()}
        if routed.probabilities is not None:
            outputs["probabilities"] = routed.probabilities.detach()
        return outputs

    def route(
        self, mel: Tensor, n_frames: Tensor, embedding: Tensor | None = None, routing_weights: Tensor | None = None
    ) -> Routed:
        """Run the part below the experts and decide the routing; arguments as of `forward`, mel (B, n_mels, F)."""
        with torch.no_grad(), computing(self.device, self.precision):
            hidden, view = self._below(mel)
        if not self.n_experts:
            return Routed(hidden, None)
        if routing_weights is not None:
            n_used = int((routing_weights > 0).sum(-1).max())
            muted = self.training and not self.phase.experts
            return Routed(hidden, RoutingWeights(routing_weights * 0 if muted else routing_weights, n_used))
        if embedding is None:
            embedding = self._embed(mel, n_frames, view)
        logits = self._gate_logits(embedding)
        scaling = self.routing_options.gate_scaling
        weights, probabilities = top_k_weights(logits, self.phase.top_k, self.phase.temperature, scaling)
        return Routed(hidden, weights, logits, probabilities)

    @torch.no_grad()
    def generate(self, routed: Routed, **options: Any) -> Tensor:
        """Token ids (B, N) of a routed batch; `options` go to transformers' `generate` (num_beams, max_new_tokens …)."""
        tokens: Tensor = self.search(self.encode(routed), **options)
        return tokens

    def encode(self, routed: Routed) -> Encoded:
        """Run the encoder above the gate, with the chosen experts."""
        hidden, weights, values = routed.hidden, routed.weights, None
        if self.routing_options.mixing == "loss" and weights is not None and weights.top_k > 1:  # each chosen expert on its own
            indices, values = weights.selected()  # (B, k)
            hidden = hidden.repeat_interleave(indices.shape[1], 0)  # (B·k, T, D)
            weights = one_hot(indices.flatten(), self.n_experts)
        with self.experts(weights, routed.people):
            return Encoded(self._above(hidden), weights, values, routed.people)

    @torch.no_grad()
    def search(self, encoded: Encoded, **options: Any) -> Tensor:
        """Token ids (B, N) of an encoded batch by transformers' own search; options as for `generate`."""
        states = BaseModelOutput(last_hidden_state=encoded.states)
        with self.experts(encoded.weights, encoded.people), mixed_head(self.base, encoded.values):
            tokens: Tensor = self.base.generate(encoder_outputs=states, **options)
        return tokens if encoded.values is None else tokens.view(*encoded.values.shape, -1)[:, 0]

    @torch.no_grad()
    def say(self, encoded: Encoded, prompt: Sequence[int], n_new: int, n_beams: int = 1, min_new: int = 0) -> Said:
        """The same of an encoded batch by our own search, greedy or by beams, and the tokens' log-probabilities.

        Args:
            n_new: tokens at most; min_new: tokens before which no hypothesis ends.
        """
        log_values = None if encoded.values is None else encoded.values.float().log()
        with self.experts(encoded.weights, encoded.people):
            next_token = NextToken(self.base, encoded.states, prompt, n_new, min_new, log_values)
            return greedy(next_token) if n_beams == 1 else beams(next_token, n_beams)

    @contextmanager
    def experts(self, weights: RoutingWeights | None, people: Sequence[Person | None] | None = None) -> Iterator[None]:
        """Adapters on inside the block, where the model has any, and those of the people of its utterances (B,); in the model's precision."""
        adapted = weights is not None or self.adapter_options.shared_rank > 0
        with (
            computing(self.device, self.precision),
            self.routing.use(weights) if adapted else nullcontext(),
            self.people.use(people, self.device),
        ):
            yield

    def train(self, mode: bool = True) -> Self:
        """Training mode, except below the experts: what the gate reads is the same at every stage."""
        super().train(mode)
        encoder = self.base.model.encoder
        for layer in encoder.layers[: self.first_layer]:
            layer.eval()
        encoder.training = mode and not self.first_layer  # its own flag switches the dropout after the positions, below layer 0
        return self

    def enable_checkpointing(self) -> None:
        """Gradient checkpointing, non-reentrant, with the routing of the forward restored when layers are recomputed."""
        self.base.gradient_checkpointing_enable({"use_reentrant": False, "context_fn": self.routing.checkpoint_contexts})

    def trainable_parameters(self) -> dict[str, nn.Parameter]:
        """What trains, by name: adapters and gate, never the base."""
        return {name: parameter for name, parameter in self.named_parameters() if parameter.requires_grad}

    def _below(self, mel: Tensor) -> tuple[Tensor, Tensor]:
        encoder = self.base.model.encoder
        stem = whisper_encoder.conv_stem(encoder, mel)
        entering = whisper_encoder.run_layers(encoder, whisper_encoder.add_positions(encoder, stem), 0, self.first_layer)
        return entering, (entering if self.first_layer else stem)

    def _embed(self, mel: Tensor, n_frames: Tensor, view: Tensor) -> Tensor:
        with torch.no_grad(), computing(self.device, self.precision):
            if self.routing_options.layer is None:  # a pass of its own, adapters and dropout off
                encoder = self.base.model.encoder
                with without_dropout(encoder):
                    return whisper_encoder.pooled_embedding(encoder, mel, n_frames, None, self.routing_options.pooling)
            window = self.base.config.max_source_positions
            return pooling.pool(view, n_frames, self.routing_options.pooling, window)

    def _gate_logits(self, embedding: Tensor) -> Tensor:
        if self.gate is None:
            raise ValueError("the model has no gate: routing_weights must be given")
        with torch.autocast(embedding.device.type, enabled=False):  # the gate is small, and its answer decides
            logits: Tensor = self.gate(embedding.float())
        if self.training and self.phase.noise:
            logits = logits + self.phase.noise * torch.randn_like(logits)
        return logits

    def _without_some(self, routed: Routed, utterance_ids: Sequence[str]) -> Routed:
        """In training some utterances have no experts."""
        share = self.routing_options.expert_dropout
        if not (self.training and share and routed.weights is not None):
            return routed
        return dataclasses.replace(routed, weights=without_some(routed.weights, share, self.phase.draws, utterance_ids))

    def _above(self, hidden: Tensor) -> Tensor:
        encoder = self.base.model.encoder
        hidden = whisper_encoder.run_layers(encoder, hidden, self.first_layer, len(encoder.layers))
        states: Tensor = encoder.layer_norm(hidden)
        return states

    def transcription_loss(self, routed: Routed, labels: Tensor) -> Tensor:
        """Cross-entropy of each utterance under its routing: labels (B, N) → (B,)."""
        return self.decoder_loss(self.encode(routed), labels)

    def decoder_loss(self, encoded: Encoded, labels: Tensor) -> Tensor:
        """The same of an encoded batch: labels (B, N) → (B,)."""
        values = encoded.values
        labels = labels if values is None else labels.repeat_interleave(values.shape[1], 0)
        inputs = decoder_inputs(self.base.config, labels)
        with self.experts(encoded.weights, encoded.people):
            said = self.base.model.decoder(
                input_ids=inputs, encoder_hidden_states=encoded.states, use_cache=False
            ).last_hidden_state
            losses = head_cross_entropy(said, self.base.proj_out.weight, labels)  # (B·k,)
        return losses if values is None else (losses.view_as(values) * values).sum(-1)

    def _routing_loss(self, routed: Routed, cluster_weights: Tensor | None, utterance_ids: Sequence[str]) -> Tensor:
        probabilities, logits, weights = routed.probabilities, routed.gate_logits, routed.weights
        if probabilities is None or logits is None or weights is None or not self.training:
            return torch.zeros((), device=routed.hidden.device)
        recent = self.window.join(rows_of_batch(probabilities, utterance_ids))  # (n, E)
        return routing_loss(self.balance, probabilities, recent, weights.top_k, logits, cluster_weights)
