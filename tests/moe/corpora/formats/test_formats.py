"""Every format, made here with real encoders, is read to the same manifest."""

import json
import shutil
import uuid
from pathlib import Path

import fsspec
import numpy as np
import pytest

import tests.toys.corpora as toys
from moe.corpora.formats.sap import contributor
from moe.corpora.formats.split_names import split_and_domain, split_name, split_of_name
from moe.corpora.formats.table import CorpusOptions, Fault, FoundUtterance
from moe.corpora.listing import list_corpus
from moe.corpora.manifest import read_utterance
from moe.corpora.preparation import PreparationOptions, PreparedCorpus, prepare

SHARED = Path(__file__).resolve().parents[5] / "shared" / "data"
COMPARED = ["transcript", "reference", "speaker", "etiology", "duration_s", "audio_digest"]


def prepared(corpus: str, root: Path | str, **options) -> PreparedCorpus:
    return prepare(PreparationOptions(corpus=corpus, dataset_root=str(root), **options))


def listed(corpus: str, root: Path | str, **options):
    return list_corpus(corpus, str(root), CorpusOptions(**options))


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return toys.write_folder(tmp_path_factory.mktemp("folder"))


@pytest.mark.parametrize("format_", sorted(toys.WRITERS))
def test_every_format_gives_the_same_manifest_and_the_same_audio(format_, folder, tmp_path):
    corpus, write = toys.WRITERS[format_]
    expected = prepared("folder", folder).manifest.sort_values("transcript", ignore_index=True)
    found = prepared(corpus, write(tmp_path / "corpus"))
    manifest = found.manifest.sort_values("transcript", ignore_index=True)
    compared = [name for name in COMPARED if format_ != "openslr" or name != "etiology"]  # OpenSLR tells none
    assert manifest[compared].equals(expected[compared])
    assert found.counts["n_used"] == 8 and not len(found.quarantine) and not len(found.files)
    for number, row in enumerate(manifest.to_dict("records")):
        np.testing.assert_allclose(read_utterance(found.root, row), toys.tone(number), atol=1e-4)


@pytest.mark.parametrize("format_", sorted(set(toys.WRITERS) - {"sap", "sap_tars", "openslr"}))
def test_own_splits_are_kept(format_, tmp_path):
    corpus, write = toys.WRITERS[format_]
    manifest = prepared(corpus, write(tmp_path)).manifest.sort_values("transcript")
    assert list(manifest["split"]) == list(toys.UTTERANCES["split"])


@pytest.mark.parametrize("format_", ["sap", "sap_tars"])
def test_sap_keeps_train_and_dev_and_holds_test_speakers_out_of_train(format_, tmp_path):
    corpus, write = toys.WRITERS[format_]
    manifest = prepared(corpus, write(tmp_path)).manifest
    assert set(manifest.loc[manifest["split"] == "dev", "speaker"]) == {"s2"}
    tested = set(manifest.loc[manifest["split"] == "test", "speaker"])
    assert tested and tested < {"s0", "s1", "s3"}
    assert (manifest["severity"] == 3).all()  # both spellings of the dimension, the empty level left out
    assert set(manifest["category"]) == {"Novel Sentences"}


def test_row_order_of_the_table_does_not_matter(folder, tmp_path):
    """Pitfall 13: what is drawn must not depend on the order in which things were found."""
    shutil.copytree(folder, tmp_path / "turned")
    header, *lines = (folder / "manifest.csv").read_text().splitlines()
    (tmp_path / "turned" / "manifest.csv").write_text("\n".join([header, *reversed(lines)]))
    one, other = (prepared("folder", root, split="by_speaker", max_samples=6).manifest for root in (folder, tmp_path / "turned"))
    assert one.equals(other)


