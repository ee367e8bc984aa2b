"""Speech that is made on the machine: what a toy's tones are not."""

import functools

import numpy as np
import soxr

from moe.synthesis.espeak import SAMPLE_RATE, Espeak, Prosody
from tests.toys.corpora import encode

RATE = 16_000


@functools.cache
def spoken(text: str = "please bring my red coat") -> np.ndarray:
    """A sentence of espeak's, float32 (n_samples,) at 16 kHz."""
    with Espeak("en", 0) as espeak:
        samples = espeak.speak(text, Prosody(rate=150, pitch=50, pitch_range=50)).samples
    return soxr.resample(samples, SAMPLE_RATE, RATE).astype(np.float32)


def spoken_wav() -> bytes:
    """The same sentence as a wav."""
    return encode(spoken(), "wav", RATE)
