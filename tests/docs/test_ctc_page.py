"""The table of document 004's names in docs/ctc.md: every name is an option here, or is refused with what it is."""

import re
from pathlib import Path

import pytest

from moe.options import names_of
from steps import ctc, main
from steps.options.command_line import parse
from steps.options.option_files import read_option_file

ROOT = Path(__file__).parents[2]
ROWS = [
    tuple(re.findall(r"`?([^`|]+?)`? *\|", line)[:3])
    for line in (ROOT / "docs" / "ctc.md").read_text(encoding="utf-8").partition("| --- |")[2].splitlines()[1:]
    if line.startswith("| `")
]
ROWS = [(document.strip(" `"), ours.strip(" `"), value.strip()) for document, ours, value in ROWS]
DIFFERENT = [(document, ours) for document, ours, _ in ROWS if document != ours]


def test_the_table_is_whole_and_names_options_of_the_step() -> None:
    assert len(ROWS) == 24
    options = names_of(ctc.StepOptions)
    assert all(ours in options or ours == "follows from the vocabulary" for _, ours, _ in ROWS)


@pytest.mark.parametrize(("document", "ours"), DIFFERENT)
@pytest.mark.parametrize("step", [ctc, main], ids=["ctc", "main"])
def test_a_name_of_the_document_is_refused_with_ours(step, document: str, ours: str, capsys) -> None:
    with pytest.raises(SystemExit):
        parse(step.StepOptions, ["--prepare_run_id", "x", f"--{document}", "1"][2 if step is main else 0 :])
    said = capsys.readouterr().err
    assert f"{document}: no such option: " in said
    assert "vocabulary" in said if ours.startswith("follows") else ours in said


def test_the_preset_holds_the_documents_values() -> None:
    preset = read_option_file(str(ROOT / "presets" / "document-004.yaml"))
    for document, ours, value in ROWS:
        first = value.partition(",")[0]
        if ours in preset:
            assert preset[ours] == first, document
    assert len([ours for _, ours, value in ROWS if re.match(r"[\d]|true|mean", value) and ours not in preset]) == 0
