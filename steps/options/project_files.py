"""Writes MLproject, deploy/MLproject, conda.yaml, python_env.yaml and docs/options.md, so that the options of a step are stated once, in its module.

    python -m steps.options.project_files

MLproject declares what a step requires. What has a default is listed in a comment and not declared, because MLflow logs the default of
a declared parameter before the step starts and passes it on as if the user had said it: an option file could not win over it, and the
run would show a value that was not used. MLflow appends `-P name=value` of what is not declared to the command as `--name value`, so
the step sees what was said and nothing else. conda.yaml gets the pins of requirements.txt in its own text, because conda takes an
environment for unchanged while that text is. MLproject names it, because MLflow makes an environment of it with conda, virtualenv and
uv, and of python_env.yaml, which holds the same, with the last two alone. deploy/MLproject has the same entry points in the image of
deploy/Dockerfile; without a shell, which Kubernetes has none of.
"""

import dataclasses
import importlib
from pathlib import Path
from typing import Any

from moe.files import write_whole
from moe.options import Options, allowed_text, is_required, to_text
from steps.options.help_text import common
from steps.options.options_page import options_page

ENTRY_POINTS = (
    "main",
    "estimate",
    "sweep",
    "synthesize",
    "prepare",
    "pretrain",
    "embed",
    "cluster",
    "gate",
    "experts",
    "asr",
    "baseline",
    "decoder",
    "steer",
    "ctc",
    "domain",
    "evaluate",
    "compare",
    "register",
    "rollback",
    "personalise",
    "forget",
    "transcribe",
    "export",
)
PYTHON = "3.11"
# must be there before torch is loaded, see moe/training/threads.py; braces are doubled for MLflow
PREFIX = "OMP_WAIT_POLICY=${{OMP_WAIT_POLICY:-passive}} GOMP_SPINCOUNT=${{GOMP_SPINCOUNT:-4000}}"
IN_IMAGE = "env --chdir=/whisper-moe"  # also in an image that `mlflow run --build-image` makes of it, whose folder is another
CONDA = "conda_env: conda.yaml\n"
DOCKER = 'docker_env:\n  image: whisper-moe\n  volumes: ["whisper-moe-work:/whisper-moe/mlruns"]  # unfinished work\n'
NOTE = """# -P NAME=VALUE sets any option of an entry point, declared here or not: `python -m steps.NAME --help`, docs/options.md.
# Declared is what is required; what has a default is not, so that an option file may set it and the run shows what was used.
# The comments list the options of `main` that people set: default, meaning and what is allowed; docs/options.md lists all of them.
"""
WRITTEN_BY = "# Written by `python -m steps.options.project_files`; change the options in steps/, not this file.\n"


def mlproject(
    entry_points: tuple[str, ...] = ENTRY_POINTS, package: str = "steps", environment: str = CONDA, prefix: str = PREFIX
) -> str:
    """Text of MLproject: one entry point for each module `package.NAME`, which has a `StepOptions`.

    Args:
        environment: where MLflow is to run them.
        prefix: of each command.
    """
    found = {name: importlib.import_module(f"{package}.{name}").StepOptions for name in entry_points}
    parts = [_entry_point(name, found[name], f"{prefix} python -m {package}.{name}") for name in entry_points]
    return f"{WRITTEN_BY}name: whisper-moe\n\n{environment}\n{NOTE}entry_points:\n{''.join(parts)}"


def conda_yaml(requirements: str) -> str:
    """Text of conda.yaml with the pins of a requirements file.

    Raises:
        ValueError: a line is no exact pin.
    """
    head = f"name: whisper-moe\nchannels:\n  - conda-forge\ndependencies:\n  - python={PYTHON}\n  - pip\n  - pip:\n"
    return WRITTEN_BY + head + "".join(f"      - {pin}\n" for pin in _pins(requirements))


def python_env_yaml(requirements: str) -> str:
    """Text of python_env.yaml with the pins of a requirements file.

    Raises:
        ValueError: a line is no exact pin.
    """
    return WRITTEN_BY + f'python: "{PYTHON}"\ndependencies:\n' + "".join(f"  - {pin}\n" for pin in _pins(requirements))


def files(root: Path) -> dict[Path, str]:
    """Each file that this module writes, with its text."""
    requirements = (root / "requirements.txt").read_text(encoding="utf-8")
    return {
        root / "MLproject": mlproject(),
        root / "deploy" / "MLproject": mlproject(environment=DOCKER, prefix=IN_IMAGE),
        root / "conda.yaml": conda_yaml(requirements),
        root / "python_env.yaml": python_env_yaml(requirements),
        root / "docs" / "options.md": options_page(
            {name: importlib.import_module(f"steps.{name}").StepOptions for name in ENTRY_POINTS}
        ),
    }


def main() -> None:
    """Write all of them."""
    for path, text in files(Path(__file__).resolve().parents[2]).items():
        path.parent.mkdir(exist_ok=True)
        with write_whole(path) as aside:
            aside.write_text(text, encoding="utf-8")
        print(f"wrote {path}")


def _pins(requirements: str) -> list[str]:
    pins = [line.strip() for line in requirements.splitlines() if line.strip() and not line.startswith("#")]
    if loose := [pin for pin in pins if "==" not in pin]:
        raise ValueError(f"requirements.txt: {', '.join(loose)}: must be pinned with ==")
    return pins


def _entry_point(name: str, options_type: type[Options], command: str) -> str:
    required = [field for field in dataclasses.fields(options_type) if is_required(field)]
    heading = "    parameters:\n" if required else ""
    parameters = "".join(f"      {field.name}: string  # {field.metadata['help']}\n" for field in required)
    listed = _listed(options_type) if name == "main" else ""
    return f"  {name}:\n{listed}{heading}{parameters}    command: {command}{_flags(required)}\n"


def _flags(required: list[dataclasses.Field[Any]]) -> str:
    return "".join(f" --{field.name} {{{field.name}}}" for field in required)


def _listed(options_type: type[Options]) -> str:
    """The options that people set, with their defaults and what they take, as comments."""
    shown = [field for field in common(options_type) if not is_required(field)]
    set_to = [f"{field.name}={to_text(field.default)}" for field in shown]
    width = max(map(len, set_to))
    return "".join(
        f"    # -P {text:<{width}}  {field.metadata['help']} ({allowed_text(field)})\n"
        for text, field in zip(set_to, shown, strict=True)
    )


if __name__ == "__main__":
    main()
