"""Any recording becomes one mono float32 waveform at 16 kHz.

libsndfile (soundfile) reads wav, flac, mp3, ogg and opus; PyAV reads what it cannot (m4a, aac, webm); soxr resamples. Recordings
come as bytes, so that files, shard members and Parquet cells take one path. The container is known by its first bytes and the demuxer
is forced: a playlist disguised as audio can make no decoder open another file.
"""

import contextlib
import io
import struct
from pathlib import Path

import av
import numpy as np
import soundfile
import soxr

SAMPLE_RATE = 16_000
RATE_RANGE = (1_000, 768_000)  # Hz; outside, the header is absurd
MAX_CHANNELS = 64
MAX_HOURS = 24  # a header that claims more is absurd
BLOCK_FRAMES = 1 << 18
SILENT_PEAK = 1e-3  # −60 dBFS about the mean

SOUNDFILE_MAGIC = (b"RIFF", b"RIFX", b"RF64", b"riff", b"FORM", b"fLaC", b"OggS", b".snd", b"caff", b"NIST", b"ID3")
AV_MAGIC = {b"\x1aE\xdf\xa3": "matroska", b"#!AMR": "amr", b"\x30\x26\xb2\x75": "asf"}
AV_FALLBACK = {b"RIFF": "wav", b"ID3": "mp3", b"OggS": "ogg", b"caff": "caf"}
UNKNOWN_SIZES = (0, 0x7FFFFFFF, 0xFFFFFFFF)  # what a wav writer on a pipe leaves as its data size


