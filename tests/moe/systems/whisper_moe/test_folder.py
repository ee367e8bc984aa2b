"""A saved recogniser is enough by itself and recognises the same."""

import dataclasses
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from peft import PeftModel

from moe.recognition.decoding import decode
from moe.system import MODEL_FILE, DecodingOptions, Record, System
from moe.systems.table import load_system
from moe.systems.whisper.base_model import load_base, save_base
from moe.systems.whisper_moe.folder import WhisperShape
from tests.toys.models import adapter_options, dataset, shared_base, write_corpus
from tests.toys.recognizers import record_of, system_on


@pytest.fixture(scope="module")
def base_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("base")
    save_base(shared_base(), folder)
    return folder


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory):
    root = tmp_path_factory.mktemp("corpus")
    return dataset(write_corpus(root), root)


def encoded(system: System, data) -> list[tuple]:
    found = decode(system, data, DecodingOptions(beam_size=2), with_loss=True)
    rows = [None if h.routing_weights is None else h.routing_weights.tolist() for h in found]
    return [(h.utterance_id, h.text, h.utterance_loss, row) for h, row in zip(found, rows, strict=True)]


SYSTEMS = {
    "mixture": record_of(),
    "gate on layer 1, losses": record_of(gate_layer="1", mixing="loss", top_k=3),
    "no shared adapter": record_of(adapters=adapter_options(shared_expert=False), gate_layer="last"),
    "one LoRA": record_of(0),
    "bare": record_of(0, adapter_options(shared_expert=False)),
}


@pytest.mark.parametrize("record", SYSTEMS.values(), ids=SYSTEMS.keys())
def test_a_recogniser_read_back_recognises_bit_for_bit_the_same(record: Record, base_dir: Path, data, tmp_path: Path) -> None:
    system = system_on(base_dir, record)
    system.save(tmp_path / "model")
    saved = load_system(tmp_path / "model")
    assert saved.record == record and not saved.module.training
    assert encoded(saved, data) == encoded(system, data)
    assert {path.name for path in (tmp_path / "model").iterdir()} == {"base", MODEL_FILE} | _parts(WhisperShape.of(record.shape))


def _parts(shape: WhisperShape) -> set[str]:
    experts = {f"expert_{expert}" for expert in range(shape.n_experts)}
    return experts | ({"shared"} if shape.adapters.shared_rank else set()) | ({"gate"} if shape.n_experts else set())


def test_a_moved_folder_is_still_enough(base_dir: Path, data, tmp_path: Path) -> None:
    system = system_on(base_dir, record_of())
    system.save(tmp_path / "here")
    shutil.move(tmp_path / "here", tmp_path / "there")
    assert encoded(load_system(tmp_path / "there"), data) == encoded(system, data)


@pytest.fixture
def folder(base_dir: Path, tmp_path: Path) -> Path:
    system_on(base_dir, record_of()).save(tmp_path / "model")
    return tmp_path / "model"


def test_an_expert_of_the_folder_loads_into_peft(folder: Path) -> None:
    peft = PeftModel.from_pretrained(load_base(str(folder / "base")).model, folder / "expert_2")
    assert sum(parameter.abs().sum() for name, parameter in peft.named_parameters() if "lora_B" in name) > 0


def test_the_base_beside_the_adapters_is_the_bare_one(base_dir: Path, folder: Path) -> None:
    bare, kept = load_base(str(base_dir)).model.state_dict(), load_base(str(folder / "base")).model.state_dict()
    assert bare.keys() == kept.keys() and all(torch.equal(bare[name], kept[name]) for name in bare)


def test_a_folder_without_a_recogniser_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=f"{tmp_path} holds no recogniser: model.json is missing"):
        load_system(tmp_path)


@pytest.mark.parametrize("part", ["shared", "expert_3", "base", "gate"])
def test_a_folder_with_a_part_missing_is_refused_by_name(folder: Path, part: str) -> None:
    shutil.rmtree(folder / part)
    with pytest.raises(ValueError, match=part):
        load_system(folder)


def change(folder: Path, **changes: dict) -> None:
    """Change entries of the record's shape."""
    record = json.loads((folder / MODEL_FILE).read_text())
    for name, values in changes.items():
        record["shape"][name] |= values
    (folder / MODEL_FILE).write_text(json.dumps(record))


def test_adapters_of_another_shape_are_refused(folder: Path) -> None:
    change(folder, adapters={"lora_r": 3, "lora_alpha": 6.0})
    with pytest.raises(ValueError, match="does not fit slot expert_0"):
        load_system(folder)


def test_a_record_with_an_impossible_option_is_refused(folder: Path) -> None:
    change(folder, routing={"mixing": "tokens"})
    with pytest.raises(ValueError, match="mixing='tokens': must be one of delta, loss"):
        load_system(folder)


def test_a_killed_save_leaves_no_recogniser(base_dir: Path, tmp_path: Path, monkeypatch) -> None:
    system = system_on(base_dir, record_of())
    monkeypatch.setattr(type(system.module.gate), "save", lambda self, path: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        system.save(tmp_path / "model")
    assert not (tmp_path / "model").exists()
    with pytest.raises(ValueError, match="holds no recogniser"):
        load_system(tmp_path / "model")


def test_a_record_is_what_json_can_say(folder: Path) -> None:
    assert json.loads((folder / MODEL_FILE).read_text()) == dataclasses.asdict(record_of())
    assert np.isfinite(WhisperShape.of(load_system(folder).record.shape).context.context_floor_s)
