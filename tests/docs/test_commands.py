"""Every command and snippet of README, docs and the steps' docstrings runs here, or is known by the program it starts."""

import contextlib
import dataclasses
import importlib.util
import json
import re
import shlex
from itertools import dropwhile
from pathlib import Path
from typing import Any

import click
import pytest
from mlflow.cli import cli
from mlflow.models.cli import commands as models_cli

import whisper_moe
from benchmarks.quality.variants import QualityOptions
from moe.corpora.formats import table
from moe.corpora.formats.interface import CorpusOptions
from moe.corpora.listing import list_corpus
from moe.serving.request_guard import PLACE
from moe.serving.requests import ServiceOptions, check_body
from moe.serving.transcriptions import PATH
from moe.systems.table import SYSTEMS, load_system
from steps import main, register
from steps.options.command_line import parse
from steps.options.project_files import ENTRY_POINTS
from steps.registry import versions
from steps.tracking.store import connect
from tests.toys.corpora import RATE, encode
from tests.toys.models import partial_checkpoint, toy_wave
from tests.toys.pages import README, ROOT, WRITTEN, blocks, commands, inline_commands
from tests.toys.registry import BETTER, WRONG, log_toy_asr, log_toy_evaluation, write_toy_model
from tests.toys.speech import spoken_wav

ELSEWHERE = ("source", "wc", "sed")  # README's recordings below; the lines that test_pages counts
NOT_HERE = ("docker", "export", "kubectl")  # what they read is in tests/test_deploy.py
SERVING, ARCHITECTURE = ROOT / "docs" / "compare-register-serve.md", ROOT / "docs" / "architecture.md"


def refuse(words: list[str]) -> str | None:
    """What is wrong with a command, or None."""
    while words and re.fullmatch(r"[A-Z_]+=.*", words[0]):  # settings before the program
        words = words[1:]
    program, *rest = words
    checks = {
        "make": _make,
        "mlflow": _mlflow,
        "python": _python,
        "curl": _curl,
        "printf": _printf,
        "sbatch": _sbatch,
        "ray": _ray,
    }
    if program in checks:
        return checks[program](rest)
    return None if program in ELSEWHERE + NOT_HERE else f"{program}: no test knows it"


def _make(words: list[str]) -> str | None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    for word in words:
        name, given, _ = word.partition("=")
        if not re.search(rf"\$\({name}\)" if given else rf"^{name}:", makefile, re.MULTILINE):
            return f"make: {word}"
    return None


def _mlflow(words: list[str]) -> str | None:
    if words[0] == "models":
        models_cli.commands[words[1]].make_context(words[1], words[2:])  # refuses what it does not know
        return None if words[-1] and "--env-manager local" in " ".join(words) else "without --env-manager local"
    if words[0] in ("gc", "runs"):
        group = cli.commands[words[0]]
        command, flags = (group.commands[words[1]], words[2:]) if words[0] == "runs" else (group, words[1:])
        given = command.make_context(words[0], flags).params
        return (
            "mlflow gc without --tracking-uri, which it needs"
            if words[0] == "gc" and flags and not given["tracking_uri"]
            else None
        )
    try:
        given = cli.commands["run"].make_context("run", words[1:]).params
    except click.ClickException as error:
        return f"mlflow {' '.join(words)}: {error.message}"
    # without `--env-manager local` it makes a conda environment
    if (given["uri"], given["env_manager"]) not in ((".", "local"), ("deploy", None)):
        return f"mlflow {' '.join(words)}: not `mlflow run . --env-manager local`"
    step, flags = _started(given)
    return f"mlflow run -e {step}" if step not in ENTRY_POINTS else _options(f"steps.{step}", flags)


def _started(given: dict[str, Any]) -> tuple[str, list[str]]:
    """The step that `mlflow run` starts, and its flags."""
    values = [value.partition("=") for value in given["param_list"]]
    return given["entry_point"], [word for name, _, text in values for word in (f"--{name}", text)]


def _options(module: str, flags: list[str]) -> str | None:
    """The step's own parser, and for `main` the options of every stage."""
    try:
        with contextlib.chdir(ROOT):
            options = parse(importlib.import_module(module).StepOptions, flags)
            if module == "steps.main":
                main.check_stages(options)
    except (SystemExit, ValueError) as error:
        return f"{module} {flags}: {error}"
    return None


