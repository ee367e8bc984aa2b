"""Whatever an experiment is called, its artifacts lie with the store's others; one that was deleted says how to have it back."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import mlflow
import pytest
from mlflow import MlflowClient
from mlflow.cli import cli
from mlflow.entities import Experiment
from mlflow.projects.utils import get_or_create_run
from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore

from moe.options import Options
from steps.tracking import artifacts, runs
from steps.tracking.addresses import Address, sqlite_address
from steps.tracking.experiments import EXPERIMENT, KIND_TAG, NOTE, NOTE_TAG, open_experiment, say_result
from steps.tracking.store import connect, project_root

NAMES = (
    "/Shared/dysarthria",
    "..",
    "../../outside",
    "a/../../../b",
    "x" * 300,
    "unfinished",
    "0",
    "50% off",
    "#?&",
    "ein name",
    "\u0939\u093f",
    ".",
)


def logged(name: str) -> Path:
    """An artifact of a run in the experiment of that name."""
    with runs.step_run("gate", Options()) as run:
        run.log_text(name, "gate/gate.txt")
    return artifacts.upstream(run.run_id, "gate/gate.txt")


def everything(folder: Path) -> set[Path]:
    return {path.relative_to(folder) for path in folder.rglob("*") if path.is_file()}


def copied(folder: Path, has_git: bool) -> Path:
    """A folder with the project's entry points, perhaps a checkout of git."""
    folder.mkdir()
    for name in ("MLproject", "conda.yaml"):
        shutil.copy(project_root() / name, folder)
    if has_git:
        subprocess.run(["git", "init", "-q", str(folder)], check=True)
    return folder


