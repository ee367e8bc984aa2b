"""Transcripts as files: JSON with everything, SRT and WebVTT for players, CSV for tables."""

import csv
import dataclasses
import io
import json
from collections.abc import Callable, Mapping
from typing import Any

from moe.recognition.recognizer import Segment, Transcript

CSV_COLUMNS = ("start_s", "end_s", "text", "confidence", "no_speech")


def to_json(transcript: Transcript, facts: Mapping[str, Any]) -> str:
    """Everything that was found, after `facts` (the recording's name, the model …)."""
    return json.dumps({**facts, **dataclasses.asdict(transcript)}, indent=1, ensure_ascii=False) + "\n"


def to_srt(transcript: Transcript, facts: Mapping[str, Any]) -> str:
    """SubRip: numbered cues; chunks in which nothing was recognised are left out."""
    return "".join(
        f"{number}\n{clock(segment.start_s, ',')} --> {clock(segment.end_s, ',')}\n{segment.text}\n\n"
        for number, segment in enumerate(_spoken(transcript), start=1)
    )


def to_vtt(transcript: Transcript, facts: Mapping[str, Any]) -> str:
    """WebVTT (W3C), with its markup characters escaped."""
    cues = (f"{clock(each.start_s, '.')} --> {clock(each.end_s, '.')}\n{_escape(each.text)}\n\n" for each in _spoken(transcript))
    return "WEBVTT\n\n" + "".join(cues)


def to_csv(transcript: Transcript, facts: Mapping[str, Any]) -> str:
    """One row per chunk."""
    text = io.StringIO()
    writer = csv.DictWriter(text, CSV_COLUMNS, lineterminator="\n")
    writer.writeheader()
    writer.writerows(map(dataclasses.asdict, transcript.segments))
    return text.getvalue()


WRITERS: dict[str, Callable[[Transcript, Mapping[str, Any]], str]] = {
    "json": to_json,
    "srt": to_srt,
    "vtt": to_vtt,
    "csv": to_csv,
}


def clock(seconds: float, point: str) -> str:
    """Seconds as hours:minutes:seconds and, after `point`, thousandths."""
    thousandths = round(seconds * 1000)
    minutes, rest = divmod(thousandths, 60_000)
    return f"{minutes // 60:02d}:{minutes % 60:02d}:{rest // 1000:02d}{point}{rest % 1000:03d}"


def _spoken(transcript: Transcript) -> list[Segment]:
    return [segment for segment in transcript.segments if segment.text]


def _escape(text: str) -> str:
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
