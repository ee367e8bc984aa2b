"""Everything that was there is used, or counts as not used and is said; a damaged part never passes for a small corpus."""

import json
import os
import shutil
import socket
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import tests.toys.corpora as toys
from moe.corpora.formats.interface import Fault
from moe.corpora.formats.inventory import take_inventory
from moe.corpora.formats.table import CorpusOptions
from moe.corpora.formats.webdataset import read_webdataset
from moe.corpora.listing import Listing, list_corpus
from moe.corpora.locations import CorpusRoot, OutsideRoot
from moe.corpora.manifest import read_utterance
from moe.corpora.preparation import PreparationOptions, PreparedCorpus, prepare
from moe.corpora.quarantine import QuarantineLimitError
from moe.recognition.transcription import find_recordings

WAV = toys.encode(toys.tone(1))


def prepared(corpus: str, root: Path, **options) -> PreparedCorpus:
    return prepare(PreparationOptions(corpus=corpus, dataset_root=str(root), **options))


def listed(corpus: str, root: Path, **options) -> Listing:
    return list_corpus(corpus, str(root), CorpusOptions(**options))


def folder(root: Path, n: int = 20, **columns: list[str]) -> Path:
    rows = []
    for k in range(n):
        (root / f"{k}.wav").write_bytes(toys.encode(toys.tone(k)))
        rows.append(
            {"path": f"{k}.wav", "transcript": f"word {k}", "speaker": f"s{k % 5}"}
            | {name: values[k] for name, values in columns.items()}
        )
    toys.write_csv(root / "manifest.csv", rows)
    return root


def test_rows_that_cannot_be_read_count(tmp_path: Path) -> None:
    """Pitfall: 24 of 60 readable rows passed as a whole corpus."""
    table = folder(tmp_path, 60) / "manifest.csv"
    lines = table.read_text().splitlines()
    table.write_text("\n".join([lines[0], *(line + ",more" if n < 36 else line for n, line in enumerate(lines[1:]))]))
    with pytest.raises(
        QuarantineLimitError, match=r"36 of 60 utterances cannot be used \(36 bad_row\); first manifest.csv:2: 4 fields"
    ):
        prepared("folder", tmp_path)
    found = prepared("folder", tmp_path, max_quarantined=0.6)
    assert (found.counts["n_used"], found.counts["n_lost"], found.counts["n_bad_files"]) == (24, 36, 36)


@pytest.mark.parametrize("damage", ["json", "no json", "empty list"])
def test_a_contributor_counts_with_all_the_recordings(damage: str, tmp_path: Path) -> None:
    path = toys.write_sap(tmp_path) / "Train/s0/s0.json"
    if damage == "no json":
        path.unlink()
    else:
        path.write_text(
            '{"Contributor ID": "s0", "Files": [{"Filename"' if damage == "json" else '{"Contributor ID": "s0", "Files": []}'
        )
    with pytest.raises(QuarantineLimitError, match=r"2 of 8 utterances.*whole files are missing, with their speakers: Train/s0"):
        prepared("sap", tmp_path)


def test_a_later_check_says_what_is_missing(tmp_path: Path) -> None:
    toys.write_sap(tmp_path)
    for name in ("s0", "s1"):
        (tmp_path / f"Train/{name}/{name}.json").write_text("{")
    with pytest.raises(ValueError, match=r"1 speakers \(s3\).*whole files are missing.*Train/s0/s0.json, Train/s1/s1.json"):
        prepared("sap", tmp_path, max_quarantined=0.9)


def test_shards_count_by_what_is_listed_of_them(tmp_path: Path) -> None:
    toys.write_webdataset(tmp_path)
    (tmp_path / "train/000000.tar").unlink()
    with pytest.raises(QuarantineLimitError, match="4 of 8 utterances.*train/000000.tar"):
        prepared("webdataset", tmp_path)


def test_a_compressed_shard_is_named(tmp_path: Path) -> None:
    toys.write_webdataset(tmp_path)
    (tmp_path / "extra").mkdir()
    (tmp_path / "extra/1.tar.gz").write_bytes(b"\x1f\x8b")
    assert "decompress it" in dict(listed("webdataset", tmp_path).faults[["file", "detail"]].values)["extra/1.tar.gz"]


def shard(root: Path, files: dict[str, bytes], name: str = "train/0.tar") -> Path:
    (root / name).parent.mkdir(parents=True, exist_ok=True)
    (root / name).write_bytes(toys.tar_bytes(files))
    return root


@settings(max_examples=60, deadline=None)
@given(
    keys=st.lists(
        st.text(st.sampled_from("ab.-_é"), min_size=1, max_size=6).filter(lambda key: not key.startswith(".")),
        unique=True,
        min_size=1,
    )
)
def test_every_key_is_an_utterance_whatever_dots_it_has(keys: list[str], tmp_path_factory) -> None:
    files = {name: data for key in keys for name, data in ((f"{key}.wav", WAV), (f"{key}.txt", key.encode()))}
    utterances = listed("webdataset", shard(tmp_path_factory.mktemp("keys"), files)).utterances
    assert sorted(utterances["transcript"]) == sorted(keys) and utterances["reason"].isna().all()


