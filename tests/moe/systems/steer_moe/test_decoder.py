"""The language model: taken, copied or named, refused, and pinned; and the pseudo-audio that a small one learns to read."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import Qwen2Config, Qwen2ForCausalLM

from moe.audio.augmentation import generator
from moe.system import DecodingOptions
from moe.systems.steer_moe.decoder import RECORD, decoder_fault, read_decoder, take_decoder
from moe.systems.steer_moe.options import UNITS
from moe.systems.steer_moe.parts import DECODER_DIR
from moe.systems.steer_moe.pseudo_audio import LONGEST, SHORTEST, Units, pseudo_audio, spell
from moe.systems.steer_moe.system import build, load
from tests.toys.models import CONTEXT, toy_wave
from tests.toys.steer import RATES, toy_options, toy_tokenizer, write_sources

CHAT = "{% for m in messages %}<{{ m['role'] }}>{{ m['content'] }}{% endfor %}{% if add_generation_prompt %}<a>{% endif %}"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Qwen2 of a hub's shape, with a chat template."""
    place = tmp_path_factory.mktemp("hub") / "qwen"
    torch.manual_seed(0)
    tokenizer = toy_tokenizer()
    tokenizer.chat_template = CHAT
    config = Qwen2Config(
        vocab_size=len(tokenizer) + 7,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
    )
    Qwen2ForCausalLM(config).save_pretrained(place)
    tokenizer.save_pretrained(place)
    return place


def without(folder: Path, tmp_path: Path, *names: str, **config) -> Path:
    """A copy that lacks files, or says something else of itself."""
    place = tmp_path / "copy"
    place.mkdir()
    for path in folder.iterdir():
        if path.name not in names:
            (place / path.name).write_bytes(path.read_bytes())
    said = json.loads((place / "config.json").read_text())
    (place / "config.json").write_text(json.dumps(said | config))
    return place


def test_a_model_of_a_hubs_shape_goes_through_everything(folder: Path, tmp_path: Path) -> None:
    sources = write_sources(tmp_path / "toy")
    record = take_decoder(str(folder), tmp_path / "qwen", copy_mb=10)
    assert record.is_copied and record.needs is None and record.textual_prompt == ""
    system = build(type(sources)(sources.base, tmp_path / "qwen"), toy_options(), CONTEXT, "en", "basic", RATES)
    system.module.eval()
    assert system.tokenizer.decode(list(system.inputs.around().before)).strip() == "<user>"
    system.save(tmp_path / "model")
    batch = system.inputs.collate([system.inputs.example(toy_wave(1, 0.5), "oak")]) | {"utterance_ids": ["u"]}
    said = [each.decode(batch, DecodingOptions(), each.ask_type())[0].text for each in (system, load(tmp_path / "model"))]
    assert said[0] == said[1] and (tmp_path / "model" / DECODER_DIR / "config.json").exists()


def test_a_large_one_is_kept_by_name_and_digest_and_refused_once_it_changed(folder: Path, tmp_path: Path) -> None:
    there = without(folder, tmp_path)
    record = take_decoder(str(there), tmp_path / "taken", copy_mb=0.0)
    assert not record.is_copied and [path.name for path in (tmp_path / "taken").iterdir()] == [RECORD]
    read_decoder(tmp_path / "taken")
    with pytest.raises(ValueError, match="copy_decoder_mb"):
        _ = record.needs
    (there / "config.json").write_text((there / "config.json").read_text() + " ")
    with pytest.raises(ValueError, match="has changed"):
        read_decoder(tmp_path / "taken")


def test_one_of_a_hub_is_kept_by_its_commit_which_a_server_is_told(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked, cache = [], tmp_path / "snapshots"
    cache.mkdir()
    shutil.copytree(folder, cache / "c0ffee")
    monkeypatch.setattr(
        "moe.systems.steer_moe.decoder.snapshot_download",
        lambda name, revision=None: asked.append(revision) or str(cache / "c0ffee"),
    )
    record = take_decoder("owner/name", tmp_path / "taken", copy_mb=0.0)
    assert record.needs == "the language model owner/name, revision c0ffee, in its Hugging Face cache"
    read_decoder(tmp_path / "taken")
    assert asked == [None, "c0ffee"], "read again by its commit, whatever the hub has by then"


def test_what_cannot_write_is_refused_by_what_it_lacks(folder: Path, tmp_path: Path) -> None:
    assert decoder_fault(str(folder)) is None and decoder_fault("owner/name") is None
    assert decoder_fault(str(tmp_path / "none")) == "no such folder"
    for number, (names, config, said) in enumerate(
        (
            (("model.safetensors",), {}, "no model there"),
            ((), {"model_type": "vit"}, "model_type=vit has no causal head"),
            ((), {"architectures": ["Qwen2Model"]}, "architectures=Qwen2Model has no causal head; needs Qwen2ForCausalLM"),
            (
                (),
                {"model_type": "bert", "architectures": ["BertForMaskedLM"]},
                "architectures=BertForMaskedLM has no causal head",
            ),
            ((), {"vocab_size": 9}, "tokens, its token table 9 rows"),
            (("tokenizer.json", "vocab.json"), {}, "no tokenizer there"),
        )
    ):
        assert said in (decoder_fault(str(without(folder, _new(tmp_path, number), *names, **config))) or "")
    place = without(folder, _new(tmp_path, 9))
    said_of = json.loads((place / "tokenizer_config.json").read_text())
    (place / "tokenizer_config.json").write_text(json.dumps(said_of | {"eos_token": None}))
    assert "no end of text" in (decoder_fault(str(place)) or "")


def _new(tmp_path: Path, number: int) -> Path:
    place = tmp_path / str(number)
    place.mkdir()
    return place


def test_pseudo_audio_is_a_mixture_of_units_as_long_as_they_are_held_and_follows_from_its_key() -> None:
    units = np.arange(8) % 5
    frames = pseudo_audio(units, 5, generator(0, 1, "oak"))
    np.testing.assert_allclose(frames.sum(1), 1, rtol=1e-5)
    assert SHORTEST * len(units) <= len(frames) <= LONGEST * len(units) + 1 and (frames >= 0).all()
    np.testing.assert_array_equal(frames, pseudo_audio(units, 5, generator(0, 1, "oak")))
    assert len(frames) != len(pseudo_audio(units, 5, generator(0, 2, "oak"))) or not np.allclose(
        frames, pseudo_audio(units, 5, generator(0, 2, "oak"))
    )


def test_sentences_are_spelled_in_phonemes_or_letters_with_words_run_together() -> None:
    assert spell(["the cat"], "letters", "xx") == [list("thecat")] and spell(["the cat"], "none", "en") == [[]]
    phonemes = spell(["the cat"], "phonemes", "en")[0]
    assert phonemes[0] == "D" and phonemes[-1] == "t" and " " not in phonemes
    assert Units(("a", "b")).numbers(["b", "x", "a"]).tolist() == [1, 0] and set(UNITS) == {"phonemes", "letters", "none"}
    with pytest.raises(ValueError, match="decoder_units=letters"):
        spell(["x"], "phonemes", "xx")
