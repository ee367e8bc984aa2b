"""What every system is: the interface between a recogniser and everything that trains, scores, registers and serves it.

A system is one package below `moe/systems`, one step that trains it and one row in `moe/systems/table.py`. Nothing else knows it: the
loop asks `module` for losses, evaluation and serving ask `decode` for hypotheses, and `model.json` holds its `Record`.
"""

import dataclasses
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

import numpy as np
import torch
from torch import Tensor, nn

from moe.audio.augmentation import AugmentationOptions
from moe.files import read_json, write_json
from moe.options import Options, option

if TYPE_CHECKING:  # the interface names tables, no model needs them
    import pandas as pd

MODEL_FILE = "model.json"
VERSION = 1  # of model.json; raised where an older one can no longer be read
IGNORED = -100  # label of a position that is not scored
ROLES = ("base", "control", "mixture", "candidate")
WORDS = "words"  # among a hypothesis's details
EXPERT_USE = "expert_use"  # among them too: shares of experts by layer, where they decide layer by layer

Batch = dict[str, Any]
Ask = Options  # what one request may ask of a system: each system has a dataclass of its own, whose fields are the served parameters


@dataclasses.dataclass(frozen=True)
class Record:
    """What `model.json` says of a recogniser: enough to load it, to name it in a table and to compare it fairly.

    Attributes:
        system: row of `moe.systems.table.SYSTEMS`.
        title: its name in tables.
        role: `base` (what changes are measured against), `control` (a fair control of another), `mixture` or `candidate`.
        language: code of the language that it was trained for.
        normaliser: name of the text normaliser that training used.
        control: the system that is its fair control, if any.
        shape: the system's own options as plain values: what it takes to rebuild it beside the weights.
        facts: n_trainable, n_total, n_utterances_seen, training_seconds, seed, synthetic, and what else is to be shown.
    """

    system: str
    title: str
    role: str
    language: str
    normaliser: str
    control: str | None = None
    shape: dict[str, Any] = dataclasses.field(default_factory=dict)
    facts: dict[str, Any] = dataclasses.field(default_factory=dict)
    version: int = VERSION

    def __post_init__(self) -> None:
        if self.role not in ROLES:
            raise ValueError(f"role={self.role!r} of {self.system}: must be one of {', '.join(ROLES)}")


def read_record(folder: Path) -> Record:
    """The record of a saved recogniser.

    Raises:
        ValueError: the folder holds none, or one of another version.
    """
    path = Path(folder) / MODEL_FILE
    if not path.exists():
        raise ValueError(f"{folder} holds no recogniser: {MODEL_FILE} is missing")
    try:
        values = read_json(path)
    except json.JSONDecodeError as error:
        raise ValueError(f"{path} is damaged: {error}") from error
    found = values.get("version") if isinstance(values, dict) else None
    if found != VERSION:
        raise ValueError(
            f"{path} is of version {found}, and this code reads version {VERSION}: train the model again; a registered version of before "
            "is still served by `mlflow models serve`, with the code that lies beside it"
        )
    return Record(**values)


def write_record(folder: Path, record: Record) -> None:
    """Write `model.json`."""
    write_json(Path(folder) / MODEL_FILE, dataclasses.asdict(record))


@dataclasses.dataclass(frozen=True)
class DecodingOptions(Options):
    """How hypotheses are searched."""

    beam_size: int = option(1, "beams; 1 is greedy", low=1, high=32)
    decoding_batch_size: int = option(32, "utterances decoded together", low=1)
    max_tokens_per_s: float = option(30.0, "bound on the hypothesis: tokens per second of audio", above=0)
    word_times: bool = option(False, "say when each word was said, where the system can, and when somebody speaks")


@dataclasses.dataclass(frozen=True)
class Hypothesis:
    """What was recognised in one utterance.

    Attributes:
        routing_weights: (E,) share of each expert, or None without experts.
        gate_probabilities: (E,) the gate's whole distribution, before the top k are chosen; None where it was not asked.
        utterance_loss: cross-entropy of the reference, where asked for.
        mean_logprob: mean natural log-probability of its tokens under the model, end of text included.
        n_tokens: how many tokens that is.
        details: what else the system says of it, as plain JSON values by name: columns of the hypotheses table. Under `words`, where it
            times them, a list of word, start_s, end_s and confidence. Under `expert_use`, where experts are used layer by layer,
            rows of shares, (L, E).
    """

    utterance_id: str
    text: str
    routing_weights: np.ndarray | None = None
    utterance_loss: float = math.nan
    mean_logprob: float = math.nan
    n_tokens: int = 0
    gate_probabilities: np.ndarray | None = None
    details: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    def without_text(self) -> "Hypothesis":
        """The same of an utterance in which nobody speaks: neither text nor words."""
        details = {**self.details, WORDS: []} if WORDS in self.details else self.details
        return dataclasses.replace(self, text="", details=details)


def routing_weights(hypotheses: Sequence[Hypothesis]) -> np.ndarray:
    """The share of each expert in hypotheses that were all routed, (N, E).

    Raises:
        ValueError: some were not.
    """
    rows = [hypothesis.routing_weights for hypothesis in hypotheses if hypothesis.routing_weights is not None]
    if len(rows) < len(hypotheses):
        raise ValueError(f"{len(hypotheses) - len(rows)} of {len(hypotheses)} hypotheses have no routing weights")
    return np.stack(rows)


