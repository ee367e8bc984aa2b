"""Transcripts as files: JSON with everything, plain text, SRT and WebVTT for players, CSV and TSV for tables."""

import csv
import dataclasses
import io
import json
from collections.abc import Callable, Mapping
from typing import Any

from moe.recognition.cues import cues
from moe.recognition.recognizer import Transcript

CSV_COLUMNS = ("start_s", "end_s", "text", "confidence", "no_speech")


def to_json(transcript: Transcript, facts: Mapping[str, Any]) -> str:
    """Everything that was found, after `facts` (the recording's name, the model …)."""
    return json.dumps({**facts, **dataclasses.asdict(transcript)}, indent=1, ensure_ascii=False) + "\n"


def to_text(transcript: Transcript, facts: Mapping[str, Any]) -> str:
    """The text of each chunk on a line."""
    return "".join(f"{segment.text}\n" for segment in transcript.segments if segment.text)


def to_srt(transcript: Transcript, facts: Mapping[str, Any]) -> str:
    """SubRip: numbered cues; chunks in which nothing was recognised are left out."""
    return "".join(
        f"{number}\n{clock(cue.start_s, ',')} --> {clock(cue.end_s, ',')}\n{cue.text}\n\n"
        for number, cue in enumerate(cues(transcript), start=1)
    )


def to_vtt(transcript: Transcript, facts: Mapping[str, Any]) -> str:
    """WebVTT (W3C), with its markup characters escaped."""
    found = (f"{clock(cue.start_s, '.')} --> {clock(cue.end_s, '.')}\n{_escape(cue.text)}\n\n" for cue in cues(transcript))
    return "WEBVTT\n\n" + "".join(found)


def to_tsv(transcript: Transcript, facts: Mapping[str, Any]) -> str:
    """Start and end in milliseconds and the text of each chunk with speech, as openai-whisper writes it."""
    rows = (f"{each.start_s * 1000:.0f}\t{each.end_s * 1000:.0f}\t{each.text}\n" for each in transcript.segments if each.text)
    return "start\tend\ttext\n" + "".join(rows)


def to_csv(transcript: Transcript, facts: Mapping[str, Any]) -> str:
    """One row per chunk."""
    text = io.StringIO()
    writer = csv.DictWriter(text, CSV_COLUMNS, lineterminator="\n", extrasaction="ignore")
    writer.writeheader()
    writer.writerows(map(dataclasses.asdict, transcript.segments))
    return text.getvalue()


WRITERS: dict[str, Callable[[Transcript, Mapping[str, Any]], str]] = {
    "json": to_json,
    "txt": to_text,
    "srt": to_srt,
    "vtt": to_vtt,
    "csv": to_csv,
    "tsv": to_tsv,
}


def clock(seconds: float, point: str) -> str:
    """Seconds as hours:minutes:seconds and, after `point`, thousandths."""
    thousandths = round(seconds * 1000)
    minutes, rest = divmod(thousandths, 60_000)
    return f"{minutes // 60:02d}:{minutes % 60:02d}:{rest // 1000:02d}{point}{rest % 1000:03d}"


def _escape(text: str) -> str:
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
