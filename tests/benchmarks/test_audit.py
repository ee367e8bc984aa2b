"""Advisories on the disk against pinned versions: what applies is listed, and an audit of nothing is no success."""

import json
from pathlib import Path

import pytest

from benchmarks import audit
from benchmarks.audit import is_affected, normal, pinned
from steps.tracking.store import project_root

RANGE = {
    "ranges": [
        {
            "type": "ECOSYSTEM",
            "events": [{"introduced": "1.2"}, {"fixed": "1.5"}, {"introduced": "2.0"}, {"last_affected": "2.3"}],
        }
    ]
}


@pytest.mark.parametrize(
    ("version", "applies"),
    [
        ("1.1.9", False),
        ("1.2", True),
        ("1.4.99", True),
        ("1.5", False),
        ("1.10", False),
        ("2.0", True),
        ("2.3", True),
        ("2.3.1", False),
    ],
)
def test_a_range_is_open_at_its_fix(version: str, applies: bool) -> None:
    assert is_affected(version, RANGE) == applies


def test_a_listed_version_is_affected_without_a_range() -> None:
    assert is_affected("3.0", {"versions": ["3.0"]}) and not is_affected("3.1", {"versions": ["3.0"]})


def write(folder: Path, name: str, **advisory) -> None:
    (folder / "deep").mkdir(parents=True, exist_ok=True)
    (folder / "deep" / f"{name}.json").write_text(json.dumps({"id": name} | advisory))


def test_what_applies_is_listed_and_fails(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "requirements.txt").write_text("Some_Thing==1.4\nother==2.0\n")
    package = {"package": {"name": "some-thing", "ecosystem": "PyPI"}}
    write(tmp_path / "list", "A-1", summary="reads what it should not", affected=[package | RANGE])
    write(tmp_path / "list", "A-2", affected=[package | RANGE], withdrawn="2026-01-01")
    write(tmp_path / "list", "A-3", affected=[package | {"versions": ["1.3"]}])
    arguments = [str(tmp_path / "list"), "--requirements", str(tmp_path / "requirements.txt")]
    assert audit.main(arguments) == 1
    said = capsys.readouterr().out.splitlines()
    assert said == ["some-thing 1.4: A-1 reads what it should not", "2 pinned versions, 2 advisories about them, 1 apply"]
    (tmp_path / "requirements.txt").write_text("some.thing==1.5\n")
    assert audit.main(arguments) == 0


def test_an_audit_of_nothing_is_no_success(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert audit.main([str(tmp_path)]) == 2 and "nothing was audited" in capsys.readouterr().err


def test_our_own_requirements_are_read() -> None:
    found = pinned(project_root() / "requirements.txt")
    assert found["torch"] == "2.13.0" and normal("umap_learn") in found
