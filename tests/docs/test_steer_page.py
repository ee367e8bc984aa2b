"""The table of document 002's names in docs/steermoe.md: what stands for each is an option, and a name of its own is refused with it."""

import re
from pathlib import Path

import pytest

from moe.options import names_of
from steps import main
from steps.options.command_line import unknown
from steps.options.document_names import FOLLOWS
from steps.options.option_files import read_option_file

ROOT = Path(__file__).parents[2]
QUOTED = re.compile(r"`([\w.]+)(?:=[^`]*)?`")
TABLE = (ROOT / "docs" / "steermoe.md").read_text(encoding="utf-8").partition("| document | here | its value |")[2]
ROWS = [tuple(cell.strip() for cell in line.split("|")[1:4]) for line in TABLE.splitlines() if line.startswith("| ")][1:]
NAMES = {name.rpartition(".")[2]: here for document, here, _ in ROWS for name in QUOTED.findall(document)}
PROMISED = """num_experts steering_scale use_layer_scales steering_gradient_clip steering_learning_rate router_learning_rate learning_rate
batch_size textual_prompt max_text_length max_length max_audio_length audio_column text_column parquet_dirs num_workers
return_attention_mask dataloader_drop_last remove_unused_columns"""


def test_the_table_has_every_name_of_the_document_and_names_options() -> None:
    assert set(NAMES) == set(PROMISED.split())
    options = names_of(main.StepOptions)
    assert {name for _, here, _ in ROWS if not here.startswith("no option") for name in QUOTED.findall(here)} <= set(options)


@pytest.mark.parametrize("name", sorted(set(NAMES) - set(names_of(main.StepOptions))))
def test_a_name_of_its_own_is_refused_with_ours_or_with_the_reason(name: str) -> None:
    said, ours = unknown(name, names_of(main.StepOptions)), QUOTED.findall(NAMES[name])
    if NAMES[name].startswith("no option"):
        assert FOLLOWS[name] in said
    else:
        assert any(re.search(rf"\b{each}\b", said) for each in ours), said


def test_the_preset_holds_the_documents_values() -> None:
    preset = read_option_file(str(ROOT / "presets" / "steermoe.yaml"))
    for document, here, value in ROWS:
        for name in QUOTED.findall(here):
            if re.match(r"[\d.e-]+$|true$|请", value):
                assert preset[name] == value, document
    assert preset["projector"] == "linear" and preset["fp16"] == "true"
