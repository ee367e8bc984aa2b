"""What happens to a training is seen on its run, and a store that does not answer does not end it."""

from pathlib import Path

import pandas as pd
import pytest
from mlflow.exceptions import MlflowException

from moe.training.checkpoints import CheckpointOptions, Checkpoints
from steps.inputs.training import BAD_UPDATES, RunEvents
from tests.toys.checkpoints import damage, filled, names

RECORD = {"update": 3, "epoch": 0, "loss": "nan", "utterance_ids": ["u1", "u2"]}


class Run:
    """A step's run that keeps what it is told, or whose store is away."""

    def __init__(self, is_away: bool = False) -> None:
        self.is_away, self.tags, self.tables, self.folders, self.n_kept = is_away, {}, {}, [], 0

    def _store(self) -> None:
        if self.is_away:
            raise MlflowException("away")

    def set_tags(self, tags: dict[str, str]) -> None:
        self._store()
        self.tags |= tags

    def log_table(self, table: pd.DataFrame, artifact: str) -> None:
        self._store()
        self.tables[artifact] = table

    def log_folder(self, path: Path, artifact: str) -> None:
        self._store()
        self.folders.append((artifact, sorted(file.name for file in path.iterdir())))

    def keep_metrics(self) -> None:
        self.n_kept += 1


def test_a_damaged_checkpoint_is_tagged_and_kept_with_the_run(tmp_path: Path) -> None:
    filled(tmp_path)
    newest = names(tmp_path)[-1]
    damage(tmp_path / newest, "truncated")
    run = Run()
    assert Checkpoints(tmp_path, CheckpointOptions(), RunEvents(run)).newest().values["update"] == 2
    assert newest in run.tags["moe.damaged_checkpoint"] and "update_00000002" in run.tags["moe.resumed"]
    assert run.folders[0][0] == f"damaged_checkpoints/damaged_{newest}" and "weights.safetensors" in run.folders[0][1]


def test_metrics_are_kept_before_each_checkpoint(tmp_path: Path) -> None:
    run = Run()
    earlier = filled(tmp_path / "other", 1).newest()
    Checkpoints(tmp_path / "c", CheckpointOptions(), RunEvents(run)).save(earlier, 1, 0)
    assert run.n_kept == 1


def test_bad_updates_are_a_table_and_events_of_a_kind_add_up() -> None:
    run = Run()
    events = RunEvents(run)
    events.bad_updates([RECORD])
    events.bad_updates([RECORD, RECORD | {"update": 5}])
    assert run.tables[BAD_UPDATES]["utterance_ids"].tolist() == ["u1, u2", "u1, u2"]
    assert run.tags["moe.bad_update"].count("skipped") == 2


@pytest.mark.parametrize("happens", [lambda events: events.report("x", "y"), lambda events: events.bad_updates([RECORD])])
def test_a_store_that_does_not_answer_does_not_end_the_training(happens) -> None:
    happens(RunEvents(Run(is_away=True)))
