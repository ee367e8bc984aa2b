"""How much speech a chain works on, before any is there: from the options of a synthetic corpus, or from the hours that are said."""

import dataclasses
import math
from typing import Any

from moe.synthesis.planning import SynthesisOptions
from steps.options.step_options import SYNTHETIC

TOKENS_PER_S = 5.0  # of a transcript
SYNTHETIC_S = 2.0  # mean length of an utterance of the synthetic corpus
HELD_OUT = 0.15  # dev and test each, as a share of train, where a corpus is only known by its hours


@dataclasses.dataclass(frozen=True)
class Size:
    """How much speech there is: utterances of each split, their mean length in seconds and its tokens."""

    n_train: int
    n_dev: int
    n_test: int
    utterance_s: float
    n_tokens: int

    @property
    def n_all(self) -> int:
        """Utterances of all splits."""
        return self.n_train + self.n_dev + self.n_test


def size_of(options: Any, hours: float | None, utterance_s: float | None, tokens_per_s: float) -> Size:
    """The corpus, from the options of a synthetic one or from the hours that its train split has.

    Raises:
        ValueError: another corpus, and its hours are not given.
    """
    if options.corpus != SYNTHETIC and hours is None:
        raise ValueError(
            f"corpus={options.corpus}: say how much there is to train on with hours=…; nothing is read for an estimate"
        )
    mean_s = utterance_s or (SYNTHETIC_S if options.corpus == SYNTHETIC else 5.0)
    n_tokens = math.ceil(tokens_per_s * mean_s) + 4  # and the prompt
    if hours is not None:
        n_train = math.ceil(hours * 3600 / mean_s)
        return Size(n_train, math.ceil(HELD_OUT * n_train), math.ceil(HELD_OUT * n_train), mean_s, n_tokens)
    made = options.part(SynthesisOptions)
    n_styles = len(made.style_names)
    n_speakers = (made.n_train_speakers, made.n_dev_speakers, made.n_test_speakers)
    n_each = (made.n_utterances, made.n_dev_utterances, made.n_test_utterances)
    n_train, n_dev, n_test = (n_styles * speakers * each for speakers, each in zip(n_speakers, n_each, strict=True))
    return Size(n_train, n_dev, n_test, mean_s, n_tokens)
