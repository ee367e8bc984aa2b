"""Tokenizers of our own speak every text; labels are masked by length, so that end of text is learnt."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from moe.system import IGNORED
from moe.systems.whisper.head_loss import utterance_cross_entropy
from moe.systems.whisper.tokens import END, START, generation_config, label_batch, label_ids, prompt_ids, train_tokenizer
from tests.toys.models import shared_base, tokenizer

SENTENCES = {
    "en": ["the red fox", "don't go", "a café at 5"],
    "ko": ["안녕하세요", "오늘 날씨가 좋아요", "물 주세요"],
    "ne": ["नमस्ते", "मलाई पानी चाहियो", "क्षत्रिय ज्ञान"],
}
EVERYTHING = [sentence for sentences in SENTENCES.values() for sentence in sentences]
TOKENIZERS = {kind: train_tokenizer(EVERYTHING, kind, 60, "en") for kind in ("characters", "bpe")}
words = st.text(st.characters(codec="utf-8", exclude_categories=("Z", "C", "S")), min_size=1, max_size=6)
scripts = st.text(st.sampled_from("abcxyz'éß가나다한국말क्षिमाेो्ंज्ञ०१"), min_size=1, max_size=6)


def spoken(kind: str, text: str) -> str:
    tokenizer = TOKENIZERS[kind]
    return tokenizer.decode(tokenizer(text).input_ids, skip_special_tokens=True).strip()


@pytest.mark.parametrize("kind", TOKENIZERS)
@pytest.mark.parametrize("text", EVERYTHING)
def test_sentences_come_back(kind: str, text: str) -> None:
    assert spoken(kind, text) == text


@given(st.sampled_from(sorted(TOKENIZERS)), st.lists(words | scripts, min_size=1, max_size=4).map(" ".join))
def test_every_text_comes_back_seen_in_training_or_not(kind: str, text: str) -> None:
    assert spoken(kind, text) == text


@pytest.mark.parametrize("text", EVERYTHING)
def test_a_character_is_one_token(text: str) -> None:
    """English, Korean and Devanagari alike, though a character has one to three bytes."""
    text_ids = label_ids(TOKENIZERS["characters"], text)[3:-1]
    assert len(text_ids) == len(text) + 1  # the space before the first word


def test_merges_shorten_what_was_learnt_from() -> None:
    lengths = [len(label_ids(TOKENIZERS[kind], "the red fox")) for kind in ("bpe", "characters")]
    assert lengths[0] < lengths[1]


def test_a_tokenizer_is_the_same_whatever_the_order_of_the_texts() -> None:
    again = train_tokenizer(EVERYTHING[::-1], "characters", 0, "en")
    assert again.get_vocab() == TOKENIZERS["characters"].get_vocab()


def test_a_saved_tokenizer_speaks_the_same(tmp_path) -> None:
    TOKENIZERS["bpe"].save_pretrained(tmp_path)
    again = type(TOKENIZERS["bpe"]).from_pretrained(tmp_path)
    for text in EVERYTHING:
        assert again(text, add_special_tokens=False) == TOKENIZERS["bpe"](text, add_special_tokens=False)


def test_the_prompt_is_start_language_task_no_timestamps_once() -> None:
    tokens = tokenizer().convert_ids_to_tokens(prompt_ids(tokenizer()))
    assert tokens == [START, "<|en|>", "<|transcribe|>", "<|notimestamps|>"]


def test_labels_are_the_rest_of_the_prompt_the_text_and_end_of_text() -> None:
    """Pitfall 5: the start token was doubled; the model prepends it itself."""
    ids = label_ids(tokenizer(), "oak")
    assert ids[:3] == prompt_ids(tokenizer())[1:] and ids[-1] == tokenizer().convert_tokens_to_ids(END)
    assert tokenizer().convert_tokens_to_ids(START) not in ids
    assert tokenizer().decode(ids[3:-1]).strip() == "oak"


def test_end_of_text_is_scored_although_it_is_the_padding_token_too() -> None:
    """Pitfall 5: labels masked by token value never teach the end."""
    end = tokenizer().convert_tokens_to_ids(END)
    assert tokenizer().pad_token_id == end
    labels = label_batch([label_ids(tokenizer(), text) for text in ("oak elm fig", "oak")])  # (2, N)
    last = (labels != IGNORED).sum(1) - 1
    assert labels[torch.arange(2), last].tolist() == [end, end]
    logits = torch.zeros(*labels.shape, len(tokenizer()))
    before = utterance_cross_entropy(logits, labels)
    logits[torch.arange(2), last, end] = 5.0
    assert (utterance_cross_entropy(logits, labels) < before).all()


def test_generation_knows_the_same_ids_as_the_tokenizer() -> None:
    config, to_id = generation_config(tokenizer(), 32, "en"), tokenizer().convert_tokens_to_ids
    assert config.decoder_start_token_id == to_id(START) and config.eos_token_id == to_id(END) == config.pad_token_id
    assert config.lang_to_id == {"<|en|>": to_id("<|en|>")} and config.task_to_id["transcribe"] == to_id("<|transcribe|>")
    assert shared_base().model.config.vocab_size == len(tokenizer())
