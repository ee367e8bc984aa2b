"""Recordings on disk → one file of transcript each, as many at a time as fit together, resumed where it was interrupted.

A line for each file that is written goes into `transcribed.jsonl`: of which bytes, with which model and decoding. What was done and is
still there as it was is not done again; what cannot be read is a failure with its reason, and no other file suffers.
"""

import collections
import dataclasses
import functools
import hashlib
import json
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from moe.audio.containers import AUDIO_SUFFIXES, is_recording
from moe.audio.sampling import SAMPLE_RATE, resample
from moe.audio.waveforms import AudioError, decode_recording
from moe.corpora.formats.inventory import is_hidden
from moe.files import file_digest, write_whole
from moe.recognition.recognizer import Transcript
from moe.recognition.transcript_files import WRITERS

RECORD = "transcribed.jsonl"
GROUP_S, GROUP_FILES = 600.0, 16  # recordings decoded together: bounds memory, and what a kill can lose
GROUP_BYTES = int(GROUP_S * SAMPLE_RATE * 2)  # of `GROUP_S` in 16 bits
WRITTEN, SKIPPED, FAILED = "written", "skipped", "failed"
UNREADABLE = (AudioError, OSError)

Recognise = Callable[[Sequence[np.ndarray]], list[Transcript]]


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What became of a recording; `reason` says why it failed, `no_speech` that nobody speaks in it, `channel` which of several is taken."""

    audio: str
    output: str
    status: str
    audio_s: float = 0.0
    text: str = ""
    confidence: float | None = None
    n_segments: int = 0
    expert: int | None = None
    no_speech: bool = False
    channel: int | None = None
    reason: str = ""


@dataclasses.dataclass(frozen=True)
class _Waiting:
    """A recording that is read: its name, its transcript's path, the digest of its bytes, (n_samples,) at 16 kHz, and the channel taken."""

    name: str
    output: str
    digest: str
    waveform: np.ndarray
    channel: int | None

    @property
    def seconds(self) -> float:
        return len(self.waveform) / SAMPLE_RATE


def find_recordings(path: Path) -> list[Path]:
    """A recording, or those of a folder and the folders in it, sorted, links to folders not followed.

    Raises:
        ValueError: nothing is there, or no recordings.
    """
    if path.is_file():
        return [path]
    if not path.is_dir():
        raise ValueError(f"audio={path}: no such file or folder")
    found = [
        Path(folder) / name for folder, _, names in os.walk(path) for name in names if is_recording(name) and not is_hidden(name)
    ]
    if not found:
        raise ValueError(f"audio={path}: no recordings there ({' '.join(sorted(AUDIO_SUFFIXES))})")
    return sorted(found)


def groups_of(recordings: Sequence[Path]) -> list[list[Path]]:
    """Recordings, in their order, as groups that one process transcribes; their sizes alone decide, so that nothing is decoded for it."""
    groups: list[list[Path]] = []
    n_bytes = 0
    for path in recordings:
        size = path.stat().st_size if path.is_file() else 0
        if not groups or len(groups[-1]) == GROUP_FILES or n_bytes + size > GROUP_BYTES:
            groups.append([])
            n_bytes = 0
        groups[-1].append(path)
        n_bytes += size
    return groups


def output_names(names: Sequence[str], ending: str) -> dict[str, str]:
    """Recording → its transcript's path: the ending replaced, or added where two recordings differ by their ending alone."""
    stems = collections.Counter(str(Path(name).with_suffix("")).casefold() for name in names)
    return {
        name: f"{name}.{ending}"
        if stems[str(Path(name).with_suffix("")).casefold()] > 1
        else str(Path(name).with_suffix(f".{ending}"))
        for name in names
    }


