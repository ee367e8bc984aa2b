"""A person on disk: `person.json`, the expert as an ordinary PEFT folder, weights, and where they agreed a profile of their voice.

person.json   expert/adapter_config.json   expert/adapter_model.safetensors   weights.safetensors   profile.safetensors

They are read only above the recogniser that the person was made for.
"""

import dataclasses
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from moe.experts.adapter_folders import read_lora, write_lora
from moe.experts.people.person import NAME, SCALE, Layout, Person
from moe.files import read_json, write_json, write_whole_dir

RECORD, EXPERT_DIR, WEIGHTS_FILE, PROFILE_FILE = "person.json", "expert", "weights.safetensors", "profile.safetensors"


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
        for name, values in ((WEIGHTS_FILE, person.weights), (PROFILE_FILE, person.profile)):
            if values is not None:
                save_file({Path(name).stem: values.detach().cpu().clone()}, str(aside / name))
        if person.expert is not None and person.layout is not None:
            write_lora(aside / EXPERT_DIR, _matrices(person.layout, person.expert), SCALE)


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
    weights, profile = _vector(folder, WEIGHTS_FILE), _vector(folder, PROFILE_FILE)
    if not (Path(folder) / EXPERT_DIR).is_dir():
        return Person(record.name, weights=weights, profile=profile)
    expert = torch.zeros(layout.n_numbers)
    read_lora(Path(folder) / EXPERT_DIR, _matrices(layout, expert), SCALE, record.name)
    return Person(record.name, layout, expert, weights, profile)


def read_profile(folder: Path) -> torch.Tensor | None:
    """The profile of a person's voice, (D,); None where they have not agreed to one.

    Raises:
        ValueError: it is damaged.
    """
    return _vector(folder, PROFILE_FILE)


def _vector(folder: Path, name: str) -> torch.Tensor | None:
    path = Path(folder) / name
    try:
        return load_file(path)[path.stem] if path.exists() else None
    except (SafetensorError, KeyError, OSError) as error:
        raise ValueError(f"{folder} is damaged: {error}") from error


def _matrices(layout: Layout, vector: torch.Tensor) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    """A (r, in) and B (out, r) of every layer, as views of a vector (n_numbers,)."""
    return {name: (a[0], b[0]) for name, (a, b) in layout.matrices(vector[None]).items()}
