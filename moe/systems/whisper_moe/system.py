"""Whisper-MoE as a system; also one LoRA and the base model itself, which are the same module without experts."""

import copy
import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from moe.experts.people.person import Layout, Person
from moe.experts.people.personal_lora import layout_of
from moe.files import write_whole_dir
from moe.routing.gate import Gate, probabilities
from moe.routing.losses import normalised_entropy
from moe.system import Ask, Batch, DecodingOptions, Hypothesis, ParameterGroup, Record, routing_weights
from moe.systems.whisper.base_model import BaseModel, use_language
from moe.systems.whisper.encoder import embedder
from moe.systems.whisper.features import AudioContextOptions
from moe.systems.whisper.inputs import WhisperInputs
from moe.systems.whisper.tokens import language_ids
from moe.systems.whisper_moe import merging
from moe.systems.whisper_moe.asks import FixedRouting, MixtureAsk, WhisperAsk
from moe.systems.whisper_moe.decoding import hypotheses_of
from moe.systems.whisper_moe.folder import BASE_DIR, WhisperShape, load_model, save_model
from moe.systems.whisper_moe.model import WhisperMoE
from moe.systems.whisper_moe.passes import Routed

if TYPE_CHECKING:  # models run where pandas is not installed
    import pandas as pd


class WhisperSystem:
    """A Whisper without experts: the base model as it is, or with one LoRA.

    Args:
        model: the module, adapters and all.
        base_dir: folder of the base model without adapters.
        learning_rates: of `adapters` and `gate`.
    """

    ask_type = WhisperAsk

    def __init__(
        self,
        model: WhisperMoE,
        base: BaseModel,
        base_dir: Path,
        record: Record,
        learning_rates: Mapping[str, float] | None = None,
    ) -> None:
        self.model, self.base_dir, self.record = model, base_dir, record
        if record.language:
            use_language(base, record.language)
        self.shape = WhisperShape.of(record.shape)
        self.inputs = WhisperInputs(base.processor, self.shape.context, base.model.config.max_target_positions)
        self.learning_rates = learning_rates or {}
        self.people: list[Person] = []

    @property
    def module(self) -> WhisperMoE:
        """The model."""
        return self.model

    @property
    def languages(self) -> tuple[str, ...]:
        """Codes of the languages that may be asked for: the one it was trained for, and those of a multilingual base."""
        return tuple(dict.fromkeys([self.record.language, *language_ids(self.model.base.generation_config)]))

    def parameter_groups(self) -> list[ParameterGroup]:
        """Adapters at one learning rate, the gate at its own unless it is frozen."""
        groups: dict[str, list[nn.Parameter]] = {"adapters": [], "gate": []}
        for name, parameter in self.model.trainable_parameters().items():
            groups["gate" if name.startswith("gate.") else "adapters"].append(parameter)
        return [ParameterGroup(name, tuple(groups[name]), rate) for name, rate in self.learning_rates.items() if groups[name]]

    def decode(self, batch: Batch, options: DecodingOptions, ask: Ask, with_loss: bool = False) -> list[Hypothesis]:
        """Hypotheses of a batch; routing weights that the batch holds are used in place of the gate's."""
        with self._asked(ask):
            routed = dataclasses.replace(self._route(batch, ask), people=self._people_of(batch))
            return hypotheses_of(self.model, self.inputs, batch, routed, options, with_loss)

    def check(self, ask: Ask, beam_size: int = 1) -> None:
        """Refuse a language that the base has no token for.

        Raises:
            ValueError: naming the languages that it has.
        """
        language = ask.part(WhisperAsk).language
        if language is not None and language not in self.languages:
            raise ValueError(f"language={language!r}: the model knows {', '.join(self.languages)}")

    def ablations(self) -> dict[str, Ask]:
        """None: there is nothing to route."""
        return {}

    def measures(self, hypotheses: Sequence[Hypothesis]) -> dict[str, float]:
        """None: there is nothing to route."""
        return {}

    def describe(self) -> dict[str, str]:
        """How much audio the encoder takes at once."""
        return {"audio context": self.shape.context.audio_context}

    def place(self, device: torch.device | str, precision: str) -> None:
        """Move the model to a device and compute there in a precision."""
        self.model.to(device).use_precision(precision)

    def save(self, folder: Path) -> None:
        """Base model, adapters as PEFT folders, gate and record."""
        with write_whole_dir(folder) as aside:
            save_model(aside, self.model, self.record, self.base_dir)

    def layout(self, targets: Sequence[str], r: int) -> Layout:
        """The layout of people's experts of rank r on these layers, which are made ready for them.

        Raises:
            ValueError: no layer is called so, or one is narrower than r.
        """
        layout = layout_of(self.model.base, targets, r, self.model.first_layer)
        self.model.make_room(layout)
        return layout

    def person_losses(self, batch: Batch, people: Sequence[Person | None]) -> Tensor:
        """Loss of each utterance of a batch under its person's expert and weights, (B,), with its gradient."""
        routed = dataclasses.replace(self._route(batch, self.ask_type()), people=people)
        return self.model.transcription_loss(routed, batch["labels"])

    def gate_weights(self, batch: Batch) -> Tensor:
        """The gate's weights of the experts for each utterance, (B, E); E = 0 where nothing is routed, or every expert makes its own pass."""
        weights = self._route(batch, self.ask_type()).weights
        if weights is None or self.shape.routing.mixing == "loss":
            return torch.zeros(len(batch["mel"]), 0)
        return weights.weights.detach()

    def embed(self, batch: Batch) -> Tensor:
        """Pooled frames of the gate's layer, (B, D), adapters off."""
        routing = self.shape.routing
        return embedder(self.model.base, routing.layer, routing.pooling, self.model.precision)(batch)

    def _people_of(self, batch: Batch) -> list[Person | None] | None:
        """The people in memory that a batch numbers, −1 for nobody."""
        numbers = batch.get("person")
        return None if numbers is None else [self.people[number] if number >= 0 else None for number in numbers.tolist()]

    def check_mixture(self, experts: Sequence[float]) -> None:
        """Refuse another number of experts than there are, and what does not mix weights.

        Raises:
            ValueError: naming why.
        """
        if fault := merging.linear_fault(self.model, experts):
            raise ValueError(fault)

    def fixed(self, experts: Sequence[float]) -> Ask:
        """Nothing: there is nothing to route."""
        return self.ask_type()

    @property
    def window_inputs(self) -> WhisperInputs:
        """Inputs whose context is the whole window."""
        return WhisperInputs(self.inputs.processor, AudioContextOptions(audio_context="full"), self.inputs.max_labels)

    def save_merged(self, folder: Path, experts: Sequence[float]) -> None:
        """An ordinary Whisper folder."""
        merging.save_merged(self.model, self.base_dir, self.record.language, folder, experts)

    def save_adapters(self, folder: Path) -> None:
        """The base, and PEFT folders beside it."""
        merging.save_adapters_alone(self.model, self.base_dir, folder)

    def _route(self, batch: Batch, ask: Ask) -> Routed:
        return self.model.route(batch["mel"], batch["n_frames"])

    @contextmanager
    def _asked(self, ask: Ask) -> Iterator[None]:
        """The model in the language that is asked for inside the block, as it was after it."""
        base, generation = self.model.base, self.model.base.generation_config
        language = ask.part(WhisperAsk).language
        if language not in (None, self.record.language):
            changed: Any = copy.deepcopy(generation)
            changed.language = language
            base.generation_config = changed
        try:
            yield
        finally:
            base.generation_config = generation


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

    def check(self, ask: Ask, beam_size: int = 1) -> None:
        """Refuse more experts than there are, and what a Whisper refuses.

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
    """Refuse more experts than a mixture has; asked of its record, before it is loaded.

    Raises:
        ValueError: naming how many there are.
    """
    n_experts = WhisperShape.of(record.shape).n_experts
    if ask.top_k is not None and not 1 <= ask.top_k <= n_experts:
        raise ValueError(f"top_k={ask.top_k}: must be between 1 and {n_experts}, the number of experts")


def load(folder: Path) -> WhisperSystem:
    """A saved recogniser.

    Raises:
        ValueError: the folder holds none, or adapters that do not fit.
    """
    model, base, record = load_model(folder)
    return wrap(model, base, Path(folder) / BASE_DIR, record)


def wrap(
    model: WhisperMoE, base: BaseModel, base_dir: Path, record: Record, learning_rates: Mapping[str, float] | None = None
) -> WhisperSystem:
    """A model as a system: one that routes where it has experts."""
    kind = WhisperMoESystem if model.n_experts else WhisperSystem
    return kind(model, base, base_dir, record, learning_rates)
