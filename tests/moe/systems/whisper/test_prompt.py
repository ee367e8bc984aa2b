"""One prompt: labels, decoding and scoring of a base of many languages start from the same tokens, in the corpus's language."""

from pathlib import Path

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model
from tokenizers import pre_tokenizers
from transformers import (
    GenerationConfig,
    WhisperConfig,
    WhisperFeatureExtractor,
    WhisperForConditionalGeneration,
    WhisperProcessor,
    WhisperTokenizer,
)

from moe.recognition.recognizer import Recognizer
from moe.system import DecodingOptions
from moe.systems.whisper.base_model import load_base, new_base, save_base, use_language
from moe.systems.whisper.base_source import SmallShape, folder_languages
from moe.systems.whisper.tokens import END, NO_TIMESTAMPS, START, TASKS, label_ids, prompt_ids, train_tokenizer
from moe.systems.whisper_moe import decoding
from moe.systems.whisper_moe.asks import WhisperAsk
from moe.systems.whisper_moe.building import load
from moe.systems.whisper_moe.system import WhisperSystem
from moe.systems.whisper_moe.zero_shot import base_system
from steps.chain.checks import language_faults
from tests.toys.models import shared_base, toy_wave

LANGUAGES = ("en", "hi", "ne", "ko", "de")
FURTHER = (*TASKS, "<|startoflm|>", "<|startofprev|>", "<|nospeech|>", NO_TIMESTAMPS)
HINDI = [START, "<|hi|>", "<|transcribe|>", NO_TIMESTAMPS]


def save_multilingual(folder: Path) -> None:
    """A tiny Whisper of five languages and random weights, saved as the hub's are: no language in the tokenizer, none in the config."""
    tokens = [END, START, *(f"<|{code}|>" for code in LANGUAGES), *FURTHER]
    vocabulary = {symbol: number for number, symbol in enumerate([*sorted(pre_tokenizers.ByteLevel.alphabet()), *tokens])}
    tokenizer = WhisperTokenizer(vocabulary, [], add_prefix_space=True, pad_token=END, additional_special_tokens=tokens[1:])
    ids = tokenizer.convert_tokens_to_ids
    ends = {name: ids(END) for name in ("pad_token_id", "bos_token_id", "eos_token_id")} | {"decoder_start_token_id": ids(START)}
    sizes = dict.fromkeys(("encoder_layers", "decoder_layers", "encoder_attention_heads", "decoder_attention_heads"), 2)
    widths = {"d_model": 32, "encoder_ffn_dim": 32, "decoder_ffn_dim": 32, "suppress_tokens": None, "begin_suppress_tokens": None}
    torch.manual_seed(0)
    model = WhisperForConditionalGeneration(WhisperConfig(vocab_size=len(tokenizer), **widths, **sizes, **ends))
    model.generation_config = GenerationConfig(
        max_length=448,
        is_multilingual=True,
        lang_to_id={f"<|{code}|>": ids(f"<|{code}|>") for code in LANGUAGES},
        task_to_id={task.strip("<|>"): ids(task) for task in TASKS},
        no_timestamps_token_id=ids(NO_TIMESTAMPS),
        prev_sot_token_id=ids("<|startofprev|>"),
        return_timestamps=False,
        **ends,
    )
    model.save_pretrained(folder)
    WhisperProcessor(WhisperFeatureExtractor(), tokenizer).save_pretrained(folder)


@pytest.fixture
def hindi(tmp_path: Path) -> WhisperSystem:
    """The base as it is, for a Hindi corpus."""
    save_multilingual(tmp_path / "base")
    return base_system(load_base(str(tmp_path / "base")), tmp_path / "base", "hi", "basic")


def prompts_used(system: WhisperSystem, monkeypatch: pytest.MonkeyPatch, ask: WhisperAsk) -> tuple[list[str], list[str]]:
    """The tokens that the search starts from, and those that scoring starts from."""
    seen, base = {}, system.model.base
    generate, score = base._retrieve_init_tokens, decoding.token_logprobs
    monkeypatch.setattr(base, "_retrieve_init_tokens", lambda *a, **k: seen.setdefault("search", generate(*a, **k)))
    monkeypatch.setattr(decoding, "token_logprobs", lambda m, e, rows: score(m, e, seen.setdefault("scores", rows)))
    say = system.model.say
    monkeypatch.setattr(system.model, "say", lambda e, prompt, *a: say(e, seen.setdefault("say", prompt), *a))
    for plain in (True, False):  # our search, and transformers' with a second pass
        monkeypatch.setattr(decoding, "is_plain", lambda generation, plain=plain: plain)
        Recognizer(system).transcribe([toy_wave(1, 0.5)], DecodingOptions(max_tokens_per_s=1.0, beam_size=2), ask)
    assert list(seen["say"]) == seen["search"][0].tolist()
    name = system.inputs.processor.tokenizer.convert_ids_to_tokens
    return name(seen["search"][0].tolist()), name(seen["scores"][0, :4].tolist())


