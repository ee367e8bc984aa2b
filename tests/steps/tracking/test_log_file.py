"""The log file of a run: everything said while it is open, kept by the run, whether it ends well or not."""

import dataclasses
import logging
import warnings
from pathlib import Path

import pytest

from steps.options.step_options import PlotOptions
from steps.tracking import artifacts, runs
from steps.tracking.store import connect


@dataclasses.dataclass(frozen=True)
class Toy(PlotOptions):
    """A step of this module's own."""

    not_in_fingerprint = frozenset({"log_file"})


@pytest.fixture(autouse=True)
def alone(store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No fingerprint of the tests themselves."""
    monkeypatch.setattr("steps.tracking.fingerprint.code_digests", lambda *_: {})


def kept(run_id: str, name: str) -> str:
    return artifacts.upstream(run_id, f"log/{name}").read_text(encoding="utf-8")


def test_everything_said_is_in_the_file_and_the_run_keeps_a_copy(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "training.log"
    with runs.step_run("toy", Toy(log_file=str(path))) as run:
        logging.getLogger("moe.anything").info("a detail of ours")
        logging.getLogger("elsewhere").warning("another library's warning")
        logging.getLogger("elsewhere").info("its chatter")
        warnings.warn("Python's own", stacklevel=1)
        run.log_metrics({"train/loss": 1.25}, 40)
    said = path.read_text(encoding="utf-8")
    for part in (
        "a detail of ours",
        "another library's warning",
        "Python's own",
        "toy, 40: train/loss 1.25",
        f"run {run.run_id} ends well",
    ):
        assert part in said, part
    assert "its chatter" not in said and kept(run.run_id, "training.log") == said


def test_what_is_said_before_and_after_is_not_in_it(tmp_path: Path) -> None:
    path = tmp_path / "training.log"
    with runs.step_run("toy", Toy(log_file=str(path))):
        pass
    logging.getLogger("moe.anything").warning("afterwards")
    assert "afterwards" not in path.read_text(encoding="utf-8")
    assert logging.getLogger("moe").level == logging.NOTSET


def test_a_run_that_fails_leaves_its_traceback(tmp_path: Path) -> None:
    path = tmp_path / "training.log"
    with pytest.raises(ValueError, match="no such thing"), runs.step_run("toy", Toy(log_file=str(path))) as run:
        raise ValueError("no such thing")
    said = path.read_text(encoding="utf-8")
    assert "ends with ValueError" in said and "Traceback" in said and "no such thing" in said
    files = connect().client.list_artifacts(run.run_id, "log")
    assert [file.path for file in files] == ["log/training.log"]


def test_a_stage_within_a_chain_is_in_the_chains_file_once(tmp_path: Path) -> None:
    path = tmp_path / "training.log"
    with runs.step_run("main", Toy(log_file=str(path))) as outer, runs.step_run("toy", Toy(log_file=str(path), resume=False)):
        logging.getLogger("moe.anything").info("said once")
    assert path.read_text(encoding="utf-8").count("said once") == 1 and "said once" in kept(outer.run_id, "training.log")


def test_a_second_start_adds_to_the_file(tmp_path: Path) -> None:
    path = tmp_path / "training.log"
    for word in ("first", "second"):
        with runs.step_run("toy", Toy(log_file=str(path))):
            logging.getLogger("moe.anything").info(word)
    said = path.read_text(encoding="utf-8")
    assert said.index("first") < said.index("second")


def test_without_a_file_nothing_is_written(tmp_path: Path) -> None:
    with runs.step_run("toy", Toy()) as run:
        logging.getLogger("moe.anything").info("unheard")
    assert connect().client.list_artifacts(run.run_id, "log") == []
