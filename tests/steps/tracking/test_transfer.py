"""A run goes to another store with all that it was made from, under its own id, and can be named by the first characters of it."""

import dataclasses
import shutil
import sqlite3
from pathlib import Path

import pytest

from moe.options import Options, option
from steps import store as command
from steps.tracking import artifacts, runs
from steps.tracking.run_ids import whole_id, with_whole_ids
from steps.tracking.store import connect


@dataclasses.dataclass(frozen=True)
class ToyOptions(Options):
    """Of a step that reads another."""

    gate_run_id: str = option("none", "run of the gate")
    seed: int = option(0, "seed")


def logged(step: str, gate_run_id: str = "none", seed: int = 0) -> str:
    """A finished run with an artifact, metrics, a data set and what it read: its id."""
    with runs.step_run(step, ToyOptions(gate_run_id=gate_run_id, seed=seed)) as run:
        run.log_text(step, f"{step}/{step}.txt")
        run.log_history([(update, {"loss": 1 / (update + 1)}) for update in range(3)])
        run.log_input("corpus", "0123", "somewhere", "training", 5)
    return run.run_id


@pytest.fixture
def other(store: Path, empty_store: Path, tmp_path: Path) -> Path:
    """A second, empty store."""
    folder = tmp_path / "other"
    folder.mkdir()
    shutil.copy(empty_store, folder / "mlflow.db")
    with sqlite3.connect(folder / "mlflow.db") as database:
        database.execute("update experiments set artifact_location = ?", ((folder / "mlruns" / "0").as_uri(),))
    return folder


def test_a_run_and_its_lineage_are_whole_in_the_other_store(
    store: Path, other: Path, tmp_path: Path, monkeypatch, capsys
) -> None:
    gate = logged("gate")
    evaluation = logged("evaluate", gate)
    logged("cluster")  # nobody's lineage
    before = connect().client.get_run(evaluation)
    command.main(["export", evaluation[:8], str(tmp_path / "folder")])
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{other / 'mlflow.db'}")
    for said in ("2 runs were imported, 0 were there already", "0 runs were imported, 2 were there already"):
        command.main(["import", str(tmp_path / "folder")])
        assert said in capsys.readouterr().out
    after = connect().client.get_run(evaluation)
    assert (after.data.params, after.data.metrics, after.info.status) == (before.data.params, before.data.metrics, "FINISHED")
    assert after.info.run_name == before.info.run_name and after.info.end_time == before.info.end_time
    assert after.inputs.dataset_inputs[0].dataset.digest == "0123"
    assert artifacts.lineage(evaluation) == {evaluation: "evaluate", gate: "gate"}
    path = artifacts.upstream(gate, "gate/gate.txt")
    assert path.read_text() == "gate" and path.is_relative_to(other)
    assert len(connect().client.get_metric_history(evaluation, "loss")) == 3


def test_what_is_no_export_and_a_folder_in_use_are_refused(store: Path, tmp_path: Path, capsys) -> None:
    run_id = logged("gate")
    (tmp_path / "used").mkdir()
    (tmp_path / "used" / "file").touch()
    for arguments, said in (
        (["export", run_id, str(tmp_path / "used")], "is not empty: give a new folder"),
        (["import", str(tmp_path / "used")], "holds no export.json: it is no export of a run"),
    ):
        with pytest.raises(SystemExit, match="1"):
            command.main(arguments)
        assert said in capsys.readouterr().err


@pytest.mark.usefixtures("store")
class TestFirstCharacters:
    def test_they_name_the_run_wherever_an_id_is_taken(self) -> None:
        gate = logged("gate")
        assert whole_id(gate[:8]) == gate == whole_id(gate)
        assert with_whole_ids(ToyOptions(gate_run_id=gate[:8])).gate_run_id == gate
        assert artifacts.upstream(gate[:8], "gate/gate.txt").read_text() == "gate"
        assert artifacts.lineage(logged("evaluate", gate[:8]))[gate] == "gate"  # as `mlflow run` logs it

    def test_what_begins_no_id_stays_as_it_is(self) -> None:
        assert [whole_id(text) for text in ("none", "auto", "0123", "no such run")] == ["none", "auto", "0123", "no such run"]

    def test_several_that_begin_so_are_named(self, monkeypatch: pytest.MonkeyPatch) -> None:
        client, numbers = connect().client, iter(["abcd" + "0" * 28, "abcd" + "1" * 28])
        monkeypatch.setattr("mlflow.store.tracking.sqlalchemy_store.uuid.uuid4", lambda: type("Id", (), {"hex": next(numbers)})())
        for _ in range(2):
            client.create_run(connect().experiment_id)
        with pytest.raises(ValueError, match="abcd is the beginning of several runs, abcd0.*abcd1.*give more of it"):
            whole_id("abcd")
