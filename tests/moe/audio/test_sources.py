"""A path, bytes and samples of one recording are one waveform; anything else is refused by name."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from moe.audio.sources import as_wav, waveform_of
from moe.audio.waveforms import AudioError, load_audio
from tests.toys.corpora import encode, tone


def test_every_form_of_a_recording_is_one_waveform(tmp_path: Path) -> None:
    wave = tone(3, 0.5).astype(np.float32)
    path = tmp_path / "a.wav"
    path.write_bytes(as_wav(wave))
    for source in (path, str(path), path.read_bytes(), bytearray(path.read_bytes()), wave, wave.astype(np.float64)):
        np.testing.assert_array_equal(waveform_of(source), wave)
    np.testing.assert_allclose(waveform_of(np.stack([wave, wave], 1)), wave, atol=1e-7)


@pytest.mark.parametrize("kind", ["int16", "int32", "uint8"])
def test_whole_numbers_are_scaled_as_a_file_of_them_is(kind: str) -> None:
    steps = np.iinfo(kind)
    samples = np.linspace(steps.min, steps.max, 1000).astype(kind)
    found = waveform_of(samples)
    assert found.dtype == np.float32 and found.min() == pytest.approx(-1, abs=1e-2) and found.max() == pytest.approx(1, abs=1e-2)


def test_samples_of_another_rate_are_resampled() -> None:
    assert len(waveform_of(np.zeros(8000, np.float32), rate=8000)) == 16_000


@pytest.mark.parametrize("rate", [0, -8000, 1e12, float("nan")])
def test_a_rate_that_no_recording_has_is_refused(rate: float) -> None:
    with pytest.raises(ValueError, match="rate=.*: must be between 1000 and"):
        waveform_of(np.zeros(8000, np.float32), rate=rate)


@given(st.integers(1, 3), st.sampled_from([8000, 16_000, 44_100]), st.lists(st.floats(-0.9, 0.9), min_size=3, max_size=3))
def test_samples_are_read_as_a_file_of_them_is(n_channels: int, rate: int, gains: list[float]) -> None:
    """Also where channels cancel each other: the loudest is taken of both."""
    samples = np.stack([np.float32(gain) * tone(3, 0.3) for gain in gains[:n_channels]], 1).astype(np.float32)
    np.testing.assert_array_equal(waveform_of(samples, rate), load_audio(encode(samples, "wav", rate, "FLOAT")))


def test_channels_that_cancel_leave_the_speech() -> None:
    wave = tone(3, 0.5).astype(np.float32)
    np.testing.assert_array_equal(waveform_of(np.stack([wave, -wave], 1)), wave)


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ("gone.wav", "gone.wav: no such file"),
        (Path("gone.wav"), "no such file"),
        (3, "a int is no recording"),
        (None, "a NoneType is no recording"),
        (np.zeros(()), "samples of shape"),
        (np.zeros((2, 2, 2)), "samples of shape"),
        (np.zeros((2, 16_000)), r"samples of shape \(2, 16000\): more channels than samples; give the transpose"),
        (np.array(["a"]), "must be numbers"),
        (np.zeros((0, 2)), "empty|no samples"),
        (np.array([0.0, np.nan, np.inf]), "non_finite: 2 samples"),
        (np.array([1, -30_000, 30_000]), "type int64: whole numbers must be of 8, 16 or 32 bits"),
        (b"no sound", "unreadable|not"),
        (encode(tone(1)[:0], "wav"), "empty|no samples"),
    ],
)
def test_what_is_no_recording_is_refused_by_name(source: object, said: str) -> None:
    with pytest.raises((ValueError, AudioError), match=said):
        waveform_of(source)
    assert load_audio(encode(tone(1), "wav")).size
