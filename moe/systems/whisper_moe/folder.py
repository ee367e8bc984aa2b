"""A recogniser as a folder that is enough by itself: base model, adapters as PEFT folders, gate, and `model.json` to rebuild it.

    model.json   base/   shared/   expert_0/ …   gate/
"""

import dataclasses
from pathlib import Path
from typing import Any

from transformers import WhisperProcessor

from moe.experts.adapter_folders import load_adapter, map_adapters, save_adapter
from moe.experts.routed_lora import AdapterOptions
from moe.files import read_json, write_json
from moe.routing.gate import Gate
from moe.routing.options import RoutingOptions
from moe.systems.whisper.base_model import BaseModel, load_base, save_base
from moe.systems.whisper.features import AudioContextOptions
from moe.systems.whisper_moe.model import WhisperMoE

MODEL_FILE, BASE_DIR, GATE_DIR = "model.json", "base", "gate"


@dataclasses.dataclass(frozen=True)
class ModelRecord:
    """What it takes to rebuild a recogniser beside its weights, and what evaluation must know of it.

    Attributes:
        system: whisper_moe, single_lora or zero_shot.
        normaliser: name of the text normaliser that training used.
        expert_of_etiology: the expert that most training utterances of each etiology went to; the oracle routing.
        information: free facts to show: trainable parameters, utterances seen, synthetic or not.
    """

    system: str
    n_experts: int
    adapters: AdapterOptions
    routing: RoutingOptions
    context: AudioContextOptions
    normaliser: str
    language: str
    expert_of_etiology: dict[str, int] = dataclasses.field(default_factory=dict)
    information: dict[str, Any] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class SavedModel:
    """A recogniser read back."""

    model: WhisperMoE
    processor: WhisperProcessor
    record: ModelRecord


def save_model(folder: Path, model: WhisperMoE, processor: WhisperProcessor, record: ModelRecord, base_dir: Path) -> None:
    """Write a recogniser; the base is copied from `base_dir`, since the one in `model` carries adapters."""
    save_base(load_base(str(base_dir)), folder / BASE_DIR)
    save_adapters(folder, model, record.adapters.shared_rank)
    if model.gate is not None:
        model.gate.save(folder / GATE_DIR)
    write_json(folder / MODEL_FILE, dataclasses.asdict(record))


def save_adapters(folder: Path, model: WhisperMoE, shared_rank: int) -> None:
    """Write the shared adapter and every expert as PEFT folders."""
    if model.n_experts or shared_rank:
        map_adapters(model.base, lambda adapter: save_adapter(model.base, adapter, folder / adapter, "../" + BASE_DIR))


def load_model(folder: Path) -> SavedModel:
    """Read a recogniser from its folder alone.

    Raises:
        ValueError: the folder holds no recogniser, or adapters that do not fit.
    """
    folder = Path(folder)
    if not (folder / MODEL_FILE).exists():
        raise ValueError(f"{folder} holds no recogniser: {MODEL_FILE} is missing")
    record = _record(read_json(folder / MODEL_FILE))
    if not (folder / BASE_DIR).is_dir():  # without this its name would be looked for on a hub
        raise ValueError(f"{folder} holds no whole recogniser: {BASE_DIR} is missing")
    base = load_base(str(folder / BASE_DIR))
    gate = Gate.load(folder / GATE_DIR) if record.n_experts else None
    model = WhisperMoE(base.model, record.n_experts, record.adapters, record.routing, gate)
    load_adapters(folder, model, record.adapters.shared_rank)
    return SavedModel(model.eval(), base.processor, record)


def load_adapters(folder: Path, model: WhisperMoE, shared_rank: int) -> None:
    """Read the shared adapter and every expert from PEFT folders."""
    if model.n_experts or shared_rank:
        map_adapters(model.base, lambda adapter: load_adapter(model.base, adapter, Path(folder) / adapter))


def build(base: BaseModel, record: ModelRecord, gate: Gate | None = None, **losses: Any) -> WhisperMoE:
    """A fresh recogniser of the record's shape on a base model."""
    return WhisperMoE(base.model, record.n_experts, record.adapters, record.routing, gate, **losses)


def _record(values: dict[str, Any]) -> ModelRecord:
    kinds = {"adapters": AdapterOptions, "routing": RoutingOptions, "context": AudioContextOptions}
    return ModelRecord(**{name: kinds[name](**value) if name in kinds else value for name, value in values.items()})
