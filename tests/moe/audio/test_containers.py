"""Every container that a decoder of ours knows is let in, cut files are found in it, and a size that stands for "not known" is no cut."""

import io
import struct
import wave

import numpy as np
import pytest
import soundfile
from hypothesis import given, settings
from hypothesis import strategies as st

import tests.toys.corpora as toys
from moe.audio.containers import AUDIO_SUFFIXES, is_recording
from moe.audio.waveforms import AudioError, load_audio

TONE = toys.tone(3, 1.0)
PCM = np.round(TONE * 32767).astype("<i2")
CONTAINERS = {
    name: (name, "PCM_16", None)
    for name in ("AU", "CAF", "W64", "NIST", "VOC", "AIFF", "SVX", "PVF", "PAF", "AVR", "IRCAM", "MAT5", "SDS", "HTK")
}
CONTAINERS |= {"RIFX": ("WAV", "PCM_16", "BIG"), "AU little": ("AU", "PCM_16", "LITTLE"), "SPHERE mu-law": ("NIST", "ULAW", None)}
CONTAINERS["RF64"] = ("RF64", "PCM_16", None)
STATES_SIZE = ["AU", "CAF", "W64", "NIST", "VOC", "AIFF", "SVX", "AVR", "RF64", "RIFX", "AU little", "SPHERE mu-law"]


def encoded(container: str) -> bytes:
    kind, subtype, endian = CONTAINERS[container]
    buffer = io.BytesIO()
    soundfile.write(buffer, PCM, toys.RATE, format=kind, subtype=subtype, endian=endian)
    return buffer.getvalue()


def riff(riff_size: int, data_size: int, after: bytes = b"") -> bytes:
    head = (
        b"WAVEfmt " + struct.pack("<IHHIIHH", 16, 1, 1, toys.RATE, 2 * toys.RATE, 2, 16) + b"data" + struct.pack("<I", data_size)
    )
    return b"RIFF" + struct.pack("<I", riff_size) + head + PCM.tobytes() + after


def reason(data: bytes) -> str:
    with pytest.raises(AudioError) as caught:
        load_audio(data)
    return caught.value.reason


@pytest.mark.parametrize("container", CONTAINERS)
def test_what_the_library_reads_is_let_in(container: str) -> None:
    np.testing.assert_allclose(load_audio(encoded(container)), TONE, atol=0.02)


@pytest.mark.parametrize("container", STATES_SIZE)
@pytest.mark.parametrize("share", [0.4, 0.95])
def test_a_file_that_is_cut_short_is_found(container: str, share: float) -> None:
    data = encoded(container)
    assert reason(data[: int(len(data) * share)]) == "truncated"


WRITERS = {
    "SoX": (0x7FFFF024, 0x7FFFF000), "ffmpeg": (0xFFFFFFFF, 0xFFFFFFFF), "arecord": (0x80000024, 0x80000000), "GStreamer": (0, 0),
    "Python": (36, 0), "half": (0, 0xFFFFFFFF), "signed": (0x7FFFFFFF, 0x7FFFFFDB),
}  # fmt: skip


@pytest.mark.parametrize("writer", WRITERS)
def test_sizes_that_stand_for_not_known_are_no_truncation(writer: str) -> None:
    np.testing.assert_allclose(load_audio(riff(*WRITERS[writer])), TONE, atol=1e-4)


@settings(max_examples=40, deadline=None)
@given(n_missing=st.integers(1, 1 << 24))
def test_any_size_that_a_file_can_have_is_held_against_it(n_missing: int) -> None:
    whole = len(PCM.tobytes())
    assert reason(riff(36 + whole + n_missing, whole + n_missing)) == "truncated"


def test_a_wav_without_samples_is_empty_whatever_follows_them() -> None:
    buffer = io.BytesIO()
    with wave.open(buffer, "wb") as file:
        file.setparams((1, 2, toys.RATE, 0, "NONE", ""))
    data = buffer.getvalue() + b"LIST" + struct.pack("<I", 4) + b"INFO"
    assert reason(data[:4] + struct.pack("<I", len(data) - 8) + data[8:]) == "empty"


def patched(container: str, mark: bytes, beside: int, value: bytes) -> bytes:
    data = bytearray(encoded(container))
    place = data.index(mark) + beside
    data[place : place + len(value)] = value
    return bytes(data)


@pytest.mark.parametrize(
    "data",
    [
        patched("AU", b".snd", 8, b"\xff" * 4),
        patched("AU", b".snd", 8, bytes(4)),
        patched("AU little", b"dns.", 8, bytes(4)),
        patched("RF64", b"RF64", 20, b"\xff" * 16),
        patched("RF64", b"RF64", 20, bytes(24)),
        patched("AVR", b"2BIT", 26, bytes(4)),
        patched("CAF", b"data", 4, b"\xff" * 8),
        patched("AIFF", b"FORM", 4, struct.pack(">I", 0x7F00002E)),
        patched("RIFX", b"data", 4, b"\xff" * 4),
        patched("W64", b"riff", 16, bytes(8)),
        patched("W64", b"riff", 16, b"\xff" * 7 + b"\x7f"),
        patched("NIST", b"sample_count -i 16000", 0, b"sample_count -i 0    "),
    ],
    ids=["AU", "AU zero", "AU little zero", "RF64", "RF64 zero", "AVR", "CAF", "AIFF", "RIFX", "W64 zero", "W64 most", "SPHERE"],
)
def test_the_same_in_other_containers(data: bytes) -> None:
    np.testing.assert_allclose(load_audio(data), TONE, atol=1e-4)


def test_a_flac_that_was_written_to_a_pipe_is_whole() -> None:
    data = bytearray(toys.encode(TONE, "flac"))
    data[18:26] = (int.from_bytes(data[18:26], "big") >> 36 << 36).to_bytes(8, "big")
    np.testing.assert_allclose(load_audio(bytes(data)), TONE, atol=1e-4)


def test_a_suffix_is_known_in_any_case() -> None:
    assert is_recording("a/B.WAV") and is_recording("a.sph") and not is_recording("wav") and not is_recording("a.txt")
    assert all(suffix.startswith(".") and suffix == suffix.lower() for suffix in AUDIO_SUFFIXES)
