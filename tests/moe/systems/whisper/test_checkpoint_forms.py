"""A whole checkpoint is taken as it is, in every form that the hub has, and reads as the one file does; what is missing is named."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import save_file

from moe.systems.whisper.adapted_base import model_below
from moe.systems.whisper.base_model import complete_base, load_base
from moe.systems.whisper.base_source import (
    TOKEN_TABLE,
    base_window_s,
    hub_fault,
    is_complete,
    partial_fault,
    small_files,
    whole_fault,
)
from moe.systems.whisper.checkpoint_weights import lacking_tensors
from tests.toys.models import shared_base, toy_base

ONE_FILE = "model.safetensors"


def state() -> dict[str, torch.Tensor]:
    """The toy's tensors as a checkpoint has them: without the one that is tied."""
    return {name: value.clone() for name, value in shared_base().model.state_dict().items() if name != "proj_out.weight"}


def halves(name: str) -> dict[str, dict[str, torch.Tensor]]:
    """Tensors by shard of a sharded file."""
    stem, _, ending = name.partition(".")
    names = sorted(state())
    return {f"{stem}-{n + 1:05d}-of-00002.{ending}": {each: state()[each] for each in names[n::2]} for n in range(2)}


def write_index(folder: Path, name: str, shards: dict[str, dict]) -> None:
    weight_map = {tensor: shard for shard, tensors in shards.items() for tensor in tensors}
    (folder / f"{name}.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))


def one_file(folder: Path) -> None:
    save_file(state(), folder / ONE_FILE)


def shards(folder: Path) -> None:
    for name, tensors in halves(ONE_FILE).items():
        save_file(tensors, folder / name)
    write_index(folder, ONE_FILE, halves(ONE_FILE))


def torch_file(folder: Path) -> None:
    torch.save(state(), folder / "pytorch_model.bin")


def torch_file_of_old(folder: Path) -> None:
    torch.save(state(), folder / "pytorch_model.bin", _use_new_zipfile_serialization=False)


def torch_shards(folder: Path) -> None:
    for name, tensors in halves("pytorch_model.bin").items():
        torch.save(tensors, folder / name)
    write_index(folder, "pytorch_model.bin", halves("pytorch_model.bin"))


def other_names(folder: Path) -> None:
    for name, tensors in zip(("a", "b"), halves(ONE_FILE).values(), strict=True):
        save_file(tensors, folder / f"{name}.safetensors")


def without_prefix(folder: Path) -> None:
    save_file({name.removeprefix("model."): value for name, value in state().items()}, folder / ONE_FILE)


def with_the_tied_tensor(folder: Path) -> None:
    torch.save(state() | {"proj_out.weight": state()[TOKEN_TABLE]}, folder / "pytorch_model.bin")


FORMS = (one_file, shards, torch_file, torch_file_of_old, torch_shards, other_names, without_prefix, with_the_tied_tensor)


def folder_of(form: Callable[[Path], None], folder: Path) -> Path:
    """A checkpoint with config, generation config and processor, its weights in one form."""
    folder.mkdir(exist_ok=True)
    base = shared_base()
    base.model.config.save_pretrained(folder)
    base.model.generation_config.save_pretrained(folder)
    base.processor.save_pretrained(folder)
    form(folder)
    return folder


def adapter(folder: Path, below: Path | str) -> dict[str, torch.Tensor]:
    """A LoRA whose every tensor is random, and the weights that PEFT itself merges."""
    torch.manual_seed(1)
    model = get_peft_model(toy_base().model, LoraConfig(r=2, target_modules=["q_proj", "fc1"], init_lora_weights=False))
    model.load_state_dict({f"base_model.model.{name}": value for name, value in state().items()}, strict=False)
    model.peft_config["default"].base_model_name_or_path = str(below)
    model.save_pretrained(folder, save_embedding_layers=False)  # else it asks a hub whether they were changed
    return {name: value.clone() for name, value in model.merge_and_unload().state_dict().items()}


def assert_same(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, msg=name)


@pytest.mark.parametrize("form", FORMS, ids=lambda form: form.__name__)
def test_every_form_is_whole_and_reads_as_the_one_file_does(form: Callable, tmp_path: Path) -> None:
    folder = folder_of(form, tmp_path / "base")
    assert is_complete(str(folder))
    base = load_base(str(folder))
    assert_same(base.model.state_dict(), shared_base().model.state_dict())
    assert base.model.proj_out.weight is base.model.model.decoder.embed_tokens.weight and not base.missing
    assert base.model.generation_config.to_dict() == shared_base().model.generation_config.to_dict()


@pytest.mark.parametrize("form", FORMS, ids=lambda form: form.__name__)
def test_partial_is_said_of_what_lacks_tensors_alone_and_names_them(
    form: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lost = "model.decoder.layers.1.fc1.weight"
    part = {name: value for name, value in state().items() if name != lost}
    monkeypatch.setattr(f"{__name__}.state", lambda: dict(part))
    folder = folder_of(form, tmp_path / "base")
    assert lacking_tensors(folder) == [lost]
    assert f"partial, 1 tensors are missing ({lost}); name it as init_from instead" in whole_fault(str(folder))
    with pytest.raises(ValueError, match="partial"):
        load_base(str(folder))
    assert complete_base(folder, None, "en").missing == (lost,)  # as the message says


@pytest.mark.parametrize("ending", ["safetensors", "bin"])
@pytest.mark.parametrize("beside", [True, False], ids=["on top", "elsewhere"])
def test_an_adapter_is_merged_into_the_model_below_it(ending: str, beside: bool, tmp_path: Path) -> None:
    below = folder_of(shards, tmp_path / "below")
    folder = below if beside else tmp_path / "adapter"
    expected = adapter(folder, below)
    if ending == "bin":
        from safetensors.torch import load_file

        torch.save(load_file(folder / "adapter_model.safetensors"), folder / "adapter_model.bin")
        (folder / "adapter_model.safetensors").unlink()
    assert is_complete(str(folder)) and model_below(str(folder)) == str(below) and small_files(str(folder)) == below
    base = load_base(str(folder))
    assert_same(base.model.state_dict(), expected)
    assert base.processor.tokenizer.get_vocab() == shared_base().processor.tokenizer.get_vocab()


def lose_a_shard(folder: Path) -> None:
    next(folder.glob("model-00002*")).unlink()


def cut(folder: Path) -> None:
    path = next(folder.glob("model-00002*"))
    path.write_bytes(path.read_bytes()[:50])


def no_whisper(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"model_type": "wav2vec2-bert"}))


