"""Advisories on the disk against pinned versions: what applies is listed, and an audit of nothing is no success."""

import json
import subprocess
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
    write(
        tmp_path / "list", "A-1", summary="reads what it should not", affected=[package | RANGE], modified="2026-03-01T10:00:00Z"
    )
    write(tmp_path / "list", "A-2", affected=[package | RANGE], withdrawn="2026-01-01")
    write(tmp_path / "list", "A-3", affected=[package | {"versions": ["1.3"]}], modified="2025-12-31T10:00:00Z")
    arguments = [str(tmp_path / "list"), "--requirements", str(tmp_path / "requirements.txt")]
    assert audit.main(arguments) == 1
    said = capsys.readouterr().out.splitlines()
    source = f"{tmp_path / 'list'}, newest advisory of 2026-03-01: 2 about the pinned versions; 1 apply"
    assert said == ["some-thing 1.4: A-1 reads what it should not", source]
    (tmp_path / "requirements.txt").write_text("some.thing==1.5\n")
    assert audit.main(arguments) == 0


def test_an_audit_of_nothing_is_no_success(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "requirements.txt").write_text("a==1\nb==2\n")
    assert audit.main([str(tmp_path), "--requirements", str(tmp_path / "requirements.txt")]) == 2
    assert "2 of 2 pinned versions were not checked: a 1, b 2" in capsys.readouterr().err


ANSWERS = [
    {"name": "a", "version": "1", "vulns": [{"id": "PYSEC-1", "fix_versions": ["2"], "description": "bad"}]},
    {"name": "B_c", "version": "2", "vulns": []},
    {"name": "d", "skip_reason": "Dependency not found on PyPI and could not be audited: d (3)"},
]


@pytest.mark.parametrize(
    ("said", "code", "out", "err"),
    [
        (json.dumps({"dependencies": ANSWERS}), 1, "2 of 3 pinned versions known there; 1 apply", "1 of 3 pinned versions"),
        (json.dumps({"dependencies": ANSWERS[1:]}), 2, "1 of 3 pinned versions known there; 0 apply", "a 1, d 3"),
        ("", 2, "no answer (no such host)", "3 of 3 pinned versions were not checked: a 1, b-c 2, d 3"),
    ],
)
def test_what_the_service_does_not_know_is_named(
    said: str, code: int, out: str, err: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "requirements.txt").write_text("a==1\nb-c==2\nd==3\n")
    answer = subprocess.CompletedProcess((), 1, said, "Traceback\nno such host\n\n")
    monkeypatch.setattr(audit.subprocess, "run", lambda *_, **__: answer)
    assert audit.main(["--requirements", str(tmp_path / "requirements.txt")]) == code
    printed = capsys.readouterr()
    assert out in printed.out and err in printed.err and ("PYSEC-1" in printed.out) == (code == 1)


def test_our_own_requirements_are_read() -> None:
    found = pinned(project_root() / "requirements.txt")
    assert found["torch"] == "2.13.0" and normal("umap_learn") in found
