"""Writes MLproject and conda.yaml, so that the options of a step are stated once, in its module.

    python -m steps.options.project_files

Each entry point gets a parameter for every field of its `StepOptions`, with the same name and default; conda.yaml gets the pins of
requirements.txt in its own text, because conda takes an environment for unchanged while that text is.
"""

import dataclasses
import importlib
import json
from pathlib import Path

from moe.files import write_whole
from moe.options import Options, to_text

ENTRY_POINTS = (
    "main",
    "synthesize",
    "prepare",
    "pretrain",
    "embed",
    "cluster",
    "gate",
    "experts",
    "asr",
    "baseline",
    "evaluate",
    "compare",
    "register",
    "rollback",
    "transcribe",
)
PYTHON = "3.11"
WRITTEN_BY = "# Written by `python -m steps.options.project_files`; change the options in steps/, not this file.\n"


def mlproject(entry_points: tuple[str, ...] = ENTRY_POINTS, package: str = "steps") -> str:
    """Text of MLproject: one entry point for each module `package.NAME`, which has a `StepOptions`."""
    parts = [_entry_point(name, importlib.import_module(f"{package}.{name}").StepOptions, package) for name in entry_points]
    return WRITTEN_BY + "name: whisper-moe\n\nconda_env: conda.yaml\n\nentry_points:\n" + "\n".join(parts)


def conda_yaml(requirements: str) -> str:
    """Text of conda.yaml with the pins of a requirements file.

    Raises:
        ValueError: a line is no exact pin.
    """
    pins = [line.strip() for line in requirements.splitlines() if line.strip() and not line.startswith("#")]
    if loose := [pin for pin in pins if "==" not in pin]:
        raise ValueError(f"requirements.txt: {', '.join(loose)}: must be pinned with ==")
    head = f"name: whisper-moe\nchannels:\n  - conda-forge\ndependencies:\n  - python={PYTHON}\n  - pip\n  - pip:\n"
    return WRITTEN_BY + head + "".join(f"      - {pin}\n" for pin in pins)


def files(root: Path) -> dict[Path, str]:
    """Each file that this module writes, with its text."""
    requirements = (root / "requirements.txt").read_text(encoding="utf-8")
    return {root / "MLproject": mlproject(), root / "conda.yaml": conda_yaml(requirements)}


def main() -> None:
    """Write both files."""
    for path, text in files(Path(__file__).resolve().parents[2]).items():
        with write_whole(path) as aside:
            aside.write_text(text, encoding="utf-8")
        print(f"wrote {path.name}")


def _entry_point(name: str, options_type: type[Options], package: str) -> str:
    fields = dataclasses.fields(options_type)
    parameters = "".join(_parameter(name, field) for field in fields)
    flags = " ".join(["python", "-m", f"{package}.{name}", *(f"--{field.name} {{{field.name}}}" for field in fields)])
    heading = "    parameters:\n" if fields else ""
    return f"  {name}:\n{heading}{parameters}    command: {json.dumps(flags)}\n"


def _parameter(step: str, field: dataclasses.Field) -> str:
    """One parameter. Defaults are quoted text: MLflow would turn `false` into `False` and take `null` for `required`.

    Raises:
        ValueError: the default is an empty text or holds a space, which MLflow logs with shell quotes around it.
    """
    note = f"  # {field.metadata['help']}" if field.metadata.get("help") else ""
    kind = "float" if field.type in (int, float) else "string"
    if field.default is dataclasses.MISSING:
        return f"      {field.name}: {{type: {kind}}}{note}\n"
    text = to_text(field.default)
    if not text or " " in text:
        raise ValueError(
            f"{step}: {field.name}={text!r}: a default must be a text without spaces; write {to_text(None)} for nothing"
        )
    return f"      {field.name}: {{type: {kind}, default: {json.dumps(text)}}}{note}\n"


if __name__ == "__main__":
    main()