def test_words_that_look_like_missing_values_stay_words(tmp_path):
    (tmp_path / "a.wav").write_bytes(toys.encode(toys.tone(1)))
    toys.write_csv(tmp_path / "manifest.csv", [{"path": "a.wav", "transcript": "null", "speaker": "NA", "age": "007"}])
    (row,) = listed("folder", tmp_path).utterances.to_dict("records")
    assert (row["transcript"], row["speaker"], row["age"]) == ("null", "NA", "007")


def test_bad_rows_of_a_table_are_listed_and_the_rest_is_read(tmp_path):
    lines = [
        b"\xef\xbb\xbfpath,transcript,speaker",
        b"a.wav,hello,s",
        b"b.wav,one,two,three,four",
        b"c.wav,\xff\xfe,s",
        b",nothing,s",
        b"d.wav,bye",
    ]
    (tmp_path / "manifest.csv").write_bytes(b"\n".join(lines))
    listing = listed("folder", tmp_path)
    assert list(listing.utterances["audio"]) == ["a.wav", "d.wav"]
    assert list(listing.faults["file"]) == ["manifest.csv:3", "manifest.csv:4", "manifest.csv:5"]
    reasons = dict(zip(listing.utterances["audio"], listing.utterances["detail"], strict=True))
    assert reasons["d.wav"] == "manifest.csv:6: 2 fields where the header names 3" and reasons["a.wav"] is not reasons["d.wav"]


def test_columns_of_ours_are_measured_and_the_corpus_own_are_kept_beside_them(tmp_path):
    toys.write_csv(
        tmp_path / "manifest.csv", [{"path": "a.wav", "text": "hi", "group": "als", "duration_s": "99", "reference": "x"}]
    )
    (row,) = listed("folder", tmp_path).utterances.to_dict("records")
    assert (row["etiology"], row["corpus_duration_s"], row["corpus_reference"]) == ("als", "99", "x")
    assert row["speaker"] == "unknown"


def test_a_named_column_that_is_not_there_is_refused(folder):
    with pytest.raises(ValueError, match="etiology_column='illness': manifest.csv has no such column.*path, id, transcript"):
        listed("folder", folder, etiology_column="illness")


def test_the_speaker_may_be_found_in_the_id(tmp_path):
    toys.write_csv(tmp_path / "manifest.csv", [{"path": "ann_01.wav", "text": "a"}, {"path": "42.wav", "text": "b"}])
    listing = listed("folder", tmp_path, speaker_pattern=r"^([a-z]+)_")
    assert list(listing.utterances["speaker"]) == ["unknown", "ann"]


@pytest.mark.parametrize("corpus", ["folder", "sap", "webdataset", "parquet", "openslr"])
def test_an_empty_folder_and_a_missing_one_are_refused_by_name(corpus, tmp_path):
    with pytest.raises(ValueError, match=str(tmp_path)):
        listed(corpus, tmp_path)
    with pytest.raises(ValueError, match="nowhere.*no such folder"):
        listed(corpus, tmp_path / "nowhere")


def test_a_table_without_rows_is_an_empty_corpus(tmp_path):
    (tmp_path / "manifest.csv").write_text("path,transcript\n")
    with pytest.raises(ValueError, match="has no utterance"):
        listed("folder", tmp_path)


def test_a_bad_json_stops_no_other_contributor(tmp_path):
    toys.write_sap(tmp_path)
    (tmp_path / "Train/s0/s0.json").write_text('{"Contributor ID": "s0", "Files": [')
    (tmp_path / "Train/s1/s1.json").write_text('{"Contributor ID": "s1", "Files": [{"Prompt": {}}, 7]}')
    listing = listed("sap", tmp_path)
    assert sorted(set(listing.utterances["speaker"])) == ["s2", "s3"]
    assert list(listing.faults["file"]) == ["Train/s0/s0.json", "Train/s1/s1.json#0", "Train/s1/s1.json#1"]
    assert set(listing.faults["reason"]) == {"bad_metadata"}


