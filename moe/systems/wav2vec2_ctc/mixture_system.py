"""The CTC mixture as a system: it routes."""

import dataclasses
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor

from moe.routing.gate import Gate, probabilities
from moe.routing.losses import normalised_entropy
from moe.system import Ask, Batch, Hypothesis, ParameterGroup, Record, routing_weights
from moe.systems.wav2vec2_ctc.asks import CTCAsk, FixedRouting
from moe.systems.wav2vec2_ctc.folder import CTCShape
from moe.systems.wav2vec2_ctc.mixture import CTCMixture
from moe.systems.wav2vec2_ctc.system import CTCSystem
from moe.systems.wav2vec2_ctc.vocabulary import Vocabulary


class CTCMixtureSystem(CTCSystem):
    """The mixture; see `moe.system.Routes`.

    Args:
        gate_learning_rate: of the gate.
    """

    module: CTCMixture

    def __init__(
        self,
        module: CTCMixture,
        vocabulary: Vocabulary,
        record: Record,
        missing: Sequence[str] = (),
        learning_rate: float = 0.0,
        gate_learning_rate: float = 0.0,
    ) -> None:
        super().__init__(module, vocabulary, record, missing, learning_rate)
        self.gate_learning_rate = gate_learning_rate

    @property
    def shape(self) -> CTCShape:
        """What it takes to rebuild it."""
        return CTCShape.of(self.record.shape)

    @property
    def top_k(self) -> int:
        """Experts mixed per utterance in decoding."""
        return self.module.phase.top_k

    @property
    def gate_unit(self) -> str:
        """What the gate reads: the `utterance`."""
        return self.shape.routing.gate_unit

    @property
    def expert_of_etiology(self) -> dict[str, int]:
        """The oracle routing; known after training."""
        return self.shape.expert_of_etiology

    @expert_of_etiology.setter
    def expert_of_etiology(self, experts: dict[str, int]) -> None:
        self.record = dataclasses.replace(self.record, shape={**self.record.shape, "expert_of_etiology": experts})

    @property
    def gate(self) -> Gate:
        """The gate.

        Raises:
            ValueError: the model has none.
        """
        if self.module.gate is None:
            raise ValueError("the model has no gate: routing_weights must be given")
        return self.module.gate

    def embed(self, batch: Batch) -> Tensor:
        """What the gate reads of each utterance, (B, D), with adapters off."""
        return self.module.embed(batch["features"], batch["n_frames"])

    def gate_probabilities(self, embeddings: np.ndarray) -> np.ndarray:
        """The gate's distribution: (N, D) → (N, E)."""
        return probabilities(self.gate, embeddings)

    def parameter_groups(self) -> list[ParameterGroup]:
        """What a CTC trains, and the gate."""
        gate = self.module.gate
        trains = tuple(each for each in gate.parameters() if each.requires_grad) if gate is not None else ()
        more = [ParameterGroup("gate", trains, self.gate_learning_rate)] if trains and self.gate_learning_rate else []
        return super().parameter_groups() + more

    def outputs(self, batch: Batch, ask: Ask) -> tuple[Tensor, list[dict[str, Any]]]:
        """Log-probabilities (B, T', V), and the routing of each utterance."""
        features, n_frames, given = batch["features"], batch["n_frames"], batch.get("routing_weights")
        if isinstance(ask, FixedRouting):
            given = torch.tensor(ask.weights, device=features.device).expand(len(features), -1)
        with self._asked(ask):
            weights, _, gate = self.module.route(features, n_frames, batch.get("embedding"), given)
            said = self.module.log_probabilities(features, n_frames, weights=weights)
        shares = weights.shares().float().cpu().numpy()  # (B, E)
        found = [{"routing_weights": row} for row in shares]
        if gate is not None:
            found = [each | {"gate_probabilities": row} for each, row in zip(found, gate.float().cpu().numpy(), strict=True)]
        return said, found

    def ablations(self) -> dict[str, Ask]:
        """Every expert alone, and all mixed alike."""
        rows = {f"expert_{expert}": tuple(row) for expert, row in enumerate(np.eye(self.n_experts).tolist())}
        rows["uniform"] = (1 / self.n_experts,) * self.n_experts
        return {name: FixedRouting(weights=weights) for name, weights in rows.items()}

    def measures(self, hypotheses: Sequence[Hypothesis]) -> dict[str, float]:
        """What a CTC measures; load of every expert, and the entropy of the gate's distribution by its maximum."""
        weights = routing_weights(hypotheses)  # (N, E)
        measured = {f"load/expert_{expert}": float(share) for expert, share in enumerate(weights.mean(0))}
        gate = [each.gate_probabilities for each in hypotheses if each.gate_probabilities is not None]
        entropy = {"routing_entropy": normalised_entropy(torch.from_numpy(np.stack(gate)))} if gate else {}
        return super().measures(hypotheses) | measured | entropy

    def describe(self) -> dict[str, str]:
        """Experts mixed, and what a CTC says of itself."""
        return {"experts mixed": f"{self.top_k} of {self.n_experts}"} | super().describe()

    @contextmanager
    def _asked(self, ask: Ask) -> Iterator[None]:
        """The module with as many experts as are asked for."""
        phase, top_k = self.module.phase, ask.part(CTCAsk).top_k
        if top_k is not None:
            self.module.phase = dataclasses.replace(phase, top_k=top_k)
        try:
            yield
        finally:
            self.module.phase = phase
