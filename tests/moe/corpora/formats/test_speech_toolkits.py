"""Data folders of Kaldi and manifests of lhotse, with parts of recordings, channels and what cannot be read."""

import gzip
import json
from pathlib import Path

import numpy as np
import pytest

import tests.toys.corpora as toys
from moe.audio.parts import Part
from moe.audio.waveforms import load_audio
from moe.corpora.formats.table import CorpusOptions
from moe.corpora.listing import Listing, list_corpus
from moe.corpora.manifest import read_utterance
from moe.corpora.preparation import PreparationOptions, prepare
from moe.corpora.quarantine import inspect_audio

LONG = np.concatenate([toys.tone(number, 1.0) for number in range(4)])  # 4 s


def listed(corpus: str, root: Path, **options) -> Listing:
    return list_corpus(corpus, str(root), CorpusOptions(**options))


def write(root: Path, files: dict[str, str | bytes]) -> Path:
    for name, content in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    return root


def kaldi(root: Path) -> Path:
    for split, rows in toys.UTTERANCES.groupby("split"):
        files = {f"wavs/{row.id}.flac": toys.audio_of(number) for number, row in rows.iterrows()}
        files[f"data/{split}/wav.scp"] = "".join(f"{row.id} wavs/{row.id}.flac\n" for row in rows.itertuples())
        files[f"data/{split}/text"] = "".join(f"{row.id} {row.transcript}\n" for row in rows.itertuples())
        files[f"data/{split}/utt2spk"] = "".join(f"{row.id} {row.speaker}\n" for row in rows.itertuples())
        files[f"data/{split}/spk2etiology"] = "".join(
            f"{row.speaker} {row.etiology}\n" for row in rows.drop_duplicates("speaker").itertuples()
        )
        write(root, files)
    return root


@pytest.mark.parametrize("corpus", ["kaldi", "folder"])
def test_data_folders_are_read_whole(corpus: str, tmp_path: Path) -> None:
    found = prepare(PreparationOptions(corpus=corpus, dataset_root=str(kaldi(tmp_path))))
    expected = toys.UTTERANCES.rename(columns={"id": "utterance_id"})
    assert found.manifest[list(expected)].values.tolist() == expected.values.tolist() and not len(found.files)
    for number, row in enumerate(found.manifest.to_dict("records")):
        np.testing.assert_allclose(read_utterance(found.root, row), toys.tone(number), atol=1e-4)


@pytest.mark.parametrize("container", ["wav", "flac", "m4a"])
def test_segments_are_parts_of_recordings(container: str, tmp_path: Path) -> None:
    scripts = {
        "wav.scp": f"r a.{container}\n",
        "text": "u0 one\nu1 two\nu9 lost\n",
        "segments": "u0 r 1.0 2.0\nu1 r 2.5 -1\nu2 r 3 9\nu3 q 0 1\n",
    }
    root = write(tmp_path, {f"a.{container}": toys.encode(LONG, container), **scripts})
    listing = listed("kaldi", root)
    rows = {row["utterance_id"]: row for row in listing.utterances.to_dict("records")}
    tolerance = 0.25 if container == "m4a" else 1e-4
    np.testing.assert_allclose(read_utterance(root, rows["u0"])[200:-200], LONG[16_200:31_800], atol=tolerance)
    assert abs(len(read_utterance(root, rows["u1"])) - 24_000) < (2_500 if container == "m4a" else 1)
    assert inspect_audio(str(root), rows["u2"]["audio"], rows["u2"]["member"], 0.1, 30.0).reason == "truncated"
    assert rows["u3"]["reason"] == "missing_file" and listing.faults["file"].tolist() == ["text: u9"]


@pytest.mark.parametrize("torn", ["u0", "u0 r", "u0 r 1.0", "u0 r 1.0 2."])
def test_a_torn_segment_is_not_taken_for_the_whole_recording(torn: str, tmp_path: Path) -> None:
    root = write(tmp_path, {"a.wav": toys.encode(LONG), "wav.scp": "r a.wav\n", "text": "u0 one\n", "segments": torn})
    (row,) = listed("kaldi", root).utterances.to_dict("records")
    assert (row["reason"] in ("bad_row", "missing_file")) == (torn != "u0 r 1.0 2.")


@pytest.mark.parametrize(
    ("script", "audio"),
    [
        ("flac -c -d -s a.flac |", "a.flac"),
        ("sph2pipe -f wav -p a.sph |", "a.sph"),
        ("sox a.wav -t wav - |", "a.wav"),
        ("sox a.wav -t wav - speed 1.1 |", ""),
        ("rm -rf a.wav |", ""),
        ("flac -c -d -s a.flac; touch x |", ""),
        ("ark.ark:123", "ark.ark:123"),
    ],
)
def test_commands_are_never_run(script: str, audio: str, tmp_path: Path) -> None:
    (found,) = listed("kaldi", write(tmp_path, {"wav.scp": f"u {script}\n", "text": "u hi\n"})).utterances.to_dict("records")
    assert found["audio"] == audio and (found["reason"] == "missing_file") == (not audio)