class Transcription:
    """Transcribes files into a folder.

    Args:
        recognise: waveforms (n_samples,) at 16 kHz → transcripts.
        settings: what decides a transcript beside the audio: model, decoding; another one makes every file new.
        channels: as `moe.audio.waveforms.decode_recording`.
    """

    def __init__(self, recognise: Recognise, output_dir: Path, ending: str, settings: str, channels: str = "mix") -> None:
        self.recognise, self.output_dir, self.ending, self.channels = recognise, Path(output_dir), ending, channels
        self.settings = hashlib.sha256(f"{settings}\n{ending}".encode()).hexdigest()

    def run(self, recordings: Sequence[Path], root: Path, among: Sequence[Path] = ()) -> Iterator[Outcome]:
        """What became of each recording, as it happens; outputs lie below `output_dir` as recordings below `root`.

        Args:
            among: all recordings that are transcribed into the folder, by which those of one name are told apart; these alone by default.
        """
        names = {path: path.relative_to(root).as_posix() for path in recordings}
        outputs = output_names([path.relative_to(root).as_posix() for path in among or recordings], self.ending)
        group: list[_Waiting] = []
        for path, name in names.items():
            try:
                if not path.is_file():
                    raise OSError("no regular file (a dead link, a pipe or a socket)")
                digest = file_digest(path)
                if (kept := self._kept(name, outputs[name], digest)) is not None:
                    yield kept
                    continue
                recording = decode_recording(path, channels=self.channels)
            except UNREADABLE as error:
                yield Outcome(name, outputs[name], FAILED, reason=" ".join(str(error).split()))
                continue
            waveform = resample(recording.waveform, recording.rate)
            group.append(_Waiting(name, outputs[name], digest, waveform, recording.channel))
            if len(group) >= GROUP_FILES or sum(each.seconds for each in group) >= GROUP_S:
                yield from self._finish(group)
                group = []
        yield from self._finish(group)

    def _finish(self, group: list[_Waiting]) -> Iterator[Outcome]:
        """Transcribe a group and write it; where that fails, each by itself."""
        if not group:
            return
        try:
            transcripts = self.recognise([each.waveform for each in group])
        except (ValueError, RuntimeError) as error:
            if len(group) > 1:
                for each in group:
                    yield from self._finish([each])
            else:
                (each,) = group
                yield Outcome(each.name, each.output, FAILED, each.seconds, reason=" ".join(str(error).split()))
            return
        for each, transcript in zip(group, transcripts, strict=True):
            yield self._write(each, transcript)

    def _write(self, done: _Waiting, transcript: Transcript) -> Outcome:
        path = self.output_dir / done.output
        with write_whole(path) as aside:
            aside.write_text(WRITERS[self.ending](transcript, {"audio": done.name, "audio_s": done.seconds}), encoding="utf-8")
        weights = transcript.routing_weights
        expert = int(np.argmax(weights)) if weights else None
        outcome = Outcome(
            done.name, done.output, WRITTEN, done.seconds, transcript.text, transcript.confidence, len(transcript.segments), expert,
            transcript.no_speech, done.channel,
        )  # fmt: skip
        line = {
            "settings": self.settings,
            "audio_digest": done.digest,
            "output_digest": file_digest(path),
            **dataclasses.asdict(outcome),
        }
        with open(self.output_dir / RECORD, "ab", buffering=0) as record:  # in one piece: several processes may write
            record.write(f"{json.dumps(line, ensure_ascii=False)}\n".encode())
        return outcome

    @functools.cached_property
    def _done(self) -> dict[str, dict[str, Any]]:
        """The last line for each output, as it was at the start; a line that a kill cut off counts for nothing."""
        path = self.output_dir / RECORD
        found: dict[str, dict[str, Any]] = {}
        if not path.exists():
            return found
        text = path.read_text(encoding="utf-8", errors="replace")
        if text and not text.endswith("\n"):
            with open(path, "a", encoding="utf-8") as record:
                record.write("\n")
        for line in text.splitlines():
            try:
                row = json.loads(line)
                found[row["output"]] = row
            except (ValueError, KeyError, TypeError):
                continue
        return found

    def _kept(self, name: str, output: str, digest: str) -> Outcome | None:
        row = self._done.get(output)
        if row is None or (row.get("settings"), row.get("audio"), row.get("audio_digest")) != (self.settings, name, digest):
            return None
        path = self.output_dir / output
        if not path.is_file() or file_digest(path) != row["output_digest"]:
            return None
        fields = {field.name: row[field.name] for field in dataclasses.fields(Outcome)}
        return Outcome(**fields | {"status": SKIPPED})
