"""Audio inside pages: short recordings as MP3 data URIs with waveform and spectrogram beside, as many as a budget allows, the telling ones first."""

import base64
import io
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pandas as pd
import soundfile
from matplotlib.image import imsave
from scipy.signal import ShortTimeFFT, windows

SAMPLE_RATE = 16_000
MOST_MISSES = 20  # recordings in a row that no longer fit: the budget is spent
WIDTH, WAVE_HEIGHT, BAND_HEIGHT = 240, 18, 44  # pixels of a picture: the waveform above the spectrogram
WINDOW_S, RANGE_DB = 0.025, 70.0
COMPRESSION = 0.7  # variable rate, 0 best to 1 smallest: about 4 KB by second


def clip_uri(waveform: np.ndarray, sample_rate: int = SAMPLE_RATE) -> str:
    """A waveform, float (n_samples,) in −1 … 1, as the data URI of an MP3, which every browser plays: about 5 KB by second."""
    buffer = io.BytesIO()
    samples = np.clip(np.asarray(waveform, np.float32), -1, 1)
    soundfile.write(buffer, samples, sample_rate, format="MP3", compression_level=COMPRESSION, bitrate_mode="VARIABLE")
    return "data:audio/mpeg;base64," + base64.b64encode(buffer.getvalue()).decode()


@dataclass(frozen=True)
class Clip:
    """A recording inside a page: data URIs of its audio and of its picture."""

    audio: str
    picture: str


def clip_of(waveform: np.ndarray, sample_rate: int = SAMPLE_RATE) -> Clip:
    """A waveform, float (n_samples,) in −1 … 1, as audio and picture."""
    return Clip(clip_uri(waveform, sample_rate), picture_uri(waveform, sample_rate))


def picture_uri(waveform: np.ndarray, sample_rate: int = SAMPLE_RATE) -> str:
    """Waveform, float (n_samples,), above its spectrogram, 0 Hz at the foot, as the data URI of a PNG; about 8 KB."""
    samples = np.clip(np.asarray(waveform, np.float64), -1, 1)
    pixels = np.concatenate([_drawn_wave(samples), _drawn_bands(samples, sample_rate)])  # (height, WIDTH), 0 white, 1 black
    buffer = io.BytesIO()
    imsave(buffer, pixels, cmap="Greys", vmin=0, vmax=1, format="png")
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()


def _drawn_wave(samples: np.ndarray) -> np.ndarray:
    """Pixels (WAVE_HEIGHT, WIDTH): the largest magnitude of each column, about the middle."""
    edges = np.linspace(0, len(samples), WIDTH + 1).astype(int)
    peaks = np.array(
        [np.abs(samples[start : max(end, start + 1)]).max(initial=0) for start, end in zip(edges[:-1], edges[1:], strict=True)]
    )
    heights = np.abs(np.arange(WAVE_HEIGHT) - (WAVE_HEIGHT - 1) / 2)[:, None]
    return np.where(heights <= np.maximum(0.5, peaks / max(peaks.max(), 1e-9) * WAVE_HEIGHT / 2), 0.8, 0.0)


def _drawn_bands(samples: np.ndarray, sample_rate: int) -> np.ndarray:
    """Pixels (BAND_HEIGHT, WIDTH): decibels below the loudest, high frequencies on top."""
    n_window = round(WINDOW_S * sample_rate)
    padded = np.pad(samples, (0, max(0, 2 * n_window - len(samples))))
    transform = ShortTimeFFT(windows.hann(n_window), n_window // 2, sample_rate)
    power = transform.spectrogram(padded)  # (n_bins, n_frames)
    bins, frames = (
        np.linspace(0, n - 1, size).round().astype(int) for n, size in zip(power.shape, (BAND_HEIGHT, WIDTH), strict=True)
    )
    decibels = 10 * np.log10(power[np.ix_(bins[::-1], frames)] + 1e-12)
    return np.clip(1 + (decibels - decibels.max()) / RANGE_DB, 0, 1)


def embed_clips(counted: pd.DataFrame, load: Callable[[str], np.ndarray], budget_mb: float, seed: int = 0) -> dict[str, Clip]:
    """Clips by utterance id, together no larger than the budget.

    Args:
        counted: counted hypotheses table.
        load: waveform of an utterance id, at 16 kHz.
        budget_mb: megabytes of the page; 0 embeds nothing and loads nothing.

    Half are the utterances with most errors, half are drawn at random, in turn until the budget is spent.
    """
    found, used, misses = {}, 0, 0
    for utterance_id in clip_order(counted, seed) if budget_mb else []:
        clip = clip_of(load(utterance_id))
        size = len(clip.audio) + len(clip.picture)
        if used + size > budget_mb * 1e6:
            misses += 1
            if misses == MOST_MISSES:
                break
            continue
        found[utterance_id], used, misses = clip, used + size, 0
    return found


def clip_order(counted: pd.DataFrame, seed: int = 0) -> list[str]:
    """Every utterance id once: worst, random, second worst, …; the same for any order of the rows."""
    table = counted.sort_values("utterance_id")
    worst = table.sort_values(["word_errors", "n_words", "utterance_id"], ascending=[False, True, True])["utterance_id"]
    drawn = np.random.default_rng(seed).permutation(table["utterance_id"].to_numpy())
    return list(dict.fromkeys(name for pair in zip(worst, drawn, strict=True) for name in pair))
