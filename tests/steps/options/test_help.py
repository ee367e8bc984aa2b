"""`--help`: the common options first, groups that hold every option once, one meaning for one name, and a page that lists them all."""

import dataclasses
import importlib
from types import ModuleType

import pytest

from moe.options import allowed_text, is_required, to_text
from steps import main
from steps.options.command_line import parse
from steps.options.help_text import common, groups
from steps.options.options_page import options_page
from steps.options.project_files import ENTRY_POINTS

# of `main`, `transcribe` and `synthesize`, `rollback`, `evaluate`, `ctc` and `domain`; of `personalise`; of `decoder`; of `export`
OWN_MEANING = {"corpus", "format", "language", "registered_model", "selection", "speech_threshold", "word_times"} | {
    *("augment", "max_quarantined", "n_resamples", "n_workers", "person"),
    *("export_dir", "init_from", "output_dir"),
}
STEPS: dict[str, ModuleType] = {name: importlib.import_module(f"steps.{name}") for name in ENTRY_POINTS}


def shown(capsys: pytest.CaptureFixture[str], step: ModuleType, *topic: str) -> str:
    with pytest.raises(SystemExit) as ended:
        parse(step.StepOptions, ["--help", *topic])
    assert ended.value.code == 0
    return capsys.readouterr().out


def flags(text: str) -> list[str]:
    return [line.split()[0].removeprefix("--") for line in text.splitlines() if line.startswith("  --")]


@pytest.mark.parametrize("step", STEPS.values(), ids=STEPS)
def test_help_shows_the_common_options_and_the_names_of_the_groups_or_all(
    capsys: pytest.CaptureFixture[str], step: ModuleType
) -> None:
    names = [field.name for field in dataclasses.fields(step.StepOptions)]
    text = shown(capsys, step)
    assert flags(text) == [field.name for field in common(step.StepOptions)]
    if set(flags(text)) != set(names):
        assert all(f"\n  {group} " in text for group in groups(step.StepOptions))
    assert sorted(flags(shown(capsys, step, "all"))) == sorted(names)


@pytest.mark.parametrize("step", STEPS.values(), ids=STEPS)
def test_every_option_is_in_one_group(capsys: pytest.CaptureFixture[str], step: ModuleType) -> None:
    found = [name for group in groups(step.StepOptions) for name in flags(shown(capsys, step, group))]
    assert sorted(found) == sorted(field.name for field in dataclasses.fields(step.StepOptions))


@pytest.mark.parametrize("step", STEPS.values(), ids=STEPS)
def test_help_says_of_every_option_what_it_takes_and_its_default(
    capsys: pytest.CaptureFixture[str], step: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "1000")
    text = " ".join(shown(capsys, step, "all").split())
    for field in dataclasses.fields(step.StepOptions):
        state = "required" if is_required(field) else f"default: {to_text(field.default)}"
        words = state if allowed_text(field).startswith("text") else f"{allowed_text(field)}; {state}"
        assert f"--{field.name} {' '.join(field.metadata['help'].split())} ({words})" in text


def test_the_help_of_the_chain_fits_on_a_page(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "100")
    assert len(flags(shown(capsys, main))) <= 20 and len(shown(capsys, main).splitlines()) <= 90


def test_a_group_that_there_is_not_is_refused_with_the_one_that_was_meant(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        parse(main.StepOptions, ["--help", "gat"])
    assert ended.value.code == 2 and "did you mean gate?" in capsys.readouterr().err


def test_one_name_has_one_meaning_and_one_default_in_every_step() -> None:
    meanings: dict[str, set[tuple[str, object]]] = {}
    for step in STEPS.values():
        for field in dataclasses.fields(step.StepOptions):
            if not field.name.endswith(("_run_id", "_run_ids")) and field.name not in OWN_MEANING:
                meanings.setdefault(field.name, set()).add((field.metadata["help"], field.default))
    assert {name: found for name, found in meanings.items() if len(found) > 1} == {}


def test_the_page_lists_every_option_of_every_step() -> None:
    """But for those of `main` that `estimate` and `sweep` take: all."""
    page = options_page({name: step.StepOptions for name, step in STEPS.items()})
    known = {field.name for field in dataclasses.fields(main.StepOptions)}
    for name, step in STEPS.items():
        for field in dataclasses.fields(step.StepOptions):
            if name in ("estimate", "sweep") and field.name in known:
                continue
            rows = [line for line in page.splitlines() if f"`{field.name}`" in line.split("|")[1:2].__str__()]
            assert any(name in row.split("|")[5].split() for row in rows), (name, field.name)
