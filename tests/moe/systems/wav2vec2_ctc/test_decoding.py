"""Greedy decoding against a table made by hand, and words with their times."""

import math

import pytest
import torch

from moe.systems.wav2vec2_ctc.decoding import collapse, words
from moe.systems.wav2vec2_ctc.vocabulary import Vocabulary

VOCABULARY = Vocabulary(("a", "b"))  # ids 3 and 4
TABLE = [  # path: - blank, ? unknown, | between words → text
    ("", ""), ("----", ""), ("a", "a"), ("aaa", "a"), ("a-a", "aa"), ("aa--aa", "aa"), ("ab", "ab"), ("aabb-b", "abb"),
    ("a|b", "a b"), ("a||b", "a b"), ("a|-|b", "a b"), ("|a|", "a"), ("a-|-b", "a b"), ("?", ""), ("a?b", "ab"), ("a|?|b", "a b"),
]  # fmt: skip


def said(path: str, probability: float = 0.9) -> torch.Tensor:
    """Log-probabilities whose most probable tokens are this path, (T, 5)."""
    ids = ["-?|ab".index(sign) for sign in path]
    rows = torch.full((len(path), 5), (1 - probability) / 4)
    return rows.scatter(1, torch.tensor(ids, dtype=torch.long)[:, None], probability).log()


@pytest.mark.parametrize(("path", "text"), TABLE)
def test_a_path_writes_what_the_table_says(path: str, text: str) -> None:
    runs = collapse(said(path))
    assert VOCABULARY.decode([run.token for run in runs]) == text
    assert " ".join(word.word for word in words(runs, VOCABULARY, 0.04)) == text


def test_words_last_from_their_first_output_to_the_end_of_their_last() -> None:
    found = words(collapse(said("--aab-||-b--")), VOCABULARY, 0.04)
    assert [(word.word, word.start_s, word.end_s) for word in found] == [("ab", 0.08, 0.2), ("b", 0.36, 0.4)]


def test_the_confidence_of_a_word_is_the_geometric_mean_of_its_characters_best_outputs() -> None:
    rows = torch.cat([said("a", 0.5), said("a", 0.8), said("b", 0.6)])
    (word,) = words(collapse(rows), VOCABULARY, 0.04)
    assert word.confidence == pytest.approx(math.sqrt(0.8 * 0.6))
