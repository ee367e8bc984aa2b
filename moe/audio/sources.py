"""What a caller has of a recording, whatever it is: a path, encoded bytes or samples → one waveform at 16 kHz."""

import io
import os
from pathlib import Path

import numpy as np
import soundfile

from moe.audio.decoders import RATE_RANGE
from moe.audio.sampling import SAMPLE_RATE
from moe.audio.waveforms import load_audio

Source = str | os.PathLike[str] | bytes | np.ndarray


def waveform_of(source: Source, rate: int = SAMPLE_RATE) -> np.ndarray:
    """A recording as float32 (n_samples,) at 16 kHz; samples are read as a file of them would be.

    Args:
        source: a path, the bytes of a file, or samples (n_samples,) or (n_samples, n_channels): floats within ±1, or whole numbers of 8, 16 or 32 bits.
        rate: of samples, in Hz; a file says its own.

    Raises:
        ValueError: no such file, no such rate, or what is no recording (`AudioError` says why).
    """
    if isinstance(source, np.ndarray):
        return load_audio(as_wav(source, rate))
    if isinstance(source, (bytes, bytearray, memoryview)):
        return load_audio(bytes(source))
    if not isinstance(source, (str, os.PathLike)):
        raise ValueError(f"a {type(source).__name__} is no recording: give a path, the bytes of a file, or samples")
    path = Path(source).expanduser()
    if not path.is_file():
        raise ValueError(f"{path}: no such file")
    return load_audio(path)


def as_wav(samples: np.ndarray, rate: int = SAMPLE_RATE) -> bytes:
    """Samples (n_samples,) or (n_samples, n_channels) at a rate in Hz as the bytes of a wav of 32-bit floats.

    Raises:
        ValueError: samples of another shape or type, more channels than samples, or a rate that no recording has.
    """
    if not RATE_RANGE[0] <= rate <= RATE_RANGE[1]:
        raise ValueError(f"rate={rate}: must be between {RATE_RANGE[0]} and {RATE_RANGE[1]} Hz")
    if samples.ndim not in (1, 2) or samples.dtype.kind not in "iuf":
        raise ValueError(
            f"samples of shape {samples.shape} and type {samples.dtype}: must be numbers, (n_samples,) or (n_samples, n_channels)"
        )
    if samples.ndim == 2 and 0 < len(samples) < samples.shape[1]:
        raise ValueError(
            f"samples of shape {samples.shape}: more channels than samples; give the transpose, (n_samples, n_channels)"
        )
    buffer = io.BytesIO()
    soundfile.write(buffer, _floats(samples), int(rate), format="WAV", subtype="FLOAT")
    return buffer.getvalue()


def _floats(samples: np.ndarray) -> np.ndarray:
    """Float32, within ±1 for whole numbers."""
    if samples.dtype.kind == "f":
        return samples.astype(np.float32)
    if samples.dtype.itemsize > 4:  # as NumPy makes of a list, whatever the numbers in it are scaled to
        raise ValueError(f"samples of type {samples.dtype}: whole numbers must be of 8, 16 or 32 bits, as those of a file")
    steps = np.iinfo(samples.dtype)
    middle, half = (steps.max + steps.min + 1) / 2, (steps.max - steps.min + 1) / 2
    return ((samples - np.float64(middle)) / half).astype(np.float32)
