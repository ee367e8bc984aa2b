"""A checkout that was moved or copied finds its runs and writes nothing into the old place."""

import shutil
from pathlib import Path

import pytest
from mlflow import MlflowClient

from moe.options import Options
from steps import store as command
from steps.tracking import artifacts, runs
from steps.tracking.store import connect


def logged(step: str) -> str:
    """A finished run with an artifact: its id."""
    with runs.step_run(step, Options()) as run:
        run.log_text(step, "gate/gate.txt")
    return run.run_id


def files(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file() and "mlflow.db-" not in path.name}


def use(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{folder / 'mlflow.db'}")


@pytest.mark.parametrize("name", ["copy", "with a space"])
def test_a_copy_reads_and_writes_its_own_artifacts(
    name: str, store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = logged("gate")
    model = connect().client.create_logged_model(connect().experiment_id, "toy", first)
    copy = tmp_path / name
    shutil.copytree(store, copy)
    before = files(store)
    use(copy, monkeypatch)
    path = artifacts.upstream(first, "gate/gate.txt")
    second = artifacts.upstream(logged("cluster"), "gate/gate.txt")
    assert path.is_relative_to(copy) and second.is_relative_to(copy) and path.read_text() == "gate"
    assert connect().client.get_logged_model(model.model_id).artifact_location.startswith((copy / "mlruns").as_uri())
    assert files(store) == before


def test_a_moved_store_is_followed_before_the_run_of_an_mlflow_run_is_written_to(
    store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`mlflow run` makes its run, with the old place, before the step starts."""
    logged("gate")
    moved = tmp_path / "moved"
    shutil.move(store, moved)
    use(moved, monkeypatch)
    tags = {"mlflow.source.type": "PROJECT", "mlflow.project.entryPoint": "cluster"}
    made = MlflowClient(f"sqlite:///{moved / 'mlflow.db'}").create_run("0", tags=tags)
    assert str(store) in made.info.artifact_uri
    monkeypatch.setenv("MLFLOW_RUN_ID", made.info.run_id)
    run_id = logged("cluster")
    assert run_id == made.info.run_id and artifacts.upstream(run_id, "gate/gate.txt").is_relative_to(moved)
    assert not store.exists()


def test_artifacts_kept_elsewhere_on_purpose_stay_there(store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    elsewhere = tmp_path / "disk" / "mlruns" / "7"
    connect().client.create_experiment("theirs", artifact_location=elsewhere.as_uri())
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "theirs")
    assert artifacts.upstream(logged("gate"), "gate/gate.txt").is_relative_to(elsewhere)
    assert command.move().startswith("every artifact of sqlite")


def test_move_says_what_it_changed(
    store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    logged("gate")
    shutil.copytree(store, tmp_path / "copy")
    use(tmp_path / "copy", monkeypatch)
    command.main(["move"])
    said = capsys.readouterr().out
    assert "2 places below" in said and f"are now below {(tmp_path / 'copy' / 'mlruns').as_uri()}" in said