@settings(max_examples=40, deadline=None)
@given(n=st.integers(2, 5), data=st.data())
def test_what_lies_behind_the_end_of_a_tar_is_never_lost_unsaid(n: int, data: st.DataObject, tmp_path_factory) -> None:
    """A header that damage made zeros or nonsense ends the walk, as does the end of the first of two tars in one file, or a cut between members."""
    whole = toys.tar_bytes({f"{k}.txt": f"{k}".encode() for k in range(n)} | {f"{k}.wav": b"x" * 700 for k in range(n)})
    headers = [whole.index(f"{k}.{ending}".encode()) for k in range(n) for ending in ("txt", "wav")]
    kind, place = data.draw(st.sampled_from(["zeros", "nonsense", "cat", "cut"])), data.draw(st.sampled_from(headers))
    damaged = {
        "zeros": whole[:place] + bytes(512) + whole[place + 512 :],
        "nonsense": whole[:place] + b"\xaa" * 512 + whole[place + 512 :],
        "cat": whole + whole,
        "cut": whole[:place],
    }[kind]
    root = tmp_path_factory.mktemp("tars")
    (root / "0.tar").write_bytes(damaged)
    assert len(list_or_none(root)) == 1


def list_or_none(root: Path) -> list[str]:
    """The faults of a WebDataset's shards, of one without an utterance too."""
    return [item.detail for item in read_webdataset(str(root), CorpusOptions()) if isinstance(item, Fault)]


def test_members_that_mean_nothing_are_said(tmp_path: Path) -> None:
    root = shard(tmp_path, {"a.wav": WAV, "a.txt": b"hi", "a.pyd": b"x", "b.pyd": b"x", "._a.wav": b"x", "a": b"x"})
    notes = " ".join(listed("webdataset", root).notes)
    assert "ends in .pyd is taken for nothing (2 times, first train/0.tar/a.pyd)" in notes and "hidden member" in notes


@pytest.mark.parametrize("key", ["text", "transcript", "Transcription", "sentence"])
def test_a_transcript_in_the_json_is_read(key: str, tmp_path: Path) -> None:
    facts = json.dumps({key: "hello", "Speaker ID": 7, "ETIOLOGY": "als", "age": 61}).encode()
    (found,) = listed("webdataset", shard(tmp_path, {"a.wav": WAV, "a.json": facts})).utterances.to_dict("records")
    assert (found["transcript"], found["speaker"], found["etiology"], found["age"]) == ("hello", "7", "als", 61)


def test_no_split_disappears_unsaid(tmp_path: Path) -> None:
    files = {"a.wav": WAV, "a.txt": b"hi"}
    for name in ("train/part1/0.tar", "dev-0001.tar"):
        shard(tmp_path, files, name)
    shard(tmp_path, {"a.pyd": b"x"}, "test/0.tar")
    (tmp_path / "extra").mkdir()
    (tmp_path / "extra/data.bin").write_bytes(b"x")
    listing = listed("webdataset", tmp_path)
    assert listing.utterances.set_index("audio")["split"].to_dict() == {"train/part1/0.tar": "train", "dev-0001.tar": "dev"}
    assert listing.faults[["file", "detail"]].values.tolist() == [["test/0.tar", "holds no utterance"]]
    assert "not read: 1 files *.bin in extra/ (first extra/data.bin)" in listing.notes


def test_recordings_that_no_row_names_are_said(tmp_path: Path) -> None:
    folder(tmp_path)
    (tmp_path / "more").mkdir()
    (tmp_path / "more/x.wav").write_bytes(WAV)
    assert listed("folder", tmp_path).notes == ("not read: 1 files *.wav in more/ (first more/x.wav)",)


def clutter(root: Path, names: tuple[str, ...]) -> None:
    """Dead links, locks, pipes and sockets of these names."""
    for number, name in enumerate(names):
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if number % 3 == 0:
            path.symlink_to("someone@somewhere.4711:1700000000")
        elif number % 3 == 1:
            os.mkfifo(path)
        else:
            server, here = socket.socket(socket.AF_UNIX), os.getcwd()
            os.chdir(path.parent)  # the address of a socket is short
            server.bind(path.name)
            os.chdir(here)
            server.close()


CLUTTER = (".#manifest.csv", "pipe", "socket", "deep/.#x.tar", "deep/pipe", "deep/socket")


@pytest.mark.parametrize("format_", sorted(toys.WRITERS))
def test_what_is_no_file_and_belongs_to_no_utterance_stops_nothing(format_: str, tmp_path: Path) -> None:
    corpus, write = toys.WRITERS[format_]
    clutter(write(tmp_path), CLUTTER)
    found = prepared(corpus, tmp_path)
    assert found.counts["n_used"] == 8 and found.counts["n_lost"] == 0


