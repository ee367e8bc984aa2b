"""Files are whole or absent, whatever interrupts the writing."""

import hashlib
import stat
from pathlib import Path

import pandas as pd
import pytest

from moe.corpora.tables import write_table
from moe.files import file_digest, folder_digest, read_json, write_json, write_whole, write_whole_dir


class Killed(BaseException):
    """No Exception, as a KeyboardInterrupt is none."""


def test_an_interrupted_file_never_appears_and_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(Killed), write_whole(tmp_path / "sub" / "a.txt") as aside:
        aside.write_text("half")
        raise Killed
    assert list((tmp_path / "sub").iterdir()) == []


def test_an_interrupted_file_leaves_the_older_one(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("old")
    with pytest.raises(Killed), write_whole(path) as aside:
        aside.write_text("half")
        assert path.read_text() == "old"
        raise Killed
    assert path.read_text() == "old" and list(tmp_path.iterdir()) == [path]


def test_a_finished_file_replaces_the_older_one_and_others_may_read_it(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("old")
    plain = tmp_path / "plain"
    plain.touch()
    with write_whole(path) as aside:
        aside.write_text("new")
    assert path.read_text() == "new"
    assert stat.S_IMODE(path.stat().st_mode) == stat.S_IMODE(plain.stat().st_mode)


def test_a_folder_is_replaced_whole_or_stays(tmp_path: Path) -> None:
    folder = tmp_path / "store"
    with write_whole_dir(folder) as aside:
        (aside / "old").write_text("1")
    with pytest.raises(Killed), write_whole_dir(folder) as aside:
        (aside / "new").write_text("2")
        raise Killed
    assert [path.name for path in folder.iterdir()] == ["old"] and list(tmp_path.iterdir()) == [folder]
    with write_whole_dir(folder) as aside:
        (aside / "new").write_text("2")
    assert [path.name for path in folder.iterdir()] == ["new"] and list(tmp_path.iterdir()) == [folder]


def test_json_and_tables_read_back(tmp_path: Path) -> None:
    value = {"b": [1, None, True], "a": "नमस्ते 안녕"}
    write_json(tmp_path / "v.json", value)
    assert read_json(tmp_path / "v.json") == value and "안녕" in (tmp_path / "v.json").read_text(encoding="utf-8")
    assert list(read_json(tmp_path / "v.json")) == ["b", "a"]
    table = pd.DataFrame({"utterance_id": ["u1", "u2"], "n": [1, 2]}, index=[7, 9])
    write_table(tmp_path / "t.parquet", table)
    pd.testing.assert_frame_equal(pd.read_parquet(tmp_path / "t.parquet"), table.reset_index(drop=True))


def test_digests_are_of_bytes_and_of_names(tmp_path: Path) -> None:
    (tmp_path / "x").mkdir()
    (tmp_path / "x" / "a").write_bytes(b"1")
    assert file_digest(tmp_path / "x" / "a") == hashlib.sha256(b"1").hexdigest()
    one = folder_digest(tmp_path / "x")
    (tmp_path / "x" / "a").rename(tmp_path / "x" / "b")
    renamed = folder_digest(tmp_path / "x")
    (tmp_path / "x" / "b").write_bytes(b"2")
    assert len({one, renamed, folder_digest(tmp_path / "x")}) == 3
    (tmp_path / "y").mkdir()
    (tmp_path / "y" / "b").write_bytes(b"2")
    assert folder_digest(tmp_path / "x") == folder_digest(tmp_path / "y")
