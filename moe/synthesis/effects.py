"""Signal blocks that styles are built from: each takes speech and gives speech, with its amounts named.

Speech here is float32 samples at 16 kHz with the starts of its words; a block that changes time moves the starts too.
"""

import dataclasses

import numpy as np
from scipy.ndimage import gaussian_filter1d
from scipy.signal import butter, fftconvolve, iirnotch, iirpeak, istft, lfilter, sosfilt, stft, windows

SAMPLE_RATE = 16_000
WINDOW, HOP = 512, 128
FRAME_MS, BIN_HZ = 1000 * HOP / SAMPLE_RATE, SAMPLE_RATE / WINDOW
FLOOR = 1e-5
GAP_NOISE = 3e-4  # a gap in speech is filled with faint noise, not digital zero
NASAL_POLE, NASAL_ZEROS, NASAL_LOWPASS_HZ = (280, 3.0), ((620, 2.0), (1350, 3.0)), 1600
HARMONIC_SMOOTHING_BINS = 3
LEVEL_SMOOTHING = windows.gaussian(961, std=120) / windows.gaussian(961, std=120).sum()  # σ 7.5 ms, cut at 4 σ


@dataclasses.dataclass(frozen=True)
class Speech:
    """Samples (n_samples,) at 16 kHz and the sample at which each word starts (n_words,)."""

    samples: np.ndarray
    word_starts: np.ndarray

    def with_samples(self, samples: np.ndarray) -> "Speech":
        """The same words in other samples (n_samples,) of the same length."""
        return Speech(np.asarray(samples, np.float32), self.word_starts)


def slur(speech: Speech, smoothing_ms: float) -> Speech:
    """Smear the spectral magnitude over time: transitions and closures lose their edges."""
    spectrum = _spectrum(speech)  # [257, n_frames]
    magnitude = np.abs(spectrum)
    smooth = gaussian_filter1d(np.sqrt(magnitude), smoothing_ms / FRAME_MS, axis=1) ** 2
    return _from_spectrum(speech, spectrum * (smooth / (magnitude + FLOOR)).clip(0, 20))


def blur_formants(speech: Speech, width_hz: float) -> Speech:
    """Smooth the spectral envelope over frequency: formants flatten, vowels centralise."""
    spectrum = _spectrum(speech)  # [257, n_frames]
    log_magnitude = np.log(np.abs(spectrum) + FLOOR)
    envelope = gaussian_filter1d(log_magnitude, HARMONIC_SMOOTHING_BINS, axis=0)
    blurred = gaussian_filter1d(log_magnitude, width_hz / BIN_HZ, axis=0)
    return _from_spectrum(speech, spectrum * np.exp(blurred - envelope))


def breathe(speech: Speech, amount: float, rng: np.random.Generator, above_hz: float = 1500) -> Speech:
    """Mix in high-passed noise that follows the level of the speech."""
    noise = rng.standard_normal(len(speech.samples)).astype(np.float32)
    noise = sosfilt(butter(2, above_hz, "high", fs=SAMPLE_RATE, output="sos"), noise)
    level = fftconvolve(np.abs(speech.samples), LEVEL_SMOOTHING, "same")
    return speech.with_samples(speech.samples * (1 - 0.4 * amount) + 1.3 * amount * noise * level)


def nasalise(speech: Speech, amount: float) -> Speech:
    """A nasal pole, two zeros and less treble: speech with the velum open."""
    dry = speech.samples
    pole = lfilter(*iirpeak(*NASAL_POLE, fs=SAMPLE_RATE), dry)
    wet = dry
    for frequency, quality in NASAL_ZEROS:
        wet = (1 - amount) * wet + amount * lfilter(*iirnotch(frequency, quality, fs=SAMPLE_RATE), wet)
    dull = sosfilt(butter(1, NASAL_LOWPASS_HZ, "low", fs=SAMPLE_RATE, output="sos"), wet)
    return speech.with_samples((1 - 0.75 * amount) * wet + 0.75 * amount * dull + 1.2 * amount * pole)


def scale_treble(speech: Speech, above_hz: float, gain: float) -> Speech:
    """Multiply what lies above a frequency by `gain`."""
    bass = sosfilt(butter(2, above_hz, "low", fs=SAMPLE_RATE, output="sos"), speech.samples)
    return speech.with_samples(bass + gain * (speech.samples - bass))


