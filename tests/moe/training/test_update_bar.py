"""A training shows one bar of its own and no lines of the Trainer's."""

from pathlib import Path

import pytest

from moe import progress
from moe.training import plan as training_plan
from moe.training.loop import fit
from tests.toys.training import Diary, dataset, plan, toy_base, toy_mixture, training, write_corpus


@pytest.fixture
def said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    """What a training of four updates prints, from a file's point of view, where work of so many seconds is short."""

    def of(short_s: float) -> str:
        monkeypatch.setattr(progress, "SHORT_S", short_s)
        monkeypatch.setattr(progress, "EVERY_S", 0.0)
        monkeypatch.setattr(training_plan, "LOG_EVERY", 1)
        diary = Diary()
        diary.title = "experts"
        fit(toy_mixture(toy_base()), dataset(write_corpus(tmp_path), tmp_path), training(plan()), diary)
        out, err = capsys.readouterr()
        assert out == "" and len(diary.values("loss")) == 4
        return err

    return of


def test_a_short_training_prints_nothing(said) -> None:
    assert said(3600.0) == ""


def test_a_long_training_counts_its_updates_and_shows_the_loss(said) -> None:
    lines = said(1e-9).splitlines()
    assert lines[-1].startswith("experts: 4/4, ") and "updates/s" in lines[-1] and "loss " in lines[-1]
    assert all(line.startswith("experts: ") for line in lines)
