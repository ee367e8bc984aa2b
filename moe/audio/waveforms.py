"""Any recording becomes one mono float32 waveform at 16 kHz.

libsndfile (soundfile) reads wav, flac, aiff, mp3, ogg, opus, SPHERE and more; PyAV reads what it cannot (m4a, aac, webm); soxr
resamples. Recordings come as bytes, so that files, shard members and Parquet cells take one path.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from moe.audio.channels import ChannelMixer
from moe.audio.decoders import MAX_HOURS, AudioError, decode
from moe.audio.sampling import resample

__all__ = ["AudioError", "Recording", "decode_recording", "is_silent", "load_audio"]

SILENT_PEAK = 1e-3  # −60 dBFS about the mean


@dataclass(frozen=True)
class Recording:
    """A decoded recording.

    Attributes:
        waveform: float32, (n_samples,).
        rate: in Hz.
        channel: the channel that was taken, from 0; None where it is the mean of all.
    """

    waveform: np.ndarray
    rate: int
    channel: int | None = None


def load_audio(source: Path | str | bytes, channels: str | int = "mix") -> np.ndarray:
    """Decode and resample a recording.

    Args:
        source: path of a file, or its bytes. channels: as `decode_recording`.

    Returns:
        Float32 mono waveform at 16 kHz, shape (n_samples,).

    Raises:
        AudioError: unreadable, truncated, empty, not finite or with an absurd header.
    """
    recording = decode_recording(source, channels=channels)
    return resample(recording.waveform, recording.rate)


def decode_recording(
    source: Path | str | bytes, max_duration_s: float = MAX_HOURS * 3600.0, channels: str | int = "mix"
) -> Recording:
    """Decode a recording at its own rate.

    Args:
        max_duration_s: where decoding stops, so that memory is bounded whatever the file unfolds to.
        channels: `mix` is the mean, or the loudest channel where the channels cancel each other; `first`, `loudest`, or a number from 0.

    Raises:
        AudioError: as `load_audio`, longer than `max_duration_s`, or there is no such channel.
    """
    data = source if isinstance(source, bytes) else Path(source).read_bytes()
    if not data:
        raise AudioError("empty", "the file has no bytes")
    recording = _one_channel(data, max_duration_s, channels)
    if not len(recording.waveform):
        raise AudioError("empty", "the recording has no samples")
    if not np.isfinite(recording.waveform).all():
        raise AudioError("non_finite", f"{int((~np.isfinite(recording.waveform)).sum())} samples are NaN or infinite")
    return recording


def _one_channel(data: bytes, max_s: float, channels: str | int) -> Recording:
    """Mixed while it is decoded, so that one waveform is in memory; decoded again where a single channel is wanted."""
    if isinstance(channels, int):
        return Recording(*decode(data, max_s, _take(channels)), channels)
    mixer = ChannelMixer()
    waveform, rate = decode(data, max_s, mixer.mix)
    chosen = mixer.choose(channels)
    return Recording(waveform, rate) if chosen is None else Recording(*decode(data, max_s, _take(chosen)), chosen)


def _take(channel: int) -> Callable[[np.ndarray], np.ndarray]:
    def take(block: np.ndarray) -> np.ndarray:
        if channel >= block.shape[1]:
            raise AudioError("unreadable", f"there is no channel {channel} (from 0): the recording has {block.shape[1]}")
        return block[:, channel].copy()

    return take


def is_silent(waveform: np.ndarray) -> bool:
    """Whether a waveform (n_samples,) never leaves its mean by more than −60 dBFS."""
    return float(np.abs(waveform - waveform.mean()).max()) < SILENT_PEAK
