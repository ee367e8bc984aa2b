"""MLproject, conda.yaml and docs/options.md say what the options and the pins say, in a form that MLflow takes."""

import dataclasses
import importlib.util
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest
import yaml
from mlflow.exceptions import ExecutionException
from mlflow.projects import load_project
from mlflow.utils.environment import _PythonEnv

from moe.options import to_text
from steps import main
from steps.options import project_files
from steps.options.command_line import parse
from steps.tracking.store import project_root

TOY = """
import dataclasses
from moe.options import Options, option

@dataclasses.dataclass(frozen=True)
class StepOptions(Options):
    prepare_run_id: str = option(help="run of `prepare`: the manifest")
    seed: int = option(0, "seed of everything", low=0)
    rate: float = option(1e-4, "learning rate")
    top_k: int | None = option(None, "experts kept; none is all")
    balance: bool = option(False, "add the balance loss")
"""


@pytest.fixture
def toy_project(toy_step: Callable[[str, str], ModuleType], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setitem(sys.modules, "toy_steps", ModuleType("toy_steps"))
    toy_step("gate", TOY)
    (tmp_path / "MLproject").write_text(project_files.mlproject(("gate",), package="toy_steps"))
    (tmp_path / "conda.yaml").write_text(project_files.conda_yaml("torch==2.0\n"))
    return tmp_path


def command(project: Path, **said: str) -> str:
    return load_project(str(project)).get_entry_point("gate").compute_command(said, None)


def test_mlflow_starts_a_step_with_what_was_said_and_nothing_else(toy_project: Path) -> None:
    start = "OMP_WAIT_POLICY=${OMP_WAIT_POLICY:-passive} GOMP_SPINCOUNT=${GOMP_SPINCOUNT:-4000} python -m toy_steps.gate"
    assert command(toy_project, prepare_run_id="abc") == f"{start} --prepare_run_id abc"
    words = command(toy_project, prepare_run_id="abc", top_k="3", balance="true").split()[2:]
    options_type = sys.modules["toy_steps.gate"].StepOptions
    assert parse(options_type, words[3:]) == options_type(prepare_run_id="abc", top_k=3, balance=True)


def test_mlflow_logs_no_default_so_that_the_step_can_log_what_was_used(toy_project: Path) -> None:
    """A parameter that MLflow has logged cannot be logged again with the value of an option file."""
    parameters, extra = (
        load_project(str(toy_project)).get_entry_point("gate").compute_parameters({"prepare_run_id": "abc", "seed": "1"}, None)
    )
    assert parameters == {"prepare_run_id": "abc"} and extra == {"seed": "1"}


def test_a_field_without_default_is_required(toy_project: Path) -> None:
    with pytest.raises(ExecutionException, match="prepare_run_id"):
        command(toy_project)


def test_mlproject_is_short_and_shows_what_people_set() -> None:
    text = (project_root() / "MLproject").read_text(encoding="utf-8")
    shown = [line.split()[2].partition("=") for line in text.splitlines() if line.startswith("    # -P ")]
    assert len(text.splitlines()) <= 20 + 6 * len(project_files.ENTRY_POINTS) and 15 <= len(shown) <= 20
    fields = {field.name: field for field in dataclasses.fields(main.StepOptions)}
    assert all(default == to_text(fields[name].default) for name, _, default in shown)


def test_the_committed_files_are_what_would_be_written() -> None:
    for path, text in project_files.files(project_root()).items():
        assert path.read_text(encoding="utf-8") == text, (
            f"{path.name} is out of date: run `python -m steps.options.project_files`"
        )


def test_every_entry_point_has_its_options_and_run() -> None:
    for name in project_files.ENTRY_POINTS:
        module = importlib.import_module(f"steps.{name}")
        assert dataclasses.is_dataclass(module.StepOptions) and callable(module.run) and callable(module.main), name


def test_every_environment_manager_of_mlflow_installs_the_same() -> None:
    """virtualenv and uv take the environment from conda.yaml, which MLproject names, or from python_env.yaml."""
    of_conda, own = (
        _PythonEnv.from_conda_yaml(project_root() / "conda.yaml"),
        _PythonEnv.from_yaml(project_root() / "python_env.yaml"),
    )
    assert of_conda.python == own.python and of_conda.dependencies == own.dependencies != []


def test_conda_and_pip_install_the_same() -> None:
    """conda names an environment by the text of conda.yaml alone, so `-r requirements.txt` in it would go stale (mlflow.md §1)."""
    environment = yaml.safe_load((project_root() / "conda.yaml").read_text())
    pins = environment["dependencies"][-1]["pip"]
    assert pins == (project_root() / "requirements.txt").read_text().split()
    assert "python=3.11" in environment["dependencies"] and all("==" in pin for pin in pins)


def test_a_loose_requirement_is_refused() -> None:
    with pytest.raises(ValueError, match="torch>=2: must be pinned"):
        project_files.conda_yaml("numpy==2.0\ntorch>=2\n")
