"""What training masks: spans of frames, which the model replaces by its mask vector, and spans of projected features, which it sets to 0.

They are drawn for each utterance by itself and fit it, however short it is.
"""

import dataclasses

import numpy as np

FEATURE_SPAN = 10  # features of a masked span


@dataclasses.dataclass(frozen=True)
class Masks:
    """How much is masked.

    Attributes:
        share: frames in all spans, of those of the utterance (`mask_time_prob`); `length`: frames of a span.
        feature_share: features in all spans, of the `n_features` projected ones (`mask_feature_prob`).
    """

    share: float = 0.0
    length: int = 10
    feature_share: float = 0.0
    n_features: int = 0

    def drawn(self, n_frames: int, random: np.random.Generator) -> dict[str, np.ndarray]:
        """mask (n_frames,) and feature_mask (n_features,), as far as they are asked for."""
        found = {"mask": masked_frames(n_frames, self.share, self.length, random)} if self.share else {}
        if self.feature_share:
            found["feature_mask"] = masked_frames(self.n_features, self.feature_share, FEATURE_SPAN, random)
        return found


def masked_frames(n_frames: int, share: float, length: int, random: np.random.Generator) -> np.ndarray:
    """Which frames are masked, bool (n_frames,): spans that may overlap, so `share` of the frames at most on average.

    transformers' own drawing fails where an utterance is shorter than a span, takes two spans at least, and reads a global generator.

    Args:
        share: frames in all spans, of those of the utterance (`mask_time_prob`).
        length: frames of a span; in a shorter utterance, all but one of its own.
    """
    length = min(length, n_frames - 1)
    masked = np.zeros(n_frames, bool)
    if length < 1:
        return masked
    n_spans = int(share * n_frames / length + random.random())  # rounded at random, so that short utterances get their share
    for start in random.integers(n_frames - length + 1, size=n_spans):
        masked[start : start + length] = True
    return masked
