"""Word error rate, for selecting."""

from collections.abc import Sequence

import jiwer


def word_error_rate(references: Sequence[str], hypotheses: Sequence[str]) -> float:
    """Errors over reference words, both summed over the utterances; for selecting, not for reporting."""
    scores = jiwer.process_words(list(references), list(hypotheses))
    n_words = scores.hits + scores.substitutions + scores.deletions
    return (scores.substitutions + scores.deletions + scores.insertions) / max(1, n_words)
