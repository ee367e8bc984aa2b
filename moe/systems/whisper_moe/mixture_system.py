"""Whisper-MoE as a system with experts: it routes."""

import dataclasses
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

import numpy as np
import torch

from moe.routing.gate import Gate, probabilities
from moe.routing.losses import normalised_entropy
from moe.system import Ask, Batch, DecodingOptions, Hypothesis, Record, routing_weights
from moe.systems.whisper_moe.asks import FixedRouting, MixtureAsk
from moe.systems.whisper_moe.backoff import is_unsure, likelier, rows_of
from moe.systems.whisper_moe.folder import WhisperShape
from moe.systems.whisper_moe.passes import Routed
from moe.systems.whisper_moe.system import WhisperSystem

if TYPE_CHECKING:  # models run where pandas is not installed
    import pandas as pd


class WhisperMoESystem(WhisperSystem):
    """The mixture: it routes."""

    ask_type = MixtureAsk

    @property
    def n_experts(self) -> int:
        """Routed experts."""
        return self.shape.n_experts

    @property
    def top_k(self) -> int:
        """Experts mixed per utterance in decoding."""
        return self.model.phase.top_k

    @property
    def expert_of_etiology(self) -> dict[str, int]:
        """The oracle routing; known after training."""
        return self.shape.expert_of_etiology

    @expert_of_etiology.setter
    def expert_of_etiology(self, experts: dict[str, int]) -> None:
        self.shape = dataclasses.replace(self.shape, expert_of_etiology=experts)
        self.record = dataclasses.replace(self.record, shape=dataclasses.asdict(self.shape))

    @property
    def gate(self) -> Gate:
        """The gate.

        Raises:
            ValueError: the model has none.
        """
        if self.model.gate is None:
            raise ValueError("the model has no gate: routing_weights must be given")
        return self.model.gate

    @property
    def gate_unit(self) -> str:
        """What the gate reads: `utterance` or `speaker`."""
        return self.shape.routing.gate_unit

    def gate_probabilities(self, embeddings: np.ndarray) -> np.ndarray:
        """The gate's distribution: (N, D) → (N, E)."""
        return probabilities(self.gate, embeddings)

    def decode(self, batch: Batch, options: DecodingOptions, ask: Ask, with_loss: bool = False) -> list[Hypothesis]:
        """Hypotheses of a batch; with `backoff` the likelier of an unsure one and the shared adapter's, but for people with their own."""
        routed, asked = super().decode(batch, options, ask, with_loss), ask.part(MixtureAsk)
        if not asked.backoff:
            return routed
        people = self._people_of(batch) or [None] * len(routed)
        free = [number for number, person in enumerate(people) if person is None]
        unsure = [number for number in free if is_unsure(routed[number], asked.backoff)]
        fixed = FixedRouting(language=asked.language, weights=(0.0,) * self.n_experts)
        alone = super().decode(rows_of(batch, unsure), options, fixed, with_loss) if unsure else []
        others = dict(zip(unsure, alone, strict=True))
        return [likelier(each, others.get(number, each)) for number, each in enumerate(routed)]

    def check(self, ask: Ask, beam_size: int = 1) -> None:
        """Refuse more experts than there are, backing off to nothing, and what a Whisper refuses.

        Raises:
            ValueError: naming what is allowed.
        """
        refuse(self.record, ask.part(MixtureAsk), None)
        super().check(ask, beam_size)

    def ablations(self) -> dict[str, Ask]:
        """Every expert alone, all mixed alike, and the shared adapter without any."""
        rows = {f"expert_{expert}": tuple(row) for expert, row in enumerate(np.eye(self.n_experts).tolist())}
        rows["uniform"] = (1 / self.n_experts,) * self.n_experts
        if self.shape.adapters.shared_rank:
            rows["shared"] = (0.0,) * self.n_experts
        return {name: FixedRouting(weights=weights) for name, weights in rows.items()}

    def fixed(self, experts: Sequence[float]) -> Ask:
        """The weights (E,) for every utterance."""
        return FixedRouting(weights=tuple(experts))

    def measures(self, hypotheses: Sequence[Hypothesis]) -> dict[str, float]:
        """Load of every expert, and the entropy of the gate's distribution by its maximum."""
        weights = routing_weights(hypotheses)  # (N, E)
        measured = {f"load/expert_{expert}": float(share) for expert, share in enumerate(weights.mean(0))}
        gate = [each.gate_probabilities for each in hypotheses if each.gate_probabilities is not None]
        return measured | ({"routing_entropy": normalised_entropy(torch.from_numpy(np.stack(gate)))} if gate else {})

    def describe(self) -> dict[str, str]:
        """Experts mixed, and how much audio the encoder takes at once."""
        return {"experts mixed": f"{self.shape.routing.top_k} of {self.n_experts}"} | super().describe()

    def _route(self, batch: Batch, ask: Ask) -> Routed:
        weights = batch.get("routing_weights")
        if isinstance(ask, FixedRouting):
            weights = torch.tensor(ask.weights, device=self.model.device).expand(len(batch["mel"]), -1)
        return self.model.route(batch["mel"], batch["n_frames"], batch.get("embedding"), weights)

    @contextmanager
    def _asked(self, ask: Ask) -> Iterator[None]:
        """Also with as many experts as are asked for."""
        phase, top_k = self.model.phase, ask.part(MixtureAsk).top_k
        if top_k is not None:
            self.model.phase = dataclasses.replace(phase, top_k=top_k)
        try:
            with super()._asked(ask):
                yield
        finally:
            self.model.phase = phase


def refuse(record: Record, ask: MixtureAsk, rows: "pd.DataFrame | None") -> None:
    """Refuse more experts than a mixture has, and backing off where it has no shared adapter; asked of its record, before it is loaded.

    Raises:
        ValueError: naming how many there are.
    """
    shape = WhisperShape.of(record.shape)
    if ask.top_k is not None and not 1 <= ask.top_k <= shape.n_experts:
        raise ValueError(f"top_k={ask.top_k}: must be between 1 and {shape.n_experts}, the number of experts")
    if ask.backoff and not shape.adapters.shared_rank:
        raise ValueError(
            f"backoff={ask.backoff:g}: trained with shared_expert=false, the model has no shared adapter to back off to"
        )