@pytest.mark.parametrize(
    ("format_", "names"),
    [("webdataset", ("train/1.tar", "train/2.tar", "train/3.tar")), ("parquet", ("a.parquet", "b.parquet", "c.parquet"))],
)
def test_a_shard_that_is_no_file_counts_as_missing(format_: str, names: tuple[str, ...], tmp_path: Path) -> None:
    clutter(toys.WRITERS[format_][1](tmp_path), names)
    faults = listed(toys.WRITERS[format_][0], tmp_path).faults
    assert sorted(faults["file"]) == sorted(names) and set(faults["reason"]) == {"missing_file"}


def test_a_folder_of_recordings_with_clutter_hangs_nothing(tmp_path: Path) -> None:
    (tmp_path / "a.SPH").write_bytes(b"x")
    clutter(tmp_path, ("._a.wav", "b/.#c.wav"))
    assert find_recordings(tmp_path) == [tmp_path / "a.SPH"]


def hub(root: Path) -> Path:
    """A snapshot of links into `blobs`, as a hub's cache has it."""
    toys.write_parquet(root / "snapshots/abc")
    (root / "blobs").mkdir()
    for number, path in enumerate(sorted((root / "snapshots/abc").rglob("*.parquet"))):
        shutil.move(path, root / f"blobs/{number}")
        path.symlink_to(f"../../../blobs/{number}")
    return root / "snapshots/abc"


def test_links_lead_out_only_where_the_user_says_so(tmp_path: Path) -> None:
    root = hub(tmp_path / "hub")
    with pytest.raises(ValueError, match=f"trusted_root={tmp_path}/hub/blobs"):
        prepared("parquet", root)
    (tmp_path / "other").mkdir()
    with pytest.raises(ValueError, match="link that leads out"):
        prepared("parquet", root, trusted_root=str(tmp_path / "other"))
    for trusted in (str(tmp_path / "hub/blobs"), f"{tmp_path / 'other'}, {tmp_path / 'hub'}"):
        found = prepared("parquet", root, trusted_root=trusted)
        assert found.counts["n_used"] == 8 and isinstance(found.root, CorpusRoot)
        (row,) = found.manifest[found.manifest["transcript"] == "sentence number 3"].to_dict("records")
        np.testing.assert_allclose(read_utterance(found.root, row), toys.tone(3), atol=1e-4)
        with pytest.raises(OutsideRoot):
            read_utterance(str(root), row)
    with pytest.raises(ValueError, match="trusted_root=.*no such folder"):
        prepared("parquet", root, trusted_root=str(tmp_path / "nowhere"))


def test_a_linked_folder_is_entered_where_it_is_trusted_and_once(tmp_path: Path) -> None:
    toys.write_webdataset(tmp_path / "corpus")
    shutil.move(tmp_path / "corpus/test", tmp_path / "elsewhere")
    for name in ("test", "test-again"):
        (tmp_path / f"corpus/{name}").symlink_to(tmp_path / "elsewhere", target_is_directory=True)
    (tmp_path / "elsewhere/loop").symlink_to(tmp_path / "elsewhere", target_is_directory=True)
    root = CorpusRoot(str(tmp_path / "corpus"), (str(tmp_path / "elsewhere"),))
    inventory = take_inventory(root)
    assert inventory.ending(".tar") == ["test/000000.tar", "train/000000.tar", "val_small/000000.tar"]
    assert inventory.inside == ["test/loop", "test-again"]
    assert sorted(take_inventory(str(root)).outside) == ["test", "test-again"]


def test_channels_are_taken_said_and_read_again(tmp_path: Path) -> None:
    folder(tmp_path)
    waves = [np.stack([toys.tone(k), -0.9 * toys.tone(k)], axis=1) for k in range(2)]
    for k, wave in enumerate(waves):
        (tmp_path / f"{k}.wav").write_bytes(toys.encode(wave))
    found = prepared("folder", tmp_path)
    assert any("of 2 recordings with several channels one is taken (first 0.wav: channel 0)" in note for note in found.notes)
    rows = {row["utterance_id"]: row for row in found.manifest.to_dict("records")}
    np.testing.assert_allclose(read_utterance(tmp_path, rows["1.wav"]), toys.tone(1), atol=1e-4)
    first = prepared("folder", tmp_path, channels="first").manifest
    assert (
        first.loc[first["audio"].isin(["0.wav", "1.wav"]), "channel"].tolist() == ["0", "0"]
        and first["channel"].notna().sum() == 2
    )


def test_an_etiology_or_speaker_called_none_can_be_said(tmp_path: Path) -> None:
    names = ["none" if k % 5 < 2 else "als" for k in range(20)]
    folder(tmp_path, 20, etiology=names)
    whole = prepared("folder", tmp_path, split="leave_one_speaker_out", test_speaker="s0")
    assert any("the etiology called none is written exclude_etiology='\"none\"'" in note for note in whole.notes)
    without = prepared("folder", tmp_path, split="leave_one_speaker_out", test_speaker="s0", exclude_etiology="none")
    assert without.counts["n_excluded_etiology"] == 4
