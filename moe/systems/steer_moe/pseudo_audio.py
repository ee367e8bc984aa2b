"""Pseudo-audio: a sentence's phonemes or letters as a blurred, noisy row of embeddings, on which a small language model learns to read.

A plain language model of a million parameters cannot be driven by vectors that it never learnt to read. So most of its sentences
follow their own units: words run together, each unit held 0.6 to 2 frames, some confused with others, each frame a mixture of the units
in it and of its neighbours. Nothing of it is speech.
"""

import dataclasses
import math
from collections.abc import Sequence

import numpy as np

from moe.synthesis.espeak import Espeak
from moe.synthesis.grammar import grammars

SHORTEST, LONGEST = 0.6, 2.0  # frames that a unit is held
MOST_CONFUSED = 0.15  # share of the units
MOST_BLUR = 0.3  # share of a frame that is its neighbours'
MOST_NOISE = 0.5  # standard deviation, as a share of the units' own
READ_SHARE = 0.85  # sentences that follow pseudo-audio; the others follow the prompt alone
SEPARATOR = "_"
STRESS = "',%=|"  # marks of espeak's phoneme names that are no sound of their own


@dataclasses.dataclass(frozen=True)
class Units:
    """The units that sentences are spelled in: phonemes or letters, sorted."""

    names: tuple[str, ...]

    def numbers(self, spelled: Sequence[str]) -> np.ndarray:
        """Numbers of a spelled sentence, (n,); units that are not known are left out."""
        known = {name: number for number, name in enumerate(self.names)}
        return np.array([known[name] for name in spelled if name in known], np.int64)

    def __len__(self) -> int:
        return len(self.names)


def spell(sentences: Sequence[str], kind: str, language: str) -> list[list[str]]:
    """The phonemes (by espeak) or letters of sentences, words run together; nothing for `none`.

    Raises:
        ValueError: phonemes of a language that has no voice here.
    """
    if kind == "none":
        return [[] for _ in sentences]
    if kind == "letters":
        return [list("".join(sentence.split())) for sentence in sentences]
    if language not in grammars():
        raise ValueError(f"decoder_units=phonemes: there is no voice for language={language}; set decoder_units=letters")
    accents = grammars()[language].accents
    found: list[list[str]] = [[]] * len(sentences)
    for number, accent in enumerate(accents):  # the sentences are dealt out to the accents in turn
        with Espeak(accent, seed=0) as voice:
            for place in range(number, len(sentences), len(accents)):
                found[place] = _phonemes(voice.phonemes(sentences[place], SEPARATOR))
    return found


def _phonemes(said: str) -> list[str]:
    names = [name.strip(STRESS) for word in said.split() for name in word.split(SEPARATOR)]
    return [name for name in names if name]


def pseudo_audio(units: np.ndarray, n_units: int, random: np.random.Generator) -> np.ndarray:
    """Frames of a sentence as mixtures of units: numbers (n,) → (P, n_units) float32, rows adding up to 1."""
    confused = random.random(len(units)) < random.uniform(0, MOST_CONFUSED)
    said = np.where(confused, random.integers(n_units, size=len(units)), units)
    ends = np.cumsum(random.uniform(SHORTEST, LONGEST, len(units)))
    starts, frames = np.concatenate([[0.0], ends[:-1]]), np.arange(math.ceil(ends[-1]))[:, None]  # (n,), (P, 1)
    overlap = np.clip(np.minimum(ends, frames + 1) - np.maximum(starts, frames), 0, None)  # (P, n)
    mixed = np.zeros((len(frames), n_units))
    np.add.at(mixed.T, said, overlap.T)
    return _blurred(mixed / mixed.sum(1, keepdims=True), random.uniform(0, MOST_BLUR)).astype(np.float32)


def _blurred(frames: np.ndarray, share: float) -> np.ndarray:
    """Frames (P, n_units) that have a share of their two neighbours in them."""
    around = np.concatenate([frames[:1], frames, frames[-1:]])
    blurred: np.ndarray = (1 - share) * frames + share / 2 * (around[:-2] + around[2:])
    return blurred
