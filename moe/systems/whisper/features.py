"""Waveform → log-mel frames, and how many of them the encoder takes.

A log-mel is kept unpadded. Padding is silence as Whisper's own extractor would have made it, so an utterance padded here to the
full window equals the extractor's output for the zero-padded waveform.
"""

import dataclasses
import math

import numpy as np
from transformers import WhisperFeatureExtractor

from moe.options import Options, option

LOG_MEL_FLOOR = (-10 + 4) / 4  # log10 of the extractor's 1e-10 clamp, after its (x + 4) / 4
LOG_MEL_RANGE = 8 / 4  # the extractor clips at 8 decades below the loudest frame


@dataclasses.dataclass(frozen=True)
class AudioContextOptions(Options):
    """How much audio the encoder takes: the whole window, or the utterance with silence after it, in buckets.

    Whisper is used to a padded window and repeats itself on very short ones, hence the silence and the floor. Training and
    decoding use the same context; it is saved with the model. The whole window has no fewer errors (benchmarks/MEASURED.md).
    """

    audio_context: str = option("bucketed", "how much audio the encoder takes", choices=("bucketed", "full"))
    context_silence_s: float = option(1.0, "silence after the utterance, seconds (bucketed)", low=0, high=30)
    context_bucket_s: float = option(1.0, "context lengths are multiples of this, seconds (bucketed)", above=0, high=30)
    context_floor_s: float = option(2.0, "shortest context, seconds (bucketed)", above=0, high=30)

    def faults(self) -> list[str]:
        """What the full window leaves without effect."""
        unused = () if self.audio_context == "bucketed" else ("context_silence_s", "context_bucket_s", "context_floor_s")
        return [
            f"{name}={getattr(self, name):g}: audio_context=full takes the whole window"
            for name in unused
            if self.is_changed(name)
        ]

    def n_frames(self, n_valid: int, extractor: WhisperFeatureExtractor) -> int:
        """Mel frames that the encoder takes for an utterance of `n_valid` frames; never more than the window holds."""
        return window_frames(extractor) if self.audio_context == "full" else self.bucket(n_valid, extractor)

    def bucket(self, n_valid: int, extractor: WhisperFeatureExtractor) -> int:
        """Mel frames of the length bucket that an utterance falls in, under a full context too."""
        per_second: float = extractor.sampling_rate / extractor.hop_length
        wanted = max(n_valid / per_second + self.context_silence_s, self.context_floor_s)
        n_frames = round(math.ceil(wanted / self.context_bucket_s) * self.context_bucket_s * per_second)
        return min(window_frames(extractor), n_frames + n_frames % 2)


def window_frames(extractor: WhisperFeatureExtractor) -> int:
    """Mel frames in the extractor's window (3000 for Whisper's 30 s)."""
    return int(extractor.n_samples // extractor.hop_length)


def window_seconds(extractor: WhisperFeatureExtractor) -> float:
    """Seconds of audio in the extractor's window."""
    return float(extractor.n_samples / extractor.sampling_rate)


def valid_frames(n_samples: int, extractor: WhisperFeatureExtractor) -> int:
    """Mel frames that hold audio, at least one."""
    return max(1, math.ceil(n_samples / float(extractor.hop_length)))


def log_mel(waveform: np.ndarray, extractor: WhisperFeatureExtractor) -> np.ndarray:
    """Log-mel of one utterance without padding.

    Args:
        waveform: float32, shape (n_samples,), at the extractor's sampling rate.

    Returns:
        float32, shape (n_mels, n_frames): every frame whose window touches the audio.

    Raises:
        ValueError: the audio is longer than the window; nothing is ever cut silently.
    """
    if len(waveform) > extractor.n_samples:
        raise ValueError(
            f"audio of {len(waveform) / extractor.sampling_rate:.2f} s is longer than the model's window of "
            f"{window_seconds(extractor):g} s"
        )
    n_frames = math.ceil((len(waveform) + extractor.n_fft // 2) / extractor.hop_length)
    padding = np.zeros(n_frames * extractor.hop_length + extractor.n_fft - len(waveform), np.float32)
    features = extractor(
        np.concatenate([waveform, padding]),
        sampling_rate=extractor.sampling_rate,
        padding="longest",
        truncation=False,
        return_tensors="np",
    )
    mel: np.ndarray = features.input_features[0]
    return mel[:, : min(n_frames, window_frames(extractor))]


def pad_silence(mel: np.ndarray, n_frames: int) -> np.ndarray:
    """Pad or trim a log-mel to (n_mels, n_frames) with what the extractor makes of digital silence."""
    silence = max(float(mel.max()) - LOG_MEL_RANGE, LOG_MEL_FLOOR)
    missing = max(0, n_frames - mel.shape[1])
    return np.pad(mel[:, :n_frames], ((0, 0), (0, missing)), constant_values=silence)
