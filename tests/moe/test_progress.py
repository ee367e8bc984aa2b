"""A bar on a terminal that leaves nothing behind, a line now and then in a file, and nothing for short work."""

import io
from collections.abc import Callable
from types import SimpleNamespace

import pytest
import tqdm

from moe.progress import EVERY_S, IN_LINES, SHORT_S, announce, counted, progress

Work = Callable[[int, float], str]


class Screen(io.StringIO):
    def __init__(self, is_terminal: bool) -> None:
        super().__init__()
        self.is_terminal = is_terminal

    def isatty(self) -> bool:
        return self.is_terminal


@pytest.fixture(params=[False, True], ids=["file", "terminal"])
def screen(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Screen:
    screen = Screen(request.param)
    monkeypatch.setattr("moe.progress.sys", SimpleNamespace(stderr=screen))
    return screen


@pytest.fixture
def work(screen: Screen, monkeypatch: pytest.MonkeyPatch) -> Work:
    """What 100 units of so many seconds each leave on the screen, by a clock of their own."""
    clock = [1000.0]
    monkeypatch.setattr("tqdm.std.time", lambda: clock[0])
    monkeypatch.setattr(tqdm.tqdm, "monitor_interval", 0)

    def done(n_done: int, seconds: float) -> str:
        with progress("embed", 100, "utterances", n_done) as bar:
            for _ in range(100 - n_done):
                clock[0] += seconds
                bar.update()
        return screen.getvalue()

    return done


def test_short_work_shows_nothing(work: Work) -> None:
    assert work(0, 0.9 * SHORT_S / 100) == ""


def test_long_work_shows_its_name_rate_and_time_left_and_ends_with_a_clean_line(work: Work, screen: Screen) -> None:
    said = work(20, 3.0)
    assert all(word in said for word in ("embed", "/100", "utterances/s", "left"))
    if screen.is_terminal:
        assert said.count("\n") == 0 and said.split("\r")[-2].strip() == ""
    else:
        lines = said.splitlines()
        assert "\r" not in said and all(line.startswith("embed: ") for line in lines)
        assert 80 * 3.0 / EVERY_S / 2 <= len(lines) <= 80 * 3.0 / EVERY_S


def test_what_an_earlier_start_has_done_counts_for_the_total_and_not_for_the_rate(work: Work) -> None:
    assert "0.50 utterances/s" in work(90, 2.0)


def test_nothing_is_shown_where_nothing_is_to_be(screen: Screen) -> None:
    with progress("embed", 3, "utterances", shown=False) as bar:
        bar.update(3)
    assert screen.getvalue() == ""


def test_counted_items_are_the_items(screen: Screen) -> None:
    assert list(counted("abc", "letters", "letters")) == ["a", "b", "c"]


def test_work_is_named_as_it_begins_where_the_name_can_be_overwritten(screen: Screen) -> None:
    announce("compare")
    assert screen.getvalue() == ("compare …\r" if screen.is_terminal else "")


def test_a_terminal_that_several_processes_write_to_gets_lines(
    work: Work, screen: Screen, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(IN_LINES, "1")
    announce("compare")
    assert screen.getvalue() == ""
    assert "\r" not in work(0, 1.0)
