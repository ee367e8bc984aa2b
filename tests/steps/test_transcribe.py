"""The step: a folder in, files and a run's table out."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import soundfile

import tests.toys.corpora as toys
from benchmarks.forked import fork
from benchmarks.voice_activity import tones
from moe.audio.waveforms import load_audio
from moe.files import read_json, write_json
from moe.recognition.recognizer import Recognizer
from moe.recognition.transcription import GROUP_FILES, RECORD, Transcription, find_recordings
from moe.system import DecodingOptions
from moe.systems.table import load_system
from moe.systems.whisper_moe.asks import MixtureAsk
from moe.training import processes
from steps import transcribe
from steps.tracking import artifacts
from steps.tracking.store import connect
from tests.toys.models import HALF, system_of, toy_mixture
from tests.toys.registry import log_toy_asr, toy_recording
from tests.toys.speech import RATE, spoken_wav


def test_a_folder_is_transcribed_as_the_recogniser_does_and_a_second_run_skips(store: Path, tmp_path: Path, capsys) -> None:
    asr = log_toy_asr(tmp_path)
    corpus = tmp_path / "corpus"
    (corpus / "in").mkdir(parents=True)
    for number, (name, container) in enumerate([("a.wav", "wav"), ("in/b.flac", "flac"), ("in/c.mp3", "mp3")]):
        (corpus / name).write_bytes(toy_recording(number, 0.5 + 2 * number, container))
    (corpus / "bad.wav").write_bytes(b"no sound at all")
    (corpus / "empty.flac").write_bytes(toys.encode(toys.tone(1)[:0], "flac"))
    options = transcribe.StepOptions(
        audio=str(corpus),
        model=asr,
        output_dir=str(tmp_path / "out"),
        max_tokens_per_s=2.0,
        decoding_top_k=1,
        beam_size=2,
        language="en",
        speech_threshold=0.0,  # the toys are no speech
    )
    run = connect().client.get_run(transcribe.run(options))
    said = capsys.readouterr().out
    assert "failed: bad.wav: unreadable" in said and "5 recordings: 3 written, 0 skipped, 2 failed" in said
    assert {name: run.data.metrics[name] for name in ("n_recordings", "n_written", "n_skipped", "n_failed")} == {
        "n_recordings": 5, "n_written": 3, "n_skipped": 0, "n_failed": 2,
    }  # fmt: skip
    recognizer = Recognizer.on_fastest_device(load_system(artifacts.upstream(asr, "model")))
    table = pd.read_csv(artifacts.upstream(run.info.run_id, "tables/transcripts.csv")).set_index("audio")
    for name in ("a.wav", "in/b.flac", "in/c.mp3"):
        decoding, ask = DecodingOptions(beam_size=2, max_tokens_per_s=2.0), MixtureAsk("en", 1)
        (expected,) = recognizer.transcribe([load_audio(corpus / name)], decoding, ask)
        kept = json.loads((tmp_path / "out" / table.loc[name, "output"]).read_text())
        assert kept["text"] == expected.text and len(kept["segments"]) == len(expected.segments) == table.loc[name, "n_segments"]
        assert (
            kept["routing_weights"] == pytest.approx(expected.routing_weights, abs=HALF) and max(kept["routing_weights"]) == 1.0
        )
    again = connect().client.get_run(transcribe.run(options))
    assert (
        again.data.metrics["n_skipped"] == 3
        and again.data.metrics["n_failed"] == 2
        and "real_time_factor" not in again.data.metrics
    )
    half = connect().client.get_run(transcribe.run(dataclasses.replace(options, fp16=True)))
    assert half.data.metrics["n_written"] == 3 and half.data.metrics["n_skipped"] == 0  # what decides a transcript has changed


def transcribe_all(number: int, recordings: Path, folder: Path) -> None:
    """Two speakers' recordings, by a toy."""
    recognizer, decoding = Recognizer(system_of(toy_mixture())), DecodingOptions(max_tokens_per_s=4.0, decoding_batch_size=4)
    processes.join()
    paths = find_recordings(recordings)
    by_speaker = {"ann": paths[:-1], None: paths[-1:]}
    work = {
        name: Transcription(lambda waves: recognizer.transcribe(waves, decoding), folder / "out", "json", str(name))
        for name in by_speaker
    }
    outcomes = transcribe.outcomes_of(work, by_speaker, recordings, folder / "work")
    write_json(folder / f"found_{number}.json", [dataclasses.asdict(outcome) for outcome in outcomes])


