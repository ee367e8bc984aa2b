"""The short form of `make torture`: real processes are killed, disks filled and a server stopped, once or so each; and the table's logic."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from benchmarks.torture import __main__ as torture
from benchmarks.torture import chain
from benchmarks.torture.__main__ import Row, attempt, page
from benchmarks.torture.arena import assert_same
from benchmarks.torture.store import NotHere

WHOLE = {"weights": {"a": "1"}, "metrics": [["loss", 1, "0.5"], ["loss", 2, "0.25"]], "statuses": ["FINISHED"]}

SHORT = ("save", "full-checkpoint", "read-only", "server", "kill-experts-2")
ON_A_SMALL_DISK = ("full-checkpoint", "read-only")


@pytest.fixture(scope="module")
def short_form(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The rows as a process of its own found them: it forks, and this one has opened stores and trained."""
    folder = tmp_path_factory.mktemp("torture")
    command = [sys.executable, "-m", "benchmarks.torture", "--short"]
    command += ["--folder", str(folder), "--results", str(folder / "torture")]
    done = subprocess.run(command, cwd=torture.ROOT, capture_output=True, text=True, check=False)
    assert (folder / "torture.json").exists(), done.stderr[-2000:]
    return json.loads((folder / "torture.json").read_text())


def can_mount(folder: Path) -> bool:
    """Asked of the machine itself, so that a trial that wrongly says it cannot be done here fails."""
    mounted = subprocess.run(["mount", "-t", "tmpfs", "none", str(folder)], capture_output=True, check=False).returncode == 0
    return mounted and subprocess.run(["umount", str(folder)], check=True).returncode == 0


@pytest.mark.slow
@pytest.mark.parametrize("name", SHORT)
def test_the_promise_holds_once_and_only_a_disk_that_cannot_be_mounted_excuses(
    short_form: dict[str, Any], name: str, tmp_path: Path
) -> None:
    expected = None if name in ON_A_SMALL_DISK and not can_mount(tmp_path) else True
    trials = list(short_form[name]["trials"].values())
    assert trials and all(trial["passed"] is expected for trial in trials), trials


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"weights": {"a": "2"}}, "weights differ"),
        ({"weights": {}}, "weights differ"),
        ({"metrics": WHOLE["metrics"][:1]}, "1 missing"),
        ({"metrics": [*WHOLE["metrics"], ["loss", 2, "0.25"]]}, "not in the undisturbed run"),
        ({"metrics": [["loss", 1, "0.5"], ["loss", 2, "0.26"]]}, "1 not in the undisturbed run"),
        ({"statuses": ["FINISHED", "RUNNING"]}, "RUNNING"),
    ],
)
def test_each_difference_is_found(change: dict, word: str) -> None:
    assert_same(WHOLE, WHOLE)
    with pytest.raises(AssertionError, match=word):
        assert_same(WHOLE | change, WHOLE)


def test_nothing_to_compare_is_no_success() -> None:
    with pytest.raises(AssertionError, match="nothing to compare"):
        assert_same(WHOLE | {"weights": {}}, WHOLE | {"weights": {}})


def fails(seed: int) -> str:
    raise AssertionError("bits differ")


def impossible(seed: int) -> str:
    raise NotHere("only root may mount")


def test_a_trial_passes_fails_or_cannot_be_done_here() -> None:
    assert [attempt(trial, 0)["passed"] for trial in (lambda seed: "seen", fails, impossible)] == [True, False, None]


def test_the_table_counts_and_shows_what_failed(tmp_path: Path) -> None:
    rows = [Row("a", "t1", "p1", lambda seed: "ok" if seed else fails(seed), None), Row("b", "t2", "p2", impossible, 1)]
    assert not torture.torture(rows, 3, False, False, tmp_path / "torture", "code")
    said = (tmp_path / "torture.md").read_text()
    assert (
        "| t1 | p1 | 2/3 |" in said
        and "| t2 | p2 | not on this machine |" in said
        and "- a 0: AssertionError: bits differ" in said
    )


def test_what_passed_with_the_same_code_is_not_repeated(tmp_path: Path) -> None:
    tried: list[int] = []

    def trial(seed: int) -> str:
        tried.append(seed)
        return "ok" if seed or len(tried) > 3 else fails(seed)

    rows = [Row("a", "t", "p", trial, None)]
    for again, code in ((False, "c1"), (False, "c1"), (False, "c2"), (True, "c2")):
        torture.torture(rows, 2, False, again, tmp_path / "torture", code)
    assert tried == [0, 1, 0] + [0, 1] + [0, 1]


def test_a_table_of_nothing_is_a_page() -> None:
    assert page({}).startswith("# Torture")


def test_every_row_of_the_issue_is_there(tmp_path: Path) -> None:
    names = [row.name for row in torture.rows(tmp_path, short=False)]
    assert len(names) == len(set(names))
    wanted = {
        "nan",
        "order",
        "save",
        "damage",
        "same",
        "faulty",
        "full-checkpoint",
        "full-artifact",
        "full-database",
        "read-only",
        "server",
    }
    wanted |= {"two-chains", "sigterm", "kill-chain", "kill-shared", "kill-placed", "remove-node"} | {
        f"kill-{stage}-{n}" for stage in ("pretrain", "experts", "asr", "single_lora", "steer") for n in (0, 2)
    }
    assert wanted | {"kill-gate-0"} == set(names)


def test_an_unknown_row_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        torture.main(["--only", "quill", "--folder", str(tmp_path)])
    assert "rows are nan" in capsys.readouterr().err


class Stopped:
    """A chain that a signal has stopped."""

    returncode = chain.TERMINATED
    moments: list[float] = []

    def __init__(self, arena: Any) -> None:
        self.process = self

    def after(self, seconds: float, number: int) -> bool:
        self.moments.append(seconds)
        return True

    def wait(self, seconds: float) -> None:
        """It has ended."""

    def said(self) -> str:
        return "start the same command again"


@pytest.mark.parametrize(
    ("n_starts", "said"), [([0, 1], "stopped in main within 0.0 s"), ([0, 0, 0, 0, 0, 2], "; moments redrawn: 2")]
)
def test_a_stop_before_there_was_a_run_is_no_trial(
    n_starts: list[int], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the store holds before and after each start: only a start that had a run of its own counts."""
    held = iter(n_starts)
    monkeypatch.setattr(Stopped, "moments", [])
    monkeypatch.setattr(chain, "Started", Stopped)
    monkeypatch.setattr(chain, "undisturbed", lambda folder: ({}, 100.0))
    monkeypatch.setattr(
        chain, "_left", lambda arena: {"RUNNING": [], "main": "KILLED", "killed": ["main"], "told": "", "n_starts": next(held)}
    )
    assert said in chain.terminated_at_random(tmp_path, 0)
    assert len(Stopped.moments) == len(n_starts) / 2
    assert all(10 * (1 + number) <= moment <= 50 + 10 * number for number, moment in enumerate(Stopped.moments))


def test_a_chain_that_never_has_a_run_fails_the_trial(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chain, "Started", Stopped)
    monkeypatch.setattr(chain, "undisturbed", lambda folder: ({}, 100.0))
    monkeypatch.setattr(chain, "_left", lambda arena: {"RUNNING": [], "main": None, "n_starts": 0})
    with pytest.raises(AssertionError, match="none of 12 starts was stopped in a run"):
        chain.terminated_at_random(tmp_path, 0)
