"""Log-mels padded here are the extractor's own; the context an utterance is heard in."""

import dataclasses

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers import WhisperFeatureExtractor

from moe.systems.whisper.features import AudioContextOptions, log_mel, pad_silence, valid_frames, window_frames, window_seconds
from tests.toys.corpora import RATE
from tests.toys.models import toy_wave

WHISPERS = WhisperFeatureExtractor()
OURS = WhisperFeatureExtractor(feature_size=80, hop_length=320, chunk_length=4, n_fft=400)


@pytest.mark.parametrize("extractor", [WHISPERS, OURS], ids=["whisper", "ours"])
@pytest.mark.parametrize("seconds", [0.0001, 0.02, 0.5, 1.2345, 3.98, 3.999, 4.0])
def test_padded_to_the_window_it_is_what_the_extractor_makes(extractor: WhisperFeatureExtractor, seconds: float) -> None:
    wave = toy_wave(1, seconds)
    expected = extractor(wave, sampling_rate=RATE, return_tensors="np").input_features[0]
    padded = pad_silence(log_mel(wave, extractor), window_frames(extractor))
    assert padded.shape == expected.shape and padded.dtype == np.float32
    np.testing.assert_allclose(padded, expected, atol=1e-6)


def test_silence_is_padded_with_the_extractors_floor() -> None:
    wave = np.zeros(RATE, np.float32)
    expected = OURS(wave, sampling_rate=RATE, return_tensors="np").input_features[0]
    np.testing.assert_allclose(pad_silence(log_mel(wave, OURS), window_frames(OURS)), expected, atol=1e-6)


def test_padding_to_any_length_is_a_slice_of_the_window() -> None:
    wave = toy_wave(2, 0.7)
    mel, whole = log_mel(wave, OURS), OURS(wave, sampling_rate=RATE, return_tensors="np").input_features[0]
    for n_frames in (20, 35, 60, 111):
        np.testing.assert_allclose(pad_silence(mel, n_frames), whole[:, :n_frames], atol=1e-6)


def test_audio_longer_than_the_window_is_refused_and_not_cut() -> None:
    with pytest.raises(ValueError, match="4.00 s is longer than the model's window of 4 s"):
        log_mel(np.zeros(4 * RATE + 1, np.float32), OURS)


@pytest.mark.parametrize(("n_samples", "n"), [(0, 1), (1, 1), (320, 1), (321, 2), (4 * RATE, 200)])
def test_valid_frames_by_hand(n_samples: int, n: int) -> None:
    assert valid_frames(n_samples, OURS) == n


@pytest.mark.parametrize(
    ("n_valid", "expected"), [(1, 200), (99, 200), (100, 200), (101, 300), (150, 300), (1000, 1100), (2950, 3000)]
)
def test_contexts_by_hand(n_valid: int, expected: int) -> None:
    """Whisper's 100 frames a second: 1 s of silence after the audio, up to the next second, at least 2 s, at most the window."""
    assert AudioContextOptions().n_frames(n_valid, WHISPERS) == expected


def test_the_full_context_is_the_window() -> None:
    assert AudioContextOptions(audio_context="full").n_frames(7, WHISPERS) == 3000 == window_frames(WHISPERS)
    assert window_seconds(OURS) == 4 and window_frames(OURS) == 200


contexts = st.builds(
    AudioContextOptions,
    context_silence_s=st.floats(0, 3),
    context_bucket_s=st.floats(0.01, 3),
    context_floor_s=st.floats(0.01, 5),
)


@given(contexts, st.integers(1, 3000))
def test_every_context_holds_the_audio_its_silence_and_its_floor(context: AudioContextOptions, n_valid: int) -> None:
    n_frames = context.n_frames(n_valid, WHISPERS)
    assert n_frames % 2 == 0 and n_frames <= 3000
    assert n_frames >= min(3000, n_valid + round(100 * context.context_silence_s) - 1)
    assert n_frames >= min(3000, round(100 * context.context_floor_s) - 1)
    longer = dataclasses.replace(context, context_silence_s=context.context_silence_s + 1)
    assert longer.n_frames(n_valid, WHISPERS) >= n_frames
