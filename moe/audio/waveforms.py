"""Any recording becomes one mono float32 waveform at 16 kHz.

libsndfile (soundfile) reads wav, flac, aiff, mp3, ogg and opus; PyAV reads what it cannot (m4a, aac, webm); soxr resamples.
Recordings come as bytes, so that files, shard members and Parquet cells take one path. The container is known by its first bytes
and the demuxer is forced: a playlist disguised as audio can make no decoder open another file.
"""

import contextlib
import io
from collections.abc import Iterator
from pathlib import Path

import av
import numpy as np
import soundfile
import soxr

from moe.audio.headers import is_soundfile, may_use_av, missing_bytes, needs_av, stated_header

SAMPLE_RATE = 16_000
RATE_RANGE = (1_000, 768_000)  # Hz; outside, the header is absurd
MAX_CHANNELS = 64
MAX_HOURS = 24  # a header that claims more is absurd
BLOCK_FRAMES = 1 << 18
SILENT_PEAK = 1e-3  # −60 dBFS about the mean
SOUNDFILE_ERRORS = (soundfile.SoundFileError, RuntimeError, OverflowError, MemoryError, ValueError)
AV_ERRORS = (av.FFmpegError, ValueError, OverflowError, MemoryError)


class _Memory(io.BytesIO):
    """Bytes as a file for libsndfile, which may seek before their beginning in a damaged one."""

    def seek(self, offset: int, whence: int = 0) -> int:
        """As BytesIO, but a place before the beginning is refused by staying."""
        try:
            return super().seek(offset, whence)
        except (ValueError, OverflowError):
            return self.tell()


class AudioError(ValueError):
    """A recording that cannot be used: `reason` is one of `moe.corpora.quarantine.REASONS`."""

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


def decode_audio(source: Path | str | bytes, max_duration_s: float = MAX_HOURS * 3600.0) -> tuple[np.ndarray, int]:
    """Decode a recording at its own rate.

    Args:
        max_duration_s: where decoding stops, so that memory is bounded whatever the file unfolds to.
    Returns:
        Float32 mono waveform (the mean of its channels), shape (n_samples,), and its rate in Hz.
    Raises:
        AudioError: as `load_audio`, or longer than `max_duration_s`.
    """
    data = source if isinstance(source, bytes) else Path(source).read_bytes()
    if not data:
        raise AudioError("empty", "the file has no bytes")
    waveform, rate = _decode(data, max_duration_s)
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


def _decode(data: bytes, max_s: float) -> tuple[np.ndarray, int]:
    forced = needs_av(data)
    if forced is not None:
        return _decode_av(data, forced, max_s)
    if not is_soundfile(data):
        raise AudioError("unreadable", f"no known audio container (begins with {data[:8].hex(' ')})")
    stated = stated_header(data)
    if stated is not None:
        _check_header(*stated)
    try:
        file = soundfile.SoundFile(_Memory(data))
    except SOUNDFILE_ERRORS as error:
        return _decode_fallback(data, max_s, error)
    with file:
        return _decode_soundfile(file, data, max_s)


def _decode_fallback(data: bytes, max_s: float, error: Exception) -> tuple[np.ndarray, int]:
    forced = may_use_av(data)
    if forced is not None:
        with contextlib.suppress(AudioError):
            return _decode_av(data, forced, max_s)
    if missing_bytes(data):
        raise AudioError("truncated", f"{missing_bytes(data)} bytes are missing at the end") from error
    raise AudioError("unreadable", _line(error)) from error


def _decode_soundfile(file: soundfile.SoundFile, data: bytes, max_s: float) -> tuple[np.ndarray, int]:
    _check_header(file.samplerate, file.channels, file.frames)
    stated, rate, blocks = file.frames, file.samplerate, []
    try:
        while len(block := file.read(BLOCK_FRAMES, dtype="float32", always_2d=True)):
            blocks.append(_mono(block))
            _check_length(sum(map(len, blocks)), rate, max_s, stated)
    except AudioError:
        raise
    except SOUNDFILE_ERRORS as error:
        raise AudioError("truncated", f"decoding of {stated} frames breaks off: {_line(error)}") from error
    waveform = _join(blocks)
    _check_whole(data, len(waveform), stated)
    return waveform, rate


def _check_whole(data: bytes, n_frames: int, stated: int) -> None:
    if n_frames < stated:
        raise AudioError("truncated", f"{n_frames} of {stated} frames are there")
    if missing_bytes(data):
        raise AudioError("truncated", f"{missing_bytes(data)} bytes are missing at the end")