def _python(words: list[str]) -> str | None:
    module, flags = words[1], words[2:]
    found = importlib.util.find_spec(module) if words[0] == "-m" else None
    if found is None:
        return f"python {' '.join(words)}: no such module"
    if module.removeprefix("steps.") in ENTRY_POINTS:
        return _options(module, flags)
    if module == "benchmarks.quality":  # takes the options of main beside its own
        known = {f"--{field.name}" for field in dataclasses.fields(QualityOptions)}
        return next((f"{module} {flag}" for flag in flags[::2] if flag not in known), None)
    origin = found if not found.submodule_search_locations else importlib.util.find_spec(f"{module}.__main__")
    source = Path(origin.origin).read_text(encoding="utf-8")
    if "benchmarks.rows import" in source:  # these share a command line
        source += (ROOT / "benchmarks" / "rows.py").read_text(encoding="utf-8")
    known = set(re.findall(r'"--(\w+)"|^    (\w+): .* = option\(', source, re.MULTILINE))
    names = {name for pair in known for name in pair}
    return next((f"{module} {flag}" for flag in flags if flag.startswith("--") and flag[2:] not in names), None)


def _curl(words: list[str]) -> str | None:
    """tests/moe/serving/test_serving.py sends both."""
    form = words[0].endswith(PATH) and words[1].startswith("-F")
    return None if form or words[0].endswith(PLACE) and words[-1] == "@-" else f"curl {' '.join(words)}"


def _sbatch(words: list[str]) -> str | None:
    """The script starts `main` with its own flags and those that follow it; Slurm's own stand before it."""
    script, *words = dropwhile(lambda word: word.startswith("--"), words)
    if not (ROOT / script).is_file():
        return f"sbatch {script}"
    (own,) = re.findall(r'-m "steps\.\$\{STEP:-main\}"(.*) "\$@"', (ROOT / script).read_text(encoding="utf-8"))
    return _options("steps.main", own.split() + words)


def _ray(words: list[str]) -> str | None:
    """Ray's own parser, where it is installed, refuses what it does not know."""
    if not importlib.util.find_spec("ray"):
        return None
    from ray.scripts.scripts import cli as ray

    try:
        ray.commands[words[0]].make_context(words[0], words[1:])
    except click.ClickException as error:
        return f"ray {' '.join(words)}: {error.message}"
    return None


def _printf(words: list[str]) -> str | None:
    """The body is a request that every system takes, for any may be champion; the rest of the pipe is run by tests/moe/serving."""
    body = words[0].replace("%s", "UklGRg==").encode()
    assert all(check_body(body, ServiceOptions(), row.ask_type()).word_times for row in SYSTEMS.values())
    return None


@pytest.mark.parametrize("page", WRITTEN, ids=lambda page: page.name)
def test_every_command_is_one_that_runs(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("moe.training.processes.places", lambda: (4, "cores"))  # commands for other machines are meant too
    given = commands(page) + [words for words in inline_commands(page) if words != ["mlflow", "run", "."]]
    weights = str(partial_checkpoint(tmp_path))
    given = [[word.replace("WEIGHTS_DIR", weights) for word in words] for words in given]
    assert [fault for words in given if (fault := refuse(words))] == []


@pytest.mark.parametrize("preset", sorted((ROOT / "presets").iterdir()), ids=lambda path: path.stem)
def test_the_command_at_the_head_of_a_preset_runs(preset: Path) -> None:
    (line,) = re.findall(r"^# +(mlflow run .*)$", preset.read_text(encoding="utf-8"), re.MULTILINE)
    assert refuse(shlex.split(line)) is None


@pytest.mark.parametrize("step", ENTRY_POINTS)
def test_the_commands_in_the_docstring_of_a_step_run(step: str) -> None:
    lines = (importlib.import_module(f"steps.{step}").__doc__ or "").splitlines()
    given = [shlex.split(line) for line in lines if line.strip().startswith(("mlflow run", "python -m"))]
    assert [fault for words in given if (fault := refuse(words))] == []


@pytest.mark.parametrize(
    "command",
    ["make nothing", "mlflow run . -e gate", "mlflow run . --env-manager local -P batchsize=4", "python -m steps.none", "rm a",
     "mlflow run . --env-manager local -e gate -P embed_run_id=ID", "python -m benchmarks.scoring --nothing 3"],
)  # fmt: skip
def test_a_command_that_does_not_run_is_found(command: str) -> None:
    assert refuse(shlex.split(command))


# ---- snippets


def snippet(page: Path, words: str) -> str:
    (found,) = [block for block in blocks(page, "python") if words in block]
    return found


def test_every_snippet_is_run_by_a_test_here() -> None:
    assert {page: len(found) for page in WRITTEN if (found := blocks(page, "python"))} == {README: 1, ARCHITECTURE: 1, SERVING: 3}


def test_the_format_of_the_page_reads_a_corpus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "list.txt").write_text("anna_1.wav good morning\n\nben_1.wav good night\n", encoding="utf-8")
    for name in ("anna_1.wav", "ben_1.wav"):
        (tmp_path / name).write_bytes(encode(toy_wave(1, 0.5)))
    names: dict = {}
    exec(compile(snippet(ARCHITECTURE, "def read_lines"), "lines.py", "exec"), names)
    monkeypatch.setitem(table.FORMATS, "lines", names["read_lines"])
    listing = list_corpus("lines", str(tmp_path), CorpusOptions())
    assert listing.utterances[["transcript", "speaker"]].to_numpy().tolist() == [["good morning", "anna"], ["good night", "ben"]]
    assert listing.faults["file"].tolist() == ["list.txt:2"] and listing.notes == ()