def test_a_damaged_contributor_tar_stops_no_other(tmp_path):
    inner = {f"{s}.tar": toys.tar_bytes(toys.sap_files(s, rows)) for s, rows in toys.UTTERANCES.groupby("speaker")}
    inner["s1.tar"] = inner["s1.tar"][:600] + b"\x99" * 3000 + inner["s1.tar"][3600:]
    (tmp_path / "SAP_Train.tar").write_bytes(toys.tar_bytes(inner))
    listing = listed("sap", tmp_path)
    assert set(listing.utterances["speaker"]) == {"s0", "s2", "s3"}
    assert len(listing.faults) >= 1 and listing.faults["file"].str.contains("s1.tar").all()


def test_sap_transcripts_may_be_missing():
    record = {"Contributor ID": "c", "Files": [{"Filename": "a.wav", "Prompt": {"Transcript": None}}, {"Filename": "b.wav"}]}
    found = list(contributor(json.dumps(record).encode(), "Train/c/c.json"))
    assert [item.transcript for item in found] == [None, None]
    assert [item.audio for item in found] == ["Train/c/a.wav", "Train/c/b.wav"]
    assert all(item.etiology == "" and np.isnan(item.severity) for item in found)


def test_text_that_is_no_unicode_is_quarantined_and_stops_nothing(tmp_path):
    toys.write_sap(tmp_path)
    path = tmp_path / "Train/s0/s0.json"
    path.write_text(path.read_text().replace("sentence number 0", r"sentence \ud800"))
    utterances = listed("sap", tmp_path).utterances.set_index("utterance_id")
    assert len(utterances) == 8 and utterances["reason"].dropna().to_dict() == {"u0": "bad_metadata"}


def shard(tmp_path: Path, files: dict[str, bytes], name: str = "train/0.tar") -> Path:
    (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / name).write_bytes(toys.tar_bytes(files))
    return tmp_path


def test_keys_without_audio_or_text_are_named(tmp_path):
    root = shard(tmp_path, {"a.txt": b"alone", "b.wav": toys.encode(toys.tone(1)), "c.wav": b"x", "c.txt": b"\xff\xfe\xfa"})
    reasons = listed("webdataset", root).utterances.set_index("utterance_id")["reason"].to_dict()
    assert reasons["train/0/a"] == "missing_file" and reasons["train/0/c"] == "missing_transcript"


def test_members_of_a_key_need_not_be_neighbours_and_a_key_may_come_twice(tmp_path):
    wav = toys.encode(toys.tone(1))
    root = shard(tmp_path, {"a.wav": wav, "b.wav": wav, "b.txt": b"two", "a.txt": b"one", "./a.wav": wav})
    utterances = listed("webdataset", root).utterances
    assert list(utterances["utterance_id"]) == ["train/0/a", "train/0/a", "train/0/b"]


def test_domain_of_a_split_folder_is_no_size(tmp_path):
    """Domain tokens: `val_small_normal` is the domain `normal`, `val_small` has none."""
    assert split_and_domain("val_small_normal") == ("dev", "normal")
    assert split_and_domain("val_small") == ("dev", "")
    assert split_and_domain("train") == ("train", "")
    wav = {"a.wav": toys.encode(toys.tone(1)), "a.txt": b"one"}
    for folder in ("train_normal", "val_small_normal", "val_small"):
        shard(tmp_path, wav, f"{folder}/0.tar")
    shard(tmp_path, {**wav, "a.domain": b"dyslexic\n"}, "train_normal/1.tar")
    found = listed("webdataset", tmp_path).utterances.set_index("utterance_id")
    assert found["etiology"].to_dict() == {
        "train_normal/0/a": "normal", "train_normal/1/a": "dyslexic", "val_small/0/a": "unknown",
        "val_small_normal/0/a": "normal",
    }  # fmt: skip
    assert set(found.loc[["val_small/0/a", "val_small_normal/0/a"], "split"]) == {"dev"}


