"""The characters that a CTC writes: those of the train split alone, a sign between words, a sign for rare ones, and blank."""

import dataclasses
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from moe.files import read_json, write_json

BLANK, UNKNOWN, BETWEEN_WORDS = 0, 1, 2
SIGNS = ("[PAD]", "[UNK]", "|")  # their names in vocab.json, as transformers' own tokenizer has them


@dataclasses.dataclass(frozen=True)
class Vocabulary:
    """Characters by id; ids start with blank, unknown and the sign between words.

    Attributes:
        characters: code points, in their order; the first has the id 3.
    """

    characters: tuple[str, ...]

    @classmethod
    def of(cls, references: Iterable[str], min_count: int) -> "Vocabulary":
        """The characters that occur at least `min_count` times; spaces and the sign between words are none.

        Raises:
            ValueError: there are none.
        """
        counts = character_counts(references)
        kept = sorted(character for character, count in counts.items() if count >= min_count and character not in SIGNS)
        if not kept:
            raise ValueError(
                f"the vocabulary is empty: no character of the train split's {len(counts)} occurs min_character_count={min_count} "
                f"times; lower it, or prepare the corpus with a normaliser that leaves text"
            )
        return cls(tuple(kept))

    def __len__(self) -> int:
        return len(SIGNS) + len(self.characters)

    def encode(self, text: str) -> list[int]:
        """Ids of a text: words apart by one sign, whatever spaces stand between them; unknown characters as `UNKNOWN`."""
        ids = self._ids
        words = [[ids.get(character, UNKNOWN) for character in word] for word in text.split()]
        return [token for number, word in enumerate(words) for token in ([BETWEEN_WORDS] if number else []) + word]

    def decode(self, tokens: Sequence[int]) -> str:
        """The text of ids; what is unknown or blank is not written."""
        written = [" " if token == BETWEEN_WORDS else self._character(token) for token in tokens]
        return " ".join("".join(written).split())

    def unknown(self, text: str) -> list[str]:
        """The characters of a text that the vocabulary has not, each once, in their order."""
        return sorted({character for character in "".join(text.split()) if character not in self._ids})

    def save(self, path: Path) -> None:
        """Write `vocab.json`: id by token."""
        write_json(path, {token: number for number, token in enumerate((*SIGNS, *self.characters))})

    @classmethod
    def load(cls, path: Path) -> "Vocabulary":
        """Read `vocab.json`.

        Raises:
            ValueError: it is no such file.
        """
        ids: Mapping[str, int] = read_json(path)
        tokens = sorted(ids, key=ids.__getitem__)
        if tuple(tokens[: len(SIGNS)]) != SIGNS or sorted(ids.values()) != list(range(len(ids))):
            raise ValueError(f"{path} is no vocabulary: it must start with {', '.join(SIGNS)} and number its tokens from 0")
        return cls(tuple(tokens[len(SIGNS) :]))

    @property
    def _ids(self) -> dict[str, int]:
        return {character: number for number, character in enumerate(self.characters, len(SIGNS))}

    def _character(self, token: int) -> str:
        return self.characters[token - len(SIGNS)] if token >= len(SIGNS) else ""


def character_counts(references: Iterable[str]) -> Counter[str]:
    """How often each character occurs, spaces left out."""
    return Counter(character for reference in references for character in "".join(reference.split()))
