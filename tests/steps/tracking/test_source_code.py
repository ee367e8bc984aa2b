"""The changes that a commit does not hold: edits and new files, none of what git ignores, secrets hidden."""

import subprocess
from pathlib import Path

import pytest

from steps.tracking.source_code import uncommitted


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A repository with one commit."""
    for words in (["init", "-q"], ["config", "user.email", "a@b.c"], ["config", "user.name", "a"]):
        subprocess.run(["git", "-C", str(tmp_path), *words], check=True)
    (tmp_path / "gate.py").write_text("LAYERS = 2\n")
    (tmp_path / ".gitignore").write_text("*.log\n")
    subprocess.run(["git", "-C", str(tmp_path), "add", "-A"], check=True)
    subprocess.run(["git", "-C", str(tmp_path), "commit", "-qm", "first"], check=True)
    return tmp_path


def test_a_clean_checkout_and_a_folder_without_git_have_none(checkout: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    assert uncommitted(checkout) == "" == uncommitted(tmp_path_factory.mktemp("plain"))


def test_edits_and_new_files_are_in_it_once_read_and_secrets_are_not(checkout: Path) -> None:
    (checkout / "gate.py").write_text("LAYERS = 3\nTOKEN = 'hf_abcdefghijklmnopqrstuvwxyz'\n")
    (checkout / "new.py").write_text("HEADS = 4\n")
    (checkout / "a.log").write_text("noise\n")
    found = uncommitted(checkout)
    assert "-LAYERS = 2" in found and "+LAYERS = 3" in found and "+HEADS = 4" in found
    assert "noise" not in found and "hf_abc" not in found and "TOKEN = '***'" in found
    (checkout / "new.py").unlink()
    assert uncommitted(checkout) == found  # what the process runs is what it found when it began
