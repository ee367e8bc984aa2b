"""Transcript files are what players and tables can read."""

import csv
import io
import json
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from moe.recognition.recognizer import Segment, Transcript
from moe.recognition.transcript_files import WRITERS, clock, to_csv, to_json, to_srt, to_text, to_tsv, to_vtt

SEGMENTS = (Segment(0.0, 2.5, "one, two", 0.9), Segment(2.5, 4.0, "", 0.1), Segment(3719.0, 3725.0625, 'a < b & "c"', 0.5))
TRANSCRIPT = Transcript('one, two a < b & "c"', SEGMENTS, (0.25, 0.75), 0.7)


def test_srt_by_hand() -> None:
    expected = '1\n00:00:00,000 --> 00:00:02,500\none, two\n\n2\n01:01:59,000 --> 01:02:05,062\na < b & "c"\n\n'
    assert to_srt(TRANSCRIPT, {}) == expected


def test_vtt_by_hand() -> None:
    expected = 'WEBVTT\n\n00:00:00.000 --> 00:00:02.500\none, two\n\n01:01:59.000 --> 01:02:05.062\na &lt; b &amp; "c"\n\n'
    assert to_vtt(TRANSCRIPT, {}) == expected


def test_text_and_tsv_by_hand() -> None:
    assert to_text(TRANSCRIPT, {}) == 'one, two\na < b & "c"\n'
    assert to_tsv(TRANSCRIPT, {}) == 'start\tend\ttext\n0\t2500\tone, two\n3719000\t3725062\ta < b & "c"\n'


def test_csv_reads_back_with_every_piece() -> None:
    rows = list(csv.DictReader(io.StringIO(to_csv(TRANSCRIPT, {}))))
    assert [(float(row["start_s"]), float(row["end_s"]), row["text"], float(row["confidence"])) for row in rows] == [
        (each.start_s, each.end_s, each.text, each.confidence) for each in SEGMENTS
    ]


def test_json_holds_everything() -> None:
    found = json.loads(to_json(TRANSCRIPT, {"audio": "a.wav", "audio_s": 3725.1}))
    assert found["audio"] == "a.wav" and found["routing_weights"] == [0.25, 0.75] and found["confidence"] == 0.7
    assert [segment["text"] for segment in found["segments"]] == [each.text for each in SEGMENTS]


@pytest.mark.parametrize("name", WRITERS)
def test_a_recording_in_which_nothing_was_said_has_a_file_too(name: str) -> None:
    assert isinstance(WRITERS[name](Transcript("", (Segment(0.0, 1.0, "", 0.2),), (), 0.2), {}), str)


@given(st.floats(0, 360_000))
def test_a_clock_reads_back_to_the_thousandth(seconds: float) -> None:
    hours, minutes, rest, thousandths = map(
        int, re.fullmatch(r"(\d{2,}):([0-5]\d):([0-5]\d),(\d{3})", clock(seconds, ",")).groups()
    )
    assert abs(hours * 3600 + minutes * 60 + rest + thousandths / 1000 - seconds) <= 0.00051
