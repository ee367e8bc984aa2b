"""The six styles: typical speech and five simulated etiologies, each a change of prosody, of articulation and of the signal.

These are caricatures of acoustic signatures, not clinical models: results on them say nothing about patients. Numbers are amounts
at severity 1; a speaker's severity in [0.6, 1] scales them.
"""

import dataclasses
from collections.abc import Callable, Mapping

import numpy as np

from moe.synthesis import articulation, effects
from moe.synthesis.effects import Speech
from moe.synthesis.espeak import Prosody

Signal = Callable[[Speech, float, np.random.Generator], Speech]


@dataclasses.dataclass(frozen=True)
class Style:
    """What a simulated etiology does to speech.

    Args:
        rate_change: relative change of the speaking rate at severity 1.
        rate_factor, range_factor, pitch_shift: applied at any severity, to rate, pitch range and pitch (espeak's 0–99 scale).
        tape_speed_change: relative change of pitch, formants and rate together at severity 1.
        level: linear gain of the utterance.
        substitutions, reduce_clusters: see `articulation.misarticulate`.
        signal: what is done to the waveform at a severity.
    """

    rate_change: float = 0.0
    rate_factor: float = 1.0
    range_factor: float = 1.0
    pitch_shift: float = 0.0
    tape_speed_change: float = 0.0
    level: float = 1.0
    substitutions: Mapping[str, str] = dataclasses.field(default_factory=dict)
    reduce_clusters: bool = False
    signal: Signal = lambda speech, severity, rng: speech

    def prosody(self, own: Prosody, severity: float) -> Prosody:
        """The speaker's own prosody as this style changes it, within espeak's scales."""
        return Prosody(
            rate=own.rate * self.rate_factor * (1 + self.rate_change * severity),
            pitch=float(np.clip(own.pitch + self.pitch_shift, 0, 99)),
            pitch_range=float(np.clip(own.pitch_range * self.range_factor, 0, 99)),
        )

    def tape_speed(self, own: float, severity: float) -> float:
        """The speaker's tape speed as this style changes it."""
        return own * (1 + self.tape_speed_change * severity)


def _parkinsons(speech: Speech, severity: float, rng: np.random.Generator) -> Speech:
    """Short rushes, imprecise, breathy, dull, fading."""
    speech = effects.vary_speed(speech, rng, step_ms=350, low=1 - 0.15 * severity, high=1 + 0.35 * severity)
    speech = effects.slur(speech, smoothing_ms=22 * severity)
    speech = effects.breathe(speech, 0.28 * severity, rng)
    speech = effects.scale_treble(speech, above_hz=1800, gain=1 - 0.55 * severity)
    return effects.fade(speech, end_level=1 - 0.75 * severity)


def _als(speech: Speech, severity: float, rng: np.random.Generator) -> Speech:
    """Strongly slurred and hypernasal."""
    speech = effects.slur(speech, smoothing_ms=52 * severity)
    speech = effects.nasalise(speech, 0.95 * severity)
    return effects.breathe(speech, 0.10 * severity, rng, above_hz=800)


def _cp(speech: Speech, severity: float, rng: np.random.Generator) -> Speech:
    """Pitch and speed breaks, strained and trembling voice, blurred vowels, pauses."""
    speech = effects.vary_speed(speech, rng, step_ms=160, low=1 - 0.35 * severity, high=1 + 0.3 * severity)
    speech = effects.strain(speech, drive=1 + 7 * severity)
    speech = effects.tremble(speech, 0.6 * severity, rng)
    speech = effects.blur_formants(speech, width_hz=200 * severity)
    return effects.pause(speech, rng, 0.35 * severity, low_s=0.08, high_s=0.3)


def _stroke(speech: Speech, severity: float, rng: np.random.Generator) -> Speech:
    """Uneven, slurred, with repeated word onsets."""
    speech = effects.vary_speed(speech, rng, step_ms=300, low=1 - 0.1 * severity, high=1 + 0.1 * severity)
    speech = effects.slur(speech, smoothing_ms=34 * severity)
    return effects.repeat_onsets(speech, rng, 0.6 * severity, onset_s=(0.08, 0.18))


def _down(speech: Speech, severity: float, rng: np.random.Generator) -> Speech:
    """Centralised vowels, slurred, somewhat breathy, with some repeated onsets."""
    speech = effects.blur_formants(speech, width_hz=420 * severity)
    speech = effects.slur(speech, smoothing_ms=28 * severity)
    speech = effects.breathe(speech, 0.14 * severity, rng, above_hz=500)
    return effects.repeat_onsets(speech, rng, 0.25 * severity, onset_s=(0.06, 0.12))


STYLES: Mapping[str, Style] = {
    "typical": Style(),
    "parkinsons": Style(
        rate_change=0.45, range_factor=0.0, pitch_shift=8, level=0.4, substitutions=articulation.WEAK_CLOSURES, signal=_parkinsons
    ),
    "als": Style(rate_change=-0.32, range_factor=0.5, pitch_shift=-8, substitutions=articulation.NASALISED, signal=_als),
    "cp": Style(rate_change=-0.30, range_factor=1.5, substitutions=articulation.STOPPING, signal=_cp),
    "stroke": Style(rate_change=-0.15, range_factor=0.6, substitutions=articulation.VOICING_ERRORS, signal=_stroke),
    "down": Style(
        rate_factor=0.72,
        pitch_shift=-18,
        tape_speed_change=0.34,
        substitutions=articulation.FRONTING_AND_GLIDING,
        reduce_clusters=True,
        signal=_down,
    ),
}
