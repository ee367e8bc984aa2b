"""Lines that fit on a screen, whatever they are made of."""

import re
from types import SimpleNamespace

import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from steps.chain import screen
from steps.chain.options import STAGE_NAMES, ChainOptions
from steps.chain.screen import WIDTH, evaluation_lines, opening, stage_line, table_lines
from steps.tracking.step_run import NOTE_TAG

ID = "64c6e89c60254b16a5f99ed46e218a14"


def test_a_stages_line_by_hand() -> None:
    said = stage_line("asr whisper_moe", "ran", ID, 58.2, f"gate_run_id none → {ID}")
    assert said == "asr whisper_moe       ran    64c6e89c    58.2 s  (gate_run_id none → 64c6e89c)"


@given(st.sampled_from(STAGE_NAMES), st.sampled_from(["ran", "reused"]), st.floats(0, 1e6), st.text())
def test_a_stages_line_is_one_line_that_fits_and_begins_with_what_happened(
    name: str, word: str, seconds: float, reason: str
) -> None:
    said = stage_line(name, word, ID, seconds, reason)
    assert len(said) <= WIDTH and len(said.splitlines()) == 1 and said.split()[:3] == [name, word, ID[:8]]
    assert said.endswith(")") and re.search(r"\d s  \(", said)


def test_the_opening_fits_whatever_is_asked_for() -> None:
    assert len(opening(ChainOptions(systems="whisper_moe,single_lora,zero_shot", seed=10**200))) == WIDTH


def test_a_table_by_hand() -> None:
    table = pd.DataFrame(
        {"system": ["base", "a LoRA"], "runs": [3, 3], "WER": ["40.8 %", "7.9 %"], "utterances/s": [114.2, None]}
    )
    assert table_lines(table) == [
        "system  WER     utterances/s",
        "base    40.8 %  114",
        "a LoRA  7.9 %   –",
    ]


def test_what_one_evaluation_found_is_said_where_nothing_compares_it(monkeypatch: pytest.MonkeyPatch) -> None:
    said = {"a": "WER 13 %: one.\n\nCER 2 %; " + "a long tail, " * 20 + "end.\n\n| group |", "b": "WER 9 %: another."}
    runs = {name: SimpleNamespace(data=SimpleNamespace(tags={NOTE_TAG: text})) for name, text in said.items()}
    monkeypatch.setattr(screen, "connect", lambda: SimpleNamespace(client=SimpleNamespace(get_run=runs.__getitem__)))
    lines = evaluation_lines(["a", "b"])
    assert lines[:2] == ["", "WER 13 %: one."] and lines[2].startswith("CER 2 %;") and lines[-3:-1] == ["", "WER 9 %: another."]
    assert not any("group" in line for line in lines) and max(map(len, lines)) <= WIDTH
