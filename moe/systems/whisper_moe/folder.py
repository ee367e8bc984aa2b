"""A recogniser's folder, which is enough by itself: base model, adapters as PEFT folders, gate, and `model.json` to rebuild it.

model.json   base/   shared/   expert_0/ …   gate/
"""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import WhisperConfig, WhisperForConditionalGeneration

from moe.experts.adapter_folders import load_adapter, map_adapters, save_adapter
from moe.experts.people.personal_lora import layout_of
from moe.experts.routed_lora import AdapterOptions
from moe.routing.gate import Gate
from moe.routing.options import RoutingOptions
from moe.system import Record, read_record, write_record
from moe.systems.whisper.base_model import BaseModel, load_base, save_base
from moe.systems.whisper.features import AudioContextOptions
from moe.systems.whisper_moe.model import WhisperMoE

BASE_DIR, GATE_DIR = "base", "gate"
MIXTURE, LORA, BASE = "whisper_moe", "single_lora", "zero_shot"
TITLES = {MIXTURE: "Whisper-MoE", LORA: "one LoRA, same size", BASE: "base model"}
ROLES = {MIXTURE: "mixture", LORA: "control", BASE: "base"}
CONTROLS = {MIXTURE: LORA}


@dataclasses.dataclass(frozen=True)
class WhisperShape:
    """What it takes to rebuild a recogniser beside its weights."""

    n_experts: int
    adapters: AdapterOptions
    routing: RoutingOptions
    context: AudioContextOptions
    expert_of_etiology: dict[str, int] = dataclasses.field(default_factory=dict)

    @classmethod
    def of(cls, values: Mapping[str, Any]) -> "WhisperShape":
        """The shape that a record holds as plain values."""
        kinds = {"adapters": AdapterOptions, "routing": RoutingOptions, "context": AudioContextOptions}
        return cls(**{name: kinds[name](**value) if name in kinds else value for name, value in values.items()})


def new_record(system: str, shape: WhisperShape, language: str, normaliser: str, facts: Mapping[str, Any]) -> Record:
    """The record of the mixture, of one LoRA or of the base model."""
    plain = dataclasses.asdict(shape)
    return Record(system, TITLES[system], ROLES[system], language, normaliser, CONTROLS.get(system), plain, dict(facts))


def save_model(folder: Path, model: WhisperMoE, record: Record, base_dir: Path) -> None:
    """Write a recogniser; the base is copied from `base_dir`, since the one in `model` carries adapters."""
    save_base(load_base(str(base_dir)), folder / BASE_DIR)
    save_adapters(folder, model)
    if model.gate is not None:
        model.gate.save(folder / GATE_DIR)
    write_record(folder, record)


def load_model(folder: Path) -> tuple[WhisperMoE, BaseModel, Record]:
    """Read a recogniser from its folder alone.

    Raises:
        ValueError: the folder holds no recogniser, or adapters that do not fit.
    """
    folder = Path(folder)
    record = read_record(folder)
    shape = WhisperShape.of(record.shape)
    if not (folder / BASE_DIR).is_dir():  # without this its name would be looked for on a hub
        raise ValueError(f"{folder} holds no whole recogniser: {BASE_DIR} is missing")
    base = load_base(str(folder / BASE_DIR))
    gate = Gate.load(folder / GATE_DIR) if shape.n_experts else None
    model = WhisperMoE(base.model, shape.n_experts, shape.adapters, shape.routing, gate)
    load_adapters(folder, model)
    return model.eval(), base, record


def person_faults(folder: Path, targets: Sequence[str], r: int) -> list[str]:
    """Why experts of people of rank r on these layers do not fit a recogniser; no weight is read."""
    shape = WhisperShape.of(read_record(folder).shape)
    with torch.device("meta"):
        base = WhisperForConditionalGeneration(WhisperConfig.from_pretrained(Path(folder) / BASE_DIR))
    try:
        layout_of(base, targets, r, (shape.routing.layer or 0) if shape.n_experts else 0)
    except ValueError as error:
        return [str(error)]
    return []


def save_adapters(folder: Path, model: WhisperMoE) -> None:
    """Write the shared adapter and every expert as PEFT folders."""
    if model.is_adapted:
        map_adapters(model.base, lambda adapter: save_adapter(model.base, adapter, folder / adapter, "../" + BASE_DIR))


def load_adapters(folder: Path, model: WhisperMoE) -> None:
    """Read the shared adapter and every expert from PEFT folders."""
    if model.is_adapted:
        map_adapters(model.base, lambda adapter: load_adapter(model.base, adapter, Path(folder) / adapter))
