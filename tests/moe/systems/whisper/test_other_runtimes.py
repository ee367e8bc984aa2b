"""transformers and faster-whisper say our words of an export whose base has a Whisper's own window and knows English alone."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
from tokenizers.pre_tokenizers import ByteLevel
from transformers import GenerationConfig, WhisperForConditionalGeneration, WhisperTokenizer

from moe.audio.waveforms import load_audio
from moe.system import DecodingOptions
from moe.systems.whisper.base_model import load_base, new_base, save_base
from moe.systems.whisper.base_source import SmallShape
from moe.systems.whisper.conversion import missing, to_ctranslate2
from moe.systems.whisper.other_runtimes import faster_whisper_fault, prompt_of, says_faster_whisper, says_transformers
from moe.systems.whisper.tokens import END, NO_TIMESTAMPS, START, TASKS
from tests.toys.models import ALL_LINEARS, adapter_options, shared_base
from tests.toys.recognizers import record_of, system_on
from tests.toys.speech import RATE, spoken

WHISPERS_OWN = SmallShape(
    d_model=32, encoder_layers=1, decoder_layers=2, heads=2, dropout=0.0, window_s=30, hop_length=160, max_target_positions=448
)
SENTENCES = ("please bring my red coat", "seven", "the kettle is on the table", "call my sister tomorrow")
EXPERTS = (0.5, 0.25, 0.0, 0.25)


def english_tokenizer() -> WhisperTokenizer:
    """Bytes and specials, without a language's token, as the hub's models of English alone."""
    specials = [END, START, *TASKS, "<|startoflm|>", "<|startofprev|>", "<|nospeech|>", NO_TIMESTAMPS]
    vocabulary = {name: number for number, name in enumerate([*sorted(ByteLevel.alphabet()), *specials])}
    return WhisperTokenizer(
        vocab=vocabulary, merges=[], add_prefix_space=True, pad_token=END, additional_special_tokens=specials[1:]
    )


def write_base(folder: Path) -> None:
    """A base with random weights that does not say the same of every audio, and ends: the later a position, the surer."""
    torch.manual_seed(0)
    tokenizer = english_tokenizer()
    base = new_base(tokenizer, WHISPERS_OWN, "en")
    decoder = base.model.model.decoder
    for name, parameter in base.model.named_parameters():
        if parameter.dim() > 1 and "encoder.embed_positions" not in name:
            torch.nn.init.normal_(parameter.data, std=1.0 if "embed" in name else 0.2)
    end = decoder.embed_tokens.weight.data[tokenizer.convert_tokens_to_ids(END)]
    decoder.embed_positions.weight.data += 3 * torch.arange(448.0)[:, None] * end / end.norm()
    save_base(base, folder, torch.float32)


def rewrite_generation(folder: Path, change: Callable[[Any], None]) -> None:
    generation = GenerationConfig.from_pretrained(folder)
    change(generation)
    generation.save_pretrained(folder)


def empty_table_of_languages(folder: Path) -> None:
    """As bases of English alone were saved once: `generate` looked for a language in it and found token 0."""
    rewrite_generation(folder, lambda generation: vars(generation).update(lang_to_id={}))


def task_without_language(folder: Path) -> None:
    rewrite_generation(folder, lambda generation: vars(generation).update(task="transcribe"))


def no_timestamp_token(folder: Path) -> None:
    rewrite_generation(folder, lambda generation: vars(generation).pop("no_timestamps_token_id"))


def no_generation_config(folder: Path) -> None:
    """As fine-tuned checkpoints often are."""
    (folder / "generation_config.json").unlink()


FOLDERS = [lambda folder: None, empty_table_of_languages, task_without_language, no_timestamp_token, no_generation_config]


@pytest.mark.parametrize("change", FOLDERS, ids=["ours", "empty table", "task", "no timestamp token", "no generation config"])
def test_plain_generate_begins_with_our_prompt_whatever_the_base_says(
    change: Callable[[Path], None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_base(tmp_path / "base")
    change(tmp_path / "base")
    save_base(load_base(str(tmp_path / "base")), tmp_path / "exported", torch.float32)
    seen: list[Any] = []
    find = WhisperForConditionalGeneration._retrieve_init_tokens
    monkeypatch.setattr(
        WhisperForConditionalGeneration, "_retrieve_init_tokens", lambda *a, **k: seen.append(find(*a, **k)) or seen[-1]
    )
    says_transformers(tmp_path / "exported")([spoken(SENTENCES[1])])
    base = load_base(str(tmp_path / "exported"))
    names = base.processor.tokenizer.convert_ids_to_tokens(prompt_of(base.model, base.processor))
    assert seen[0].tolist() == [prompt_of(base.model, base.processor)] and names == [START, NO_TIMESTAMPS]
    assert GenerationConfig.from_pretrained(tmp_path / "exported").max_length == 448


def exported(folder: Path) -> tuple[list[np.ndarray], list[str]]:
    """Wav files, and what we say of them, with the folder that is exported from a base of English alone."""
    write_base(folder / "base")
    system = system_on(folder / "base", record_of(adapters=adapter_options(ALL_LINEARS)))
    system.save_merged(folder / "merged", EXPERTS)
    waves = []
    for number, sentence in enumerate(SENTENCES):
        soundfile.write(folder / f"{number}.wav", spoken(sentence), RATE)
        waves.append(load_audio(folder / f"{number}.wav"))
    batch = system.window_inputs.collate([system.window_inputs.example(wave, "") for wave in waves])
    batch["utterance_ids"] = list(SENTENCES)
    ours = [each.text for each in system.decode(batch, DecodingOptions(), system.fixed(EXPERTS))]
    assert len(set(ours)) > 1 and all(ours)
    return waves, ours


def test_transformers_says_our_words_of_wav_files(tmp_path: Path) -> None:
    waves, ours = exported(tmp_path)
    assert says_transformers(tmp_path / "merged")(waves) == ours


@pytest.mark.skipif(missing("faster-whisper") is not None, reason="requirements-export.txt is an extra")
def test_faster_whisper_says_our_words_of_wav_files(tmp_path: Path) -> None:
    waves, ours = exported(tmp_path)
    to_ctranslate2(tmp_path / "merged", tmp_path / "ct2")
    assert faster_whisper_fault(tmp_path / "ct2", tmp_path / "merged") is None
    assert says_faster_whisper(tmp_path / "ct2", tmp_path / "merged")(waves) == ours


def test_a_base_of_another_window_is_named(tmp_path: Path) -> None:
    save_base(shared_base(), tmp_path)
    assert "pads to 3000 frames, and the base takes 100 (2 s)" in str(faster_whisper_fault(tmp_path, tmp_path))


@pytest.mark.skipif(missing("faster-whisper") is not None, reason="requirements-export.txt is an extra")
def test_a_base_whose_language_it_would_leave_out_is_named(tmp_path: Path) -> None:
    save_base(shared_base(window_s=30, hop_length=160), tmp_path / "base")
    to_ctranslate2(tmp_path / "base", tmp_path / "ct2")
    assert "gives no language to this base" in str(faster_whisper_fault(tmp_path / "ct2", tmp_path / "base"))