@dataclasses.dataclass(frozen=True)
class ParameterGroup:
    """Parameters that train at one learning rate: a group of the optimizer, and a row of the table of what trains."""

    name: str
    parameters: tuple[nn.Parameter, ...]
    learning_rate: float
    weight_decay: float | None = None  # None: the plan's

    @property
    def n_parameters(self) -> int:
        """How many numbers train."""
        return sum(parameter.numel() for parameter in self.parameters)


class Inputs(Protocol):
    """From a waveform and its reference to what the model is fed; saved with the model."""

    @property
    def window_s(self) -> float | None:
        """Seconds of audio that one pass takes at most; None: any length."""

    def example(self, waveform: np.ndarray, reference: str) -> Batch:
        """One utterance without padding: waveform float32 (n_samples,) at 16 kHz."""

    def augment(self, example: Batch, options: AugmentationOptions, random: np.random.Generator) -> Batch:
        """A copy of the example with its features masked for training; as it is where the model masks by itself."""

    def collate(self, examples: Sequence[Batch]) -> Batch:
        """Examples padded to one batch of tensors."""

    def length(self, n_samples: int) -> int:
        """The length bucket of so many samples: utterances of one bucket share a pass."""

    def refusal(self, n_samples: int, reference: str) -> str | None:
        """Why an utterance cannot be trained on, or None where it can."""


class System(Protocol):
    """A recogniser."""

    record: Record  # what `model.json` says of it

    @property
    def inputs(self) -> Inputs:
        """What the model is fed."""

    @property
    def module(self) -> nn.Module:
        """forward(**batch) → {"loss": (), "utterance_loss": (B,)}."""

    @property
    def ask_type(self) -> type[Ask]:
        """What a request may ask: its fields are the served parameters, its defaults the recogniser as it was trained."""

    def parameter_groups(self) -> list[ParameterGroup]:
        """What trains, and at which learning rate; empty where nothing does."""

    def decode(self, batch: Batch, options: DecodingOptions, ask: Ask, with_loss: bool = False) -> list[Hypothesis]:
        """Hypotheses of a batch of one length bucket, in its order.

        Args:
            ask: an `ask_type`, or one of `ablations`.
            with_loss: also the loss of the references that the batch holds.
        """

    def check(self, ask: Ask, beam_size: int = 1) -> None:
        """Refuse what this recogniser cannot do on this machine.

        Args:
            beam_size: beams to be searched.

        Raises:
            ValueError: naming the parameter, the value and what is allowed.
        """

    def ablations(self) -> Mapping[str, Ask]:
        """Other ways to decode the same weights that evaluation scores beside the usual one; empty where there are none."""

    def measures(self, hypotheses: Sequence[Hypothesis]) -> dict[str, float]:
        """Numbers to log of a split that was decoded, by metric name: load/expert_0, layer_scale/3 …; empty where there are none."""

    def describe(self) -> dict[str, str]:
        """What a model card says of it: name → text."""

    def place(self, device: torch.device | str, precision: str) -> None:
        """Move the model to a device and compute there in `fp32`, `bf16` or `fp16`."""

    def save(self, folder: Path) -> None:
        """Write everything that loading needs, whole or not at all."""


@runtime_checkable
class ReadsManifest(System, Protocol):
    """A capability: the system reads more of an utterance than its audio, where a manifest says it."""

    def from_manifest(self, rows: "pd.DataFrame") -> Mapping[str, np.ndarray]:
        """What batches of these utterances are to hold besides, (N, …) each."""


@runtime_checkable
class Needs(System, Protocol):
    """A capability: the system may stand on something that its folder does not hold."""

    def needs(self) -> str | None:
        """What a server must have beside the folder; None for nothing.

        Raises:
            ValueError: no server could have it.
        """


@runtime_checkable
class Routes(System, Protocol):
    """A capability: the system has experts, and a gate that reads an embedding of the utterance."""

    @property
    def n_experts(self) -> int:
        """Routed experts."""

    @property
    def top_k(self) -> int:
        """Experts mixed per utterance in decoding."""

    @property
    def expert_of_etiology(self) -> Mapping[str, int]:
        """The expert that most training utterances of each etiology went to: the oracle routing."""

    @property
    def gate_unit(self) -> str:
        """What the gate reads: the embedding of the `utterance`, or the mean of its `speaker`."""

    def embed(self, batch: Batch) -> Tensor:
        """What the gate reads of each utterance, (B, D), with adapters off."""

    def gate_probabilities(self, embeddings: np.ndarray) -> np.ndarray:
        """The gate's whole distribution: (N, D) → (N, E)."""


@runtime_checkable
class Merges(System, Protocol):
    """A capability: under one fixed mixture of its experts the system is an ordinary model, which it can write."""

    def check_mixture(self, experts: Sequence[float]) -> None:
        """Refuse a mixture (E,), empty without experts, that is not one model.

        Raises:
            ValueError: naming why.
        """

    def fixed(self, experts: Sequence[float]) -> Ask:
        """What to ask for to decode under a fixed mixture (E,) of the experts."""

    @property
    def window_inputs(self) -> Inputs:
        """Inputs that pad every utterance to the whole window, as the ordinary model is given it."""

    def save_merged(self, folder: Path, experts: Sequence[float]) -> None:
        """Write an ordinary model with the mixture in its weights."""

    def save_adapters(self, folder: Path) -> None:
        """Write the base and adapters that PEFT alone reads, each whole by itself."""
