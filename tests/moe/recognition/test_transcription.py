"""Every recording gets a file or a reason; what was done is not done again; what was interrupted goes on."""

import json
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import tests.toys.corpora as toys
from moe.recognition.recognizer import Segment, Transcript
from moe.recognition.transcription import (
    FAILED,
    RECORD,
    SKIPPED,
    WRITTEN,
    Outcome,
    Transcription,
    find_recordings,
    groups_of,
    output_names,
)


class Hearing:
    """Says how long each recording is; counts the recordings it was given, and fails on silence."""

    def __init__(self) -> None:
        self.encoded: list[int] = []

    def __call__(self, waveforms: Sequence[np.ndarray]) -> list[Transcript]:
        if any(not wave.any() for wave in waveforms):
            raise RuntimeError("silence")
        self.encoded += [len(wave) for wave in waveforms]
        return [Transcript(f"{len(wave)}", (Segment(0.0, 1.0, f"{len(wave)}", 0.5),), (0.3, 0.7), 0.5) for wave in waveforms]


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    root = tmp_path / "corpus"
    (root / "deep" / "er").mkdir(parents=True)
    for number, name in enumerate(("a.wav", "b.flac", "deep/a.wav", "deep/er/c.MP3", "deep/er/c.ogg")):
        container = name.rpartition(".")[2].lower()
        (root / name).write_bytes(toys.encode(toys.tone(number, 0.2 + 0.1 * number), container))
    (root / "notes.txt").write_text("no audio")
    return root


def run(
    corpus: Path, out: Path, ending: str = "json", settings: str = "model 1", hearing: Hearing | None = None
) -> dict[str, Outcome]:
    work = Transcription(hearing or Hearing(), out, ending, settings)
    outcomes = list(work.run(find_recordings(corpus), corpus))
    assert len({outcome.audio for outcome in outcomes}) == len(outcomes)
    return {outcome.audio: outcome for outcome in outcomes}


def statuses(outcomes: dict[str, Outcome]) -> set[str]:
    return {outcome.status for outcome in outcomes.values()}


def test_every_recording_gets_a_file_in_its_place(corpus: Path, tmp_path: Path) -> None:
    found = run(corpus, tmp_path / "out")
    assert {name: outcome.output for name, outcome in found.items()} == {
        "a.wav": "a.json", "b.flac": "b.json", "deep/a.wav": "deep/a.json", "deep/er/c.MP3": "deep/er/c.MP3.json",
        "deep/er/c.ogg": "deep/er/c.ogg.json",
    }  # fmt: skip
    for outcome in found.values():
        kept = json.loads((tmp_path / "out" / outcome.output).read_text())
        assert (
            kept["audio"] == outcome.audio and kept["text"] == outcome.text and outcome.status == WRITTEN and outcome.expert == 1
        )


def test_a_second_run_does_nothing_and_says_the_same(corpus: Path, tmp_path: Path) -> None:
    first, hearing = run(corpus, tmp_path / "out"), Hearing()
    again = run(corpus, tmp_path / "out", hearing=hearing)
    assert hearing.encoded == [] and statuses(again) == {SKIPPED}
    assert {name: outcome.text for name, outcome in again.items()} == {name: outcome.text for name, outcome in first.items()}


def test_only_what_changed_is_done_again(corpus: Path, tmp_path: Path) -> None:
    run(corpus, tmp_path / "out")
    (corpus / "a.wav").write_bytes(toys.encode(toys.tone(9, 0.7)))  # another recording
    (tmp_path / "out" / "b.json").write_text("{}")  # an output that was touched
    (tmp_path / "out" / "deep" / "a.json").unlink()
    (corpus / "new.wav").write_bytes(toys.encode(toys.tone(8, 0.3)))
    again = run(corpus, tmp_path / "out")
    assert {name for name, outcome in again.items() if outcome.status == WRITTEN} == {"a.wav", "b.flac", "deep/a.wav", "new.wav"}
    assert again["a.wav"].text == str(int(0.7 * toys.RATE))


@pytest.mark.parametrize("change", [{"settings": "model 2"}, {"ending": "srt"}])
def test_another_model_or_format_makes_every_file_new(corpus: Path, tmp_path: Path, change: dict[str, str]) -> None:
    run(corpus, tmp_path / "out")
    assert statuses(run(corpus, tmp_path / "out", **change)) == {WRITTEN}


