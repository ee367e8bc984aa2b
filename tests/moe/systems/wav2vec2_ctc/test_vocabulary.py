"""Characters and their ids: what is kept, and that a text survives."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from moe.systems.wav2vec2_ctc.vocabulary import BETWEEN_WORDS, SIGNS, UNKNOWN, Vocabulary

NEPALI = ("नमस्ते संसार", "नमस्ते")


@given(st.text())
def test_a_text_of_known_characters_is_written_again_but_for_its_spaces(text: str) -> None:
    known = text.replace("|", "")
    vocabulary = Vocabulary.of([f"a{known}"], 1)
    assert vocabulary.decode(vocabulary.encode(known)) == " ".join(known.split())
    assert vocabulary.unknown(known) == []


def test_ids_are_blank_unknown_the_sign_between_words_and_the_characters_in_order() -> None:
    vocabulary = Vocabulary.of(["ba ab"], 1)
    assert vocabulary.encode(" ab  ba ") == [3, 4, BETWEEN_WORDS, 4, 3] and len(vocabulary) == 5


def test_rare_characters_are_unknown() -> None:
    vocabulary = Vocabulary.of(NEPALI, 2)
    assert set(vocabulary.characters) == set("नमसते्")  # the virama and the vowel sign are characters of their own
    assert vocabulary.unknown("संसार नम") == sorted("ंार")
    assert vocabulary.encode("नX") == [vocabulary.encode("न")[0], UNKNOWN]


def test_the_sign_between_words_in_a_text_is_unknown_and_no_space() -> None:
    vocabulary = Vocabulary.of(["a|a a|a"], 1)
    assert vocabulary.encode("a|a") == [3, UNKNOWN, 3] and vocabulary.unknown("a|a") == ["|"]


@pytest.mark.parametrize("references", [[], ["", "  "], ["abc"]])
def test_an_empty_vocabulary_is_refused(references: list[str]) -> None:
    with pytest.raises(ValueError, match="vocabulary is empty.*min_character_count=2.*normaliser"):
        Vocabulary.of(references, 2)


def test_it_is_read_as_it_was_written(tmp_path: Path) -> None:
    vocabulary = Vocabulary.of(NEPALI, 1)
    vocabulary.save(tmp_path / "vocab.json")
    assert Vocabulary.load(tmp_path / "vocab.json") == vocabulary


def test_another_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "vocab.json").write_text('{"a": 0}', encoding="utf-8")
    with pytest.raises(ValueError, match=f"no vocabulary: it must start with {SIGNS[0][1:4]}|PAD"):
        Vocabulary.load(tmp_path / "vocab.json")
