"""Small grammars, one per language: word lists and templates in `grammars.json`, sentences by chance out of them.

A sentence is held out or not by its own text, whatever the seed and the purpose, so that a test sentence that is unseen in one
corpus was in no other corpus's training sentences either, the pretraining corpus included. A grammar may also keep words for test
alone: no sentence of train or dev has one.
"""

import dataclasses
import functools
import hashlib
import re
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np

from moe.files import read_json
from moe.options import listed

GRAMMARS_PATH = Path(__file__).with_name("grammars.json")
HELD_OUT_ONE_IN = 5
SLOT = re.compile(r"\{(\w+)(?:\?(\d+))?\}")  # {list}, or {list?2}: two further choices are to say nothing
TRIES_PER_SENTENCE = 200


@dataclasses.dataclass(frozen=True)
class Grammar:
    """Sentences of one language: `templates` with slots that the `lists` of words or phrases fill; `accents` are espeak voices.

    Attributes:
        test_words: words of the lists that only the test split has.
    """

    language: str
    accents: tuple[str, ...]
    lists: Mapping[str, tuple[str, ...]]
    templates: tuple[str, ...]
    test_words: frozenset[str] = frozenset()

    def sentence(self, rng: np.random.Generator) -> str:
        """One sentence: a template with every slot filled, each choice equally likely."""
        template = self.templates[rng.integers(len(self.templates))]
        return " ".join(SLOT.sub(lambda slot: self._choice(slot, rng), template).split())

    def has_test_word(self, sentence: str) -> bool:
        """Whether a sentence has a word that only the test split has."""
        return not self.test_words.isdisjoint(sentence.split())

    def _choice(self, slot: re.Match, rng: np.random.Generator) -> str:
        words = self.lists[slot[1]]
        index = rng.integers(len(words) + int(slot[2] or 0))
        return words[index] if index < len(words) else ""

    @property
    def words(self) -> tuple[str, ...]:
        """Every word that a sentence can hold, sorted."""
        phrases = [phrase for words in self.lists.values() for phrase in words]
        fixed = [SLOT.sub(" ", template) for template in self.templates]
        return tuple(sorted({word for phrase in phrases + fixed for word in phrase.split()}))

    def distinct(self, rng: np.random.Generator, n: int, accept: Callable[[str], bool] = lambda sentence: True) -> list[str]:
        """`n` distinct sentences that `accept` allows, in the order drawn.

        Raises:
            ValueError: the grammar does not have so many.
        """
        found: dict[str, None] = {}
        for _ in range(n * TRIES_PER_SENTENCE):
            if len(found) == n:
                break
            sentence = self.sentence(rng)
            if accept(sentence):
                found[sentence] = None
        if len(found) < n:
            raise ValueError(f"the grammar of {self.language!r} gave {len(found)} distinct sentences; {n} were asked for")
        return list(found)


@functools.cache
def grammars() -> Mapping[str, Grammar]:
    """The grammars by language code."""
    return {language: _grammar(language, entry) for language, entry in read_json(GRAMMARS_PATH).items()}


def _grammar(language: str, entry: Mapping) -> Grammar:
    lists = {name: tuple(listed(words)) for name, words in entry["lists"].items()}
    kept = frozenset(listed(entry.get("test_words", "")))
    return Grammar(language, tuple(entry["accents"]), lists, tuple(entry["templates"]), kept)


def is_held_out(sentence: str) -> bool:
    """Whether a sentence is kept out of all training data: one in `HELD_OUT_ONE_IN`, by the digest of its text."""
    digest = hashlib.sha256(sentence.encode()).digest()
    return int.from_bytes(digest[:8], "big") % HELD_OUT_ONE_IN == 0
