"""Spans of frames that the model replaces in training by its mask vector; they fit the utterance, however short it is."""

import numpy as np


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
