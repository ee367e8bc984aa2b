"""Random changes to the audio that the model is trained on, drawn from (seed, epoch, utterance id) and nothing else.

So no worker count, batch order or interruption changes what an utterance sounds like in an epoch. Speed and noise change the
waveform, SpecAugment masks (Park et al. 2019, arXiv:1904.08779, without time warping) and loudness the log-mel.
"""

import dataclasses
import hashlib
import math

import numpy as np

from moe.audio.sampling import SAMPLE_RATE, resample
from moe.options import NONE, Options, option

SLOPES = {"white": 0.0, "pink": 1.0, "brown": 2.0}  # power falls with frequency to this power
FASTEST, SLOWEST = 2.0, 0.5


@dataclasses.dataclass(frozen=True)
class AugmentationOptions(Options):
    """Speed, noise, SpecAugment masks and loudness; all off at none and zero."""

    n_masks: int = option(2, "SpecAugment masks in time and in frequency, each (0 = off)", low=0)
    mask_mels: int = option(12, "widest frequency mask, mel bands", low=0)
    mask_frames: int = option(10, "widest time mask, mel frames", low=0)
    gain: float = option(0.15, "largest log-mel offset (loudness), in units of the log-mel", low=0)
    speed_factors: str = option(NONE, "speeds of which each utterance gets one, e.g. 0.9,1.0,1.1 (none: as it is)")
    noise_share: float = option(0.0, "share of the utterances that get noise", low=0, high=1)
    noise_colour: str = option("pink", "spectrum of the noise", choices=tuple(SLOPES))
    noise_snr_low: float = option(10.0, "loudest noise: least signal-to-noise ratio, dB")
    noise_snr_high: float = option(30.0, "softest noise: largest signal-to-noise ratio, dB")

    def faults(self) -> list[str]:
        """Speeds that are none, and an empty range."""
        found = [f"noise_snr_low={self.noise_snr_low:g}: must be at most noise_snr_high={self.noise_snr_high:g}"]
        found = found if self.noise_snr_low > self.noise_snr_high else []
        try:
            allowed = all(SLOWEST <= speed <= FASTEST for speed in self.speeds)
        except ValueError:
            allowed = False
        return (
            found
            if allowed
            else [*found, f"speed_factors={self.speed_factors!r}: must be numbers from {SLOWEST:g} to {FASTEST:g} or {NONE}"]
        )

    @property
    def speeds(self) -> tuple[float, ...]:
        """The speeds to draw from; none of them is empty."""
        return () if self.speed_factors == NONE else tuple(float(text) for text in self.speed_factors.split(","))

    @property
    def changes_waveform(self) -> bool:
        """Is anything to be done before the log-mel?"""
        return bool(self.speeds) or self.noise_share > 0


def generator(seed: int, epoch: int, utterance_id: str, n_before: int = 0) -> np.random.Generator:
    """The generator of one utterance in one epoch, in which it has come `n_before` times before."""
    again = f"/{n_before}" if n_before else ""
    key = hashlib.blake2b(f"{seed}/{epoch}/{utterance_id}{again}".encode(), digest_size=16).digest()
    return np.random.default_rng(int.from_bytes(key))


def augment_waveform(
    waveform: np.ndarray, options: AugmentationOptions, random: np.random.Generator, max_samples: int
) -> np.ndarray:
    """A faster or slower and noisier copy of a waveform (n_samples,); not slower where that would be more than `max_samples`."""
    if options.speeds:
        speed = options.speeds[int(random.integers(len(options.speeds)))]
        if speed != 1.0 and len(waveform) / speed <= max_samples:
            waveform = resample(waveform, SAMPLE_RATE * speed)[:max_samples]
    if options.noise_share and random.random() < options.noise_share:
        snr_db = random.uniform(options.noise_snr_low, options.noise_snr_high)
        waveform = waveform + noise(len(waveform), options.noise_colour, random) * _level(waveform) * 10 ** (-snr_db / 20)
    return np.asarray(waveform, np.float32)


def noise(n_samples: int, colour: str, random: np.random.Generator) -> np.ndarray:
    """Gaussian noise (n_samples,) at level 1 whose power falls with frequency as its colour says."""
    spectrum = np.fft.rfft(random.standard_normal(n_samples))
    spectrum *= np.arange(1, len(spectrum) + 1) ** (-SLOPES[colour] / 2)
    wave = np.fft.irfft(spectrum, n_samples)
    return wave / max(_level(wave), float(np.finfo(np.float32).tiny))


def augment(mel: np.ndarray, options: AugmentationOptions, random: np.random.Generator) -> np.ndarray:
    """A masked and louder or softer copy of a log-mel, (n_mels, n_frames)."""
    mel = mel + np.float32(random.uniform(-options.gain, options.gain))
    fill = mel.mean()
    for _ in range(options.n_masks):
        mel[_span(random, mel.shape[0], options.mask_mels), :] = fill
        mel[:, _span(random, mel.shape[1], options.mask_frames)] = fill
    return mel


def _level(waveform: np.ndarray) -> float:
    """Root mean square."""
    return math.sqrt(float(np.mean(np.square(waveform, dtype=np.float64))))


def _span(random: np.random.Generator, length: int, widest: int) -> slice:
    width = int(random.integers(0, min(widest, length) + 1))
    start = int(random.integers(0, length - width + 1))
    return slice(start, start + width)
