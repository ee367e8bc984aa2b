"""The gate before decoding: speech passes, however soft or short; what nobody says does not, at any level and length."""

import csv
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks.voice_activity import noise, noises, tones
from moe.audio import voice_activity
from moe.audio.voice_activity import VoiceActivity, is_steady
from moe.audio.waveforms import load_audio
from tests.toys.speech import RATE, spoken

DATA = Path(__file__).resolve().parents[4] / "shared" / "data"
GATE = VoiceActivity()


@pytest.mark.parametrize(("name", "sounds"), [pytest.param(*each, id=each[0]) for each in noises()])
def test_what_nobody_says_is_no_speech(name: str, sounds: list[np.ndarray]) -> None:
    assert not any(GATE.is_speech(sound.astype(np.float32)) for sound in sounds)


@settings(max_examples=30, deadline=None)
@given(st.floats(0.003, 1.0), st.floats(-0.3, 0.3), st.floats(0, 4), st.integers(0, 99))
def test_speech_is_speech_at_any_level_with_any_offset_after_any_pause(level, offset, pause_s, seed) -> None:
    """Soft voices are judged like loud ones, in noise 30 dB below them."""
    pause = np.zeros(int(pause_s * RATE))
    sound = np.concatenate([pause, spoken() / np.abs(spoken()).max(), pause])
    sound = sound + noise(len(sound) / RATE + 1, 1, np.random.default_rng(seed))[: len(sound)] * 0.03
    assert GATE.is_speech((level * sound + offset).astype(np.float32))


@settings(max_examples=30, deadline=None)
@given(st.floats(0.003, 1.0), st.floats(-0.3, 0.3), st.integers(0, 99), st.floats(0.01, 8), st.sampled_from([0, 1, 2]))
def test_noise_is_no_speech_at_any_level_with_any_offset(level, offset, seed, seconds, slope) -> None:
    sound = level * noise(max(seconds, 0.01), slope, np.random.default_rng(seed)) + offset
    assert not GATE.is_speech(sound.astype(np.float32))


@settings(max_examples=30, deadline=None)
@given(st.floats(40, 1000), st.integers(1, 20), st.floats(0.8, 6))
def test_a_hum_is_steady_whatever_its_harmonics_and_speech_is_not(base, n_harmonics, seconds) -> None:
    hum = sum(tones(seconds, base * k) / k for k in range(1, n_harmonics + 1) if k * base < RATE / 2)
    assert is_steady(hum) and not GATE.is_speech(hum.astype(np.float32))
    assert not is_steady(spoken())


def test_the_threshold_decides_and_reading_stops_where_it_is_reached() -> None:
    """Speech before noise without end is found; a threshold above its probability finds none."""
    probability = GATE.probability(spoken())
    assert 0.9 < probability <= 1
    assert VoiceActivity(probability - 1e-3).is_speech(spoken()) and not VoiceActivity(1.0 + 1e-3).is_speech(spoken())


def test_torch_keeps_its_threads() -> None:
    """Importing the package that the model lies in sets them to one."""
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        GATE.is_speech(spoken())
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


@pytest.mark.skipif(not DATA.is_dir(), reason="no recordings here")
@pytest.mark.parametrize(("corpus", "n"), [("typical_english", 14), ("speechocean762", 60), ("fsdd", 60)])
def test_recorded_speech_is_speech(corpus: str, n: int) -> None:
    with open(DATA / corpus / "manifest.csv", encoding="utf-8") as file:
        paths = [row["path"] for row in csv.DictReader(file)]
    drawn = np.random.default_rng(0).permutation(len(paths))[:n]
    assert [path for path in (paths[index] for index in drawn) if not GATE.is_speech(load_audio(DATA / corpus / path))] == []


@pytest.mark.parametrize("n_samples", [1600, 8000, 40_000])
def test_edges_lie_apart_and_within_the_waveform_wherever_speech_is_found(n_samples: int, monkeypatch) -> None:
    """Also where it is found in the silence that is put before and after."""
    waveform, judge = np.random.default_rng(0).normal(0, 0.1, n_samples).astype(np.float32), VoiceActivity()
    monkeypatch.setattr(VoiceActivity, "is_speech", lambda self, waveform: True)
    n_frames = -(-(n_samples + 2 * 4000) // 512)
    for spoken_at in range(n_frames):
        monkeypatch.setattr(voice_activity, "_blocks", lambda frames: [np.eye(n_frames)[spoken_at]])  # noqa: B023
        start, stop = judge.edges(waveform)
        assert 0 <= start < stop <= n_samples and stop - start >= min(n_samples, 3200)


def test_edges_hold_what_is_spoken_and_little_more() -> None:
    wave = spoken()
    long = np.pad(wave, (2 * RATE, 3 * RATE))
    start, stop = VoiceActivity().edges(long)
    assert 1.6 * RATE < start < 2.2 * RATE and len(wave) + 1.8 * RATE < stop < len(wave) + 2.6 * RATE
    assert VoiceActivity().edges(np.zeros(RATE, np.float32)) is None