def test_labels_decoding_and_scoring_have_one_prompt(hindi: WhisperSystem, monkeypatch) -> None:
    """They had three: no language in the labels, a language guessed for every utterance, none in scoring."""
    tokenizer = hindi.inputs.processor.tokenizer
    labels = hindi.inputs.example(np.zeros(8000, np.float32), "nek")["labels"]
    assert tokenizer.convert_ids_to_tokens(labels) == [*HINDI[1:], "Ġ", "n", "e", "k", END]
    assert prompts_used(hindi, monkeypatch, WhisperAsk()) == (HINDI, HINDI)


def test_a_request_for_another_language_changes_search_and_scores_alike(hindi: WhisperSystem, monkeypatch) -> None:
    korean = [START, "<|ko|>", *HINDI[2:]]
    assert prompts_used(hindi, monkeypatch, WhisperAsk(language="ko")) == (korean, korean)
    assert hindi.inputs.example(np.zeros(8000, np.float32), "a")["labels"][0] == prompt_ids(hindi.inputs.processor.tokenizer)[1]


def test_a_saved_recogniser_keeps_its_prompt(hindi: WhisperSystem, tmp_path: Path, monkeypatch) -> None:
    hindi.save(tmp_path / "model")
    again = load(tmp_path / "model")
    assert prompts_used(again, monkeypatch, WhisperAsk()) == (HINDI, HINDI)
    assert (
        again.inputs.example(np.zeros(800, np.float32), "a")["labels"]
        == hindi.inputs.example(np.zeros(800, np.float32), "a")["labels"]
    )


def save_adapter_on(below: Path, folder: Path, with_processor: bool) -> None:
    """An adapter as PEFT saves it, with the processor of a training in Korean beside it or without any."""
    save_multilingual(below)
    model = get_peft_model(load_base(str(below)).model, LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False))
    model.peft_config["default"].base_model_name_or_path = str(below)
    model.save_pretrained(folder)
    if with_processor:
        processor = WhisperProcessor.from_pretrained(below)
        processor.tokenizer.set_prefix_tokens(language="ko", task="transcribe")
        processor.save_pretrained(folder)


@pytest.mark.parametrize("with_processor", [False, True])
def test_an_adapter_on_a_base_of_many_languages_has_the_prompt_of_the_corpus(
    with_processor: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever language the adapter's own tokenizer was left in; what the model below does not have is refused before work."""
    folder = tmp_path / "adapter"
    save_adapter_on(tmp_path / "below", folder, with_processor)
    assert [language_faults(code, "whisper_model", str(folder)) != [] for code in ("hi", "ko", "fr")] == [False, False, True]
    base = load_base(str(folder))
    system = base_system(base, folder, "hi", "basic")
    labels = system.inputs.example(np.zeros(8000, np.float32), "n")["labels"]
    assert base.processor.tokenizer.convert_ids_to_tokens(labels)[:3] == HINDI[1:]
    assert prompts_used(system, monkeypatch, WhisperAsk()) == (HINDI, HINDI)


def test_a_base_of_many_languages_needs_no_generation_config_to_have_them(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"vocab_size": 51865}')
    assert {"hi", "ne", "ko"} <= set(folder_languages(tmp_path))
    (tmp_path / "config.json").write_text('{"vocab_size": 51864}')
    assert folder_languages(tmp_path) == []


@pytest.mark.parametrize("language", ["fr", "hindi", "HI", "<|hi|>"])
def test_a_language_that_the_base_does_not_have_is_refused_by_name(tmp_path: Path, language: str) -> None:
    save_multilingual(tmp_path)
    with pytest.raises(ValueError, match="the base has de, en, hi, ko, ne; name a base that has it"):
        use_language(load_base(str(tmp_path)), language)


def test_a_base_of_one_language_keeps_its_prompt_and_takes_no_other(tmp_path: Path) -> None:
    save_base(shared_base(), tmp_path)
    before = prompt_ids(load_base(str(tmp_path)).processor.tokenizer)
    assert prompt_ids(use_language(load_base(str(tmp_path)), "en").processor.tokenizer) == before
    with pytest.raises(ValueError, match="language=ko: the base has en"):
        use_language(load_base(str(tmp_path)), "ko")


@pytest.mark.parametrize("language", ["en", "ko", "ne", "hi", "yue"])
def test_a_tokenizer_of_ours_has_the_language_that_it_was_made_for(language: str, tmp_path: Path) -> None:
    """transformers counts a language's id from the start token, by the order of Whisper's own hundred languages."""
    tokenizer = train_tokenizer(["ab", "b c"], "characters", 0, language)
    base = new_base(tokenizer, SmallShape(d_model=16), language)
    save_base(base, tmp_path)
    for each in (tokenizer, use_language(load_base(str(tmp_path)), language).processor.tokenizer):
        expected = [START, f"<|{language}|>", "<|transcribe|>", NO_TIMESTAMPS]
        assert each.convert_ids_to_tokens(prompt_ids(each)) == expected
        assert each.convert_ids_to_tokens(label_ids(each, "ab"))[:3] == expected[1:]