def test_metadata_that_differs_from_the_shards_is_listed(tmp_path):
    toys.write_webdataset(tmp_path)
    shards = [{"shard_filename": "train/000000.tar", "samples": 5}, {"filename": "train/000001.tar", "samples": 9}]
    (tmp_path / "metadata.json").write_text(json.dumps({"total_samples": 14, "shards": shards}))
    faults = listed("webdataset", tmp_path).faults
    assert faults[["file", "reason"]].values.tolist() == [["train/000000.tar", "bad_shard"], ["train/000001.tar", "missing_file"]]
    assert "4 of the 5 samples" in faults["detail"][0]


def test_a_truncated_shard_gives_what_lies_before_the_damage(tmp_path):
    toys.write_webdataset(tmp_path)
    data = (tmp_path / "train/000000.tar").read_bytes()
    (tmp_path / "train/000000.tar").write_bytes(data[: data.index(b"u3.flac")])
    listing = listed("webdataset", tmp_path)
    assert [name[-2:] for name in listing.utterances["utterance_id"] if name.startswith("train")] == ["u0", "u1", "u2"]
    assert "3 of the 4 samples" in " ".join(listing.faults["detail"])


def test_shards_are_read_at_any_address_fsspec_knows(tmp_path):
    toys.write_webdataset(tmp_path)
    address = f"memory://{uuid.uuid4().hex}"
    for path in tmp_path.rglob("*"):
        if path.is_file():
            fsspec.filesystem("memory").pipe(f"{address}/{path.relative_to(tmp_path).as_posix()}", path.read_bytes())
    local, remote = prepared("webdataset", tmp_path), prepared("webdataset", address)
    assert remote.manifest.equals(local.manifest) and remote.counts["n_bad_files"] == 0
    row = remote.manifest.iloc[0]
    np.testing.assert_array_equal(read_utterance(remote.root, row), read_utterance(local.root, row))


def test_parquet_may_hold_plain_bytes_or_paths(tmp_path):
    import pyarrow as pa
    import pyarrow.parquet as pq

    (tmp_path / "clips").mkdir()
    (tmp_path / "clips/a.flac").write_bytes(toys.audio_of(1))
    struct = pa.struct({"bytes": pa.binary(), "path": pa.string()})
    cells = {
        "bytes": pa.array([toys.audio_of(0)]),
        "text": pa.array(["clips/a.flac"]),
        "struct": pa.array([{"bytes": None, "path": "clips/a.flac"}], struct),
    }
    for name, cell in cells.items():
        pq.write_table(pa.table({"audio": cell, "text": ["hi"], "speaker": [name], "age": [42]}), tmp_path / f"{name}.parquet")
    utterances = listed("parquet", tmp_path).utterances.set_index("speaker")
    assert utterances["audio"].to_dict() == {"bytes": "bytes.parquet", "text": "clips/a.flac", "struct": "clips/a.flac"}
    assert (utterances["age"] == 42).all()
    for name, number in (("bytes", 0), ("text", 1), ("struct", 1)):
        np.testing.assert_allclose(read_utterance(tmp_path, utterances.loc[name]), toys.tone(number), atol=1e-4)


def test_a_bad_parquet_file_stops_no_other(tmp_path):
    toys.write_parquet(tmp_path)
    (tmp_path / "data/broken.parquet").write_bytes(b"PAR1 nothing PAR1")
    listing = listed("parquet", tmp_path)
    assert len(listing.utterances) == 8 and list(listing.faults["file"]) == ["data/broken.parquet"]


def test_a_dataset_by_name_is_read_from_the_cache_without_its_decoder(tmp_path, monkeypatch):
    import datasets

    toys.write_parquet(tmp_path / "named")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    found = prepared("hf", tmp_path / "named")
    assert list(found.manifest["split"].value_counts()[["train", "dev", "test"]]) == [4, 2, 2]
    assert found.root == str(tmp_path / "cache")
    row = found.manifest[found.manifest["transcript"] == "sentence number 3"].iloc[0]
    np.testing.assert_allclose(read_utterance(found.root, row), toys.tone(3), atol=1e-4)


