"""Loudness by hand: a sine's level, silence left out."""

import numpy as np
import pytest

from moe.audio.sampling import SAMPLE_RATE
from moe.corpora.summaries import FLOOR_DB, loudness_db

SINE = np.sin(2 * np.pi * 200 * np.arange(SAMPLE_RATE) / SAMPLE_RATE)


def test_a_full_scale_sine_is_3_db_below_full_scale() -> None:
    assert loudness_db(SINE) == pytest.approx(-3.01, abs=0.01)
    assert loudness_db(0.1 * SINE) == pytest.approx(-23.01, abs=0.01)


def test_pauses_do_not_make_speech_quieter() -> None:
    """A mean over everything would be 6 dB lower."""
    paused = np.concatenate([np.zeros(SAMPLE_RATE), SINE, np.zeros(2 * SAMPLE_RATE)])
    assert loudness_db(paused) == pytest.approx(loudness_db(SINE), abs=0.05)


@pytest.mark.parametrize("waveform", [np.zeros(1000), np.zeros(0)])
def test_silence_has_a_floor(waveform: np.ndarray) -> None:
    assert loudness_db(waveform) == FLOOR_DB


@pytest.mark.parametrize("offset", [-0.5, 0.3, 5.0])
def test_an_offset_is_no_loudness(offset: float) -> None:
    assert loudness_db(0.1 * SINE + offset) == pytest.approx(loudness_db(0.1 * SINE), abs=1e-6)