@pytest.mark.usefixtures("store")
def test_the_snippet_of_the_notebook_compares(tmp_path: Path) -> None:
    asr = log_toy_asr(tmp_path)
    ids = {
        "EVALUATE_RUN": log_toy_evaluation(asr, WRONG, system="single_lora"),
        "OTHER_EVALUATE_RUN": log_toy_evaluation(asr, BETTER),
    }
    source = re.sub(r'"(\w*EVALUATE_RUN)"', lambda found: repr(ids[found[1]]), snippet(SERVING, "compare("))
    names: dict = {}
    exec(compile(source, "notebook.py", "exec"), names)
    assert sorted(names["found"].table["system"]) == ["Whisper-MoE", "one LoRA, same size"]


@pytest.fixture
def with_champion(store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A registered champion and a recording `a.wav` in the working folder; what the champion says of it."""
    register.run(register.StepOptions(evaluate_run_ids=log_toy_evaluation(log_toy_asr(tmp_path), BETTER), n_resamples=100))
    versions.promote("whisper-moe", "1")
    monkeypatch.chdir(tmp_path)
    Path("a.wav").write_bytes(spoken_wav())
    return whisper_moe.load("models:/whisper-moe@champion").transcribe(Path("a.wav")).text


def test_the_five_lines_of_readme_and_the_registered_model_transcribe(with_champion: str, capsys) -> None:
    exec(compile(snippet(README, "import whisper_moe"), "readme.py", "exec"), {})
    assert with_champion and with_champion in capsys.readouterr().out
    source = snippet(SERVING, "mlflow.pyfunc.load_model").replace("model.predict", "found = model.predict")
    names: dict = {}
    exec(compile(source, "pyfunc.py", "exec"), names)
    assert len(names["found"]) == 1 and names["found"]["words"][0]


def test_the_notebook_runs(with_champion: str) -> None:
    cells = json.loads((ROOT / "docs" / "transcribe.ipynb").read_text(encoding="utf-8"))["cells"]
    names: dict = {}
    for number, cell in enumerate(cell for cell in cells if cell["cell_type"] == "code"):
        exec(compile("".join(cell["source"]), f"cell_{number}", "exec"), names)
    assert names["transcript"].text == with_champion and len(names["several"]) == 2


def test_an_exported_adapter_is_loaded_as_the_page_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    load_system(write_toy_model(tmp_path / "model")).save_adapters(tmp_path / "exported" / "peft")
    monkeypatch.chdir(tmp_path)
    exec(compile(snippet(SERVING, "AutoPeftModel"), "peft.py", "exec"), {})


# ---- README's recordings


@pytest.mark.slow
@pytest.mark.usefixtures("store")
def test_readmes_own_recordings_are_prepared_and_measured(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The manifest of README and what both of its commands start, word for word but for the folder."""
    folder = tmp_path / "recordings"
    folder.mkdir()
    (manifest,) = blocks(README, "csv")
    (folder / "manifest.csv").write_text(manifest, encoding="utf-8")
    for number, row in enumerate(manifest.splitlines()[1:]):
        (folder / row.split(",")[0]).write_bytes(encode(toy_wave(number, 1.0), "wav", RATE))
    given = [
        words for words in commands(README) if "dataset_root=recordings" in words and not any("openai" in word for word in words)
    ]
    assert len(given) == 2
    for words in given:
        here = [word.replace("=recordings", f"={folder}") for word in words]
        step, flags = _started(cli.commands["run"].make_context("run", here[2:]).params)
        module = importlib.import_module(f"steps.{step}")
        with contextlib.chdir(ROOT):
            module.run(parse(module.StepOptions, flags))
        assert "3 of 3 utterances are used" in capsys.readouterr().out or words == given[1]
    store = connect()
    runs = store.client.search_runs([store.experiment_id], "tags.`moe.step` = 'evaluate'")
    assert [run.info.status for run in runs] == ["FINISHED"] and "test/wer" in runs[0].data.metrics