def test_interrupted_anywhere_it_goes_on(corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Killed after two files, in the middle of the line of the second."""
    monkeypatch.setattr("moe.recognition.transcription.GROUP_FILES", 1)
    outcomes = Transcription(Hearing(), tmp_path / "out", "json", "model 1").run(find_recordings(corpus), corpus)
    next(outcomes), next(outcomes)
    outcomes.close()
    record = tmp_path / "out" / RECORD
    record.write_text(record.read_text()[:-20])
    hearing = Hearing()
    again = run(corpus, tmp_path / "out", hearing=hearing)
    assert [again[name].status for name in ("a.wav", "b.flac")] == [SKIPPED, WRITTEN] and len(hearing.encoded) == 4
    assert statuses(run(corpus, tmp_path / "out")) == {SKIPPED}


@given(st.lists(st.integers(0, 60), max_size=12), st.integers(1, 5))
def test_groups_keep_the_order_and_neither_files_nor_bytes_are_too_many(sizes: list[int], n_files: int) -> None:
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        patch.setattr("moe.recognition.transcription.GROUP_FILES", n_files)
        patch.setattr("moe.recognition.transcription.GROUP_BYTES", 50)
        paths = [Path(folder) / f"{number:02d}.wav" for number in range(len(sizes))]
        for path, size in zip(paths, sizes, strict=True):
            path.write_bytes(b"x" * size)
        paths.append(Path(folder) / "gone.wav")
        groups = groups_of(paths)
        assert [path for group in groups for path in group] == paths and all(1 <= len(group) <= n_files for group in groups)
        n_bytes = [sum(path.stat().st_size for path in group if path.exists()) for group in groups]
        assert all(size <= 50 or len(group) == 1 for size, group in zip(n_bytes, groups, strict=True))


def test_groups_name_their_outputs_among_all_recordings(corpus: Path, tmp_path: Path) -> None:
    work, paths = Transcription(Hearing(), tmp_path / "out", "json", "model 1"), find_recordings(corpus)
    found = [outcome.output for path in paths for outcome in work.run([path], corpus, paths)]
    assert found == [outcome.output for outcome in run(corpus, tmp_path / "whole").values()]


def test_what_cannot_be_read_or_recognised_is_a_failure_with_its_reason_and_is_tried_again(corpus: Path, tmp_path: Path) -> None:
    (corpus / "broken.wav").write_bytes(b"RIFF....WAVEnot really")
    (corpus / "empty.wav").write_bytes(b"")
    (corpus / "silent.wav").write_bytes(toys.encode(np.zeros(1600, np.float32)))
    for _ in range(2):
        found = run(corpus, tmp_path / "out")
        failed = {name: outcome.reason for name, outcome in found.items() if outcome.status == FAILED}
        assert set(failed) == {"broken.wav", "empty.wav", "silent.wav"} and len(found) == 8
        assert (
            failed["empty.wav"] == "empty: the file has no bytes" and failed["silent.wav"] == "silence" and failed["broken.wav"]
        )
    assert not (tmp_path / "out" / "silent.json").exists()


def test_a_single_recording_may_have_any_name(tmp_path: Path) -> None:
    path = tmp_path / "recording"
    path.write_bytes(toys.encode(toys.tone(1)))
    (outcome,) = Transcription(Hearing(), tmp_path / "out", "vtt", "").run(find_recordings(path), tmp_path)
    assert (tmp_path / "out" / "recording.vtt").read_text().startswith("WEBVTT") and outcome.status == WRITTEN


@pytest.mark.parametrize("name", ["gone", "empty"])
def test_a_place_without_recordings_is_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match=name):
        find_recordings(tmp_path / name)


def test_names_that_differ_by_their_ending_alone_keep_it() -> None:
    assert output_names(["x/a.wav", "x/A.flac", "y/a.wav"], "srt") == {
        "x/a.wav": "x/a.wav.srt", "x/A.flac": "x/A.flac.srt", "y/a.wav": "y/a.srt"
    }  # fmt: skip


def test_the_channel_that_is_asked_for_is_transcribed_and_said(tmp_path: Path) -> None:
    """Left and right cancel each other: mixed, there is nothing to transcribe."""
    voice, seen = toys.tone(3, 0.5), list[np.ndarray]()
    corpus = tmp_path / "corpus"
    corpus.mkdir()
    (corpus / "a.wav").write_bytes(toys.encode(np.stack([0.8 * voice, -voice], axis=1), subtype="FLOAT"))

    def recognise(waveforms: Sequence[np.ndarray]) -> list[Transcript]:
        seen.extend(waveforms)
        return [Transcript("a", (), (), 0.5)] * len(waveforms)

    for channels, taken, gain in (("mix", 1, -1.0), ("loudest", 1, -1.0), ("first", 0, 0.8)):
        work = Transcription(recognise, tmp_path / channels, "json", "model 1", channels)
        (outcome,) = work.run(find_recordings(corpus), corpus)
        assert outcome.channel == taken
        np.testing.assert_allclose(seen.pop(), gain * voice, atol=1e-6)
