"""The samples of a recording by libsndfile or PyAV, with what the bytes claim held against what is there."""

import contextlib
import io
from collections.abc import Callable, Iterator
from typing import BinaryIO

import av
import numpy as np
import soundfile

from moe.audio.containers import is_soundfile, may_use_av, needs_av
from moe.audio.headers import is_open_ended, missing_bytes, stated_header, with_known_size
from moe.audio.sampling import SAMPLE_RATE

RATE_RANGE = (1_000, 768_000)  # Hz; outside, the header is absurd
MAX_CHANNELS = 64
MAX_HOURS = 24  # a header that claims more is absurd
BLOCK_FRAMES = 1 << 18
HEAD_BYTES = 64  # tell the container
SOUNDFILE_ERRORS = (soundfile.SoundFileError, RuntimeError, OverflowError, MemoryError, ValueError)
Mono = Callable[[np.ndarray], np.ndarray]  # (n_frames, n_channels) → (n_frames,)
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


def decode(data: bytes, max_s: float, mono: Mono) -> tuple[np.ndarray, int]:
    """The samples of a recording's bytes, (n_samples,), and its rate in Hz.

    Args:
        max_s: seconds after which decoding stops. mono: makes one channel of a block of several.

    Raises:
        AudioError: unreadable, truncated, longer than `max_s` or with an absurd header.
    """
    forced = "flac" if is_open_ended(data) else needs_av(data)
    if forced is not None:
        return _decode_av(data, forced, max_s, mono)
    if not is_soundfile(data):
        raise AudioError("unreadable", f"no known audio container (begins with {data[:8].hex(' ')})")
    stated = stated_header(data)
    if stated is not None:
        _check_header(*stated)
    try:
        file = soundfile.SoundFile(_Memory(with_known_size(data)))
    except SOUNDFILE_ERRORS as error:
        return _decode_fallback(data, max_s, mono, error)
    with file:
        return _decode_soundfile(file, data, max_s, mono)


def stated_seconds(file: BinaryIO) -> float:
    """Seconds of a recording as its header states them; nothing is decoded.

    Raises:
        AudioError: the header cannot be read, or does not say.
    """
    head = file.read(HEAD_BYTES)
    file.seek(0)
    forced = needs_av(head)
    try:
        if forced is None:
            return float(soundfile.info(file).duration)
        with av.open(file, mode="r", format=forced) as container:
            duration = container.duration
    except (*SOUNDFILE_ERRORS, *AV_ERRORS) as error:
        raise AudioError("unreadable", _line(error)) from error
    if duration is None:
        raise AudioError("unreadable", "the header states no duration")
    return float(duration / av.time_base)


def _decode_fallback(data: bytes, max_s: float, mono: Mono, error: Exception) -> tuple[np.ndarray, int]:
    forced = may_use_av(data)
    if forced is not None:
        with contextlib.suppress(AudioError):
            return _decode_av(data, forced, max_s, mono)
    if missing_bytes(data):
        raise AudioError("truncated", f"{missing_bytes(data)} bytes are missing at the end") from error
    raise AudioError("unreadable", _line(error)) from error


def _decode_soundfile(file: soundfile.SoundFile, data: bytes, max_s: float, mono: Mono) -> tuple[np.ndarray, int]:
    _check_header(file.samplerate, file.channels, file.frames)
    stated, rate, blocks = file.frames, file.samplerate, []
    try:
        while len(block := file.read(BLOCK_FRAMES, dtype="float32", always_2d=True)):
            blocks.append(mono(block))
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


def _decode_av(data: bytes, container: str, max_s: float, mono: Mono) -> tuple[np.ndarray, int]:
    missing = missing_bytes(data)
    try:
        with av.open(io.BytesIO(data), mode="r", format=container, metadata_errors="replace") as file:
            if not file.streams.audio:
                raise AudioError("unreadable", "the file holds no audio stream")
            waveform, rate = _decode_stream(file, file.streams.audio[0], max_s, mono)
    except AV_ERRORS as error:
        if isinstance(error, AudioError) and (not missing or error.reason == "too_long"):
            raise
        raise AudioError(
            "truncated" if missing else "unreadable", f"{missing} bytes missing; {_line(error)}" if missing else _line(error)
        ) from error
    if missing:
        raise AudioError("truncated", f"{missing} bytes are missing at the end")
    return waveform, rate


def _decode_stream(file: av.container.InputContainer, stream: av.AudioStream, max_s: float, mono: Mono) -> tuple[np.ndarray, int]:
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
    waveform = mono(_join(blocks).reshape(-1, n_channels))
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


def _join(blocks: list[np.ndarray]) -> np.ndarray:
    return blocks[0] if len(blocks) == 1 else np.concatenate(blocks) if blocks else np.zeros(0, np.float32)


def _line(error: Exception) -> str:
    return " ".join(getattr(error, "error_string", str(error)).split())
