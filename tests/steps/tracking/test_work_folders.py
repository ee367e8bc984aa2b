"""Unfinished work belongs to one live process, outlives it, and is gone when the step has FINISHED."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO

import pytest

from moe.files import write_json
from steps.tracking import work_folders
from steps.tracking.store import project_root
from steps.tracking.work_folders import DAMAGED, DAY_S, MAX_AGE_DAYS, RUN, _locked_as_it_is, claim

HOLDER = """
import multiprocessing, os, sys, time
from pathlib import Path
from steps.tracking.work_folders import claim
found = claim(Path(sys.argv[1]), "gate", "d" * 64)
found.belongs_to("run-of-holder")
(found.work_dir / "kept").touch()
if os.fork() == 0:  # as a loader of the step, which outlives it for a while
    time.sleep(60)
print(os.getpid(), flush=True)
time.sleep(60)
"""


@pytest.fixture
def holder(tmp_path: Path) -> Iterator[subprocess.Popen]:
    """A live process that has claimed the folder of gate, and a child it forked."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(tmp_path)], stdout=-1, text=True, cwd=project_root(), start_new_session=True
    )
    process.stdout.readline()
    yield process
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def test_a_second_process_gets_a_folder_of_its_own_and_the_next_one_goes_on(tmp_path: Path, holder: subprocess.Popen) -> None:
    """A forked loader outlives its step by seconds; it must not keep the folder from the next start."""
    second = claim(tmp_path, "gate", "d" * 64)
    assert second.folder.name == f"gate-{'d' * 32}-2" and second.run_id is None
    second.close(finished=True)
    holder.kill()
    holder.wait()
    after = claim(tmp_path, "gate", "d" * 64)
    assert after.run_id == "run-of-holder" and (after.work_dir / "kept").exists()
    after.close(finished=True)


def test_the_same_process_does_not_claim_twice(tmp_path: Path) -> None:
    first, second = claim(tmp_path, "gate", "d"), claim(tmp_path, "gate", "d")
    assert first.folder != second.folder
    first.close(finished=False)
    assert claim(tmp_path, "gate", "d").folder == first.folder


def test_a_folder_that_belongs_to_somebody_without_a_lock_is_passed_over(tmp_path: Path) -> None:
    claim(tmp_path, "gate", "d").belongs_to("elsewhere")
    found = claim(tmp_path, "gate", "d", lambda each: each.run_id == "elsewhere")
    assert found.folder.name == "gate-d-2"


def test_what_is_unfinished_stays_and_what_is_finished_goes(tmp_path: Path) -> None:
    found = claim(tmp_path, "gate", "d")
    (found.work_dir / "part").touch()
    found.close(finished=False)
    again = claim(tmp_path, "gate", "d")
    assert (again.work_dir / "part").exists()
    again.close(finished=True)
    assert list(tmp_path.iterdir()) == []


def test_discarded_work_leaves_the_claim(tmp_path: Path) -> None:
    found = claim(tmp_path, "gate", "d")
    found.belongs_to("r")
    (found.work_dir / "part").touch()
    found.discard()
    assert found.run_id is None and list(found.work_dir.iterdir()) == []
    assert claim(tmp_path, "gate", "d").folder != found.folder


def test_what_was_damaged_is_kept_for_inspection(tmp_path: Path) -> None:
    found = claim(tmp_path, "gate", "d")
    found.belongs_to("r1")
    (found.work_dir / "checkpoints" / "damaged_update_3").mkdir(parents=True)
    found.close(finished=True)
    assert [path.name for path in (tmp_path / DAMAGED / "gate-d-r1").iterdir()] == ["damaged_update_3"]
    assert not found.folder.exists()


@pytest.mark.parametrize("content", ["", "{", "[]", '{"run": 1}'])
def test_an_unreadable_note_of_the_run_counts_as_none(tmp_path: Path, content: str) -> None:
    found = claim(tmp_path, "gate", "d")
    (found.folder / RUN).write_text(content)
    assert found.run_id is None
    write_json(found.folder / RUN, {"run_id": "r"})
    assert found.run_id == "r"


def test_a_place_that_takes_no_folder_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(RuntimeError, match=r"unfinished work cannot be kept in .*file/gate-d: "):
        claim(tmp_path / "file", "gate", "d")


def aged(folder: Path, days: float) -> None:
    then = time.time() - days * DAY_S
    for path in (*folder.rglob("*"), folder):
        os.utime(path, (then, then))


def left(root: Path, step: str, digest: str, days: float) -> Path:
    """A folder that an earlier start of a step left so long ago."""
    found = claim(root, step, digest)
    found.belongs_to("r")
    (found.work_dir / "checkpoints").mkdir()
    found.close(finished=False)
    aged(found.folder, days)
    return found.folder


def test_what_other_options_left_long_ago_goes_and_nothing_else(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    old = left(tmp_path, "gate", "old", MAX_AGE_DAYS + 1)
    touched = left(tmp_path, "gate", "touched", MAX_AGE_DAYS + 1)
    (touched / "work" / "checkpoints" / "update_3").touch()
    aged(touched / "work" / "checkpoints" / "update_3", 0)
    kept = [touched, left(tmp_path, "gate", "young", MAX_AGE_DAYS - 1), left(tmp_path, "asr", "old", MAX_AGE_DAYS + 1)]
    claim(tmp_path, "gate", "new").close(finished=True)
    assert sorted(tmp_path.iterdir()) == sorted(kept)
    assert capsys.readouterr().out == f"unfinished work of {old.name}, unchanged for 30 days, was removed\n"


def test_a_young_folder_is_not_locked_and_one_that_became_young_meanwhile_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another start of its step may come in the same moment, just before the lock or while it is held."""
    left(tmp_path, "gate", "young", MAX_AGE_DAYS - 1)
    old, own, locked = left(tmp_path, "gate", "old", MAX_AGE_DAYS + 1), tmp_path / "gate-new", []

    def after_another(folder: Path) -> IO[str] | None:
        locked.append(folder)
        (folder / RUN).touch()
        return _locked_as_it_is(folder)

    monkeypatch.setattr(work_folders, "_locked_as_it_is", after_another)
    claim(tmp_path, "gate", "new").close(finished=True)
    assert locked == [own, old] and old.is_dir()


def test_the_same_step_goes_on_however_long_ago_it_stopped(tmp_path: Path) -> None:
    """Its second folder too: that belongs to a start that has not come yet."""
    first, second = (claim(tmp_path, "gate", "d") for _ in range(2))
    for found, run_id in ((first, "r1"), (second, "r2")):
        found.belongs_to(run_id)
        found.close(finished=False)
        aged(found.folder, MAX_AGE_DAYS + 1)
    assert [claim(tmp_path, "gate", "d").run_id for _ in range(2)] == ["r1", "r2"]


def test_an_old_folder_that_a_process_holds_stays(tmp_path: Path, holder: subprocess.Popen) -> None:
    held, own = tmp_path / f"gate-{'d' * 32}", claim(tmp_path, "gate", "own").folder
    for folder in (held, own):
        aged(folder, MAX_AGE_DAYS + 1)
    claim(tmp_path, "gate", "new").close(finished=True)
    assert held.is_dir() and own.is_dir()
    holder.kill()
    holder.wait()
    claim(tmp_path, "gate", "new").close(finished=True)
    assert not held.exists() and own.is_dir()
