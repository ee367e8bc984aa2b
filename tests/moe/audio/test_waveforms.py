"""Any rate, depth, channels and container becomes the same mono waveform at 16 kHz; what is damaged says how."""

import struct

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import tests.toys.corpora as toys
from moe.audio.sampling import SAMPLE_RATE, resample
from moe.audio.waveforms import AudioError, decode_recording, is_silent, load_audio

LOSSLESS = ["wav", "flac", "aiff", "rf64"]
LOSSY = ["mp3", "ogg", "opus", "m4a", "aac"]


def reason(data: bytes) -> str:
    with pytest.raises(AudioError) as caught:
        load_audio(data)
    return caught.value.reason


@pytest.mark.parametrize("n_channels", [1, 2])
@pytest.mark.parametrize("rate", [8_000, 16_000, 44_100, 48_000])
@pytest.mark.parametrize("container", LOSSLESS)
def test_lossless_containers_give_the_same_samples(container, rate, n_channels):
    wave = toys.tone(3, 0.5, rate)
    recording = decode_recording(toys.encode(toys.tone(3, 0.5, rate, n_channels), container, rate))
    decoded, decoded_rate = recording.waveform, recording.rate
    assert decoded_rate == rate and decoded.dtype == np.float32 and decoded.shape == wave.shape
    np.testing.assert_allclose(decoded, wave, atol=1e-4)


@pytest.mark.parametrize("container", LOSSY)
@pytest.mark.parametrize("rate", [16_000, 48_000])
def test_lossy_containers_come_near(container, rate):
    wave = load_audio(toys.encode(toys.tone(3, 1.0, rate, 2), container, rate))
    expected = toys.tone(3, 1.0)
    assert abs(len(wave) - len(expected)) < 0.15 * SAMPLE_RATE
    spectrum, other = (np.abs(np.fft.rfft(x[2000:14000])) for x in (wave, expected))
    assert abs(int(spectrum.argmax()) - int(other.argmax())) <= 1
    assert abs(float(np.std(wave[2000:14000])) / float(np.std(expected[2000:14000])) - 1) < 0.1


@pytest.mark.parametrize("subtype", ["PCM_U8", "PCM_16", "PCM_24", "PCM_32", "FLOAT", "DOUBLE", "ULAW", "ALAW", "IMA_ADPCM"])
def test_any_depth_of_a_wav(subtype):
    wave = load_audio(toys.encode(toys.tone(5), "wav", subtype=subtype))
    np.testing.assert_allclose(wave[50:6400], toys.tone(5)[50:], atol=0.05)


def test_channels_are_averaged():
    left, right = toys.tone(1), toys.tone(2)
    np.testing.assert_allclose(load_audio(toys.encode(np.stack([left, right], 1))), (left + right) / 2, atol=1e-4)


@pytest.mark.parametrize("rate", [8_000, 22_050, 44_100])
def test_resampling_keeps_a_tone_and_its_length(rate):
    tone = np.sin(2 * np.pi * 440 * np.arange(rate) / rate).astype(np.float32)
    out = resample(tone, rate)
    assert out.dtype == np.float32 and len(out) == SAMPLE_RATE
    expected = np.sin(2 * np.pi * 440 * np.arange(SAMPLE_RATE) / SAMPLE_RATE)
    np.testing.assert_allclose(out[1000:-1000], expected[1000:-1000], atol=1e-3)


def test_a_path_and_its_bytes_are_the_same(tmp_path):
    data = toys.audio_of(2)
    (tmp_path / "a.bin").write_bytes(data)  # the name has no say, the content has
    np.testing.assert_array_equal(load_audio(tmp_path / "a.bin"), load_audio(data))


@pytest.mark.parametrize("container", ["wav", "flac", "aiff", "rf64", "mp3", "ogg", "opus", "m4a", "aac"])
@pytest.mark.parametrize("share", [0.5, 0.9])
def test_truncation_is_told_in_every_container(container, share):
    data = toys.encode(toys.tone(3, 2.0, 16_000), container)
    assert reason(data[: int(len(data) * share)]) == "truncated"