class AudioError(ValueError):
    """A recording that cannot be used: `reason` is one of `moe.quarantine.REASONS`."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(f"{reason}: {detail}")
        self.reason, self.detail = reason, detail


def load_audio(source: Path | str | bytes) -> np.ndarray:
    """Decode and resample a recording.

    Args:
        source: path of a file, or its bytes.
    Returns:
        Float32 mono waveform at 16 kHz, shape (n_samples,).
    Raises:
        AudioError: unreadable, truncated, empty, not finite or with an absurd header.
    """
    return resample(*decode_audio(source))


def decode_audio(source: Path | str | bytes) -> tuple[np.ndarray, int]:
    """Decode a recording at its own rate.

    Returns:
        Float32 mono waveform (the mean of its channels), shape (n_samples,), and its rate in Hz.
    Raises:
        AudioError: as `load_audio`.
    """
    data = source if isinstance(source, bytes) else Path(source).read_bytes()
    if not data:
        raise AudioError("empty", "the file has no bytes")
    waveform, rate = _decode(data)
    if not len(waveform):
        raise AudioError("empty", "the recording has no samples")
    if not np.isfinite(waveform).all():
        raise AudioError("non_finite", f"{int((~np.isfinite(waveform)).sum())} samples are NaN or infinite")
    return waveform, rate


def resample(waveform: np.ndarray, rate: int) -> np.ndarray:
    """A waveform (n_samples,) at `rate` Hz as float32 at 16 kHz."""
    if rate == SAMPLE_RATE:
        return waveform
    return soxr.resample(waveform, rate, SAMPLE_RATE).astype(np.float32, copy=False)


def is_silent(waveform: np.ndarray) -> bool:
    """Whether a waveform (n_samples,) never leaves its mean by more than −60 dBFS."""
    return float(np.abs(waveform - waveform.mean()).max()) < SILENT_PEAK


def _decode(data: bytes) -> tuple[np.ndarray, int]:
    forced = _av_format(data)
    if forced is not None:
        return _decode_av(data, forced)
    if not data.startswith(SOUNDFILE_MAGIC) and not _is_mp3(data):
        raise AudioError("unreadable", f"no known audio container (begins with {data[:8].hex(' ')})")
    try:
        return _decode_soundfile(data)
    except (soundfile.SoundFileError, RuntimeError, OverflowError, MemoryError) as error:
        return _decode_fallback(data, error)


def _decode_fallback(data: bytes, error: Exception) -> tuple[np.ndarray, int]:
    forced = next((name for magic, name in AV_FALLBACK.items() if data.startswith(magic)), None)
    if forced is not None:
        with contextlib.suppress(AudioError):
            return _decode_av(data, forced)
    raise AudioError("unreadable", str(error).replace("\n", " ")) from error


def _av_format(data: bytes) -> str | None:
    if data[4:8] == b"ftyp":
        return "mov"
    if len(data) > 1 and data[0] == 0xFF and data[1] & 0xF6 == 0xF0:  # ADTS: sync word with layer 0
        return "aac"
    return next((name for magic, name in AV_MAGIC.items() if data.startswith(magic)), None)


def _is_mp3(data: bytes) -> bool:
    return len(data) > 1 and data[0] == 0xFF and data[1] & 0xE6 == 0xE2  # sync word with layer III


def _decode_soundfile(data: bytes) -> tuple[np.ndarray, int]:
    with soundfile.SoundFile(io.BytesIO(data)) as file:
        _check_header(file.samplerate, file.channels, file.frames)
        stated, rate = file.frames, file.samplerate
        blocks = []
        while len(block := file.read(BLOCK_FRAMES, dtype="float32", always_2d=True)):
            blocks.append(_mono(block.T))
    waveform = _join(blocks)
    _check_whole(data, len(waveform), stated)
    return waveform, rate


def _check_whole(data: bytes, n_frames: int, stated: int) -> None:
    if n_frames < stated:
        raise AudioError("truncated", f"{n_frames} of {stated} frames are there")
    missing = _missing_wav_bytes(data) if data.startswith(b"RIFF") else _missing_ogg_bytes(data) if data.startswith(b"OggS") else 0
    if missing:
        raise AudioError("truncated", f"{missing} bytes are missing at the end")


def _missing_wav_bytes(data: bytes) -> int:
    """Bytes the data chunk claims beyond the end of the file; libsndfile would only clamp them."""
    place = 12
    while place + 8 <= len(data):
        name, size = data[place : place + 4], struct.unpack_from("<I", data, place + 4)[0]
        if name == b"data":
            return 0 if size in UNKNOWN_SIZES else max(0, place + 8 + size - len(data))
        place += 8 + size + size % 2
    return 0


def _missing_ogg_bytes(data: bytes) -> int:
    """Bytes the last page claims beyond the end of the file."""
    last = data.rfind(b"OggS")
    n_segments = data[last + 26] if last + 26 < len(data) else 0
    table = data[last + 27 : last + 27 + n_segments]
    return max(0, last + 27 + n_segments + sum(table) - len(data))


def _decode_av(data: bytes, container: str) -> tuple[np.ndarray, int]:
    try:
        with av.open(io.BytesIO(data), mode="r", format=container, metadata_errors="replace") as file:
            if not file.streams.audio:
                raise AudioError("unreadable", "the file holds no audio stream")
            return _decode_stream(file, file.streams.audio[0])
    except (av.FFmpegError, ValueError, OverflowError, MemoryError) as error:
        if isinstance(error, AudioError):
            raise
        raise AudioError("unreadable", str(error).replace("\n", " ")) from error


def _decode_stream(file: av.container.InputContainer, stream: av.AudioStream) -> tuple[np.ndarray, int]:
    stated_s = float(stream.duration * stream.time_base) if stream.duration and stream.time_base else 0.0
    _check_header(stream.rate or SAMPLE_RATE, stream.channels or 1, int(max(stated_s, 0.0) * (stream.rate or SAMPLE_RATE)))
    rate, blocks, resampler = 0, [], None
    for frame in file.decode(stream):
        if resampler is None:
            rate = frame.sample_rate
            _check_header(rate, frame.layout.nb_channels, 0)
            resampler = av.AudioResampler(format="fltp", layout=frame.layout, rate=rate)
        blocks += [_mono(part.to_ndarray()) for part in resampler.resample(frame)]
    blocks += [_mono(part.to_ndarray()) for part in resampler.resample(None)] if resampler else []
    waveform = _join(blocks)
    if rate and len(waveform) / rate < 0.95 * stated_s - 0.1:  # edit lists and priming take less than that
        raise AudioError("truncated", f"{len(waveform) / rate:.2f} s of {stated_s:.2f} s are there")
    return waveform, rate or SAMPLE_RATE


def _check_header(rate: int, n_channels: int, n_frames: int) -> None:
    if not RATE_RANGE[0] <= rate <= RATE_RANGE[1]:
        raise AudioError("absurd_header", f"sampling rate {rate} Hz (allowed: {RATE_RANGE[0]} to {RATE_RANGE[1]})")
    if not 1 <= n_channels <= MAX_CHANNELS:
        raise AudioError("absurd_header", f"{n_channels} channels (allowed: 1 to {MAX_CHANNELS})")
    if n_frames > MAX_HOURS * 3600 * rate:
        raise AudioError("absurd_header", f"{n_frames} frames at {rate} Hz are more than {MAX_HOURS} hours")


def _mono(block: np.ndarray) -> np.ndarray:
    """(n_channels, n_frames) → (n_frames,)."""
    return block[0] if len(block) == 1 else block.mean(axis=0, dtype=np.float32)


def _join(blocks: list[np.ndarray]) -> np.ndarray:
    return np.ascontiguousarray(np.concatenate(blocks), dtype=np.float32) if blocks else np.zeros(0, np.float32)
