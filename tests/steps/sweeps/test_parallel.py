"""Processes side by side: each answers, knows the run it works below, has its share of the cores, and ends with the one that started it."""

import os
import time
from pathlib import Path

import pytest

from steps.sweeps import parallel
from steps.sweeps.parallel import side_by_side
from steps.tracking.parents import below, parent_id
from steps.tracking.processes import threads_of_each

pytestmark = pytest.mark.slow


def told(work: str) -> tuple[str, str | None, str, int]:
    return work, parent_id(), os.environ["OMP_NUM_THREADS"], os.getpid()


def dies_where_asked(work: int) -> int:
    if work:
        os._exit(3)
    return work


def waits(path: str) -> None:
    try:
        Path(path).touch()
        time.sleep(60)
    finally:
        Path(path).rename(f"{path}.ended")


def test_each_answers_in_order_from_a_process_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    first, second = side_by_side(told, ["a", "b"], "sweep")
    assert (first[0], second[0]) == ("a", "b") and len({first[3], second[3], os.getpid()}) == 3
    assert first[1] == second[1] == "sweep" and first[2] == str(threads_of_each(2)) and "OMP_NUM_THREADS" not in os.environ


def test_a_process_without_an_answer_is_said_and_ends_the_others() -> None:
    with pytest.raises(RuntimeError, match="ended without an answer"):
        side_by_side(dies_where_asked, [0, 1], "sweep")


def test_an_interruption_reaches_all_of_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    paths = [str(tmp_path / name) for name in "ab"]

    def interrupted(answers: object) -> None:
        while not all(Path(path).exists() for path in paths):
            time.sleep(0.05)
        raise KeyboardInterrupt

    monkeypatch.setattr(parallel, "_received", interrupted)
    with pytest.raises(KeyboardInterrupt):
        side_by_side(waits, paths, "sweep")
    assert all(Path(f"{path}.ended").exists() for path in paths)


def test_the_run_above_is_known_inside_the_block_alone() -> None:
    assert parent_id() is None
    with below("a"), below("b"):
        assert parent_id() == "b"
    assert parent_id() is None
