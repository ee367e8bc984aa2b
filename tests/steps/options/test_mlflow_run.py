"""`mlflow run` itself, on a project of one step: what the user says wins, and the run shows what was used."""

import os
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from mlflow.cli import cli

from steps.options import project_files
from steps.tracking.store import connect, project_root

MlflowRun = Callable[..., tuple[int, str]]
STEP = '''
import dataclasses

from moe.options import Options, option
from steps.tracking import runs


@dataclasses.dataclass(frozen=True)
class StepOptions(Options):
    """Toy."""

    base_run_id: str = option(help="run of the base")
    options_file: str | None = option(None, "file")
    batch_size: int = option(16, "utterances per batch", low=1)
    rate: float = option(1e-3, "learning rate")
    note: str | None = option(None, "a text")


def run(options):
    with runs.step_run("main", options) as step:
        step.log_text(repr(options), "options.txt")
    return step.run_id


if __name__ == "__main__":
    runs.command(run, StepOptions)
'''


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A project `toy` whose one step is `toy.main`."""
    root = tmp_path / "project"
    (root / "toy").mkdir(parents=True)
    (root / "toy" / "__init__.py").touch()
    (root / "toy" / "main.py").write_text(STEP, encoding="utf-8")
    monkeypatch.syspath_prepend(root)
    (root / "MLproject").write_text(project_files.mlproject(("main",), package="toy"), encoding="utf-8")
    (root / "conda.yaml").write_text(project_files.conda_yaml("mlflow==3.17.2\n"), encoding="utf-8")
    (root / "file.yaml").write_text("batch_size: 4\nrate: 2e-4\n", encoding="utf-8")
    yield root
    for name in ("toy", "toy.main"):
        sys.modules.pop(name, None)


@pytest.fixture
def mlflow_run(project: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> MlflowRun:
    """`mlflow run` with this Python first on the path, as the Makefile has it: its exit code, and what stands on stderr."""
    monkeypatch.chdir(project)
    monkeypatch.setenv("PATH", os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]))
    monkeypatch.setenv("PYTHONPATH", str(project_root()))

    def run(*parameters: str) -> tuple[int, str]:
        words = [word for parameter in parameters for word in ("-P", parameter)]
        with pytest.raises(SystemExit) as end:
            cli.main(["run", str(project), "--env-manager", "local", *words])
        return end.value.code, capfd.readouterr().err

    return run


def only_run() -> dict[str, str]:
    """The parameters of the one run there is."""
    client = connect().client
    (run,) = client.search_runs([experiment.experiment_id for experiment in client.search_experiments()])
    return run.data.params


@pytest.mark.usefixtures("store")
def test_what_is_said_wins_over_the_file_where_it_is_the_default_and_the_run_shows_what_was_used(mlflow_run: MlflowRun) -> None:
    said = ("base_run_id=abc", "options_file=file.yaml", "batch_size=16", "note=-a b")
    code, stderr = mlflow_run(*said)
    assert code == 0, stderr
    assert "python -m toy.main --base_run_id abc --options_file file.yaml --batch_size 16 --note '-a b'" in stderr
    assert only_run() == {
        "base_run_id": "abc",
        "options_file": "file.yaml",
        "batch_size": "16",
        "rate": "0.0002",
        "note": "'-a b'",
    }


@pytest.mark.usefixtures("store")
def test_a_misspelt_parameter_is_refused_with_the_one_that_was_meant(mlflow_run: MlflowRun) -> None:
    code, stderr = mlflow_run("base_run_id=abc", "batchsize=4")
    assert code == 1 and "main: batchsize: no such option, did you mean batch_size?" in stderr


@pytest.mark.usefixtures("store")
def test_what_is_required_is_asked_for_before_there_is_a_run(mlflow_run: MlflowRun) -> None:
    code, stderr = mlflow_run()
    assert code != 0 and "'base_run_id'" in stderr
    assert connect().client.search_runs(["0", connect().experiment_id]) == []
