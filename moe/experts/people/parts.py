"""Three parts of what a person said: to learn from, to choose by, held back for the proof; no sentence is on two sides."""

import dataclasses
import hashlib
from collections.abc import Sequence

import numpy as np

FEWEST_LEARNT, FEWEST_CHOSEN, FEWEST_HELD_BACK = 3, 2, 5


@dataclasses.dataclass(frozen=True)
class Parts:
    """Numbers of a person's utterances in each part, rising."""

    learn: np.ndarray
    choose: np.ndarray
    held_back: np.ndarray

    @property
    def counts(self) -> tuple[int, int, int]:
        """How many utterances each part has."""
        return len(self.learn), len(self.choose), len(self.held_back)


def divide(
    sentences: Sequence[str], choose_share: float, held_back_share: float, fewest_held_back: int = FEWEST_HELD_BACK
) -> Parts:
    """Divide utterances by whole sentences, in the order of the sentences' digests.

    Args:
        sentences: (n,) what each utterance says, normalised.
        fewest_held_back: 0 holds nothing back: the proof is made on recordings of their own.
    """
    wanted_held_back = max(fewest_held_back, round(held_back_share * len(sentences))) if fewest_held_back else 0
    wanted_chosen = max(FEWEST_CHOSEN, round(choose_share * len(sentences)))
    of_sentence: dict[str, list[int]] = {}
    for number, sentence in enumerate(sentences):
        of_sentence.setdefault(sentence, []).append(number)
    held_back, choose, learn = list[int](), list[int](), list[int]()
    for sentence in sorted(of_sentence, key=lambda each: (hashlib.sha256(each.encode()).digest(), each)):
        part = held_back if len(held_back) < wanted_held_back else choose if len(choose) < wanted_chosen else learn
        part += of_sentence[sentence]
    return Parts(*(np.array(sorted(part), dtype=int) for part in (learn, choose, held_back)))


def too_few(name: str, parts: Parts, fewest_held_back: int = FEWEST_HELD_BACK) -> str | None:
    """Why a person's parts are too small; None where they are not."""
    if all(n >= least for n, least in zip(parts.counts, (FEWEST_LEARNT, FEWEST_CHOSEN, fewest_held_back), strict=True)):
        return None
    learnt, chosen, held_back = parts.counts
    return (
        f"{name} has {sum(parts.counts)} utterances: {learnt} to learn from, {chosen} to choose by and {held_back} held back, by whole "
        f"sentences; at least {FEWEST_LEARNT}, {FEWEST_CHOSEN} and {fewest_held_back} are needed, of different sentences"
    )
