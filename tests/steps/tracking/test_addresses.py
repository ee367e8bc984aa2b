"""An address names the file that SQLAlchemy takes it for, wherever that lies, and MLflow leaves no other folder beside it."""

import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from mlflow.store.db.utils import _make_parent_dirs_if_sqlite
from sqlalchemy.engine import make_url

from steps.tracking.addresses import Address, parse_address, sqlite_address

FOLDERS = ("my project", "my%20project", "50% off", "a?b=c", "#1", "a@b:c", "ünï 漢", "file:x", "a+b&c=d;e", "%2F", "plain")
NAMES = st.text(st.characters(exclude_characters="/\0", exclude_categories=["Cs"]), min_size=1, max_size=20).filter(
    lambda name: name not in (".", "..")
)


@given(st.lists(NAMES, min_size=1, max_size=3))
def test_every_file_has_an_address_that_is_read_back_as_that_file(parts: list[str]) -> None:
    path = Path("/", *parts)
    address = sqlite_address(path)
    assert address.sqlite_path == path and Path(make_url(address.uri).database) == path
    assert parse_address(address.uri) == address


@pytest.mark.parametrize("folder", FOLDERS)
def test_mlflow_makes_no_folder_but_that_of_the_file(folder: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """MLflow cuts the address where we parse it (`_make_parent_dirs_if_sqlite`)."""
    (tmp_path / folder).mkdir()
    monkeypatch.chdir(tmp_path)
    _make_parent_dirs_if_sqlite(sqlite_address(tmp_path / folder / "mlflow.db").uri)
    assert os.listdir(tmp_path) == [folder] and os.listdir(tmp_path / folder) == []


@pytest.mark.parametrize(
    ("uri", "path", "rest"),
    [
        ("sqlite:////a/my%20project/m.db", "/a/my project/m.db", ""),
        ("sqlite:////a/my project/m.db?timeout=60", "/a/my project/m.db", "?timeout=60"),
        ("sqlite+pysqlite:////a/m.db?check_same_thread=false&timeout=60", "/a/m.db", "?check_same_thread=false&timeout=60"),
        ("sqlite:////a/50%25.db", "/a/50%.db", ""),
        ("sqlite:///file:/a/b%20c.db?mode=rwc&uri=true", "/a/b c.db", "?mode=rwc&uri=true"),
    ],
)
def test_what_an_address_says_beside_the_file_is_kept(uri: str, path: str, rest: str) -> None:
    address = parse_address(uri)
    assert address.sqlite_path == Path(path) and address.uri.endswith(rest) and "%20project" not in address.uri


def test_a_file_named_from_here_is_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert parse_address("sqlite:///sub/m.db") == sqlite_address(tmp_path / "sub" / "m.db")


@pytest.mark.parametrize(
    "uri",
    ["http://127.0.0.1:5000", "https://a%40b:c@host/x%20y?z=1", "postgresql://user:p%40ss@host/db?sslmode=require", "databricks", "databricks://x",
     "sqlite://", "sqlite:///", "sqlite:///:memory:", "sqlite:///file:m?mode=memory&uri=true", "./mlruns", "file:///a", "http://[::1", ":"],
)  # fmt: skip
def test_every_other_store_stays_as_it_was_named(uri: str) -> None:
    assert parse_address(uri) == Address(uri)
