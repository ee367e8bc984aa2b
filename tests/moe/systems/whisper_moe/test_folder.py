"""A saved recogniser is enough by itself and recognises the same."""

import dataclasses
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from peft import PeftModel

from moe.recognition.decoding import DecodingOptions, decode
from moe.systems.whisper.base_model import load_base, save_base
from moe.systems.whisper_moe.folder import MODEL_FILE, ModelRecord, build, load_model, save_model
from moe.systems.whisper_moe.model import WhisperMoE
from tests.toys.models import CONTEXT, adapter_options, awaken, dataset, shared_base, toy_gate, write_corpus
from tests.toys.recognizers import record_of


@pytest.fixture(scope="module")
def base_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("base")
    save_base(shared_base(), folder)
    return folder


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory):
    root = tmp_path_factory.mktemp("corpus")
    return dataset(write_corpus(root), root)


def made(base_dir: Path, record: ModelRecord) -> WhisperMoE:
    """A trained-looking recogniser on the saved base."""
    base = load_base(str(base_dir))
    gate = toy_gate(2 * base.model.config.d_model, record.n_experts) if record.n_experts else None
    model = build(base, record, gate)
    awaken(model.base)
    return model.eval()


def encoded(model: WhisperMoE, data) -> list[tuple]:
    found = decode(model, data, CONTEXT, DecodingOptions(beam_size=2), with_loss=True)
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
def test_a_recogniser_read_back_recognises_bit_for_bit_the_same(record: ModelRecord, base_dir: Path, data, tmp_path: Path) -> None:
    model = made(base_dir, record)
    save_model(tmp_path / "model", model, shared_base().processor, record, base_dir)
    saved = load_model(tmp_path / "model")
    assert saved.record == record and not saved.model.training
    assert encoded(saved.model, data) == encoded(model, data)
    assert {path.name for path in (tmp_path / "model").iterdir()} == {"base", MODEL_FILE} | _parts(record)


def _parts(record: ModelRecord) -> set[str]:
    experts = {f"expert_{expert}" for expert in range(record.n_experts)}
    return experts | ({"shared"} if record.adapters.shared_rank else set()) | ({"gate"} if record.n_experts else set())


def test_a_moved_folder_is_still_enough(base_dir: Path, data, tmp_path: Path) -> None:
    model = made(base_dir, record_of())
    save_model(tmp_path / "here", model, shared_base().processor, record_of(), base_dir)
    shutil.move(tmp_path / "here", tmp_path / "there")
    assert encoded(load_model(tmp_path / "there").model, data) == encoded(model, data)


def test_an_expert_of_the_folder_loads_into_peft(base_dir: Path, tmp_path: Path) -> None:
    save_model(tmp_path, made(base_dir, record_of()), shared_base().processor, record_of(), base_dir)
    base = load_base(str(tmp_path / "base"))
    peft = PeftModel.from_pretrained(base.model, tmp_path / "expert_2")
    assert sum(parameter.abs().sum() for name, parameter in peft.named_parameters() if "lora_B" in name) > 0


def test_the_base_beside_the_adapters_is_the_bare_one(base_dir: Path, tmp_path: Path) -> None:
    save_model(tmp_path, made(base_dir, record_of()), shared_base().processor, record_of(), base_dir)
    bare, kept = load_base(str(base_dir)).model.state_dict(), load_base(str(tmp_path / "base")).model.state_dict()
    assert bare.keys() == kept.keys() and all(torch.equal(bare[name], kept[name]) for name in bare)


@pytest.fixture
def folder(base_dir: Path, tmp_path: Path) -> Path:
    save_model(tmp_path / "model", made(base_dir, record_of()), shared_base().processor, record_of(), base_dir)
    return tmp_path / "model"


def test_a_folder_without_a_recogniser_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=f"{tmp_path} holds no recogniser: model.json is missing"):
        load_model(tmp_path)


@pytest.mark.parametrize("part", ["shared", "expert_3", "base", "gate"])
def test_a_folder_with_a_part_missing_is_refused_by_name(folder: Path, part: str) -> None:
    shutil.rmtree(folder / part)
    with pytest.raises(ValueError, match=part):
        load_model(folder)


def test_adapters_of_another_shape_are_refused(folder: Path) -> None:
    record = json.loads((folder / MODEL_FILE).read_text())
    record["adapters"]["lora_r"], record["adapters"]["lora_alpha"] = 3, 6.0
    (folder / MODEL_FILE).write_text(json.dumps(record))
    with pytest.raises(ValueError, match="does not fit slot expert_0"):
        load_model(folder)


def test_a_record_with_an_impossible_option_is_refused(folder: Path) -> None:
    record = json.loads((folder / MODEL_FILE).read_text())
    record["routing"]["mixing"] = "tokens"
    (folder / MODEL_FILE).write_text(json.dumps(record))
    with pytest.raises(ValueError, match="mixing='tokens': must be one of delta, loss"):
        load_model(folder)


def test_a_killed_save_leaves_no_recogniser(base_dir: Path, tmp_path: Path, monkeypatch) -> None:
    model = made(base_dir, record_of())
    monkeypatch.setattr(type(model.gate), "save", lambda self, path: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        save_model(tmp_path, model, shared_base().processor, record_of(), base_dir)
    with pytest.raises(ValueError, match="holds no recogniser"):
        load_model(tmp_path)


def test_a_record_is_what_json_can_say(folder: Path) -> None:
    assert json.loads((folder / MODEL_FILE).read_text()) == dataclasses.asdict(record_of())
    assert np.isfinite(load_model(folder).record.context.context_floor_s)
