"""One utterance: a speaker says a sentence in its style. A pure function of speaker, text and key.

espeak → misarticulation → 16 kHz and tape speed → the style's signal blocks → level, edges and room noise.
"""

import dataclasses

import numpy as np
import soxr

from moe.synthesis.articulation import misarticulate
from moe.synthesis.effects import SAMPLE_RATE, Speech
from moe.synthesis.espeak import SAMPLE_RATE as ESPEAK_RATE
from moe.synthesis.espeak import Espeak, Spoken
from moe.synthesis.styles import STYLES, Style
from moe.synthesis.voices import Speaker, keyed_generator

LEVEL_DB, SNR_DB = (-26, -14), (25, 45)
LEAD_S, TAIL_S = (0.02, 0.15), 0.05
PITCH_WOBBLE, RATE_WOBBLE = 4, 0.07
ESPEAK_SILENCE, ESPEAK_EDGE_S = 0.004, 0.04
SILENCE, EDGE_S = 0.008, 0.03  # of the peak
LARGEST_SAMPLE = 0.98


@dataclasses.dataclass(frozen=True)
class Rendering:
    """Samples (n_samples,) float32 at 16 kHz; the phonemes said and the sample each starts at (meaningful for typical speech)."""

    samples: np.ndarray
    phoneme_starts: np.ndarray
    phonemes: tuple[str, ...]

    @property
    def duration_s(self) -> float:
        """Length in seconds."""
        return len(self.samples) / SAMPLE_RATE


def render(speaker: Speaker, text: str, *key: object) -> Rendering:
    """The utterance of `text` by `speaker`; another key is another take of it."""
    rng = keyed_generator("utterance", speaker.name, text, *key)
    style = STYLES[speaker.style]
    spoken = _speak(speaker, style, text, rng)
    spoken = _trim_spoken(spoken)
    speech, scale = _resample(spoken, style.tape_speed(speaker.tape_speed, speaker.severity))
    speech = style.signal(speech, speaker.severity, rng)
    level = 10 ** (rng.uniform(*LEVEL_DB) / 20) * style.level
    samples, shift = _finish(speech.samples, level, rng)
    starts = np.maximum(0, spoken.phoneme_starts * scale + shift).astype(np.int64)
    return Rendering(samples, starts, spoken.phonemes)


def _speak(speaker: Speaker, style: Style, text: str, rng: np.random.Generator) -> Spoken:
    own = dataclasses.replace(
        speaker.prosody,
        pitch=speaker.prosody.pitch + rng.uniform(-PITCH_WOBBLE, PITCH_WOBBLE),
        rate=speaker.prosody.rate * rng.uniform(1 - RATE_WOBBLE, 1 + RATE_WOBBLE),
    )
    with Espeak(speaker.voice, seed=int(rng.integers(1 << 31))) as espeak:
        articulation = STYLES[speaker.articulation or speaker.style]
        if articulation.substitutions:
            probability = speaker.articulation_strength * speaker.severity
            substitutions = articulation.substitutions
            phonemes = misarticulate(espeak.phonemes(text), substitutions, probability, rng, articulation.reduce_clusters)
            text = f"[[{phonemes}]]"
        return espeak.speak(text, style.prosody(own, speaker.severity))


def _trim_spoken(spoken: Spoken) -> Spoken:
    first, last = _voiced_range(spoken.samples, ESPEAK_SILENCE, int(ESPEAK_EDGE_S * ESPEAK_RATE))
    words = np.maximum(0, spoken.word_starts - first)
    return Spoken(spoken.samples[first:last], words, spoken.phoneme_starts - first, spoken.phonemes)


def _resample(spoken: Spoken, tape_speed: float) -> tuple[Speech, float]:
    """Speech at 16 kHz, and how many of its samples one of espeak's became."""
    samples = soxr.resample(spoken.samples, ESPEAK_RATE * tape_speed, SAMPLE_RATE).astype(np.float32)
    scale = len(samples) / len(spoken.samples)
    return Speech(samples, (spoken.word_starts * scale).astype(np.int64)), scale


def _finish(samples: np.ndarray, level: float, rng: np.random.Generator) -> tuple[np.ndarray, int]:
    """Trim, set the level (RMS), add silence and room noise; also by how many samples the speech moved."""
    first, last = _voiced_range(samples, SILENCE * np.abs(samples).max(), int(EDGE_S * SAMPLE_RATE))
    samples = samples[first:last] * (level / (np.sqrt(np.mean(samples[first:last] ** 2)) + 1e-6))
    lead = int(SAMPLE_RATE * rng.uniform(*LEAD_S))
    samples = np.pad(samples, (lead, int(SAMPLE_RATE * TAIL_S)))
    samples = samples + rng.standard_normal(len(samples)) * level * 10 ** (-rng.uniform(*SNR_DB) / 20)
    samples = samples * min(1.0, LARGEST_SAMPLE / np.abs(samples).max())
    return samples.astype(np.float32), lead - first


def _voiced_range(samples: np.ndarray, threshold: float, edge: int) -> tuple[int, int]:
    """First and one-past-last sample above the threshold, `edge` samples wider; everything where nothing is above it."""
    loud = np.flatnonzero(np.abs(samples) > threshold)
    if not len(loud):
        return 0, len(samples)
    return max(0, int(loud[0]) - edge), min(len(samples), int(loud[-1]) + edge)
