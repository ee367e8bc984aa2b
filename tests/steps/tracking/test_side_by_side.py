"""Processes side by side: each answers, knows the run it works below, has its share of the cores, and ends with the one that started it."""

import os
import time
from pathlib import Path

import pytest

from moe.progress import IN_LINES
from steps.tracking import side_by_side as module
from steps.tracking.parents import below, parent_id
from steps.tracking.processes import threads_of_each
from steps.tracking.side_by_side import side_by_side

pytestmark = pytest.mark.slow


def told(work: str) -> tuple[str, str | None, str, int]:
    return work, parent_id(), os.environ["OMP_NUM_THREADS"], os.getpid()


def one_line(work: int) -> int:
    if work == 1:
        raise ValueError(f"work={work}: there is none")
    if work == 2:
        os._exit(3)
    return work


def in_lines_after(work: tuple[str, str]) -> str | None:
    """Leaves a file, and ends when there is another."""
    own, other = map(Path, work)
    own.touch()
    limit = time.monotonic() + 300
    while not other.exists() and time.monotonic() < limit:
        time.sleep(0.05)
    return os.environ.get(IN_LINES) if other.exists() else "waited in vain"


def waits(path: str) -> None:
    try:
        Path(path).touch()
        time.sleep(60)
    finally:
        Path(path).rename(f"{path}.ended")


def test_each_answers_in_order_from_a_process_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    first, second = side_by_side(told, ["a", "b"], "sweep", 2)
    assert (first[0], second[0]) == ("a", "b") and len({first[3], second[3], os.getpid()}) == 3
    assert first[1] == second[1] == "sweep" and first[2] == str(threads_of_each(2)) and "OMP_NUM_THREADS" not in os.environ


def test_the_next_starts_where_one_has_ended(tmp_path: Path) -> None:
    a, b, c = (str(tmp_path / name) for name in "abc")
    assert side_by_side(in_lines_after, [(a, c), (b, a), (c, b)], "main", 2) == ["1"] * 3, "the first waits for the third"


@pytest.mark.parametrize(
    ("work", "error", "said"), [(1, ValueError, "work=1: there is none"), (2, RuntimeError, "without an answer")]
)
def test_what_goes_wrong_in_one_is_said_and_ends_the_others(work: int, error: type[Exception], said: str) -> None:
    with pytest.raises(error, match=said):
        side_by_side(one_line, [0, work], "main", 2)


def test_an_interruption_reaches_all_of_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    paths = [str(tmp_path / name) for name in "ab"]

    def interrupted(answers: object) -> None:
        while not all(Path(path).exists() for path in paths):
            time.sleep(0.05)
        raise KeyboardInterrupt

    monkeypatch.setattr(module, "wait", interrupted)
    with pytest.raises(KeyboardInterrupt):
        side_by_side(waits, [*paths, str(tmp_path / "never")], "main", 2)
    assert all(Path(f"{path}.ended").exists() for path in paths) and not (tmp_path / "never").exists()


def test_the_run_above_is_known_inside_the_block_alone() -> None:
    assert parent_id() is None
    with below("a"), below("b"):
        assert parent_id() == "b"
    assert parent_id() is None
