"""Channels that cancel each other are not mixed to silence; which channel is taken does not hang on an offset."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import tests.toys.corpora as toys
from moe.audio.waveforms import decode_recording, load_audio
from moe.corpora.summaries import loudness_db

VOICE = toys.tone(3)


def stereo(*channels: np.ndarray) -> bytes:
    return toys.encode(np.stack(channels, axis=1), subtype="FLOAT")


@settings(max_examples=30, deadline=None)
@given(gain=st.floats(-1.0, -0.6), offset=st.floats(-0.3, 0.3))
def test_of_channels_that_cancel_the_louder_is_taken_whatever_their_offset(gain: float, offset: float) -> None:
    for channels, louder in (((VOICE, gain * VOICE + offset), 0), ((gain * VOICE + offset, VOICE), 1)):
        recording = decode_recording(stereo(*channels))
        assert recording.channel == (louder if gain > -0.999 else recording.channel) is not None
        assert loudness_db(recording.waveform) > loudness_db(VOICE) - 0.1


@pytest.mark.parametrize(
    "other", [VOICE, 0.2 * VOICE, np.zeros_like(VOICE), toys.tone(9)], ids=["same", "softer", "silent", "another"]
)
def test_channels_that_do_not_cancel_are_averaged(other: np.ndarray) -> None:
    recording = decode_recording(stereo(VOICE, other))
    assert recording.channel is None
    np.testing.assert_allclose(recording.waveform, (VOICE + other) / 2, atol=1e-6)


def test_the_first_the_loudest_and_a_numbered_channel() -> None:
    data = stereo(0.1 * VOICE + 0.5, toys.tone(5), 0.3 * toys.tone(7))
    taken = {wanted: decode_recording(data, channels=wanted).channel for wanted in ("mix", "first", "loudest", 2)}
    assert taken == {"mix": None, "first": 0, "loudest": 1, 2: 2}
    np.testing.assert_allclose(load_audio(data, channels=2), 0.3 * toys.tone(7), atol=1e-6)
    with pytest.raises(ValueError, match="there is no channel 3"):
        load_audio(data, channels=3)


def test_one_channel_has_nothing_to_choose() -> None:
    assert {decode_recording(toys.audio_of(1), channels=wanted).channel for wanted in ("mix", "first", "loudest")} == {None}


def test_a_coded_stereo_recording_that_cancels_is_rescued_too() -> None:
    recording = decode_recording(toys.encode_aac(np.stack([VOICE, -VOICE], axis=1), toys.RATE))
    assert recording.channel is not None and loudness_db(recording.waveform) > loudness_db(VOICE) - 1