def as_mlflow_run(checkout: Path, folder: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[MlflowClient, str]:
    """What `mlflow run CHECKOUT -e gate` does on no store at all before it starts anything: a client of the store, and the run's id."""
    monkeypatch.delenv("MLFLOW_RUN_ID", raising=False)
    uri = f"sqlite:///{folder / 'mlflow.db'}"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    monkeypatch.setenv("MLFLOW_EXPERIMENT_ID", "0")
    mlflow.set_tracking_uri(uri)
    made = get_or_create_run(None, str(checkout), "0", str(checkout), None, "gate", {"embed_run_id": "a", "cluster_run_id": "b"})
    return MlflowClient(uri), made.info.run_id


@pytest.mark.parametrize("name", NAMES)
def test_artifacts_lie_where_the_stores_others_lie_and_nowhere_else(
    name: str, store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    before = everything(tmp_path)
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", name)
    path, experiment = logged(name), connect().client.get_experiment_by_name(name)
    assert path.read_text() == name and path.is_relative_to(store / "mlruns" / experiment.experiment_id)
    new = {found for found in everything(tmp_path) - before if not found.name.startswith("mlflow.db")}
    assert new and all(found.is_relative_to(Path("store/mlruns", experiment.experiment_id)) for found in new)


FOLDERS = ("my%20own 50% off", "a?b#c")
ELSEWHERE = """
import os, sys
from pathlib import Path
from steps.tracking.addresses import Address, sqlite_address
from tests.steps.tracking.test_experiments import logged
for folder in sys.argv[1:]:
    if os.fork() == 0:
        os.chdir(folder)
        os.environ["MLFLOW_TRACKING_URI"] = sqlite_address(Path("mlflow.db")).uri + "?timeout=60"
        Path("..", "said.txt").write_text(str(logged("x")))
        os._exit(0)
    assert os.wait()[1] == 0, folder
"""


@pytest.fixture(scope="module")
def stores_elsewhere(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Folders in which a process of their own has opened a store, with a plain relative address as MLflow's own is.

    The processes are forked from one that has loaded the libraries and opened nothing: loading them takes ten seconds.
    """
    places = {folder: tmp_path_factory.mktemp("elsewhere") / folder for folder in FOLDERS}
    for place in places.values():
        place.mkdir()
    environment = {name: value for name, value in os.environ.items() if not name.startswith("MLFLOW")} | {
        "PYTHONPATH": str(Path(__file__).parents[3])
    }
    command, start = [sys.executable, "-c", ELSEWHERE, *map(str, places.values())], tmp_path_factory.mktemp("start")
    done = subprocess.run(command, env=environment, cwd=start, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return places


@pytest.mark.parametrize("folder", FOLDERS)
def test_a_store_in_any_folder_has_schema_lock_and_artifacts_there(folder: str, stores_elsewhere: dict[str, Path]) -> None:
    place = stores_elsewhere[folder]
    path = Path((place.parent / "said.txt").read_text())
    assert {*os.listdir(place.parent)} == {folder, "said.txt"}
    held = {path.name for path in place.iterdir()} - {"mlflow.db-wal", "mlflow.db-shm"}
    assert held == {"mlflow.db", "mlflow.db.lock", "mlruns"}
    assert path.read_text() == "x" and path.is_relative_to(place / "mlruns")


@pytest.mark.usefixtures("store")
class TestRefusals:
    def test_a_deleted_one_is_restored_as_it_says_or_another_is_named(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "mine")
        store = connect()
        store.client.delete_experiment(store.experiment_id)
        monkeypatch.setenv("MLFLOW_EXPERIMENT_ID", store.experiment_id)  # as a second process finds it, by name or by id
        with pytest.raises(
            RuntimeError, match=r"'mine' was deleted; .*`mlflow experiments restore .*set MLFLOW_EXPERIMENT_NAME"
        ) as refusal:
            connect()
        program, *command = str(refusal.value).split("`")[1].split()
        monkeypatch.delenv("MLFLOW_EXPERIMENT_ID")
        monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "another")
        assert connect().experiment_id != store.experiment_id
        assert program == "mlflow"
        cli.main(command, standalone_mode=False)
        monkeypatch.setenv("MLFLOW_EXPERIMENT_ID", store.experiment_id)
        assert logged("x").is_file()

    @pytest.mark.parametrize("number", ["4711", "no id/"])
    def test_an_id_that_is_none(self, number: str, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("MLFLOW_EXPERIMENT_ID", number)
        with pytest.raises(RuntimeError, match=f"MLFLOW_EXPERIMENT_ID={number}: no such experiment.*unset it"):
            connect()
        monkeypatch.delenv("MLFLOW_EXPERIMENT_ID")
        found = connect()
        assert found.client.get_experiment(found.experiment_id).name == EXPERIMENT

    def test_a_name_longer_than_a_store_takes(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "x" * 501)
        with pytest.raises(RuntimeError, match=r"MLFLOW_EXPERIMENT_NAME=x+…: has 501 characters, at most 500"):
            connect()

    def test_one_whose_artifacts_mlflow_would_put_elsewhere(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """A plain path, as `mlflow run` notes in a fresh store, is decoded when it is read."""
        connect().client.create_experiment("theirs", artifact_location="/a/my%20project/mlruns/7")
        monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "theirs")
        with pytest.raises(
            RuntimeError,
            match="'theirs' keeps its artifacts in /a/my%20project/mlruns/7, which MLflow reads as /a/my project/mlruns/7",
        ):
            connect()


def test_the_folder_that_mlflow_makes_of_an_encoded_address_is_taken_away_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An `mlflow run` in `my project` without an address makes it before the step starts."""
    (tmp_path / "my project").mkdir()
    (tmp_path / "my%20project").mkdir()
    monkeypatch.setenv("MLFLOW_TRACKING_URI", (tmp_path / "my project" / "mlflow.db").as_uri().replace("file://", "sqlite:///"))
    connect()
    assert os.listdir(tmp_path) == ["my project"]


class TestOneExperiment:
    """`mlflow run` without a name passes on experiment 0, which is the project's own in a store of its own."""

    def test_a_fresh_store_has_the_projects_experiment_alone(self, store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        found = connect()
        every = found.client.search_experiments()
        assert [(each.experiment_id, each.name) for each in every] == [("0", EXPERIMENT)] and found.experiment_id == "0"
        assert every[0].tags["mlflow.experimentKind"] == "custom_model_development"
        monkeypatch.setenv("MLFLOW_EXPERIMENT_ID", "0")  # as `mlflow run .` passes it on
        assert connect().experiment_id == "0"

    def test_its_note_begins_with_what_the_last_chain_found_until_somebody_writes_one(self, store: Path) -> None:
        found = connect()
        for result in ("synthetic: 18 %", "synthetic: 17 %"):
            say_result(found.client, found.experiment_id, result)
            assert found.client.get_experiment("0").tags[NOTE_TAG] == f"{result}\n\n{NOTE}"
        found.client.set_experiment_tag("0", NOTE_TAG, "ours")
        say_result(found.client, found.experiment_id, "synthetic: 16 %")
        assert found.client.get_experiment("0").tags[NOTE_TAG] == "ours"

    def test_mlflow_run_on_no_store_at_all_makes_no_second_experiment(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture
    ) -> None:
        """Whatever MLflow made before the step started: its own schema, Default, and the run that the step is to join."""
        uri = f"sqlite:///{tmp_path / 'mlflow.db'}"
        monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
        theirs = MlflowClient(uri)
        tags = {"mlflow.source.name": str(project_root()), "mlflow.source.type": "PROJECT", "mlflow.project.entryPoint": "gate"}
        made = theirs.create_run("0", tags=tags)
        monkeypatch.setenv("MLFLOW_EXPERIMENT_ID", "0")
        monkeypatch.setenv("MLFLOW_RUN_ID", made.info.run_id)
        with runs.step_run("gate", Options()) as run:
            run.log_text("x", "gate/gate.txt")
        assert run.run_id == made.info.run_id
        assert [each.name for each in theirs.search_experiments()] == [EXPERIMENT]
        assert "Default" not in capfd.readouterr().out

    @pytest.mark.parametrize("has_git", [True, False])
    def test_an_earlier_mlflow_run_of_the_project_is_no_use_by_others(
        self, has_git: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """One that found no conda, say."""
        checkout = copied(tmp_path / "checkout", has_git)
        theirs, _ = as_mlflow_run(checkout, tmp_path, monkeypatch)
        monkeypatch.setattr("steps.tracking.store.project_root", lambda: checkout)
        assert connect().experiment_id == "0" and theirs.get_experiment("0").name == EXPERIMENT

    @pytest.mark.parametrize("is_given", [True, False])
    def test_the_run_that_this_process_is_to_join_is_no_use_by_others_wherever_it_was_started(
        self, is_given: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        theirs, run_id = as_mlflow_run(copied(tmp_path / "elsewhere", True), tmp_path, monkeypatch)
        if is_given:
            monkeypatch.setenv("MLFLOW_RUN_ID", run_id)
        assert connect().experiment_id == "0"
        assert theirs.get_experiment("0").name == (EXPERIMENT if is_given else "Default")

    def test_a_default_that_somebody_else_uses_keeps_its_name_and_the_screen_says_where_the_run_went(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture
    ) -> None:
        uri = f"sqlite:///{tmp_path / 'mlflow.db'}"
        monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
        theirs = MlflowClient(uri)
        theirs.create_run("0", tags={"mlflow.source.name": "train.py"})
        monkeypatch.setenv("MLFLOW_EXPERIMENT_ID", "0")
        assert connect().experiment_id == "0" and theirs.get_experiment("0").name == "Default"
        assert "goes to the experiment Default" in capfd.readouterr().out


@pytest.mark.parametrize("folder", ["my%20project", "50%25 off", "%2F"])
def test_a_store_that_mlflow_run_has_just_made_in_a_folder_with_a_percent_sign_is_mended(
    folder: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """MLflow writes the folder's path as the experiment's location, and reads it back as another one."""
    (tmp_path / folder).mkdir()
    path = tmp_path / folder / "mlflow.db"
    made = SqlAlchemyStore(sqlite_address(path).uri, str(path.parent / "mlruns"))
    run_id = made.create_run("0", "user", 0, [], "bare").info.run_id
    monkeypatch.setenv("MLFLOW_TRACKING_URI", sqlite_address(path).uri)
    monkeypatch.setenv("MLFLOW_EXPERIMENT_ID", "0")
    client = connect().client
    client.log_text(run_id, "here", "a.txt")
    assert (path.parent / "mlruns" / "0" / run_id / "artifacts" / "a.txt").read_text() == "here"
    assert (
        os.listdir(tmp_path) == [folder] and client.get_experiment("0").artifact_location == (path.parent / "mlruns/0").as_uri()
    )


@pytest.mark.usefixtures("store")
def test_an_experiment_that_another_chain_makes_at_the_same_moment_is_shared() -> None:
    """On a server nothing is locked: between asking for the name and making it, another chain has made it."""
    client = connect().client
    asked = iter([None])

    class Late(MlflowClient):
        def get_experiment_by_name(self, name: str) -> Experiment | None:
            return next(asked, client.get_experiment_by_name(name))

    there = client.create_experiment("both")
    assert open_experiment(Late(), Address("http://server"), "both", "") == there
    assert KIND_TAG in client.get_experiment(there).tags