@pytest.mark.parametrize("corpus", ["hf", "parquet"])
def test_class_labels_are_names_not_numbers(corpus, tmp_path):
    import datasets

    features = datasets.Features(
        {"audio": {"bytes": datasets.Value("binary"), "path": datasets.Value("string")}, "text": datasets.Value("string")}
        | {"group": datasets.ClassLabel(names=["als", "stroke"])}
    )
    columns = {"audio": [{"bytes": toys.audio_of(k), "path": None} for k in range(2)], "text": ["a", "b"], "group": [1, 0]}
    dataset = datasets.Dataset.from_dict(columns, features)
    dataset.save_to_disk(str(tmp_path)) if corpus == "hf" else dataset.to_parquet(str(tmp_path / "train.parquet"))
    assert listed(corpus, tmp_path).utterances.sort_values("transcript")["etiology"].tolist() == ["stroke", "als"]


def test_a_linked_folder_outside_is_named_and_not_entered(tmp_path):
    toys.write_sap(tmp_path / "corpus")
    shutil.move(tmp_path / "corpus/Dev", tmp_path / "elsewhere")
    (tmp_path / "corpus/Dev").symlink_to(tmp_path / "elsewhere", target_is_directory=True)
    listing = listed("sap", tmp_path / "corpus")
    assert set(listing.utterances["speaker"]) == {"s0", "s1", "s3"}
    assert listing.faults[["file", "reason"]].values.tolist() == [["Dev", "outside_root"]]


def test_a_dataset_that_cannot_be_loaded_is_one_clear_error(tmp_path):
    (tmp_path / "state.json").write_text("{}")
    with pytest.raises(ValueError, match="datasets cannot load it"):
        listed("hf", tmp_path)


def test_split_names():
    names = ["Train", "training", "val", "valid", "validation", "dev", "eval", "test", "train.clean", "test-other", ""]
    assert [split_name(name) for name in names] == ["train", "train", *["dev"] * 5, "test", "train", "test", ""]
    assert split_of_name("SAP-2025_Train_03.tar/c0.tar!/c0.json") == "train"
    with pytest.raises(ValueError, match="'holdout' means none of train, dev and test"):
        split_name("holdout")


def test_a_new_format_is_one_function(monkeypatch, tmp_path):
    from moe.corpora.formats import table

    def read_lines(root, options):
        for line in (Path(root) / "list.txt").read_text().splitlines():
            audio, transcript = line.split(" ", 1)
            yield FoundUtterance(audio, audio, transcript=transcript)
        yield Fault("list.txt", "bad_row", "as an example")

    (tmp_path / "list.txt").write_text("a.wav hello\nb.wav bye\n")
    monkeypatch.setitem(table.FORMATS, "lines", read_lines)
    listing = listed("lines", tmp_path)
    assert list(listing.utterances["transcript"]) == ["hello", "bye"] and len(listing.faults) == 1


@pytest.mark.skipif(not (SHARED / "typical_english").is_dir(), reason="the real corpus is not here")
def test_typical_english_is_read_whole():
    found = prepared("folder", SHARED / "typical_english")
    stated = found.manifest["corpus_duration_s"].astype(float)
    assert found.counts["n_used"] == 14 and found.counts["n_quarantined"] == 0
    np.testing.assert_allclose(found.manifest["duration_s"], stated, atol=0.01)
    for row in found.manifest.to_dict("records"):
        assert abs(len(read_utterance(found.root, row)) - row["duration_s"] * 16_000) <= 1


@pytest.mark.skipif(not (SHARED / "fsdd").is_dir(), reason="the real corpus is not here")
def test_fsdd_own_split_shares_its_speakers_and_is_refused():
    with pytest.raises(ValueError, match=r"speaker leak: 6 speakers.*george \(train, test\).*split=by_speaker"):
        prepared("folder", SHARED / "fsdd")
