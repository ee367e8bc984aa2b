"""A person on disk: `person.json`, the expert as an ordinary PEFT folder, and weights; read only above the recogniser it was made for.

person.json   expert/adapter_config.json   expert/adapter_model.safetensors   weights.safetensors
"""

import dataclasses
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from moe.experts.people.person import NAME, SCALE, Layout, Person
from moe.files import read_json, write_json, write_whole_dir

RECORD, EXPERT_DIR, WEIGHTS_FILE = "person.json", "expert", "weights.safetensors"
KEY = "base_model.model.{}.lora_{}.weight"  # as PEFT names them


class OtherRecogniser(ValueError):
    """A person was made for another recogniser than the one that is to serve them."""


@dataclasses.dataclass(frozen=True)
class PersonRecord:
    """What is known of a person beside their numbers: no audio, no words.

    Attributes:
        recogniser: digest of the folder of the recogniser below.
        kept: `weights`, `expert`, `both`, or `as it is`.
        targets, r: of the expert.
        n_utterances: to learn from, to choose by, held back.
        figures: rates on the held-back part, losses on the choosing part, by name.
    """

    name: str
    recogniser: str
    kept: str
    targets: tuple[str, ...]
    r: int
    n_utterances: tuple[int, int, int]
    figures: dict[str, float] = dataclasses.field(default_factory=dict)


def save_person(folder: Path, person: Person, record: PersonRecord) -> None:
    """Write a person, whole or not at all."""
    with write_whole_dir(folder) as aside:
        write_json(aside / RECORD, dataclasses.asdict(record))
        if person.weights is not None:
            save_file({"weights": person.weights.detach().cpu().clone()}, str(aside / WEIGHTS_FILE))
        if person.expert is not None and person.layout is not None:
            _save_expert(aside / EXPERT_DIR, person.layout, person.expert)


def read_person_record(folder: Path) -> PersonRecord:
    """The record of a person.

    Raises:
        ValueError: the folder holds none.
    """
    try:
        values: dict[str, Any] = read_json(Path(folder) / RECORD)
        found = PersonRecord(**values)
    except (OSError, ValueError, TypeError) as error:
        raise ValueError(f"{folder} holds no person: {RECORD} is missing or damaged") from error
    if not NAME.fullmatch(found.name):
        raise ValueError(f"{folder} holds no person: its name is none")
    learnt, chosen, held_back = found.n_utterances
    return dataclasses.replace(found, targets=tuple(found.targets), n_utterances=(learnt, chosen, held_back))


def load_person(folder: Path, layout: Layout, recogniser: str) -> Person:
    """A person above the recogniser that they were made for.

    Args:
        layout: of experts with the record's targets and rank in the recogniser.

    Raises:
        OtherRecogniser: the digests differ.
        ValueError: the folder holds no person, or one that does not fit.
    """
    record = read_person_record(folder)
    if record.recogniser != recogniser:
        raise OtherRecogniser(
            f"{record.name} was enrolled with another recogniser (digest {record.recogniser[:12]}, here {recogniser[:12]})"
        )
    try:
        weights = load_file(Path(folder) / WEIGHTS_FILE)["weights"] if (Path(folder) / WEIGHTS_FILE).exists() else None
        expert = _load_expert(Path(folder) / EXPERT_DIR, layout) if (Path(folder) / EXPERT_DIR).is_dir() else None
    except (SafetensorError, KeyError, OSError) as error:
        raise ValueError(f"{folder} is damaged: {error}") from error
    return Person(record.name, None if expert is None else layout, expert, weights)


def _save_expert(folder: Path, layout: Layout, vector: torch.Tensor) -> None:
    folder.mkdir()
    state: dict[str, torch.Tensor] = {}
    for name, (a, b) in layout.matrices(vector.detach().cpu()[None]).items():
        state |= {KEY.format(name, "A"): a[0].clone(), KEY.format(name, "B"): b[0].clone()}
    targets = [layer.name for layer in layout.layers]
    scale: Any = SCALE * layout.r
    config = LoraConfig(r=layout.r, lora_alpha=scale, bias="none", target_modules=targets, inference_mode=True)
    config.save_pretrained(str(folder))
    save_file(state, str(folder / "adapter_model.safetensors"), metadata={"format": "pt"})


def _load_expert(folder: Path, layout: Layout) -> torch.Tensor:
    state = load_file(folder / "adapter_model.safetensors")
    shapes = {KEY.format(layer.name, "A"): (layout.r, layer.n_in) for layer in layout.layers}
    shapes |= {KEY.format(layer.name, "B"): (layer.n_out, layout.r) for layer in layout.layers}
    if {name: tuple(tensor.shape) for name, tensor in state.items()} != shapes:
        raise ValueError(f"{folder} does not fit: its layers or ranks are not those of the recogniser")
    keys = [KEY.format(layer.name, matrix) for layer in layout.layers for matrix in "AB"]
    return torch.cat([state[key].flatten() for key in keys])
