"""Learning curves of a system go through all of its stages."""

import dataclasses
from pathlib import Path

import pytest

from moe.options import Options, option
from steps.reports.scores import read_scores
from steps.tracking import runs
from tests.toys.registry import WRONG, log_toy_evaluation


@dataclasses.dataclass(frozen=True)
class ToyOptions(Options):
    """Of a training that goes on from another."""

    experts_run_id: str = option("none", "")


@pytest.fixture(autouse=True)
def runs_hold_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs here stand for their parameters and metrics alone: nothing is read of them."""
    monkeypatch.setattr(runs, "refuse_unreadable", lambda options: None)


def trained(step: str, wer: list[float], losses: dict[int, float], start: float | None = None, earlier: str = "none") -> str:
    """A finished training: its id."""
    with runs.step_run(step, ToyOptions(experts_run_id=earlier)) as run:
        run.log_history([(epoch, {"dev/wer": value}) for epoch, value in enumerate(wer)])
        run.log_history([(update, {"train/loss": value}) for update, value in losses.items()])
        if start is not None:
            run.log_metrics({"dev/wer_start": start})
    return run.run_id


@pytest.mark.usefixtures("store")
def test_the_epochs_of_a_later_stage_follow_those_of_the_earlier_and_its_start_stands_between(tmp_path: Path) -> None:
    experts = trained("experts", [0.5, 0.4], {10: 2.0, 20: 1.0})
    joint = trained("asr", [0.3], {10: 0.5}, start=0.45, earlier=experts)
    history = read_scores(log_toy_evaluation(joint, WRONG)).history
    wer = history.dropna(subset=["dev/wer"])
    assert wer[["epoch", "dev/wer"]].to_numpy().tolist() == [[1, 0.5], [2, 0.4], [2, 0.45], [3, 0.3]]
    assert wer["stage"].fillna("").tolist() == ["experts", "", "asr", ""]
    assert history.dropna(subset=["train/loss"])[["update", "train/loss"]].to_numpy().tolist() == [
        [10, 2.0],
        [20, 1.0],
        [30, 0.5],
    ]


@pytest.mark.usefixtures("store")
def test_one_stage_begins_with_what_is_known_of_the_start() -> None:
    history = read_scores(log_toy_evaluation(trained("baseline", [0.3, 0.2], {}, start=0.6), WRONG)).history
    assert history[["epoch", "dev/wer"]].to_numpy().tolist() == [[0, 0.6], [1, 0.3], [2, 0.2]]
