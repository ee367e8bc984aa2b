"""The one sampling rate of all audio, and how a waveform of another rate gets it."""

import numpy as np

SAMPLE_RATE = 16_000  # Hz


def resample(waveform: np.ndarray, rate: float) -> np.ndarray:
    """A waveform (n_samples,) at `rate` Hz as float32 at 16 kHz."""
    if rate == SAMPLE_RATE:
        return waveform
    import soxr  # here: models compute without it

    return soxr.resample(waveform, rate, SAMPLE_RATE).astype(np.float32, copy=False)
