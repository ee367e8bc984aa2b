"""Recordings on disk → one file of transcript each, as many at a time as fit together, resumed where it was interrupted.

A line for each file that is written goes into `transcribed.jsonl`: of which bytes, with which model and decoding. What was done and is
still there as it was is not done again; what cannot be read is a failure with its reason, and no other file suffers.
"""

import collections
import dataclasses
import hashlib
import json
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from moe.audio.containers import AUDIO_SUFFIXES, is_recording
from moe.audio.waveforms import SAMPLE_RATE, AudioError, load_audio
from moe.corpora.formats.inventory import is_hidden
from moe.files import file_digest, write_whole
from moe.recognition.recognizer import Transcript
from moe.recognition.transcript_files import WRITERS

RECORD = "transcribed.jsonl"
GROUP_S, GROUP_FILES = 600.0, 32  # recordings decoded together: bounds memory, and what a kill can lose
WRITTEN, SKIPPED, FAILED = "written", "skipped", "failed"
UNREADABLE = (AudioError, OSError)

Recognise = Callable[[Sequence[np.ndarray]], list[Transcript]]


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What became of a recording; `reason` says why it failed, `no_speech` that nobody speaks in it."""

    audio: str
    output: str
    status: str
    audio_s: float = 0.0
    text: str = ""
    confidence: float | None = None
    n_segments: int = 0
    expert: int | None = None
    no_speech: bool = False
    reason: str = ""


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
    """

    def __init__(self, recognise: Recognise, output_dir: Path, ending: str, settings: str) -> None:
        self.recognise, self.output_dir, self.ending = recognise, Path(output_dir), ending
        self.settings = hashlib.sha256(f"{settings}\n{ending}".encode()).hexdigest()

    def run(self, recordings: Sequence[Path], root: Path) -> Iterator[Outcome]:
        """What became of each recording, as it happens; outputs lie below `output_dir` as recordings below `root`."""
        names = {path: path.relative_to(root).as_posix() for path in recordings}
        outputs, done = output_names(list(names.values()), self.ending), self._done()
        group: list[tuple[str, str, str, np.ndarray]] = []
        for path, name in names.items():
            try:
                if not path.is_file():
                    raise OSError("no regular file (a dead link, a pipe or a socket)")
                digest = file_digest(path)
                if (kept := self._kept(name, outputs[name], digest, done)) is not None:
                    yield kept
                    continue
                waveform = load_audio(path)
            except UNREADABLE as error:
                yield Outcome(name, outputs[name], FAILED, reason=" ".join(str(error).split()))
                continue
            group.append((name, outputs[name], digest, waveform))
            if len(group) >= GROUP_FILES or sum(len(each[-1]) for each in group) >= GROUP_S * SAMPLE_RATE:
                yield from self._finish(group)
                group = []
        yield from self._finish(group)

    def _finish(self, group: list[tuple[str, str, str, np.ndarray]]) -> Iterator[Outcome]:
        """Transcribe a group and write it; where that fails, each by itself."""
        if not group:
            return
        try:
            transcripts = self.recognise([waveform for *_, waveform in group])
        except (ValueError, RuntimeError) as error:
            if len(group) > 1:
                for each in group:
                    yield from self._finish([each])
            else:
                name, output, _, waveform = group[0]
                yield Outcome(name, output, FAILED, len(waveform) / SAMPLE_RATE, reason=" ".join(str(error).split()))
            return
        for (name, output, digest, waveform), transcript in zip(group, transcripts, strict=True):
            yield self._write(name, output, digest, len(waveform) / SAMPLE_RATE, transcript)

    def _write(self, name: str, output: str, digest: str, seconds: float, transcript: Transcript) -> Outcome:
        path = self.output_dir / output
        with write_whole(path) as aside:
            aside.write_text(WRITERS[self.ending](transcript, {"audio": name, "audio_s": seconds}), encoding="utf-8")
        weights = transcript.routing_weights
        expert = int(np.argmax(weights)) if weights else None
        outcome = Outcome(
            name, output, WRITTEN, seconds, transcript.text, transcript.confidence, len(transcript.segments), expert, transcript.no_speech
        )  # fmt: skip
        line = {
            "settings": self.settings,
            "audio_digest": digest,
            "output_digest": file_digest(path),
            **dataclasses.asdict(outcome),
        }
        with open(self.output_dir / RECORD, "a", encoding="utf-8") as record:
            record.write(json.dumps(line, ensure_ascii=False) + "\n")
        return outcome

    def _done(self) -> dict[str, dict[str, Any]]:
        """The last line for each output; a line that a kill cut off counts for nothing."""
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

    def _kept(self, name: str, output: str, digest: str, done: dict[str, dict[str, Any]]) -> Outcome | None:
        row = done.get(output)
        if row is None or (row.get("settings"), row.get("audio"), row.get("audio_digest")) != (self.settings, name, digest):
            return None
        path = self.output_dir / output
        if not path.is_file() or file_digest(path) != row["output_digest"]:
            return None
        fields = {field.name: row[field.name] for field in dataclasses.fields(Outcome)}
        return Outcome(**fields | {"status": SKIPPED})
