"""Whisper-MoE without experts as a system: one LoRA, and the base model itself."""

import copy
import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from moe.experts.people.person import Layout, Person
from moe.experts.people.personal_lora import layout_of
from moe.files import write_whole_dir
from moe.system import Ask, Batch, DecodingOptions, Hypothesis, ParameterGroup, Record
from moe.systems.whisper.base_model import BaseModel, use_language
from moe.systems.whisper.encoder import embedder
from moe.systems.whisper.features import AudioContextOptions
from moe.systems.whisper.inputs import WhisperInputs
from moe.systems.whisper.tokens import language_ids
from moe.systems.whisper_moe import merging
from moe.systems.whisper_moe.asks import WhisperAsk
from moe.systems.whisper_moe.decoding import hypotheses_of
from moe.systems.whisper_moe.folder import WhisperShape, save_model
from moe.systems.whisper_moe.model import WhisperMoE
from moe.systems.whisper_moe.passes import Routed


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