@pytest.mark.parametrize("size", [0x7FFFFFFF, 0xFFFFFFFF])
def test_a_wav_written_on_a_pipe_is_whole(size):
    data = bytearray(toys.encode(toys.tone(3)))
    place = data.index(b"data") + 4
    struct.pack_into("<I", data, place, size)
    np.testing.assert_allclose(load_audio(bytes(data)), toys.tone(3), atol=1e-4)


def wav_with(n_channels: int = 1, rate: int = 16_000) -> bytes:
    data = bytearray(toys.encode(toys.tone(1)))
    struct.pack_into("<HI", data, data.index(b"fmt ") + 10, n_channels, rate)
    return bytes(data)


def flac_with_frames(n_frames: int) -> bytes:
    data = bytearray(toys.audio_of(1))
    packed = int.from_bytes(data[18:26], "big") >> 36 << 36 | n_frames
    data[18:26] = packed.to_bytes(8, "big")
    return bytes(data)


@pytest.mark.parametrize(
    "data",
    [
        wav_with(n_channels=0),
        wav_with(n_channels=2000),
        wav_with(rate=0),
        wav_with(rate=4_000_000_000),
        flac_with_frames((1 << 36) - 1),
    ],
    ids=["no channel", "2000 channels", "rate 0", "rate 4 GHz", "1193 hours"],
)
def test_absurd_headers_have_their_own_reason_and_allocate_nothing(data):
    assert reason(data) == "absurd_header"


def test_a_flac_that_claims_more_frames_than_it_has_is_truncated():
    assert reason(flac_with_frames(16_000 * 60)) == "truncated"


def test_empty_and_unknown_files():
    assert reason(b"") == "empty"
    assert reason(toys.encode(np.zeros(0, np.float32))) == "empty"
    assert reason(b"MZ is no audio") == "unreadable"
    assert reason(b"RIFF1234WAVE") == "unreadable"


@pytest.mark.parametrize("container", ["wav", "flac", "mp3", "m4a"])
def test_decoding_stops_where_it_is_told_to(container, monkeypatch):
    monkeypatch.setattr("moe.audio.decoders.BLOCK_FRAMES", 1000)
    data = toys.encode(toys.tone(1, 2.0), container)
    with pytest.raises(AudioError, match=r"too_long: .*allowed: 0.5 s"):
        decode_recording(data, max_duration_s=0.5)
    assert len(decode_recording(data, max_duration_s=2.2).waveform)


def test_samples_that_are_not_finite_are_refused():
    wave = toys.tone(1).copy()
    wave[7], wave[9] = np.nan, np.inf
    with pytest.raises(AudioError, match="non_finite: 2 samples"):
        load_audio(toys.encode(wave, subtype="FLOAT"))


@pytest.mark.parametrize("text", ["#EXTM3U\n#EXTINF:1,\nfile:///etc/hostname\n", "ffconcat version 1.0\nfile /etc/hostname\n"])
def test_a_playlist_opens_no_other_file(text):
    assert reason(text.encode()) == "unreadable"


def test_silence_is_about_the_mean():
    assert is_silent(np.full(100, 0.5, np.float32))
    assert is_silent(np.zeros(100, np.float32))
    assert not is_silent(toys.tone(1) * 0.01)


def test_the_same_damage_is_told_in_the_same_words():
    details = set()
    for _ in range(2):
        with pytest.raises(AudioError) as caught:
            load_audio(toys.encode(toys.tone(1))[:30])
        details.add(caught.value.detail)
    assert len(details) == 1 and "0x" not in details.pop()


@settings(max_examples=25)
@given(n=st.integers(1, 5000), rate=st.sampled_from([8000, 11025, 16000, 48000]), channels=st.integers(1, 8))
def test_any_length_and_channels_come_back(n, rate, channels):
    noise = np.random.default_rng(n).uniform(-0.9, 0.9, (n, channels)).astype(np.float32)
    recording = decode_recording(toys.encode(noise, "wav", rate, "FLOAT"))
    wave, decoded_rate = recording.waveform, recording.rate
    assert decoded_rate == rate
    np.testing.assert_allclose(wave, noise.mean(axis=1), atol=1e-6)
