"""Of a thousand utterances with sixty planted faults exactly those sixty are quarantined, each with its reason."""

import json
import os
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

import tests.toys.corpora as toys
from moe.corpora.preparation import PreparationOptions, prepare
from moe.corpora.quarantine import REASONS, QuarantineLimitError, audio_digest, ctc_frames_needed, inspect_bytes
from moe.corpora.validation import inspect_all
from tests.toys.faults import PLANTED, wav

N, N_EACH = 1000, 4


@pytest.fixture(scope="module")
def planted(tmp_path_factory) -> tuple[Path, dict[str, str]]:
    """A folder corpus of 1000 utterances, and the reason planted in 60 of them."""
    root = tmp_path_factory.mktemp("planted") / "corpus"
    (root / "wav").mkdir(parents=True)
    places = np.random.default_rng(5).permutation(np.arange(10, N))[: len(PLANTED) * N_EACH]
    plant = {int(place): PLANTED[k // N_EACH] for k, place in enumerate(places)}
    rows, expected = [], {}
    for number in range(N):
        row = {"id": f"utterance{number:04d}", "path": f"wav/{number:04d}.wav", "speaker": f"s{number % 10}"}
        row |= {"group": ("als", "stroke")[number % 10 // 5], "transcript": f"word {number}"}
        (root / row["path"]).write_bytes(wav(number))
        if number in plant:
            plant[number](root, row, list(plant).index(number))
            expected[row["path"]] = plant[number].__name__
        rows.append(row)
    header = ",".join(rows[0])
    lines = [",".join(f'"{value}"' for value in row.values()) for row in rows]
    (root / "manifest.csv").write_text("\n".join([header, *lines]), encoding="utf-8")
    return root, expected


def test_exactly_the_planted_faults_are_quarantined_each_with_its_reason(planted):
    root, expected = planted
    options = {"dataset_root": str(root), "max_duration_s": 5.0, "ctc_frames_per_s": 50.0, "max_quarantined": 0.06}
    found = prepare(PreparationOptions(**options))
    assert len(found.quarantine) == 60 and set(found.quarantine["reason"]) == {plant.__name__ for plant in PLANTED}
    by_path = dict(zip(found.quarantine["audio"], found.quarantine["reason"], strict=True))
    shared = [path for path in expected if path == "wav"]  # two missing files are the same folder
    assert {path: by_path[path] for path in expected} == expected and len(shared) <= 1
    assert found.counts == {
        "n_listed": 1000, "n_used": 940, "n_quarantined": 60, "n_excluded_etiology": 0,
        "n_beyond_max_samples": 0, "n_bad_files": 0, "n_lost": 0,
    }  # fmt: skip
    assert len(found.manifest) == 940 and not set(found.manifest["audio"]) & set(expected)
    assert found.quarantine["detail"].str.len().gt(0).all()


def test_more_than_the_limit_fails_and_says_what(planted):
    with pytest.raises(QuarantineLimitError, match=r"max_quarantined=0.05: 60 of 1000 utterances.*4 truncated") as caught:
        prepare(PreparationOptions(dataset_root=str(planted[0]), max_duration_s=5.0, ctc_frames_per_s=50.0))
    assert len(caught.value.quarantine) == 60


def test_every_planted_reason_is_a_documented_one():
    assert {plant.__name__ for plant in PLANTED} | {"bad_shard", "bad_metadata", "bad_row"} == set(REASONS)


def test_unsafe_tar_members_are_quarantined_and_never_followed(tmp_path):
    import io
    import tarfile

    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for name, kind in (
            ("a", tarfile.REGTYPE),
            ("../b", tarfile.REGTYPE),
            ("/c", tarfile.REGTYPE),
            ("d", tarfile.SYMTYPE),
            ("e", tarfile.LNKTYPE),
        ):
            for suffix, data in ((".wav", wav(len(name))), (".txt", b"hello"), (".json", json.dumps({"speaker": "s"}).encode())):
                info = tarfile.TarInfo(name + suffix)
                if kind != tarfile.REGTYPE and suffix == ".wav":
                    info.type, info.linkname = kind, "/etc/hostname"
                    tar.addfile(info)
                else:
                    info.size = len(data)
                    tar.addfile(info, io.BytesIO(data))
    (tmp_path / "train").mkdir()
    (tmp_path / "train/0.tar").write_bytes(buffer.getvalue())
    options = {"corpus": "webdataset", "dataset_root": str(tmp_path), "max_quarantined": 1.0, "dev_share": 0.0, "test_share": 0.0}
    found = prepare(PreparationOptions(**options))
    assert list(found.manifest["member"]) == ["a.wav"]
    assert list(found.quarantine["reason"]) == ["outside_root"] * 4


def test_workers_say_the_same_as_one_process(planted, monkeypatch):
    root = planted[0]
    tasks = [(path.relative_to(root).as_posix(), None) for path in sorted((root / "wav").glob("*.wav"))[:250]]
    alone = repr(inspect_all(str(root), tasks, (0.1, 5.0)))  # as text: NaN is not equal to itself
    monkeypatch.setattr("moe.corpora.validation.IN_PROCESS", 0)
    assert repr(inspect_all(str(root), tasks, (0.1, 5.0), n_workers=2)) == alone


def test_the_same_samples_have_the_same_digest_in_another_container():
    one, other = (inspect_bytes(toys.encode(toys.tone(1), name), 0.1, 30.0) for name in ("wav", "flac"))
    assert one == other and one.audio_digest and one.duration_s == pytest.approx(0.4)
    assert audio_digest(toys.tone(1), 16_000) != audio_digest(toys.tone(1), 8_000)


@pytest.mark.parametrize(("text", "frames"), [("", 0), ("a", 1), ("aa", 3), ("aba", 3), ("hello", 6), ("aaa b", 7)])
def test_frames_that_ctc_needs(text, frames):
    assert ctc_frames_needed(text) == frames


def test_ctc_needs_frames_exactly_as_torch_says():
    """The oracle: torch's CTC loss is infinite exactly where we say that no alignment exists."""
    import torch

    for labels in ([1], [1, 1], [1, 2, 1], [2, 2, 2, 1]):
        for n_frames in range(1, 9):
            logits = torch.zeros(n_frames, 1, 3).log_softmax(-1)
            loss = torch.nn.functional.ctc_loss(logits, torch.tensor([labels]), (n_frames,), (len(labels),), reduction="sum")
            assert bool(torch.isinf(loss)) == (n_frames < ctc_frames_needed("".join(map(str, labels))))


def test_of_two_with_the_same_id_the_usable_one_is_kept(tmp_path):
    (tmp_path / "a.wav").write_bytes(wav(1))
    (tmp_path / "b.wav").write_bytes(wav(2))
    rows = [
        {"id": "x", "path": "a.wav", "transcript": "", "speaker": "s"},
        {"id": "x", "path": "b.wav", "transcript": "hello", "speaker": "s"},
    ]
    toys.write_csv(tmp_path / "manifest.csv", rows)
    options = {"dataset_root": str(tmp_path), "max_quarantined": 0.5, "dev_share": 0.0, "test_share": 0.0}
    found = prepare(PreparationOptions(**options))
    assert list(found.manifest["audio"]) == ["b.wav"]
    assert found.quarantine[["audio", "reason"]].values.tolist() == [["a.wav", "empty_transcript"]]


TORN = {
    "a line of JSON": {"manifest.jsonl": '{"path": "a.wav", "text": "hi\\u0000"}\n{"path": "b.wav", "text": "two"}'},
    "a quoted field over lines": {"manifest.csv": 'path,text\na.wav,"one\n\0\0 more"\nb.wav,two\n'},
    "a text beside": {"a.txt": "hi\0\0", "b.txt": "two"},
    "Kaldi's": {"wav.scp": "a a.wav\nb b.wav\n", "text": "a hi\0\0\nb two\n"},
}


@pytest.mark.parametrize("files", TORN.values(), ids=TORN)
def test_a_torn_transcript_is_not_learnt_whatever_file_it_is_in(files: dict[str, str], tmp_path):
    for number, name in enumerate(("a", "b")):
        (tmp_path / f"{name}.wav").write_bytes(wav(number))
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    found = prepare(PreparationOptions(dataset_root=str(tmp_path), max_quarantined=0.5, dev_share=0.0, test_share=0.0))
    assert list(found.manifest["transcript"]) == ["two"]
    assert list(found.quarantine["reason"]) == ["bad_row"] and found.quarantine["detail"].str.contains("NUL").all()


def test_nothing_usable_is_an_error_whatever_the_limit(tmp_path):
    toys.write_csv(tmp_path / "manifest.csv", [{"path": "a.wav", "transcript": "", "speaker": "s"}])
    with pytest.raises(QuarantineLimitError, match="1 of 1 utterances cannot be used"):
        prepare(PreparationOptions(dataset_root=str(tmp_path), max_quarantined=1.0))


def test_a_pipe_is_no_file_and_does_not_hang(tmp_path):
    os.mkfifo(tmp_path / "a.wav")
    (result,) = inspect_all(str(tmp_path), [("a.wav", None)], (0.1, 5.0))
    assert (result.reason, "not a regular file" in result.detail) == ("missing_file", True)


def test_a_decoder_that_kills_its_worker_costs_one_utterance(tmp_path, monkeypatch):
    from moe.corpora import validation

    monkeypatch.setattr(validation, "inspect_chunk", _crash_on_bad)
    monkeypatch.setattr(validation, "IN_PROCESS", 0)
    monkeypatch.setattr(validation, "CHUNK", 2)
    tasks = [(name, None) for name in ("a", "b", "bad", "c", "d")]
    results = inspect_all(str(tmp_path), tasks, (0.1, 5.0), n_workers=2)
    assert [result.reason for result in results] == ["missing_file", "missing_file", "unreadable", "missing_file", "missing_file"]
    assert results[2].detail == "the decoder crashed"


def _crash_on_bad(root, tasks, limits):
    from moe.corpora.quarantine import inspect_audio

    if any(audio == "bad" for audio, _ in tasks):
        os._exit(9)
    return [inspect_audio(root, audio, member, *limits) for audio, member in tasks]


def test_the_table_is_sorted_and_whole(planted):
    found = prepare(PreparationOptions(dataset_root=str(planted[0]), max_duration_s=5.0, max_quarantined=0.1))
    assert found.quarantine["utterance_id"].is_monotonic_increasing
    assert isinstance(found.quarantine, pd.DataFrame) and list(found.quarantine.columns) == [
        "utterance_id",
        "audio",
        "reason",
        "detail",
    ]
