"""Where a recording that is longer than a model's window is cut: at its quietest places."""

import numpy as np

from moe.audio.sampling import SAMPLE_RATE

QUIET_S = 0.2  # loudness is averaged over so much when a place to cut is sought
CUT_SHARE = 0.5  # a chunk is at least this share of the window
Span = tuple[int, int]  # start and stop in samples


def cut_quietly(waveform: np.ndarray, longest: int) -> list[Span]:
    """Spans (start, stop) in samples that cover a waveform, none longer than `longest`, cut where it is quietest."""
    spans, start = [], 0
    waveform = waveform - waveform.mean() if len(waveform) else waveform  # an offset is no loudness
    width = int(QUIET_S * SAMPLE_RATE)
    while len(waveform) - start > longest:
        earliest = start + int(CUT_SHARE * longest)
        loudness = _loudness(waveform[earliest : start + longest], width)
        stop = earliest + int(loudness.argmin()) + 1
        spans.append((start, stop))
        start = stop
    return [*spans, (start, len(waveform))]


def _loudness(region: np.ndarray, width: int) -> np.ndarray:
    """Sum of magnitudes over `width` samples around each sample (fewer at the ends), (n_samples,) both."""
    sums = np.concatenate([[0.0], np.cumsum(np.abs(region), dtype=np.float64)])
    middle = np.arange(len(region))
    first, last = np.maximum(middle - width // 2, 0), np.minimum(middle + width // 2 + 1, len(region))
    return (sums[last] - sums[first]) / (last - first)
