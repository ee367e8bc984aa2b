"""Word and character error rates for selecting an epoch; what is reported is counted by `analysis`."""

from collections.abc import Sequence

import jiwer


def word_error_rate(references: Sequence[str], hypotheses: Sequence[str]) -> float:
    """Word errors over reference words, both summed over the utterances."""
    return _rate(jiwer.process_words(list(references), list(hypotheses)))


def character_error_rate(references: Sequence[str], hypotheses: Sequence[str]) -> float:
    """Character errors over reference characters, both summed over the utterances."""
    return _rate(jiwer.process_characters(list(references), list(hypotheses)))


def _rate(counts: jiwer.WordOutput | jiwer.CharacterOutput) -> float:
    n_units = counts.hits + counts.substitutions + counts.deletions
    return (counts.substitutions + counts.deletions + counts.insertions) / max(1, n_units)
