"""Which files are recordings, by the end of their name, and which decoder reads one, by its first bytes.

The demuxer is always forced by what the bytes are: a playlist that is named as audio makes no decoder open another file.
"""

import posixpath

AUDIO_SUFFIXES = frozenset(
    ".wav .wave .flac .mp3 .m4a .mp4 .3gp .ogg .oga .opus .aac .webm .mka .mkv .aif .aiff .aifc .amr .wma .rf64 .w64 .sph .nist .au .snd"
    " .caf .voc .svx .8svx .pvf .paf .ircam .sf .avr .wve .wv .tta .sds .htk".split()
)
W64_MAGIC = b"riff\x2e\x91\xcf\x11"
SOUNDFILE_MAGIC = (
    b"RIFF", b"RIFX", b"RF64", W64_MAGIC, b"FORM", b"fLaC", b"OggS", b"ID3", b"NIST_1A", b".snd", b"dns.", b"caff",
    b"Creative Voice File", b"PVF1", b" paf", b"fap ", b"2BIT", b"ALawSoundFile", b"MATLAB 5.0 MAT-file", b"\xf0\x7e",
    b"\x64\xa3\x01\x00", b"\x64\xa3\x02\x00", b"\x64\xa3\x03\x00", b"\x00\x01\xa3\x64", b"\x00\x02\xa3\x64", b"\x00\x03\xa3\x64",
)  # fmt: skip
AV_MAGIC = {b"\x1aE\xdf\xa3": "matroska", b"#!AMR": "amr", b"\x30\x26\xb2\x75": "asf", b"wvpk": "wv", b"TTA1": "tta"}
AV_FALLBACK = {
    b"RIFF": "wav",
    W64_MAGIC: "w64",
    b"ID3": "mp3",
    b"OggS": "ogg",
    b"caff": "caf",
    b"fLaC": "flac",
    b"NIST_1A": "nistsphere",
}


def is_recording(name: str) -> bool:
    """Whether a file's name ends as a recording's does."""
    return posixpath.splitext(name)[1].lower() in AUDIO_SUFFIXES


def needs_av(data: bytes) -> str | None:
    """The demuxer that PyAV must be held to, for what libsndfile does not read; else None."""
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
    return is_mp3 or data.startswith(SOUNDFILE_MAGIC) or _is_htk(data)


def _is_htk(data: bytes) -> bool:
    """HTK's waveforms have no magic number: a count of samples, a period, 2 bytes a sample, kind 0 (HTK Book 3.4, 5.10.1)."""
    return data[8:12] == b"\x00\x02\x00\x00" and int.from_bytes(data[4:8], "big") > 0


def _by_magic(data: bytes, table: dict[bytes, str]) -> str | None:
    return next((name for magic, name in table.items() if data.startswith(magic)), None)
