"""Blocks: each is done by exactly one process, in the order of all; who fails is tried again, named, and stops no other."""

import errno
import os
import signal
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from moe.training import blocks, processes
from moe.training.blocks import dealt, do_each, in_order

NAMES = {number: [f"u{2 * number}", f"u{2 * number + 1}"] for number in range(4)}


@given(st.integers(0, 40), st.integers(1, 6))
def test_every_block_is_one_processs_and_comes_back_in_its_place(n_blocks: int, n_processes: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(processes, "n_processes", lambda: n_processes)
        shares = []
        for number in range(n_processes):
            patch.setattr(processes, "number", lambda number=number: number)
            shares.append(list(dealt(n_blocks)))
        patch.setattr(processes, "gathered", lambda _: shares)
        assert in_order(shares[0]) == list(range(n_blocks)) and max(map(len, shares)) - min(map(len, shares)) <= 1


class Work:
    """Notes what it is asked to do, and fails on some blocks so many times."""

    def __init__(self, fails: dict[int, int], error: Callable[[str], Exception] = RuntimeError) -> None:
        self.tried: list[int] = []
        self.fails, self.error = fails, error

    def __call__(self, number: int) -> None:
        self.tried.append(number)
        if self.tried.count(number) <= self.fails.get(number, 0):
            raise self.error(f"no memory for {number}")


@pytest.mark.parametrize("error", [ValueError, RuntimeError, OSError, MemoryError])
def test_a_block_that_fails_once_is_done_after_the_others(tmp_path: Path, error: type[Exception]) -> None:
    work = Work({1: 1}, error)
    do_each(NAMES, work, tmp_path / "new")
    assert work.tried == [0, 1, 2, 3, 1] and list((tmp_path / "new").iterdir()) == []


def test_what_fails_twice_is_named_when_all_others_are_done(tmp_path: Path) -> None:
    work = Work({0: 9, 2: 9, 3: 1})
    with pytest.raises(RuntimeError) as failed:
        do_each(NAMES, work, tmp_path)
    assert work.tried == [0, 1, 2, 3, 0, 2, 3]
    assert str(failed.value) == "4 utterances failed 2 times (no memory for 0; no memory for 2): u0, u1, u4, u5"
    assert "in __call__" in str(failed.value.__cause__)


def full(said: str) -> OSError:
    return OSError(errno.ENOSPC, said)


def test_where_nothing_is_kept_or_can_be_and_for_a_defect_the_first_failure_stops_the_work(tmp_path: Path) -> None:
    for work, folder in ((Work({1: 1}), None), (Work({1: 1}, KeyError), tmp_path), (Work({1: 1}, full), tmp_path)):
        with pytest.raises(type(work.error("")), match="no memory for 1"):
            do_each(NAMES, work, folder)
        assert work.tried == [0, 1]


def test_another_processs_failure_is_everybodys(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processes, "gathered", lambda own: [own, [blocks.Fault(("u9",), "no file")]])
    with pytest.raises(RuntimeError, match=r"^1 utterances failed 2 times \(no file\): u9$"):
        do_each(NAMES, Work({}), tmp_path)


def test_a_block_that_kills_its_process_twice_is_named_and_the_next_start_tries_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(processes, "n_processes", lambda: 2)
    monkeypatch.setattr(processes, "gathered", lambda own: [own])
    for _ in range(2):
        if not (child := os.fork()):
            do_each(NAMES, lambda number: os.kill(os.getpid(), signal.SIGKILL) if number == 1 else None, tmp_path)
            os._exit(0)
        assert os.WTERMSIG(os.waitpid(child, 0)[1]) == signal.SIGKILL
    work = Work({})
    with pytest.raises(
        RuntimeError, match=r"^2 utterances failed 2 times \(the process that worked on them was killed\): u2, u3$"
    ):
        do_each(NAMES, work, tmp_path)
    assert work.tried == [0, 2, 3]
    do_each(NAMES, work := Work({}), tmp_path)
    assert work.tried == [0, 1, 2, 3]


def test_who_is_interrupted_leaves_no_mark(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processes, "n_processes", lambda: 2)
    with pytest.raises(KeyboardInterrupt):
        do_each(NAMES, Work({1: 1}, KeyboardInterrupt), tmp_path)
    assert list(tmp_path.iterdir()) == []
