"""A manifest is checked when written and when read, and its audio never leaves the corpus root."""

import os

import numpy as np
import pandas as pd
import pytest

import tests.toys.corpora as toys
from moe.corpora.formats.inventory import take_inventory
from moe.corpora.locations import OutsideRoot, locate
from moe.corpora.manifest import COLUMNS, read_manifest, read_utterance, write_manifest

ROW = toys.ROW


def table(*ids: str, **change) -> pd.DataFrame:
    return pd.DataFrame([ROW | {"utterance_id": name} | change for name in ids])


def test_what_is_written_is_read_sorted_with_further_columns_last(tmp_path):
    write_manifest(tmp_path / "m.parquet", table("b", "a"))
    manifest = read_manifest(tmp_path / "m.parquet")
    assert list(manifest["utterance_id"]) == ["a", "b"] and list(manifest.columns) == [*COLUMNS, "gender"]
    assert manifest["member"].isna().all() and manifest["severity"].isna().all()


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (table("a").drop(columns=["speaker", "split"]), "column speaker, split missing"),
        (table("a", "a"), "utterance_id 'a' is there twice"),
        (table(""), "an utterance_id is empty"),
        (table("a", split="Train"), "split 'Train' is none of train, dev, test"),
        (table("a", duration_s=0.0), "duration_s of 'a' is not above 0"),
        (table("a", duration_s=float("nan")), "duration_s of 'a' is not above 0"),
    ],
)
def test_what_is_no_manifest_is_refused_and_nothing_is_written(wrong, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        write_manifest(tmp_path / "m.parquet", wrong)
    assert not list(tmp_path.iterdir())


def test_a_missing_or_broken_file_is_named(tmp_path):
    with pytest.raises(ValueError, match="m.parquet: no such file"):
        read_manifest(tmp_path / "m.parquet")
    (tmp_path / "m.parquet").write_bytes(b"no")
    with pytest.raises(ValueError, match="m.parquet: not a Parquet table"):
        read_manifest(tmp_path / "m.parquet")


@pytest.mark.parametrize("member", [None, float("nan"), ""])
def test_a_file_is_read_however_its_missing_member_is_written(member, tmp_path):
    (tmp_path / "a.flac").write_bytes(toys.audio_of(1))
    wave = read_utterance(tmp_path, {"audio": "a.flac", "member": member})
    np.testing.assert_allclose(wave, toys.tone(1), atol=1e-4)


def test_a_member_that_is_not_there_is_named(tmp_path):
    (tmp_path / "a.tar").write_bytes(toys.tar_bytes({"x.wav": b""}))
    with pytest.raises(FileNotFoundError, match="a.tar: no member 'y.wav'"):
        read_utterance(tmp_path, {"audio": "a.tar", "member": "y.wav"})


@pytest.mark.parametrize(
    "path", ["/etc/hostname", "../x", "a/../../x", "~/x", "", "a\0b", "..\\x", "file:///etc/hostname", "s3://b/x"]
)
@pytest.mark.parametrize("root", ["folder", "memory://box"])
def test_paths_that_lead_out_are_refused(path, root, tmp_path):
    with pytest.raises(OutsideRoot):
        locate(tmp_path if root == "folder" else root, path)


def test_links_are_followed_within_the_root_only(tmp_path):
    root = tmp_path / "root"
    root.mkdir()
    (root / "a.flac").write_bytes(toys.audio_of(1))
    (tmp_path / "b.flac").write_bytes(toys.audio_of(2))
    (root / "in.flac").symlink_to("a.flac")
    (root / "out.flac").symlink_to(tmp_path / "b.flac")
    assert len(read_utterance(root, {"audio": "in.flac", "member": None}))
    with pytest.raises(OutsideRoot, match="out.flac.*a link that leads out"):
        read_utterance(root, {"audio": "out.flac", "member": None})
    other = tmp_path / "rootless"  # a name that only begins like the root
    other.mkdir()
    os.symlink(other, root / "beside")
    with pytest.raises(OutsideRoot):
        locate(root, "beside/x")


def test_a_root_that_is_itself_a_link_is_no_fault(tmp_path):
    (tmp_path / "real").mkdir()
    (tmp_path / "real" / "a.flac").write_bytes(toys.audio_of(1))
    (tmp_path / "link").symlink_to("real")
    assert len(read_utterance(tmp_path / "link", {"audio": "a.flac", "member": None}))
    assert take_inventory(tmp_path / "link").ending(".flac") == ["a.flac"]
