"""Base models: new, whole, and partial ones whose missing tensors are named."""

import json
from pathlib import Path

import pytest
import torch

from moe.systems.whisper.base_model import BaseModel, complete_base, load_base, new_base, read_training_record, save_base
from moe.systems.whisper.base_source import TOKEN_TABLE, SmallShape, is_complete, resolve
from moe.systems.whisper.features import window_seconds
from moe.systems.whisper.tokens import END, START, prompt_ids
from tests.toys.models import partial_checkpoint, shared_base, tokenizer, toy_base

MISSING_LAYER = "model.decoder.layers.1.fc1.weight"


def test_of_a_new_base_every_tensor_is_missing_and_the_window_is_as_asked() -> None:
    base = new_base(tokenizer(), SmallShape(d_model=16, encoder_layers=1, decoder_layers=1, heads=2, window_s=3), "en")
    assert set(base.missing) == {name for name, _ in base.model.named_parameters()}
    assert window_seconds(base.processor.feature_extractor) == 3
    assert base.model.config.max_source_positions * 2 == base.processor.feature_extractor.nb_max_frames


def test_a_bases_ids_are_its_tokenizers() -> None:
    config, to_id = shared_base().model.config, tokenizer().convert_tokens_to_ids
    assert config.vocab_size == len(tokenizer()) and config.decoder_start_token_id == to_id(START)
    assert config.eos_token_id == config.pad_token_id == to_id(END)
    assert not config.suppress_tokens and not config.begin_suppress_tokens


@pytest.mark.parametrize("prefix", ["", "model."])
def test_missing_tensors_are_named_and_the_others_are_the_checkpoints(prefix: str, tmp_path: Path) -> None:
    base = complete_base(partial_checkpoint(tmp_path, MISSING_LAYER, prefix=prefix), None, "en")
    assert base.missing == (MISSING_LAYER,)
    ours, theirs = base.model.state_dict(), shared_base().model.state_dict()
    for name, value in theirs.items():
        assert torch.equal(ours[name], value) != (name == MISSING_LAYER), name
    assert base.model.state_dict()[MISSING_LAYER].abs().sum() > 0  # initialised, not left as memory was


def test_with_a_tokenizer_of_ones_own_the_token_table_is_missing(tmp_path: Path) -> None:
    other = tokenizer("characters")
    base = complete_base(partial_checkpoint(tmp_path), other, "en")
    assert base.missing == (TOKEN_TABLE,) and base.model.config.vocab_size == len(other)
    assert base.model.proj_out.weight is base.model.model.decoder.embed_tokens.weight
    assert prompt_ids(base.processor.tokenizer) == prompt_ids(other)


def test_a_partial_checkpoint_keeps_its_own_feature_extractor(tmp_path: Path) -> None:
    base = complete_base(partial_checkpoint(tmp_path, MISSING_LAYER), None, "en")
    assert window_seconds(base.processor.feature_extractor) == 30  # Whisper's, where there is none
    shared_base().processor.feature_extractor.save_pretrained(tmp_path)
    base = complete_base(tmp_path, None, "en")
    assert base.processor.feature_extractor.to_dict() == shared_base().processor.feature_extractor.to_dict()


def test_a_checkpoint_without_its_token_table_takes_a_tokenizer(tmp_path: Path) -> None:
    """The real case: a checkpoint whose table is gone."""
    base = complete_base(partial_checkpoint(tmp_path, TOKEN_TABLE), tokenizer("characters"), "en")
    assert base.missing == (TOKEN_TABLE,)


def test_tensors_of_the_wrong_shape_are_refused_by_name(tmp_path: Path) -> None:
    wrong = {"model.encoder.conv1.bias": torch.zeros(7), "model.encoder.extra": torch.zeros(2)}
    with pytest.raises(ValueError) as refused:
        complete_base(partial_checkpoint(tmp_path, **wrong), None, "en")
    assert "model.encoder.conv1.bias is (7,), config.json asks for (32,)" in str(refused.value)
    assert "model.encoder.extra is (2,), config.json asks for no such tensor" in str(refused.value)


def test_a_folder_that_is_no_checkpoint_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no such folder"):
        complete_base(tmp_path / "nowhere", tokenizer(), "en")
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(ValueError, match="needs config.json and weights"):
        complete_base(tmp_path, tokenizer(), "en")
    with pytest.raises(ValueError, match="no model there"):
        load_base(str(tmp_path))


def test_a_whole_model_without_a_processor_is_refused(tmp_path: Path) -> None:
    save_base(toy_base(), tmp_path)
    for path in [*tmp_path.glob("*processor*"), *tmp_path.glob("*token*")]:
        path.unlink()
    assert not is_complete(str(tmp_path))
    with pytest.raises(ValueError, match=f"base model {tmp_path}: no processor"):
        load_base(str(tmp_path))


def test_a_checkpoint_as_older_versions_wrote_it_is_whole(tmp_path: Path) -> None:
    save_base(toy_base(), tmp_path)
    (tmp_path / "processor_config.json").unlink()
    shared_base().processor.feature_extractor.save_pretrained(tmp_path)
    assert (tmp_path / "preprocessor_config.json").exists() and is_complete(str(tmp_path))
    assert load_base(str(tmp_path)).processor.feature_extractor.to_dict() == shared_base().processor.feature_extractor.to_dict()


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
def test_a_saved_base_reads_back(dtype: torch.dtype, tmp_path: Path) -> None:
    base = shared_base()
    save_base(base, tmp_path, dtype)
    assert is_complete(str(tmp_path))
    again = load_base(str(tmp_path))
    for name, value in base.model.state_dict().items():
        assert torch.equal(again.model.state_dict()[name], value.to(dtype).float()), name
        assert again.model.state_dict()[name].dtype == torch.float32
    assert again.model.generation_config.to_dict() == base.model.generation_config.to_dict()
    ours, theirs = again.processor, base.processor
    assert ours.tokenizer.get_vocab() == theirs.tokenizer.get_vocab()
    assert ours.feature_extractor.to_dict() == theirs.feature_extractor.to_dict()
    assert not again.model.training


def test_saving_leaves_the_model_as_it_is(tmp_path: Path) -> None:
    base = BaseModel(toy_base().model, shared_base().processor)
    save_base(base, tmp_path)
    assert all(parameter.dtype == torch.float32 for parameter in base.model.parameters())


def test_the_documents_names_are_hub_names() -> None:
    assert resolve("v2") == "openai/whisper-large-v2" and resolve("some/model") == "some/model"
    assert is_complete("v3")


def test_the_training_record_is_read_where_there_is_one(tmp_path: Path) -> None:
    assert read_training_record(tmp_path) == {}
    (tmp_path / "training.json").write_text(json.dumps({"updates": 3}))
    assert read_training_record(tmp_path) == {"updates": 3}
