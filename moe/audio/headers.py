"""What the bytes of a recording claim, read without a decoder: its container, and the numbers to hold it to.

Decoders clamp a length that runs past the end of the file, or call an impossible rate a broken file; here both get their own
name.
"""

import struct

SOUNDFILE_MAGIC = (b"RIFF", b"RF64", b"FORM", b"fLaC", b"OggS", b"ID3")
AV_MAGIC = {b"\x1aE\xdf\xa3": "matroska", b"#!AMR": "amr", b"\x30\x26\xb2\x75": "asf"}
AV_FALLBACK = {b"RIFF": "wav", b"ID3": "mp3", b"OggS": "ogg"}
UNKNOWN_SIZES = (0, 0x7FFFFFFF, 0xFFFFFFFF)  # what a wav writer on a pipe leaves as its data size


def needs_av(data: bytes) -> str | None:
    """The demuxer that PyAV must be held to, for containers libsndfile does not read; else None."""
    if data[4:8] == b"ftyp":
        return "mov"
    if len(data) > 1 and data[0] == 0xFF and data[1] & 0xF6 == 0xF0:  # ADTS: sync word with layer 0
        return "aac"
    return _by_magic(data, AV_MAGIC)


def may_use_av(data: bytes) -> str | None:
    """The demuxer to try where libsndfile gave up (codecs it does not know); else None."""
    return _by_magic(data, AV_FALLBACK)


def is_soundfile(data: bytes) -> bool:
    """Whether libsndfile may know the container; an mp3 may begin with its first frame."""
    is_mp3 = len(data) > 1 and data[0] == 0xFF and data[1] & 0xE6 == 0xE2  # sync word with layer III
    return is_mp3 or data.startswith(SOUNDFILE_MAGIC)


def stated_header(data: bytes) -> tuple[int, int, int] | None:
    """Rate in Hz, channels and frames (0: not told) as the header of a wav or flac states them; None for others."""
    if data.startswith(b"fLaC") and len(data) >= 26:
        packed = int.from_bytes(data[18:26], "big")  # rate 20 bits, channels − 1 3 bits, sample size 5, frames 36
        return packed >> 44, (packed >> 41 & 7) + 1, packed & (1 << 36) - 1
    chunk = _wav_chunk(data, b"fmt ") if data.startswith(b"RIFF") else None
    if chunk is None or len(data) < chunk[0] + 8:
        return None
    _, n_channels, rate = struct.unpack_from("<HHI", data, chunk[0])
    return rate, n_channels, 0


def missing_bytes(data: bytes) -> int:
    """Bytes that a wav, aiff, ogg or mp4 claims beyond the end of the file."""
    return max(0, _stated_end(data) - len(data))


def _stated_end(data: bytes) -> int:
    if data.startswith(b"RIFF"):
        chunk = _wav_chunk(data, b"data")
        return 0 if chunk is None or chunk[1] in UNKNOWN_SIZES else sum(chunk)
    if data.startswith(b"RF64") and len(data) >= 28:
        return 8 + struct.unpack_from("<Q", data, 20)[0]  # the size in the ds64 chunk
    if data.startswith(b"FORM") and len(data) >= 8:
        return 8 + struct.unpack_from(">I", data, 4)[0]
    if data.startswith(b"OggS"):
        last = data.rfind(b"OggS")
        n_segments = data[last + 26] if last + 26 < len(data) else 0
        return last + 27 + n_segments + sum(data[last + 27 : last + 27 + n_segments])
    return _mp4_end(data) if data[4:8] == b"ftyp" else 0


def _mp4_end(data: bytes) -> int:
    """Where the last top-level box ends that the file still begins."""
    place = 0
    while place + 8 <= len(data):
        size = struct.unpack_from(">I", data, place)[0]
        if size == 1 and place + 16 <= len(data):
            size = struct.unpack_from(">Q", data, place + 8)[0]
        if size < 8:  # 0: to the end of the file
            return 0
        place += size
    return place


def _wav_chunk(data: bytes, wanted: bytes) -> tuple[int, int] | None:
    """Place and stated size of a chunk's content."""
    place = 12
    while place + 8 <= len(data):
        name, size = data[place : place + 4], struct.unpack_from("<I", data, place + 4)[0]
        if name == wanted:
            return place + 8, size
        place += 8 + size + size % 2
    return None


def _by_magic(data: bytes, table: dict[bytes, str]) -> str | None:
    return next((name for magic, name in table.items() if data.startswith(magic)), None)