def test_two_processes_transcribe_as_one_and_list_all_in_order(tmp_path: Path) -> None:
    (tmp_path / "audio").mkdir()
    (tmp_path / "audio" / "bad.wav").write_bytes(b"no sound at all")
    for number in range(2 * GROUP_FILES + 2):
        (tmp_path / "audio" / f"u{number:02d}.wav").write_bytes(toy_recording(number, 0.1 + 0.01 * number))
    for n_processes in (1, 2):
        fork(n_processes, transcribe_all, tmp_path / "audio", tmp_path / str(n_processes))
    one, *two = (read_json(tmp_path / name) for name in ("1/found_0.json", "2/found_0.json", "2/found_1.json"))
    assert two == [one, one] and [row["status"] for row in one] == ["failed", *["written"] * (2 * GROUP_FILES + 2)]
    files = [{path.name: path.read_bytes() for path in (tmp_path / name / "out").glob("*.json")} for name in "12"]
    assert files[0] == files[1] and len(files[0]) == 2 * GROUP_FILES + 2
    lines = (tmp_path / "2" / "out" / RECORD).read_text().splitlines()
    assert sorted(json.loads(line)["output"] for line in lines) == sorted(files[0])


def test_where_nobody_speaks_the_text_is_empty_and_it_is_said(store: Path, tmp_path: Path, capsys) -> None:
    """Case `silence`: digital silence, an offset and one sample, and a hum beside them, gave whole sentences."""
    asr, corpus = log_toy_asr(tmp_path), tmp_path / "corpus"
    corpus.mkdir()
    sounds = {"silence": np.zeros(48_000), "offset": np.full(48_000, 0.2), "one_sample": np.full(1, 0.04), "hum": tones(3, 50)}
    for name, sound in sounds.items():
        soundfile.write(corpus / f"{name}.wav", 0.3 * sound, RATE)
    (corpus / "words.wav").write_bytes(spoken_wav())
    options = transcribe.StepOptions(audio=str(corpus), model=asr, output_dir=str(tmp_path / "out"), max_tokens_per_s=8.0)
    run = connect().client.get_run(transcribe.run(options))
    found = {name: json.loads((tmp_path / "out" / f"{name}.json").read_text()) for name in (*sounds, "words")}
    assert {name for name, each in found.items() if each["no_speech"]} == set(sounds)
    assert (
        all(found[name]["text"] == "" and found[name]["segments"][0]["no_speech"] for name in sounds) and found["words"]["text"]
    )
    assert run.data.metrics["n_no_speech"] == 4 and "nobody speaks in 4" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"audio": "gone"}, "gone: no such file or folder"),
        ({"model": "0123"}, "no run '0123'"),
        ({"model": "models:/nobody@champion"}, "model=models:/nobody@champion: not in the registry"),
    ],
)
def test_what_is_missing_is_named(store: Path, tmp_path: Path, changes: dict[str, str], said: str) -> None:
    (tmp_path / "a.wav").write_bytes(toy_recording())
    with pytest.raises((ValueError, RuntimeError), match=said):
        transcribe.run(transcribe.StepOptions(**{"audio": str(tmp_path), "model": "none"} | changes))


def test_options_are_checked_before_anything() -> None:
    with pytest.raises(ValueError, match="audio is missing"):
        transcribe.StepOptions.asked()
    with pytest.raises(ValueError, match="format='doc': must be one of json, txt, srt, vtt, csv, tsv"):
        transcribe.StepOptions(audio="x", format="doc")