def test_a_channel_of_a_recording_is_a_part_of_it(tmp_path: Path) -> None:
    stereo = np.stack([toys.tone(1), toys.tone(2)], axis=1)
    scripts = {"wav.scp": "r a.wav\ns a.wav\n", "text": "r-A one\nr-B two\n", "segments": "r-A r 0 0.4\nr-B s 0 0.4\n"}
    scripts["reco2file_and_channel"] = "r a A\ns a B\n"
    root = write(tmp_path, {"a.wav": toys.encode(stereo), **scripts})
    for number, row in enumerate(listed("kaldi", root).utterances.to_dict("records"), start=1):
        np.testing.assert_allclose(read_utterance(root, row), toys.tone(number), atol=1e-4)


def test_a_part_is_named_and_found_again() -> None:
    for part in (Part(), Part(1.25, 3.5), Part(0.0, None, 1), Part(2.0, 2.25, 0)):
        assert Part.of(str(part)) == part
    assert Part.of("audio:7") is None and Part.of("a.wav") is None


def lhotse(root: Path, cuts: bool, packed: bool) -> Path:
    def record(number: int, name: str) -> dict:
        source = {"type": "file", "channels": [0], "source": f"{root}/wavs/{name}.flac" if number % 2 else f"wavs/{name}.flac"}
        return {
            "id": name,
            "sources": [source],
            "sampling_rate": toys.RATE,
            "num_samples": 6400,
            "duration": 0.4,
            "channel_ids": [0],
        }

    for split, rows in toys.UTTERANCES.groupby("split"):
        files = {f"wavs/{row.id}.flac": toys.audio_of(number) for number, row in rows.iterrows()}
        recordings = [record(number, row.id) for number, row in rows.iterrows()]
        spans = {"start": 0.0, "duration": 0.4, "channel": 0}
        heard = [
            {
                "id": row.id,
                "recording_id": row.id,
                **spans,
                "text": row.transcript,
                "speaker": row.speaker,
                "custom": {"etiology": row.etiology},
            }
            for row in rows.itertuples()
        ]
        tables = {"recordings": recordings, "supervisions": heard}
        if cuts:
            tables = {
                "cuts": [
                    {"id": s["id"], **spans, "supervisions": [s], "recording": r, "type": "MonoCut"}
                    for s, r in zip(heard, recordings, strict=True)
                ]
            }
        for kind, lines in tables.items():
            text = "".join(json.dumps(line) + "\n" for line in lines).encode()
            files[f"toy_{kind}_{split}.jsonl" + ".gz" * packed] = gzip.compress(text) if packed else text
        write(root, files)
    return root


@pytest.mark.parametrize("cuts", [False, True])
@pytest.mark.parametrize("packed", [False, True])
def test_manifests_of_lhotse_are_read_without_it(cuts: bool, packed: bool, tmp_path: Path) -> None:
    found = prepare(PreparationOptions(corpus="lhotse", dataset_root=str(lhotse(tmp_path, cuts, packed))))
    expected = toys.UTTERANCES.rename(columns={"id": "utterance_id"})
    assert found.manifest[list(expected)].values.tolist() == expected.values.tolist() and not len(found.files)


def test_what_only_lhotse_can_do_is_named(tmp_path: Path) -> None:
    source = {"type": "command", "channels": [0], "source": "cat x"}
    base = {"id": "r", "sampling_rate": 16000, "num_samples": 16000, "duration": 1.0}
    lines = [
        {"id": "a", "type": "MixedCut", "tracks": [], "supervisions": [{}]},
        {"id": "b", "start": 0, "duration": 1.0, "supervisions": [{}], "recording": base | {"sources": [source]}},
        {
            "id": "c",
            "start": 0,
            "duration": 1.0,
            "supervisions": [{}],
            "recording": base | {"sources": [source | {"type": "file"}], "transforms": [{"name": "Speed"}]},
        },
        {"id": "d", "supervisions": [{}, {}]},
    ]
    listing = listed("lhotse", write(tmp_path, {"cuts.jsonl": "\n".join(map(json.dumps, lines)) + "\n{broken"}))
    assert list(listing.utterances["reason"]) == ["missing_file"] * 3 and len(listing.faults) == 2
    for text, detail in zip(("mixed cut", "command", "transforms"), listing.utterances["detail"], strict=True):
        assert text in detail


def test_a_part_of_a_recording_by_seconds(tmp_path: Path) -> None:
    source = {"type": "file", "channels": [0, 1], "source": "a.wav"}
    recording = {"id": "r", "sources": [source], "sampling_rate": 16000, "num_samples": 64000, "duration": 4.0}
    cut = {
        "id": "c",
        "start": 1.0,
        "duration": 1.5,
        "channel": 1,
        "supervisions": [{"text": "hi", "speaker": "s"}],
        "recording": recording,
    }
    root = write(tmp_path, {"a.wav": toys.encode(np.stack([LONG[::-1], LONG], axis=1)), "cuts.jsonl": json.dumps(cut)})
    (row,) = listed("lhotse", root).utterances.to_dict("records")
    np.testing.assert_allclose(read_utterance(root, row), load_audio(toys.encode(LONG))[16_000:40_000], atol=1e-4)
