"""What the bytes of a recording claim, read without a decoder: the numbers to hold it to.

Decoders clamp a length that runs past the end of the file, or call an impossible rate a broken file; here both get their own
name. A size that only stands for "not known", as whoever writes to a pipe leaves it, is no claim.
"""

import struct
from collections.abc import Iterator

from moe.audio.containers import W64_MAGIC

RF64_WHOLE, RF64_DATA = 20, 28  # places of the two sizes in the ds64 chunk, which an RF64 begins with (EBU Tech 3306)
AVR_HEADER = 128
UNKNOWN_FROM = 0x7F000000  # no recording that is read is so large: SoX writes 0x7FFFF000, arecord 0x80000000, ffmpeg 0xFFFFFFFF


def stated_header(data: bytes) -> tuple[int, int, int] | None:
    """Rate in Hz, channels and frames (0: not stated) as the header of a wav or flac states them; None for others."""
    if data.startswith(b"fLaC") and len(data) >= 26:
        packed = int.from_bytes(data[18:26], "big")  # rate 20 bits, channels − 1 3 bits, sample size 5, frames 36
        return packed >> 44, (packed >> 41 & 7) + 1, packed & (1 << 36) - 1
    chunk = _chunk(data, b"fmt ") if data.startswith((b"RIFF", b"RIFX")) else None
    if chunk is None or len(data) < chunk[0] + 8:
        return None
    _, n_channels, rate = struct.unpack_from(_order(data) + "HHI", data, chunk[0])
    return rate, n_channels, 0


def is_open_ended(data: bytes) -> bool:
    """Whether a flac does not say how many frames it has, which libsndfile cannot read."""
    stated = stated_header(data) if data.startswith(b"fLaC") else None
    return stated is not None and stated[2] == 0


def with_known_size(data: bytes) -> bytes:
    """The recording with its true size where the header has one that the decoder stumbles over: 0 in a wav or AU, −1 in a CAF, either in an RF64."""
    if data.startswith((b"RIFF", b"RIFX")):
        chunk, whole = _chunk(data, b"data"), _number(data, _order(data) + "I", 4)
        if chunk is not None and chunk[1] == 0 and len(data) > chunk[0] and whole + 8 != len(data):
            return _patched(data, _order(data) + "I", chunk[0] - 4, len(data) - chunk[0])
    if data.startswith(b"caff"):
        place = next((place for name, place, size in _caf_chunks(data) if name == b"data" and size >= UNKNOWN_FROM), None)
        if place is not None:
            return _patched(data, ">Q", place - 8, len(data) - place)
    if data.startswith((b".snd", b"dns.")):
        order = _au_order(data)
        place, size = _number(data, order + "I", 4), _number(data, order + "I", 8)
        if not size and len(data) > place:
            return _patched(data, order + "I", 8, len(data) - place)
    if data.startswith(b"RF64") and not 0 < _number(data, "<Q", RF64_DATA) < UNKNOWN_FROM and (chunk := _chunk(data, b"data")):
        data = _patched(data, "<Q", RF64_WHOLE, len(data) - 8)
        return _patched(data, "<Q", RF64_DATA, len(data) - chunk[0])
    return data


def missing_bytes(data: bytes) -> int:
    """Bytes that a recording claims beyond the end of the file, in the containers that state a size."""
    return max(0, _stated_end(data) - len(data))


def _stated_end(data: bytes) -> int:
    """Where the recording ends by its own header; 0 where that does not say."""
    if data.startswith((b"RIFF", b"RIFX")):
        return _end(*(_chunk(data, b"data") or (0, 0)))
    if data.startswith(b"RF64"):
        return _end(8, _number(data, "<Q", RF64_WHOLE))
    if data.startswith(W64_MAGIC):
        return _end(0, _number(data, "<Q", 16))
    if data.startswith(b"FORM"):
        return _end(8, _number(data, ">I", 4))
    if data.startswith((b".snd", b"dns.")):
        order = _au_order(data)
        return _end(_number(data, order + "I", 4), _number(data, order + "I", 8))
    if data.startswith(b"2BIT"):
        return _avr_end(data)
    if data.startswith(b"caff"):
        return max((_end(place, size) for _, place, size in _caf_chunks(data)), default=0)
    if data.startswith(b"NIST_1A"):
        return _sphere_end(data)
    if data.startswith(b"Creative Voice File"):
        return _voc_end(data)
    if data.startswith(b"OggS"):
        last = data.rfind(b"OggS")
        n_segments = data[last + 26] if last + 26 < len(data) else 0
        return last + 27 + n_segments + sum(data[last + 27 : last + 27 + n_segments])
    return _mp4_end(data) if data[4:8] == b"ftyp" else 0


def _end(place: int, size: int) -> int:
    return 0 if size >= UNKNOWN_FROM or not size else place + size


def _number(data: bytes, kind: str, place: int) -> int:
    return struct.unpack_from(kind, data, place)[0] if len(data) >= place + struct.calcsize(kind) else 0


def _patched(data: bytes, kind: str, place: int, value: int) -> bytes:
    return data[:place] + struct.pack(kind, value) + data[place + struct.calcsize(kind) :]


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


def _sphere_end(data: bytes) -> int:
    """Size of the header and of the samples of an uncompressed SPHERE file; lines are `name -type value`."""
    size = data[8:16].strip()
    n_header = int(size) if size.isdigit() else 0
    fields = {line[0]: line[2] for line in map(bytes.split, data[:n_header].split(b"\n")) if len(line) == 3}
    counts = [fields.get(name, b"") for name in (b"sample_count", b"channel_count", b"sample_n_bytes")]
    if not all(count.isdigit() for count in counts) or b"," in fields.get(b"sample_coding", b""):
        return 0  # a comma: compressed
    return _end(n_header, int(counts[0]) * int(counts[1]) * int(counts[2]))


def _avr_end(data: bytes) -> int:
    """The header, and the samples that it counts: of 8 or 16 bits, one channel or two."""
    wide, two = _number(data, ">H", 14) > 8, _number(data, ">H", 12) != 0
    return _end(AVR_HEADER, _number(data, ">I", 26) * (1 + wide) * (1 + two))


def _voc_end(data: bytes) -> int:
    """Where the last block ends that the file still begins; block 0 ends the file and has no size."""
    place = _number(data, "<H", 20)
    while 0 < place and place + 4 <= len(data) and data[place]:
        size = int.from_bytes(data[place + 1 : place + 4], "little")
        if size in (0, 0xFFFFFF):
            return 0
        place += 4 + size
    return place


def _caf_chunks(data: bytes) -> Iterator[tuple[bytes, int, int]]:
    """Name, place and stated size of every chunk's content."""
    place = 8
    while place + 12 <= len(data):
        name, size = data[place : place + 4], _number(data, ">Q", place + 4)
        yield name, place + 12, size
        place += 12 + size


def _chunk(data: bytes, wanted: bytes) -> tuple[int, int] | None:
    """Place and stated size of the content of a chunk of a wav."""
    place, order = 12, _order(data)
    while place + 8 <= len(data):
        name, size = data[place : place + 4], _number(data, order + "I", place + 4)
        if name == wanted:
            return place + 8, size
        place += 8 + size + size % 2
    return None


def _au_order(data: bytes) -> str:
    return ">" if data.startswith(b".snd") else "<"


def _order(data: bytes) -> str:
    return ">" if data.startswith(b"RIFX") else "<"