def fade(speech: Speech, end_level: float) -> Speech:
    """Let the level fall in a line from 1 to `end_level` over the utterance."""
    return speech.with_samples(speech.samples * np.linspace(1, end_level, len(speech.samples)))


def strain(speech: Speech, drive: float, level: float = 0.3) -> Speech:
    """Saturate: a pressed, harsh voice."""
    peak = np.abs(speech.samples).max() + 1e-6
    return speech.with_samples(np.tanh(speech.samples / peak * drive) * level)


def tremble(speech: Speech, depth: float, rng: np.random.Generator, low_hz: float = 5, high_hz: float = 8) -> Speech:
    """Shake the level at one frequency drawn from a range."""
    seconds = np.arange(len(speech.samples)) / SAMPLE_RATE
    return speech.with_samples(speech.samples * (1 + depth * np.sin(2 * np.pi * rng.uniform(low_hz, high_hz) * seconds)))


def vary_speed(speech: Speech, rng: np.random.Generator, step_ms: float, low: float, high: float) -> Speech:
    """Play at a speed that wanders between `low` and `high`, a new value every `step_ms`; pitch goes with it."""
    n_samples = len(speech.samples)
    n_points = int(n_samples / SAMPLE_RATE * 1000 / step_ms) + 2
    speed = np.interp(np.linspace(0, n_points - 1, n_samples), np.arange(n_points), rng.uniform(low, high, n_points))
    played = np.cumsum(1 / speed)  # [n_samples] where each sample is heard
    source = np.interp(np.arange(int(played[-1])), played, np.arange(n_samples))
    starts = played[np.minimum(speech.word_starts, n_samples - 1)].astype(np.int64)
    return Speech(np.interp(source, np.arange(n_samples), speech.samples).astype(np.float32), starts)


def pause(speech: Speech, rng: np.random.Generator, probability: float, low_s: float, high_s: float) -> Speech:
    """Pause before some words (never before the first)."""
    parts: dict[int, list[np.ndarray]] = {}
    for start in speech.word_starts[1:]:
        if rng.random() < probability:
            parts[int(start)] = [_gap(rng.uniform(low_s, high_s), rng)]
    return _insert(speech, parts)


def repeat_onsets(
    speech: Speech,
    rng: np.random.Generator,
    probability: float,
    onset_s: tuple[float, float],
    most_repeats: int = 2,
    gap_s: tuple[float, float] = (0.03, 0.12),
) -> Speech:
    """Say the beginning of some words once or more before the word itself, with short gaps."""
    parts: dict[int, list[np.ndarray]] = {}
    for start in speech.word_starts:
        if rng.random() < probability:
            onset = _onset(speech.samples[start : start + int(SAMPLE_RATE * rng.uniform(*onset_s))])
            for _ in range(rng.integers(1, most_repeats + 1)):
                parts.setdefault(int(start), []).extend([onset, _gap(rng.uniform(*gap_s), rng)])
    return _insert(speech, parts)


def _onset(samples: np.ndarray) -> np.ndarray:
    edge = min(160, len(samples) // 4)
    ramp = np.concatenate([np.linspace(0, 1, edge), np.ones(len(samples) - 2 * edge), np.linspace(1, 0, edge)])
    return (samples * ramp).astype(np.float32)


def _gap(seconds: float, rng: np.random.Generator) -> np.ndarray:
    return (rng.standard_normal(int(SAMPLE_RATE * seconds)) * GAP_NOISE).astype(np.float32)


def _insert(speech: Speech, parts: dict[int, list[np.ndarray]]) -> Speech:
    """Insert samples before positions; words at or behind a position move back."""
    pieces, previous, starts = [], 0, speech.word_starts.copy()
    for position in sorted(parts):
        pieces += [speech.samples[previous:position], *parts[position]]
        starts[speech.word_starts >= position] += sum(map(len, parts[position]))
        previous = position
    return Speech(np.concatenate([*pieces, speech.samples[previous:]]), starts)


def _spectrum(speech: Speech) -> np.ndarray:
    return stft(speech.samples, SAMPLE_RATE, nperseg=WINDOW, noverlap=WINDOW - HOP)[2]


def _from_spectrum(speech: Speech, spectrum: np.ndarray) -> Speech:
    samples = istft(spectrum, SAMPLE_RATE, nperseg=WINDOW, noverlap=WINDOW - HOP)[1]
    return speech.with_samples(samples[: len(speech.samples)])
