"""From samples to the outputs of a CTC: the one place that knows how long anything is.

The loss, decoding, word times and what can be learnt all ask here. transformers' extractor masks the last frame of an odd number of
mels, and its adapter reads one frame past the end of an odd number of frames; here the last mels are kept, and every utterance gets as
many frames as the adapter divides without rest.
"""

import dataclasses
from collections.abc import Sequence
from itertools import pairwise
from typing import TypeVar

import numpy as np
from torch import Tensor
from transformers import SeamlessM4TFeatureExtractor

from moe.audio.sampling import SAMPLE_RATE

Length = TypeVar("Length", int, Tensor)
N_MELS = 80
WINDOW, HOP = 400, 160  # samples of a mel frame, and between two
WINDOW_S = 30.0  # of one pass: attention grows with the square of the length
LEAST_MELS = 2  # whose variance is defined
BUCKET = 8  # batches are padded to a multiple of so many frames


@dataclasses.dataclass(frozen=True)
class Frames:
    """How mels become frames, and frames outputs.

    Attributes:
        stack: mels in one frame, 10 ms each.
        n_adapter_layers: each halves the number of frames.
    """

    stack: int
    n_adapter_layers: int = 0

    @property
    def divisor(self) -> int:
        """Frames of one output."""
        return 1 << self.n_adapter_layers

    @property
    def output_s(self) -> float:
        """Seconds of one output."""
        return self.divisor * self.stack * HOP / SAMPLE_RATE

    @property
    def n_window(self) -> int:
        """Frames of the longest utterance that one pass takes."""
        return self.padded(self.n_frames(round(WINDOW_S * SAMPLE_RATE)))

    def n_frames(self, n_samples: int) -> int:
        """Frames of an utterance, a multiple of the divisor."""
        n_mels = max(LEAST_MELS, 1 + (n_samples - WINDOW) // HOP)
        return _multiple(-(-n_mels // self.stack), self.divisor)

    def n_outputs(self, n_frames: Length) -> Length:
        """Outputs of so many frames; of an utterance, or of each in a batch (B,)."""
        return n_frames // self.divisor

    def padded(self, n_frames: int) -> int:
        """Frames that an utterance is padded to in a batch."""
        return _multiple(n_frames, max(BUCKET, self.divisor))


def frames_needed(labels: Sequence[int]) -> int:
    """Outputs without which no path writes these labels: one for each, and a blank between two that are equal."""
    return len(labels) + sum(first == second for first, second in pairwise(labels))


def features(waveform: np.ndarray, frames: Frames, extractor: SeamlessM4TFeatureExtractor) -> np.ndarray:
    """Stacked log-mels of one utterance, each band with mean 0 and variance 1 over it: waveform (n_samples,) → float32 (T, 80 · stack).

    What is missing at the end to whole frames is zero, as the extractor pads.
    """
    needed = WINDOW + (LEAST_MELS - 1) * HOP
    waveform = np.pad(waveform, (0, max(0, needed - len(waveform))))
    mels = extractor(waveform, sampling_rate=SAMPLE_RATE, padding=False, pad_to_multiple_of=None, return_tensors="np")
    mels = mels["input_features"][0]  # (n_mels, 80)
    n_frames = frames.n_frames(len(waveform))
    padded = np.pad(mels, ((0, n_frames * frames.stack - len(mels)), (0, 0)))
    return padded.reshape(n_frames, -1).astype(np.float32)


def extractor() -> SeamlessM4TFeatureExtractor:
    """The model's own extractor, one mel a frame; frames are stacked here."""
    return SeamlessM4TFeatureExtractor(feature_size=N_MELS, num_mel_bins=N_MELS, stride=1)


def _multiple(number: int, of: int) -> int:
    return -(-number // of) * of
