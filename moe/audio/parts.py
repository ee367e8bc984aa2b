"""A part of a recording as a recording of its own: from one second to another, or one of its channels."""

import io
import re
from dataclasses import dataclass

import numpy as np
import soundfile

from moe.audio.decoders import SOUNDFILE_ERRORS, AudioError
from moe.audio.headers import is_open_ended, missing_bytes, with_known_size
from moe.audio.waveforms import decode_recording

EXACT = (b"RIFF", b"RIFX", b"RF64", b"fLaC", b"NIST_1A", b"FORM", b".snd")  # libsndfile seeks to the sample in these
OVERSHOOT_S = 0.5  # a part may end so much behind the recording, as in Kaldi's extract-segments
_PART = re.compile(r"from=([\d.]+)(?:,to=([\d.]+))?(?:,channel=(\d+))?")


@dataclass(frozen=True)
class Part:
    """A part of a recording.

    Attributes:
        start_s, stop_s: seconds; without a stop it is the end.
        channel: from 0; None for all.
    """

    start_s: float = 0.0
    stop_s: float | None = None
    channel: int | None = None

    def __str__(self) -> str:
        stop = "" if self.stop_s is None else f",to={self.stop_s:.6f}"
        return f"from={self.start_s:.6f}{stop}" + ("" if self.channel is None else f",channel={self.channel}")

    @classmethod
    def of(cls, text: str) -> "Part | None":
        """The part that a text names, None where it names none."""
        found = _PART.fullmatch(text)
        if found is None:
            return None
        start, stop, channel = found.groups()
        return cls(float(start), float(stop) if stop else None, int(channel) if channel else None)


def cut_part(data: bytes, part: Part) -> bytes:
    """A part of a recording's bytes as the bytes of a wav of 32-bit floats with the channels that are left.

    Raises:
        AudioError: the recording cannot be read, is truncated, or ends before the part does.
    """
    if missing_bytes(data):
        raise AudioError("truncated", f"{missing_bytes(data)} bytes are missing at the end")
    samples, rate = _read(data, part)
    if part.channel is not None and part.channel >= samples.shape[1]:
        raise AudioError("unreadable", f"there is no channel {part.channel} (from 0): the recording has {samples.shape[1]}")
    kept = samples if part.channel is None else samples[:, part.channel]
    buffer = io.BytesIO()
    soundfile.write(buffer, kept, rate, format="WAV", subtype="FLOAT")
    return buffer.getvalue()


def _read(data: bytes, part: Part) -> tuple[np.ndarray, int]:
    """Samples (n_frames, n_channels) of the part, by seeking where that is exact."""
    if data.startswith(EXACT) and not is_open_ended(data):
        try:
            with soundfile.SoundFile(io.BytesIO(with_known_size(data))) as file:
                start, stop = _frames(part, file.samplerate, file.frames)
                file.seek(start)
                return file.read(stop - start, dtype="float32", always_2d=True), file.samplerate
        except SOUNDFILE_ERRORS as error:
            if isinstance(error, AudioError):
                raise
    recording = decode_recording(data, channels="mix" if part.channel is None else part.channel)
    start, stop = _frames(part, recording.rate, len(recording.waveform))
    columns = recording.waveform[start:stop, None]
    return (columns if part.channel is None else np.repeat(columns, part.channel + 1, axis=1)), recording.rate


def _frames(part: Part, rate: int, n_frames: int) -> tuple[int, int]:
    start, stop = round(part.start_s * rate), n_frames if part.stop_s is None else round(part.stop_s * rate)
    if start >= n_frames or stop > n_frames + OVERSHOOT_S * rate:
        raise AudioError("truncated", f"the part {part} ends behind the recording, which has {n_frames / rate:.3f} s")
    return start, min(stop, n_frames)
