"""Unfinished work belongs to one live process, outlives it, and is gone when the step has FINISHED."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from moe.files import write_json
from steps.store import project_root
from steps.unfinished import DAMAGED, RUN, claim

HOLDER = """
import multiprocessing, os, sys, time
from pathlib import Path
from steps.unfinished import claim
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