def code(folder: Path) -> None:
    for path in folder.glob("model*"):
        path.unlink()
    torch.save({"a": print}, folder / "pytorch_model.bin")


def no_tensors(folder: Path) -> None:
    for path in folder.glob("model*"):
        path.unlink()
    torch.save({"state_dict": state()}, folder / "pytorch_model.bin")


def no_tokenizer(folder: Path) -> None:
    for path in [*folder.glob("token*"), *folder.glob("vocab*")]:
        path.unlink()


@pytest.mark.parametrize(
    ("break_it", "words"),
    [(lose_a_shard, "model-00002-of-00002.safetensors of 2 files missing"), (cut, "model-00002-of-00002.safetensors: cannot be read"),
     (no_whisper, "model_type=wav2vec2-bert is no Whisper"), (code, "pytorch_model.bin: cannot be read as weights"),
     (no_tensors, "holds other things than weights"), (no_tokenizer, "no processor there")],
)  # fmt: skip
def test_what_cannot_be_taken_says_why_and_never_that_it_is_partial(break_it: Callable, words: str, tmp_path: Path) -> None:
    folder = folder_of(shards, tmp_path / "base")
    break_it(folder)
    fault = whole_fault(str(folder))
    assert words in fault and "partial" not in fault
    with pytest.raises(ValueError, match=f"base model {folder}: "):
        load_base(str(folder))


@pytest.mark.filterwarnings("ignore:Initializing zero-element tensors")
@pytest.mark.parametrize(
    "change",
    [{"d_model": "x"}, {"d_model": None}, {"d_model": -4}, {"d_model": 0}, {"encoder_attention_heads": 0}, {"vocab_size": 1.5},
     {"activation_function": "none"}, {"pad_token_id": 10**9}],
    ids=str,
)  # fmt: skip
def test_a_config_that_makes_no_model_is_a_fault_of_the_base(change: dict[str, object], tmp_path: Path) -> None:
    path = folder_of(one_file, tmp_path / "base") / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    for fault in (whole_fault(str(path.parent)), partial_fault(str(path.parent), makes_tokenizer=False)):
        assert "config.json: no model can be made of it" in fault


def test_an_adapter_whose_model_is_not_here_reaches_for_no_hub_and_says_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    adapter(tmp_path / "adapter", "somebody/whisper-of-theirs")
    assert "belongs on somebody/whisper-of-theirs, which is not on this machine: `hf download" in whole_fault(
        str(tmp_path / "adapter")
    )
    config_path = tmp_path / "adapter" / "adapter_config.json"
    config_path.write_text(json.dumps(json.loads(config_path.read_text()) | {"base_model_name_or_path": None}))
    assert f"set base_model_name_or_path in {config_path}" in whole_fault(str(tmp_path / "adapter"))
    config_path.write_text(
        json.dumps(json.loads(config_path.read_text()) | {"base_model_name_or_path": str(folder_of(one_file, tmp_path / "base"))})
    )
    assert is_complete(str(tmp_path / "adapter"))


def test_a_downloaded_adapter_is_known_by_the_model_below_it_and_no_hub_is_asked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As `hf download` leaves it; only the model below has a config and a processor."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("huggingface_hub.HfApi.model_info", lambda *given, **how: pytest.fail("asked a hub"))
    below = folder_of(one_file, tmp_path / "below")
    snapshot = tmp_path / "cache/models--someone--lora/snapshots" / ("0" * 40)
    adapter(snapshot, below)
    (snapshot.parents[1] / "refs").mkdir()
    (snapshot.parents[1] / "refs/main").write_text(snapshot.name)
    assert hub_fault("someone/lora") is None and small_files("someone/lora") == below
    assert base_window_s("someone/lora") == base_window_s(str(below))


def test_an_adapter_of_another_shape_or_without_weights_is_refused(tmp_path: Path) -> None:
    below = folder_of(one_file, tmp_path / "below")
    adapter(tmp_path / "adapter", below)
    config = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    (tmp_path / "adapter" / "adapter_config.json").write_text(json.dumps(config | {"r": 3}))
    with pytest.raises(ValueError, match="does not fit the model it names"):
        load_base(str(tmp_path / "adapter"))
    shutil.copy(tmp_path / "adapter" / "adapter_config.json", below)
    assert "the adapter has no weights" in whole_fault(str(below))
