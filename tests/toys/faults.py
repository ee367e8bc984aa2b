"""Faults of a corpus, each planted by the function of its reason's name: in an audio file or in a row of the table."""

import os
import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np

import tests.toys.corpora as toys

Row = dict[str, str]


def wav(number: int, seconds: float = 0.3) -> bytes:
    """A chord as a WAV file."""
    return toys.encode(toys.tone(number, seconds))


def missing_file(root: Path, row: Row, number: int) -> None:
    row["path"] = f"wav/gone{number}.wav" if number % 2 else "wav"  # nothing there, or a folder


def outside_root(root: Path, row: Row, number: int) -> None:
    outside = root.parent / f"outside{number}.wav"
    outside.write_bytes(wav(number))
    link = root / "wav" / f"link{number}.wav"
    os.symlink(outside, link)
    (root / "wav" / f"folder{number}").symlink_to(root.parent, target_is_directory=True)
    choices = [f"../{outside.name}", str(outside), f"wav/{link.name}", f"wav/folder{number}/{outside.name}"]
    row["path"] = choices[number % 4]


def unreadable(root: Path, row: Row, number: int) -> None:
    content = [b"this is no audio", b"RIFF....WAVEfmt ", os.urandom(2000), b"#EXTM3U\nfile:///etc/passwd\n"]
    (root / row["path"]).write_bytes(content[number % 4])


def truncated(root: Path, row: Row, number: int) -> None:
    data = toys.encode(toys.tone(number, 0.5), ["wav", "flac", "m4a", "opus"][number % 4])
    (root / row["path"]).write_bytes(data[: len(data) * 2 // 3])


def absurd_header(root: Path, row: Row, number: int) -> None:
    data = bytearray(wav(number))
    struct.pack_into("<HI", data, data.index(b"fmt ") + 10, *[(0, 16_000), (999, 16_000), (1, 1), (1, 3_000_000_000)][number % 4])
    (root / row["path"]).write_bytes(data)


def empty(root: Path, row: Row, number: int) -> None:
    (root / row["path"]).write_bytes(b"" if number % 2 else toys.encode(np.zeros(0, np.float32)))


def silent(root: Path, row: Row, number: int) -> None:
    (root / row["path"]).write_bytes(toys.encode(np.full(4000 + number, 0.1 * (number % 2), np.float32)))


def too_short(root: Path, row: Row, number: int) -> None:
    (root / row["path"]).write_bytes(wav(number, 0.05))


def too_long(root: Path, row: Row, number: int) -> None:
    (root / row["path"]).write_bytes(toys.encode(toys.tone(number, 6.0, 4000), rate=4000))


def non_finite(root: Path, row: Row, number: int) -> None:
    wave = toys.tone(number, 0.3).copy()
    wave[number % 100] = [np.nan, np.inf, -np.inf, np.nan][number % 4]
    (root / row["path"]).write_bytes(toys.encode(wave, subtype="FLOAT"))


def missing_transcript(root: Path, row: Row, number: int) -> None:
    del row["transcript"]  # a short row of the table: the last column is not there


def empty_transcript(root: Path, row: Row, number: int) -> None:
    row["transcript"] = ["", "   ", "?!", "…"][number % 4]


def duplicate_id(root: Path, row: Row, number: int) -> None:
    row["id"] = "utterance0000"
    row["path"] = row["path"].replace("wav/", "wav/x")  # the kept one is the first by path
    (root / row["path"]).write_bytes(wav(number))


def duplicate_audio(root: Path, row: Row, number: int) -> None:
    (root / row["path"]).write_bytes(toys.encode((toys.tone(1, 0.3)), "wav" if number % 2 else "flac"))


def infeasible_ctc(root: Path, row: Row, number: int) -> None:
    row["transcript"] = "bookkeeper " * 3  # more labels and repeats than 0.3 s have frames


PLANTED: list[Callable[[Path, Row, int], None]] = [
    missing_file, outside_root, unreadable, truncated, absurd_header, empty, silent, too_short, too_long, non_finite,
    missing_transcript, empty_transcript, duplicate_id, duplicate_audio, infeasible_ctc,
]  # fmt: skip