def _decode_av(data: bytes, container: str, max_s: float) -> tuple[np.ndarray, int]:
    missing = missing_bytes(data)
    try:
        with av.open(io.BytesIO(data), mode="r", format=container, metadata_errors="replace") as file:
            if not file.streams.audio:
                raise AudioError("unreadable", "the file holds no audio stream")
            waveform, rate = _decode_stream(file, file.streams.audio[0], max_s)
    except AV_ERRORS as error:
        if isinstance(error, AudioError) and (not missing or error.reason == "too_long"):
            raise
        raise AudioError(
            "truncated" if missing else "unreadable", f"{missing} bytes missing; {_line(error)}" if missing else _line(error)
        ) from error
    if missing:
        raise AudioError("truncated", f"{missing} bytes are missing at the end")
    return waveform, rate


def _decode_stream(file: av.container.InputContainer, stream: av.AudioStream, max_s: float) -> tuple[np.ndarray, int]:
    if stream.codec_context is None:
        raise AudioError("unreadable", "the codec of the audio stream is not known")
    stated_s = float(stream.duration * stream.time_base) if stream.duration and stream.time_base else 0.0
    _check_header(stream.rate or SAMPLE_RATE, stream.channels or 1, int(max(stated_s, 0.0) * (stream.rate or SAMPLE_RATE)))
    rate, n_channels, n_frames, blocks, resampler = 0, 1, 0, [], None
    for frame in _frames(file, stream):
        if resampler is None:
            rate, n_channels = frame.sample_rate, frame.layout.nb_channels
            _check_header(rate, n_channels, 0)
            # packed: PyAV miscounts the planes of frames with eight or more channels and reads beyond them
            resampler = av.AudioResampler(format="flt", layout=frame.layout, rate=rate)
        blocks += [part.to_ndarray()[0] for part in resampler.resample(frame)]
        n_frames += frame.samples
        _check_length(n_frames, rate, max_s, int(stated_s * rate))
    blocks += [part.to_ndarray()[0] for part in resampler.resample(None) if part] if resampler else []
    waveform = _mono(_join(blocks).reshape(-1, n_channels))
    if rate and len(waveform) / rate < 0.95 * stated_s - 0.1:  # edit lists and priming take less than that
        raise AudioError("truncated", f"{len(waveform) / rate:.2f} s of {stated_s:.2f} s are there")
    return waveform, rate or SAMPLE_RATE


def _frames(file: av.container.InputContainer, stream: av.AudioStream) -> Iterator[av.AudioFrame]:
    n_frames = 0
    try:
        for frame in file.decode(stream):
            n_frames += 1
            yield frame
    except av.FFmpegError as error:
        raise AudioError(
            "truncated" if n_frames else "unreadable", f"decoding breaks off after {n_frames} packets: {_line(error)}"
        ) from error


def _check_header(rate: int, n_channels: int, n_frames: int) -> None:
    if not RATE_RANGE[0] <= rate <= RATE_RANGE[1]:
        raise AudioError("absurd_header", f"sampling rate {rate} Hz (allowed: {RATE_RANGE[0]} to {RATE_RANGE[1]})")
    if not 1 <= n_channels <= MAX_CHANNELS:
        raise AudioError("absurd_header", f"{n_channels} channels (allowed: 1 to {MAX_CHANNELS})")
    if n_frames > MAX_HOURS * 3600 * rate:
        raise AudioError("absurd_header", f"{n_frames} frames at {rate} Hz are more than {MAX_HOURS} hours")


def _check_length(n_frames: int, rate: int, max_s: float, stated: int) -> None:
    if n_frames > max_s * rate:
        raise AudioError("too_long", f"{max(n_frames, stated) / rate:.3f} s or more (allowed: {max_s:g} s)")


def _mono(block: np.ndarray) -> np.ndarray:
    """The mean of the channels of float32 samples (n_frames, n_channels), channel by channel: numpy's own is slow."""
    mono = block[:, 0].copy()  # (n_frames,)
    for channel in range(1, block.shape[1]):
        mono += block[:, channel]
    return mono / block.shape[1] if block.shape[1] > 1 else mono


def _join(blocks: list[np.ndarray]) -> np.ndarray:
    return blocks[0] if len(blocks) == 1 else np.concatenate(blocks) if blocks else np.zeros(0, np.float32)


def _line(error: Exception) -> str:
    return " ".join(getattr(error, "error_string", str(error)).split())
